// The conversation: sends it as a whole, shows the answer as it comes.
import { NeedsKey, call, events, setKey } from "/web/api.js";

const $ = (id) => document.getElementById(id);
const SPOKEN = 20000; // milliseconds
const BREATH = 200; // characters of a sentence without end
const FRAME = 50; // milliseconds
const messages = [];
let running = null; // AbortController of the answer that is being written

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (text && !running) ask(text);
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});

$("prompt").addEventListener("input", fitPrompt);
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  messages.length = 0;
  $("log").replaceChildren($("hint"));
  $("hint").hidden = false;
  $("prompt").focus();
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value);
  $("key-form").hidden = true;
  $("prompt").focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});

async function ask(text) {
  const control = new AbortController();
  messages.push({ role: "user", content: text });
  show("user", "You").textContent = text;
  $("prompt").value = "";
  fitPrompt();
  const place = show("assistant", "Model");
  const bubble = place.parentElement;
  bubble.classList.add("writing");
  const speech = speaker();
  const written = writer(place);
  setRunning(control);
  let answer = "";
  try {
    const response = await call("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request()),
      signal: control.signal,
    });
    for await (const chunk of events(response)) {
      const choice = chunk.choices[0];
      if (choice?.delta?.content) {
        answer += choice.delta.content;
        written.add(choice.delta.content);
        speech.add(choice.delta.content);
      }
      if (chunk.timings) {
        written.end();
        facts(bubble, chunk.timings, choice.finish_reason);
      }
    }
    written.end();
    speech.end();
  } catch (error) {
    written.end();
    if (error instanceof NeedsKey) {
      // Nothing was asked: the text goes back into its field
      bubble.previousElementSibling.remove();
      bubble.remove();
      messages.pop();
      $("prompt").value = text;
      needKey();
      return;
    }
    if (error.name === "AbortError") {
      facts(bubble, null, "stopped");
      speech.end("Stopped.");
    } else {
      bubble.classList.add("failed");
      append(place, `${answer ? "\n" : ""}${error.message}`);
      speech.end(`Error: ${error.message}`);
    }
  } finally {
    bubble.classList.remove("writing");
    if (running === control) setRunning(null);
  }
  if (messages.length) messages.push({ role: "assistant", content: answer });
}

function request() {
  const system = $("system").value.trim();
  return {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    temperature: number("temperature", 0.8),
    max_tokens: number("max-tokens", 256),
    stream: true,
  };
}

function number(id, otherwise) {
  return $(id).value !== "" && $(id).checkValidity() ? Number($(id).value) : otherwise;
}

// A message's bubble; returns the element for its text.
function show(role, name) {
  $("hint").hidden = true;
  const bubble = document.createElement("div");
  bubble.className = `message ${role}`;
  bubble.setAttribute("role", "article");
  bubble.setAttribute("aria-label", name);
  const who = document.createElement("span");
  who.className = role === "user" ? "who unseen" : "who";
  who.textContent = name;
  const text = document.createElement("span");
  text.className = "text";
  bubble.append(who, text);
  $("log").append(bubble);
  $("log").scrollTop = $("log").scrollHeight;
  return text;
}

// Text as it arrives, put on the page every so often: to lay a long answer out anew for each token of a fast model froze the page
// for as long as the answer took, and Escape with it.
function writer(place) {
  let held = "";
  let due = null;
  const flush = () => {
    clearTimeout(due);
    due = null;
    if (held) append(place, held);
    held = "";
  };
  return {
    add(text) {
      held += text;
      due ??= setTimeout(flush, FRAME);
    },
    end: flush,
  };
}

// New text; the log follows unless the reader has scrolled up.
function append(place, text) {
  const log = $("log");
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  place.append(text);
  if (following) log.scrollTop = log.scrollHeight;
}

// What a screen reader says of an answer while it is written: sentences, one after another, since it would read every piece of
// a word by itself. They are gone a while after the end; the conversation holds them.
function speaker() {
  const place = $("announce");
  let held = "";
  const say = (words) => {
    if (!words.trim()) return;
    const line = document.createElement("p");
    line.textContent = words.trim();
    place.append(line);
    setTimeout(() => line.remove(), SPOKEN);
  };
  return {
    add(text) {
      held += text;
      const border = held.length > BREATH ? /^[^]*(?=\s)/ : /^[^]*(?:[.!?:;](?=\s)|\n)/;
      const whole = held.match(border)?.[0] ?? "";
      say(whole);
      held = held.slice(whole.length);
    },
    end(last = "") {
      say(held);
      held = "";
      say(last);
    },
  };
}

function facts(bubble, timings, reason) {
  const line = document.createElement("span");
  line.className = "facts";
  const parts = [];
  if (timings) {
    parts.push(`${timings.predicted_n} tokens, ${timings.predicted_per_second.toFixed(1)} a second`);
    parts.push(`prompt ${timings.prompt_n + timings.cache_n}, ${timings.cache_n} of them cached`);
  }
  if (reason === "length") parts.push("cut at the limit");
  if (reason === "stopped") parts.push("stopped");
  line.textContent = parts.join(" · ");
  bubble.append(line);
  $("log").scrollTop = $("log").scrollHeight;
}

function setRunning(control) {
  running = control;
  $("send").hidden = control !== null;
  $("stop").hidden = control === null;
  if (control === null) $("prompt").focus();
}

function needKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

function fitPrompt() {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 192)}px`;
}

document.addEventListener("stratakv-needs-key", () => {
  if ($("key-form").hidden) needKey();
});
