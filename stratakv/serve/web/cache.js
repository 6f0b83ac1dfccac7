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
  const kinds = status.kinds.length < 2 ? [] : status.kinds;
  const counts = { used: status.pages_used, cached: status.pages_cached, free: status.pages_free };
  drawBars(kinds.length ? kinds : [{ kind: "", ...counts }]);
  const legend = [
    ["is-used", `${counts.used} used`],
    ["is-cached", `${counts.cached} kept for prefixes`],
    ["is-free", `${counts.free} free`],
  ].map(([kind, text]) => element("span", kind, text));
  const size = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  for (const kind of kinds) {
    legend.push(element("span", "kind", `${kind.kind}: ${kind.used} used, ${kind.cached} kept, ${kind.free} free; ${size(kind.nbytes)}`));
  }
  $("pages").replaceChildren(...legend, element("b", "", `${status.page_tokens} tokens a page, ${size(status.cache_bytes)} in all`));
}

function drawBars(kinds) {
  const rows = [...$("bars").children];
  while (rows.length < kinds.length) {
    const row = element("div", "row-of-bar");
    const bar = element("div", "bar");
    bar.append(element("span", "used"), element("span", "cached"));
    row.append(element("span", "kind"), bar);
    $("bars").append(row);
    rows.push(row);
  }
  kinds.forEach((kind, i) => {
    const [name, bar] = rows[i].children;
    name.textContent = kind.kind;
    name.hidden = !kind.kind;
    const all = kind.used + kind.cached + kind.free || 1;
    bar.children[0].style.width = `${(100 * kind.used) / all}%`;
    bar.children[1].style.width = `${(100 * kind.cached) / all}%`;
  });
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
  $("outlined").hidden = !status.layers.some((layer) => layer.fine);
  $("layers").replaceChildren(
    ...status.layers.map((layer) => {
      const row = document.createElement("tr");
      const name = element("th", "", layer.layer);
      name.scope = "row";
      row.append(
        side("k", layer.k, layer.k_family, layer.k_bits, layer.k_fine_bits),
        name,
        side("v", layer.v, layer.v_family, layer.v_bits, layer.v_fine_bits),
      );
      const notes = [];
      if (layer.window) notes.push(`keeps ${layer.window} tokens`);
      if (layer.fine) notes.push(spansText(layer));
      if (notes.length) {
        row.title = notes.join("; ");
        name.append(element("span", "unseen", row.title));
      }
      return row;
    }),
  );
}

// As profiles say it: "recent: 2 pages turbo8; first: 1 page turbo8"
function spansText(layer) {
  return ["recent", "first"]
    .filter((word) => layer[word])
    .map((word) => `${word}: ${layer[word]} page${layer[word] === 1 ? "" : "s"} ${layer.fine}`)
    .join("; ");
}

function side(letter, type, family, bits, fineBits) {
  const td = element("td", `${letter} ${family}`);
  const cell = element("div", "cell");
  const name = element("span", "", type);
  const exact = `${bits.toFixed(2)} bits a value` + (fineBits > bits ? `, ${fineBits.toFixed(2)} in spans` : "");
  name.append(element("span", "unseen", exact));
  cell.append(fill("fill", bits));
  if (fineBits > bits) cell.append(fill("fill fine", fineBits - bits));
  cell.append(name);
  cell.title = `${letter.toUpperCase()}: ${type}, ${exact}`;
  td.append(cell);
  return td;
}

function fill(kind, bits) {
  const made = element("span", kind);
  made.style.setProperty("--share", Math.min(1, bits / FULL_BITS));
  return made;
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
