// Rates and latencies from documents of /stats that are taken one after the other; docs/views.md describes them.

const LATENCY_LEAST_S = 5;  // latencies are of samples, which are few on a quiet network: of this to twice as long
export const PERIOD_S = 2;
export const HISTORY = 30;  // rates that are remembered of each row: a minute
const TALLIES = ["out_fast", "out_slow", "in_fast", "in_slow"].flatMap((way) => [`${way}_packets`, `${way}_bytes`]);

// Takes one document after the other. `networks` are the last one's, each and each of its endpoints with `rates`, which
// are null while nothing is known: with the first document, after a join, where nobody counts.
export class Recorder {
  networks = [];
  document = null;
  #marks = [];
  #history = new Map();

  add(document) {
    let before = this.document;
    if (before && document.monotonic <= before.monotonic) {  // the host has been started anew, and its counters with it
      before = null;
      this.#marks = [];
    }
    this.document = document;
    const seconds = before ? document.monotonic - before.monotonic : 0;
    const earlier = endpointsOf(before);
    const oldest = endpointsOf(this.#marks[0]);
    this.networks = document.networks.map((network) => {
      const grown = [];
      const endpoints = network.endpoints.map((endpoint) => {
        const growth = growthOf(endpoint, earlier.get(endpoint.id), oldest.get(endpoint.id));
        if (growth) grown.push(growth);
        return { ...endpoint, rates: growth && ratesOf([growth], seconds, document.latency_schema) };
      });
      const isKnown = grown.length > 0 || (seconds > 0 && endpoints.length === 0);
      return { ...network, endpoints, rates: isKnown ? ratesOf(grown, seconds, document.latency_schema) : null };
    });
    if (!this.#marks.length || document.monotonic - this.#marks.at(-1).monotonic >= LATENCY_LEAST_S) {
      this.#marks = [...this.#marks.slice(-1), document];
    }
    this.#remember();
  }

  // Bits per second, both directions together, oldest first.
  history(id) {
    return this.#history.get(id) ?? [];
  }

  #remember() {
    const rows = this.networks.flatMap((network) => [network, ...network.endpoints]);
    this.#history = new Map(rows.map((row) => {
      const known = this.#history.get(row.id) ?? [];
      return [row.id, row.rates ? [...known, row.rates.outBits + row.rates.inBits].slice(-HISTORY) : known];
    }));
  }
}

// The sum of rates, as of a network or of endpoints that are drawn together.
export function sum(rates) {
  const known = rates.filter((each) => each !== null);
  const of = (name) => known.reduce((total, each) => total + each[name], 0);
  return { outBits: of("outBits"), inBits: of("inBits"), dropped: of("dropped"), fast: of("fast"), packets: of("packets") };
}

function endpointsOf(document) {
  const endpoints = document ? document.networks.flatMap((network) => network.endpoints) : [];
  return new Map(endpoints.map((endpoint) => [endpoint.id, endpoint]));
}

function growthOf(now, before, oldest) {
  if (!before?.counters || !now.counters) return null;
  const counters = Object.fromEntries(TALLIES.map((tally) => [tally, now.counters[tally] - before.counters[tally]]));
  if (TALLIES.some((tally) => counters[tally] < 0)) return null;
  const drops = Object.entries(now.drops).map(([reason, count]) => [reason, count - (before.drops[reason] ?? 0)]);
  const first = (oldest ?? before).latency;
  const latency = Object.entries(now.latency).map(([kind, { buckets }]) =>
    [kind, Object.entries(buckets).map(([bucket, count]) => [bucket, count - (first[kind]?.buckets[bucket] ?? 0)])]);
  return { counters, drops, latency };
}

function ratesOf(grown, seconds, schema) {
  const of = (tally) => grown.reduce((total, growth) => total + growth.counters[tally], 0) / seconds;
  const drops = new Map();
  const buckets = { forwarding: new Map(), tcp_rtt: new Map() };
  for (const growth of grown) {
    for (const [reason, count] of growth.drops) {
      if (count > 0) drops.set(reason, (drops.get(reason) ?? 0) + count / seconds);
    }
    for (const [kind, counts] of growth.latency) {
      const into = kind === "tcp_rtt" ? buckets.tcp_rtt : buckets.forwarding;
      for (const [bucket, count] of counts) into.set(+bucket, (into.get(+bucket) ?? 0) + count);
    }
  }
  const fast = of("out_fast_packets") + of("in_fast_packets");
  return {
    outBits: 8 * (of("out_fast_bytes") + of("out_slow_bytes")),
    inBits: 8 * (of("in_fast_bytes") + of("in_slow_bytes")),
    outPackets: of("out_fast_packets") + of("out_slow_packets"),
    inPackets: of("in_fast_packets") + of("in_slow_packets"),
    packets: fast + of("out_slow_packets") + of("in_slow_packets"),
    fast,
    drops: [...drops].sort(),
    dropped: [...drops.values()].reduce((total, rate) => total + rate, 0),
    forwarding: [0.5, 0.99].map((share) => quantile(share, buckets.forwarding, schema)),
    tcpRtt: [0.5, 0.99].map((share) => quantile(share, buckets.tcp_rtt, schema)),
  };
}

// As datapath.latency.Histogram.quantile: seconds, null of nothing.
function quantile(share, buckets, schema) {
  const rank = share * [...buckets.values()].reduce((total, count) => total + count, 0);
  let seen = 0;
  for (const [bucket, count] of [...buckets].sort(([a], [b]) => a - b)) {
    if (count > 0 && seen + count >= rank) return 2 ** ((bucket - 1 + (rank - seen) / count) / 2 ** schema);
    seen += count;
  }
  return null;
}

// Three digits and a decimal prefix.
export function number(value) {
  for (const [power, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= power * 0.9995) return threeDigits(value / power) + prefix;
  }
  if (value === 0) return "0";
  return value >= 9.95 ? value.toFixed(0) : Math.max(value, 0.1).toFixed(1);
}

export function duration(seconds) {
  if (seconds === null) return "\u2013";
  for (const [unit, name] of [[1, "s"], [1e-3, "ms"], [1e-6, "\u00b5s"]]) {
    if (seconds >= unit * 0.9995) return `${threeDigits(seconds / unit)} ${name}`;
  }
  return `${(seconds * 1e9).toFixed(0)} ns`;
}

function threeDigits(value) {
  return value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
}
