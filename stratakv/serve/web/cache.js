// The live picture of the cache: asks for the numbers once a second while the page is seen.
import { NeedsKey, call } from "/web/api.js";

const $ = (id) => document.getElementById(id);
const PERIOD = 1000;
const HISTORY = 120;
const FULL_BITS = 16;
const speeds = [];
let drawnLayers = "";
let drawnLost = "[]";

async function tick() {
  if (!document.hidden) {
    try {
      draw(await (await call("/stratakv/status")).json());
    } catch (error) {
      if (error instanceof NeedsKey) {
        document.dispatchEvent(new Event("stratakv-needs-key"));
        setState("bad", error.message);
      } else {
        setState("bad", "the server does not answer");
      }
    }
  }
  setTimeout(tick, PERIOD);
}

function draw(status) {
  setText("model", status.model);
  document.title = `${status.model} · stratakv`;
  setState(status.healthy ? "good" : "bad", status.healthy ? (status.running ? "working" : "ready") : `stopped: ${status.why}`);
  setText("speed", status.tokens_per_second.toFixed(status.tokens_per_second < 10 ? 1 : 0));
  setText("running", status.running);
  setText("queued", status.queued);
  setText("bytes", status.bytes_per_token.toLocaleString("en"));
  drawLost(status.lost);
  drawSpark(status.tokens_per_second);
  drawPages(status);
  drawSlots(status);
  drawLayers(status);
}

function drawLost(lost) {
  const text = JSON.stringify(lost);
  if (text === drawnLost) return;
  drawnLost = text;
  $("lost-part").hidden = !lost.length;
  $("lost").replaceChildren(
    ...lost.map((loss) => {
      const row = document.createElement("div");
      row.append(element("dt", "", `no ${loss.feature}`), element("dd", "", loss.why));
      return row;
    }),
  );
}

function drawSpark(speed) {
  speeds.push(speed);
  if (speeds.length > HISTORY) speeds.shift();
  const top = Math.max(1, ...speeds);
  const points = speeds.map((value, i) => `${HISTORY - speeds.length + i},${(23 - (22 * value) / top).toFixed(1)}`);
  $("spark").firstElementChild.setAttribute("points", points.join(" "));
  $("spark").setAttribute("aria-label", `Tokens a second: now ${speed.toFixed(0)}, at most ${Math.max(...speeds).toFixed(0)} lately`);
}

function drawPages(status) {
  const all = status.pages_used + status.pages_cached + status.pages_free || 1;
  $("bar-used").style.width = `${(100 * status.pages_used) / all}%`;
  $("bar-cached").style.width = `${(100 * status.pages_cached) / all}%`;
  const legend = [
    ["is-used", `${status.pages_used} used`],
    ["is-cached", `${status.pages_cached} kept for prefixes`],
    ["is-free", `${status.pages_free} free`],
  ].map(([kind, text]) => element("span", kind, text));
  const size = (status.cache_bytes / 2 ** 20).toFixed(1);
  const kinds = status.kinds.length < 2 ? [] : status.kinds;
  for (const kind of kinds) {
    const text = `${kind.kind}: ${kind.used} used, ${kind.cached} kept, ${kind.free} free, ${(kind.nbytes / 2 ** 20).toFixed(1)} MiB`;
    legend.push(element("span", "", text));
  }
  $("pages").replaceChildren(...legend, element("b", "", `${status.page_tokens} tokens a page, ${size} MiB in all`));
}

function drawSlots(status) {
  const rows = status.slots.map((slot) => {
    const row = element("li", slot.state === "idle" ? "" : "busy");
    const bar = element("div", "bar");
    bar.setAttribute("aria-hidden", "true");
    const fill = element("span", slot.state === "idle" ? "cached" : "used");
    fill.style.width = `${Math.min(100, (100 * slot.tokens) / status.context)}%`;
    bar.append(fill);
    const name = element("span", "", slot.id);
    name.prepend(element("span", "unseen", "Slot"));
    row.append(name, bar, element("span", "what", words(slot)));
    return row;
  });
  $("slots").replaceChildren(...rows);
}

function words(slot) {
  if (slot.state === "prompt") return `reading ${slot.prompt_done} of ${slot.prompt_tokens}`;
  if (slot.state === "decode") return `${slot.tokens} tokens, ${slot.decoded} new`;
  return slot.tokens ? `idle, ${slot.tokens} tokens` : "idle";
}

function drawLayers(status) {
  setText("profile", `Profile ${status.profile}`);
  const signature = JSON.stringify(status.layers);
  if (signature === drawnLayers) return; // nothing moves under a reader's eyes or cursor
  drawnLayers = signature;
  $("layers").replaceChildren(
    ...status.layers.map((layer) => {
      const row = document.createElement("tr");
      const name = element("th", "", layer.layer);
      name.scope = "row";
      row.append(side("k", layer.k, layer.k_bits), name, side("v", layer.v, layer.v_bits));
      const notes = [];
      if (layer.window) notes.push(`keeps ${layer.window} tokens`);
      if (layer.fine) notes.push(`newest ${layer.recent} pages and first ${layer.first} in ${layer.fine}`);
      if (notes.length) {
        row.title = notes.join("; ");
        name.append(element("span", "unseen", row.title));
      }
      return row;
    }),
  );
}

function side(letter, type, bits) {
  const family = type.startsWith("turbo") ? "turbo" : type.startsWith("q") ? "block" : "float";
  const td = element("td", `${letter} ${family}`);
  const cell = element("div", "cell");
  const fill = element("span", "fill");
  fill.style.width = `${Math.min(100, (100 * bits) / FULL_BITS)}%`;
  const name = element("span", "", type);
  const exact = `${bits.toFixed(2)} bits a value`;
  name.append(element("span", "unseen", exact));
  cell.append(fill, name);
  cell.title = `${letter.toUpperCase()}: ${type}, ${exact}`;
  td.append(cell);
  return td;
}

function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(id, text) {
  if ($(id).textContent !== String(text)) $(id).textContent = text;
}

function setState(kind, text) {
  $("state").className = `state ${kind}`;
  setText("state-text", text);
}

tick();
