// The picture: nodes on the left, networks beside them, and right of each network its endpoints, wired row by row.
// Names reach the document as text alone.

import { number, sum } from "./rates.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = 8;
const NODE = { width: 150, height: 48 };
const NETWORK = { width: 200, height: 60 };
const EMPTY_HEIGHT = 44;  // of a network without endpoints, which has no rates
const CHIP = { width: 148, height: 40 };
const COLUMN_GAP = 48;
const ROW_GAP = 18;      // the wire to a row of endpoints runs in it
const CHIP_GAP = 10;
const NETWORK_GAP = 22;
const MOST_ENDPOINTS = 500;
const LEAST_OF_A_NETWORK = 8;

// Decides where everything is. Returns { boxes, edges, width, height }; the order of boxes is that of the keyboard.
export function layout(networks, nodes, host, width) {
  const networkX = MARGIN + NODE.width + COLUMN_GAP;
  const chipX = networkX + NETWORK.width + COLUMN_GAP;
  const columns = Math.max(1, Math.floor((width - chipX - MARGIN + CHIP_GAP) / (CHIP.width + CHIP_GAP)));
  const total = networks.reduce((count, network) => count + network.endpoints.length, 0);
  const boxes = [];
  const edges = [];
  const self = nodes.find((node) => node.self);
  const nodeBoxes = new Map([self ?? { name: host, address: "", state: "ready", self: true },
    ...nodes.filter((node) => !node.self)].map((node, place) => {
    const y = MARGIN + place * (NODE.height + NETWORK_GAP);
    return [node.name, { key: `node:${node.name}`, kind: "node", node, x: MARGIN, y, ...NODE }];
  }));
  boxes.push(...nodeBoxes.values());
  const here = boxes[0];
  const hosts = [...nodeBoxes.values()];
  let y = MARGIN;
  for (const network of [...networks].sort((a, b) => isEmpty(a) - isEmpty(b))) {
    const height = isEmpty(network) ? EMPTY_HEIGHT : NETWORK.height;
    const box = { key: `network:${network.id}`, kind: "network", network, x: networkX, y, ...NETWORK, height };
    boxes.push(box);
    for (const [place, node] of hosts.entries()) {
      if (node !== here && !network.nodes.includes(node.node.name)) continue;
      const spine = node.x + node.width + (COLUMN_GAP * (place + 1)) / (hosts.length + 1);
      edges.push(betweenColumns(node, box, spine, node === here ? network.rates : null));
    }
    const chips = gathered(network, total);
    chips.forEach((chip, place) => {
      const x = chipX + (place % columns) * (CHIP.width + CHIP_GAP);
      const row = Math.floor(place / columns);
      const at = { ...chip, x, y: y + row * (CHIP.height + ROW_GAP), ...CHIP };
      boxes.push(at);
      edges.push(toChip(box, at, chipX));
    });
    const rows = Math.ceil(chips.length / columns);
    y += Math.max(height, rows * (CHIP.height + ROW_GAP)) + NETWORK_GAP;
  }
  const bottom = boxes.map((box) => box.y + box.height);
  const right = boxes.map((box) => box.x + box.width);
  return { boxes, edges, width: Math.max(...right) + MARGIN, height: Math.max(...bottom, y) + MARGIN };
}

// The network's endpoints, each by itself as long as there are few on the page; else those that its share has no room
// for are drawn as one.
function gathered(network, total) {
  const chips = network.endpoints.map((endpoint) => ({ key: `endpoint:${endpoint.id}`, kind: "endpoint", endpoint, network }));
  if (total <= MOST_ENDPOINTS) return chips;
  const room = Math.max(LEAST_OF_A_NETWORK, Math.floor((MOST_ENDPOINTS * chips.length) / total));
  if (chips.length <= room) return chips;
  const rest = chips.slice(room - 1).map((chip) => chip.endpoint);
  return [...chips.slice(0, room - 1), { key: `rest:${network.id}`, kind: "rest", rest, network }];
}

function isEmpty(network) {
  return network.endpoints.length === 0;
}

// By a spine of the node's own, so that wires of several nodes can be told apart.
function betweenColumns(node, network, spine, rates) {
  const fromY = node.y + node.height / 2;
  const toY = network.y + network.height / 2;
  const path = `M${node.x + node.width} ${fromY} H${spine} V${toY} H${network.x}`;
  return { key: `${node.key} ${network.key}`, path, rates, isLost: node.node.state !== "ready" };
}

function toChip(network, chip, chipX) {
  const spine = chipX - COLUMN_GAP / 2;
  const rail = chip.y + chip.height + ROW_GAP / 2;
  const path = `M${network.x + network.width} ${network.y + network.height / 2} H${spine} V${rail} `
    + `H${chip.x + chip.width / 2} V${chip.y + chip.height}`;
  return { key: `${network.key} ${chip.key}`, path, rates: ratesOfBox(chip), isLost: false };
}

// What the box stands for sends and is delivered; null where that is not known.
export function ratesOfBox(box) {
  if (box.kind === "rest") return sum(box.rest.map((endpoint) => endpoint.rates));
  return box.kind === "node" ? null : (box.endpoint ?? box.network).rates;
}

export function nameOfBox(box) {
  switch (box.kind) {
    case "node": return box.node.name;
    case "network": return box.network.name;
    case "endpoint": return box.endpoint.name;
    default: return `${box.rest.length} more`;
  }
}

function linesOfBox(box) {
  const rates = ratesOfBox(box);
  const rate = rates
    ? `\u2191${number(rates.outBits)} \u2193${number(rates.inBits)} ${rates.dropped ? `\u00d7${number(rates.dropped)}/s` : "b/s"}`
    : "";
  switch (box.kind) {
    case "node": return [box.node.self ? "this host" : `${box.node.address} ${box.node.state}`];
    case "network":
      return isEmpty(box.network) ? [`${box.network.driver}, nobody here`]
        : [`${box.network.driver}, ${box.network.endpoints.length} here`, rate];
    default: return [rate];
  }
}

// Draws what `layout` decided. Elements of what stays are kept, so that focus and selection outlive an update.
export class Picture {
  #svg;
  #elements = new Map();
  #idle = make("g", { "aria-hidden": "true" });  // below the others
  #busy = make("g", { "aria-hidden": "true" });
  #boxes = make("g");

  constructor(svg) {
    this.#svg = svg;
    svg.append(this.#idle, this.#busy, this.#boxes);
  }

  draw({ boxes, edges, width, height }) {
    set(this.#svg, { width, height, viewBox: `0 0 ${width} ${height}` });
    const keys = new Set();
    for (const edge of edges) {
      keys.add(edge.key);
      this.#drawEdge(this.#element(edge.key, this.#idle, () => make("path")), edge);
    }
    for (const box of boxes) {
      keys.add(box.key);
      this.#drawBox(this.#element(box.key, this.#boxes, makeBox), box);
    }
    for (const [key, element] of this.#elements) {
      if (!keys.has(key)) {
        element.remove();
        this.#elements.delete(key);
      }
    }
  }

  // The element of a box, undefined when it is not drawn.
  box(key) {
    return this.#elements.get(key);
  }

  #element(key, parent, create) {
    let element = this.#elements.get(key);
    if (!element) {
      element = create();
      element.dataset.key = key;
      this.#elements.set(key, element);
      parent.append(element);
    }
    return element;
  }

  #drawEdge(element, { path, rates, isLost }) {
    const bits = rates ? rates.outBits + rates.inBits : 0;
    const kind = isLost ? "lost" : !rates?.packets ? "idle" : rates.fast / rates.packets >= 0.5 ? "fast" : "slow";
    const width = bits ? Math.min(6, 1.5 + Math.max(0, Math.log10(bits) - 3) * 0.7) : 1;
    set(element, { d: path, class: `edge ${kind}`, "stroke-width": width.toFixed(1) });
    const layer = bits ? this.#busy : this.#idle;
    if (element.parentNode !== layer) layer.append(element);
  }

  #drawBox(element, box) {
    const [frame, title, ...texts] = element.children;
    const [name, lines] = [nameOfBox(box), linesOfBox(box)];
    const rates = ratesOfBox(box);
    const states = [box.node && box.node.state !== "ready" ? "lost" : "", rates?.dropped ? "dropping" : ""];
    set(element, {
      class: ["box", box.kind, ...states].filter(Boolean).join(" "),
      transform: `translate(${box.x} ${box.y})`,
      "aria-label": [box.kind === "rest" ? "" : box.kind, name, ...lines].filter(Boolean).join(", "),
    });
    set(frame, { width: box.width, height: box.height });
    setText(title, name);
    [shortened(name, Math.floor((box.width - 16) / 7.5)), ...lines, "", ""].slice(0, texts.length)
      .forEach((line, place) => setText(texts[place], line));
  }
}

function makeBox() {
  const group = make("g", { tabindex: "-1", role: "button" });
  group.append(make("rect", { rx: 6 }), make("title"));
  for (const y of [17, 33, 50]) group.append(make("text", { x: 8, y }));
  return group;
}

function make(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  set(element, attributes);
  return element;
}

// Sets what is different, so that the browser has nothing to do for the rest.
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function shortened(text, most) {
  const characters = [...text];
  return characters.length <= most ? text : `${characters.slice(0, most - 1).join("")}\u2026`;
}
