// Asks for /stats again and again, has it drawn, and looks after the filter, the keyboard and the details.

import { HISTORY, PERIOD_S, Recorder, duration, number } from "./rates.js";
import { Picture, layout, nameOfBox, ratesOfBox, setText } from "./topology.js";

const DEADLINE_MS = 10000;
const STATS = new URL("stats", location.origin + location.pathname);  // without a password that the address may hold
const at = (id) => document.getElementById(id);

const recorder = new Recorder();
const picture = new Picture(at("topology"));
let boxes = [];
let selected = null;  // a box's key
let current = null;   // the key of the box that the tab key comes to
let isPaused = false;

async function look() {
  try {
    const stats = isPaused || document.hidden ? null : await ask();
    if (stats) {
      recorder.add(stats);
      draw();
    }
  } finally {
    setTimeout(look, PERIOD_S * 1000);
  }
}

// The next document; null when there is none, which the page then says.
async function ask() {
  try {
    const response = await fetch(STATS, { signal: AbortSignal.timeout(DEADLINE_MS) });
    if (!response.ok) throw new Error(`it answers ${response.status}`);
    const stats = await response.json();
    setState("");
    return stats;
  } catch (error) {
    const shown = recorder.document ? ` What is shown is of ${clock(recorder.document.at)}.` : "";
    setState(`linkspand does not answer (${error.message}).${shown}`);
    return null;
  }
}

function setState(text) {
  setText(at("state"), text);
  document.body.classList.toggle("stale", text !== "" && recorder.document !== null);
}

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString();
}

function draw() {
  const { document: stats } = recorder;
  if (!stats) return;
  const networks = filtered(recorder.networks, at("filter").value.trim());
  at("details").hidden = selected === null;  // its width counts
  const width = at("topology").parentElement.clientWidth - at("details").offsetWidth;
  const plan = layout(networks, stats.nodes, stats.host, width);
  boxes = plan.boxes;
  picture.draw(plan);
  if (!boxes.some((box) => box.key === current)) current = boxes[0].key;
  for (const { key } of boxes) {
    picture.box(key).setAttribute("tabindex", key === current ? "0" : "-1");
    picture.box(key).setAttribute("aria-pressed", key === selected);
  }
  drawSiblings();
  drawTotals(stats);
  drawDetails();
}

// The networks whose names hold `text`, whole, and others with the endpoints whose names or addresses do.
function filtered(networks, text) {
  if (!text) return networks;
  return networks.flatMap((network) => {
    if (network.name.includes(text)) return [network];
    const endpoints = network.endpoints.filter((endpoint) =>
      [endpoint.name, endpoint.ipv4, endpoint.ipv6].some((value) => value.includes(text)));
    return endpoints.length ? [{ ...network, endpoints }] : [];
  });
}

// Marks the endpoints of the selected one's sandbox on other networks.
function drawSiblings() {
  const sandbox = boxes.find((box) => box.key === selected)?.endpoint?.sandbox;
  for (const box of boxes) {
    picture.box(box.key).classList.toggle("sibling", Boolean(sandbox) && box.endpoint?.sandbox === sandbox);
  }
}

function drawTotals(stats) {
  const endpoints = stats.networks.reduce((count, network) => count + network.endpoints.length, 0);
  const lacking = Object.entries(stats.fallbacks).map(([feature, reason]) => `${feature}: ${reason}`);
  setText(at("host"), stats.host);
  setText(at("totals"), `${stats.networks.length} networks, ${endpoints} endpoints at ${clock(stats.at)}`
    + (lacking.length ? `; this host lacks ${lacking.join("; ")}` : ""));
}

function drawDetails() {
  const box = boxes.find((each) => each.key === selected);
  at("details").hidden = !box;
  if (!box) return;
  setText(at("details").querySelector("h2"), nameOfBox(box));
  const history = recorder.history((box.endpoint ?? box.network)?.id);
  const peak = Math.max(...history, 1);
  const step = 240 / (HISTORY - 1);
  const points = history.map((bits, place) => `${240 - (history.length - 1 - place) * step} ${46 - (bits / peak) * 44}`);
  at("minute").firstElementChild.setAttribute("d", points.length ? `M${points.join("L")}` : "");
  setText(at("peak"), history.length ? `peak ${number(Math.max(...history))} b/s, both ways, in ${history.length * PERIOD_S} s` : "");
  const rows = factsOf(box).filter(([, value]) => value !== "");
  at("details").querySelector("tbody").replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("tr");
    const [head, cell] = [document.createElement("th"), document.createElement("td")];
    head.scope = "row";
    head.textContent = name;
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
}

function factsOf(box) {
  if (box.kind === "node") {
    const { node } = box;
    return [["address", node.address], ["state", node.state], ["", node.self ? "this host" : ""]];
  }
  const rates = ratesOfBox(box);
  const facts = rates ? [
    ["sent", `${number(rates.outBits)} b/s`],
    ["delivered", `${number(rates.inBits)} b/s`],
    ["packets", `${number(rates.packets)} /s`],
    ["by programs", rates.packets ? `${Math.round((100 * rates.fast) / rates.packets)}%` : ""],
  ] : [["", "not measured"]];
  if (box.kind === "rest") return facts;
  if (rates) {
    facts.push(
      ["to the sandbox", latency(rates.forwarding)],
      ["TCP round trip", latency(rates.tcpRtt)],
      ...rates.drops.map(([reason, rate]) => [`dropped, ${reason}`, `${number(rate)} /s`]),
    );
  }
  const { endpoint, network } = box;
  const who = endpoint
    ? [["network", network.name], ["IPv4", endpoint.ipv4], ["IPv6", endpoint.ipv6], ["MAC", endpoint.mac]]
    : [["driver", network.driver], ["scope", network.scope], ["nodes", network.nodes.join(", ")]];
  return [...facts, ...who, ["id", (endpoint ?? network).id.slice(0, 12)]];
}

function latency([p50, p99]) {
  return p50 === null ? "" : `p50 ${duration(p50)}, p99 ${duration(p99)}`;
}

function select(key) {
  selected = key === selected ? null : key;
  draw();
}

function focus(key) {
  current = key;
  draw();
  picture.box(key).focus();
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

at("topology").addEventListener("keydown", (event) => {
  if (event.key in STEPS && boxes.length) {
    const place = boxes.findIndex((box) => box.key === current) + STEPS[event.key];
    focus(boxes[Math.min(Math.max(place, 0), boxes.length - 1)].key);
  } else if (event.key === "Enter" || event.key === " ") {
    select(current);
  } else if (event.key === "Escape") {
    select(selected);
  } else {
    return;
  }
  event.preventDefault();
});

at("topology").addEventListener("click", (event) => {
  const key = event.target.closest(".box")?.dataset.key;
  if (key) {
    focus(key);
    select(key);
  }
});

at("filter").addEventListener("input", draw);

at("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  at("pause").setAttribute("aria-pressed", isPaused);
  setText(at("pause"), isPaused ? "Go on" : "Pause");
});

new ResizeObserver(draw).observe(at("topology").parentElement);
look();
