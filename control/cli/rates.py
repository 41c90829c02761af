"""Rates and latencies of networks and endpoints, from documents of /linkspan/stats taken one after the other."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from datapath.latency import Histogram, Kind

STATS_PATH: Final = "/linkspan/stats"
LATENCY_LEAST_S: Final = 5.0
"""Latencies are of samples, which are few on a quiet network: they are looked at over a longer time than rates, this to
twice as long, so that few documents need to be kept."""
HISTORY_S: Final = 60.0

_NOTHING: Final = Histogram({}, 0.0)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """What one endpoint, or all of a network, sent (out) and was delivered (in); all but latencies are per second.

    `fast_share` is the part of the packets, 0 to 1, that programs carried, None of no packets.
    """

    out_bits: float
    in_bits: float
    out_packets: float
    in_packets: float
    fast_share: float | None
    drops: Mapping[str, float]
    forwarding: Histogram
    tcp_rtt: Histogram

    @property
    def bits(self) -> float:
        return self.out_bits + self.in_bits

    @property
    def packets(self) -> float:
        return self.out_packets + self.in_packets

    @property
    def dropped(self) -> float:
        return sum(self.drops.values())


@dataclass(frozen=True, slots=True)
class Row:
    """A network with its endpoints, or an endpoint (named as its sandbox) without any.

    `rates` are None as long as nothing is known of them: with the first document, for an endpoint that has just joined,
    and where nobody counts.
    """

    id: str
    name: str
    network: str
    driver: str
    addresses: tuple[str, ...]
    rates: Rates | None
    endpoints: tuple[Row, ...] = ()


@dataclass(slots=True)
class _Growth:
    """What counters grew by between two documents; sums up."""

    counters: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    forwarding: Histogram = _NOTHING
    tcp_rtt: Histogram = _NOTHING

    def add(self, other: _Growth) -> None:
        self.counters.update(other.counters)
        self.drops.update(other.drops)
        self.forwarding += other.forwarding
        self.tcp_rtt += other.tcp_rtt

    def rates(self, seconds: float) -> Rates:
        def of(direction: str, unit: str) -> int:
            return sum(self.counters[f"{direction}_{path}_{unit}"] for path in ("fast", "slow"))

        packets = of("out", "packets") + of("in", "packets")
        fast = self.counters["out_fast_packets"] + self.counters["in_fast_packets"]
        return Rates(
            out_bits=of("out", "bytes") * 8 / seconds,
            in_bits=of("in", "bytes") * 8 / seconds,
            out_packets=of("out", "packets") / seconds,
            in_packets=of("in", "packets") / seconds,
            fast_share=fast / packets if packets else None,
            drops={reason: count / seconds for reason, count in self.drops.items() if count},
            forwarding=self.forwarding,
            tcp_rtt=self.tcp_rtt,
        )


class Recorder:
    """Takes one document after the other and knows what the last ones say: `rows`, and the last minute of each."""

    def __init__(self, interval_s: float) -> None:
        self.rows: tuple[Row, ...] = ()
        self.seconds = 0.0
        self.document: Document | None = None
        """The last one."""
        self._marks: tuple[Document, ...] = ()
        self._history: dict[str, deque[float]] = {}
        self._history_length = max(2, round(HISTORY_S / interval_s))

    def add(self, document: Document) -> None:
        """Takes the next document. One from before a reboot says nothing of those after it, and is forgotten."""
        before, self.document = self.document, document
        if before is not None and document["monotonic"] <= before["monotonic"]:
            before, self._marks = None, ()
        self.seconds = document["monotonic"] - before["monotonic"] if before else 0.0
        oldest = self._marks[0] if self._marks else None
        self.rows = tuple(self._rows(document, _endpoints(before), _endpoints(oldest)))
        if not self._marks or document["monotonic"] - self._marks[-1]["monotonic"] >= LATENCY_LEAST_S:
            self._marks = (*self._marks[-1:], document)
        self._remember()

    def history(self, row_id: str) -> Sequence[float]:
        """Bits per second, both directions together, of the last minute, oldest first."""
        return list(self._history.get(row_id, ()))

    def _rows(self, document: Document, before: Mapping[str, Any], oldest: Mapping[str, Any]) -> Iterable[Row]:
        for network in document["networks"]:
            total, known, rows = _Growth(), not network["endpoints"] and self.seconds > 0, []
            for endpoint in network["endpoints"]:
                growth = _growth(endpoint, before.get(endpoint["id"]), oldest.get(endpoint["id"]))
                if growth is not None:
                    total.add(growth)
                    known = True
                rows.append(
                    Row(
                        id=endpoint["id"],
                        name=endpoint["name"],
                        network=network["name"],
                        driver=network["driver"],
                        addresses=tuple(filter(None, (endpoint["ipv4"], endpoint["ipv6"], endpoint["mac"]))),
                        rates=growth.rates(self.seconds) if growth is not None else None,
                    )
                )
            rates = total.rates(self.seconds) if known else None
            name, driver = network["name"], network["driver"]
            yield Row(network["id"], name, name, driver, (), rates, tuple(rows))

    def _remember(self) -> None:
        """Adds the newest rates to the history, and drops that of what is no more."""
        rows = [*self.rows, *(endpoint for row in self.rows for endpoint in row.endpoints)]
        self._history = {row.id: self._history.get(row.id) or deque(maxlen=self._history_length) for row in rows}
        for row in rows:
            if row.rates is not None:
                self._history[row.id].append(row.rates.bits)


def _endpoints(document: Document | None) -> dict[str, Any]:
    if document is None:
        return {}
    return {endpoint["id"]: endpoint for network in document["networks"] for endpoint in network["endpoints"]}


def _growth(now: Any, before: Any, oldest: Any) -> _Growth | None:
    """Latencies grew since `oldest`, all else since `before`; None when nothing can be said."""
    if before is None or before["counters"] is None or now["counters"] is None:
        return None
    growth = _Growth(
        counters=Counter({tally: value - before["counters"][tally] for tally, value in now["counters"].items()}),
        drops=Counter({reason: count - before["drops"].get(reason, 0) for reason, count in now["drops"].items()}),
    )
    if min(growth.counters.values()) < 0:
        return None
    first = (oldest or before)["latency"]
    for kind, latency in now["latency"].items():
        since = _since(first.get(kind), latency)
        if kind == Kind.TCP_RTT:
            growth.tcp_rtt += since
        else:
            growth.forwarding += since
    return growth


def _since(before: Any, now: Any) -> Histogram:
    earlier = before["buckets"] if before else {}
    buckets = {int(bucket): count - earlier.get(bucket, 0) for bucket, count in now["buckets"].items()}
    seconds = now["seconds"] - (before["seconds"] if before else 0.0)
    return Histogram({bucket: count for bucket, count in buckets.items() if count > 0}, seconds)
