"""Series of endpoints and networks: packets, bytes, drops and latencies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from control.counted import Counts
from control.drivers.base import EndpointCounters
from control.metrics.writer import Octaves, Rows, Timed, Writer
from datapath.exposition import Labelled
from datapath.latency import Histograms, Kind

_PATHS: Final = (("out", "fast"), ("out", "slow"), ("in", "fast"), ("in", "slow"))
_FORWARDED: Final = (Kind.FAST, Kind.SLOW)
_FORWARDING: Final = Octaves(-20, -8)
"""0.95 us to 3.9 ms."""
_ROUND_TRIP: Final = Octaves(-16, 0, 2)
"""15 us to 1 s."""


@dataclass(frozen=True)
class _Row:
    """`owner` has the latencies."""

    labels: bytes
    counters: EndpointCounters
    owner: int


def endpoints(counts: Counts, writer: Writer) -> Iterator[bytes]:
    """Each endpoint's series; what it has not got any of yet, drops of a reason or samples, it has no series of."""
    rows = [
        _Row(
            writer.labels(
                (
                    ("network", network.name),
                    ("driver", network.driver),
                    ("endpoint", endpoint.id[:12]),
                    ("sandbox", sandbox),
                )
            ),
            counted,
            endpoint.slot,
        )
        for network, endpoint, sandbox, counted in counts.endpoints
    ]
    yield from _families("linkspan_endpoint", "an endpoint", rows, counts.latencies, writer)


def networks(counts: Counts, writer: Writer) -> Iterator[bytes]:
    """The sums of networks over their endpoints on this host, those included that have gone."""
    rows = [
        _Row(writer.labels((("network", network.name), ("driver", network.driver))), counted, place)
        for place, (network, counted) in enumerate(counts.networks)
    ]
    yield from _families("linkspan_network", "a network's endpoints", rows, counts.network_latencies, writer)


def _families(prefix: str, whose: str, rows: list[_Row], latencies: Histograms, writer: Writer) -> Iterator[bytes]:
    owners = Labelled((row.owner, row.labels) for row in rows)
    yield from writer.counters(
        f"{prefix}_packets",
        f"Packets that {whose} sent (out) and got (in), by the path that carried them.",
        _by_path(rows, writer, "packets"),
    )
    yield from writer.counters(
        f"{prefix}_bytes", "Bytes of those packets, Ethernet headers included.", _by_path(rows, writer, "bytes")
    )
    yield from writer.counters(
        f"{prefix}_drops", f"Packets of {whose} that were dropped, by reason.", _drops(rows, writer)
    )
    yield from writer.histograms(
        f"{prefix}_forwarding_seconds",
        f"Time from a packet's arrival on this host until it was handed to the sandbox, for {whose}; sampled.",
        Timed(latencies, owners, Labelled((kind.number, writer.more((("path", kind.value),))) for kind in _FORWARDED)),
        _FORWARDING,
    )
    yield from writer.histograms(
        f"{prefix}_tcp_rtt_seconds",
        f"Round trips that TCP measured on connections of {whose}; sampled.",
        Timed(latencies, owners, Labelled([(Kind.TCP_RTT.number, b"")])),
        _ROUND_TRIP,
    )


def _by_path(rows: list[_Row], writer: Writer, unit: str) -> Rows:
    columns = [
        (writer.more((("direction", direction), ("path", path))), f"{direction}_{path}_{unit}")
        for direction, path in _PATHS
    ]
    for row in rows:
        for what, name in columns:
            yield row.labels, what, getattr(row.counters, name)


def _drops(rows: list[_Row], writer: Writer) -> Rows:
    reasons: dict[str, bytes] = {}
    for row in rows:
        for reason, count in row.counters.drops.items():
            if count:
                if reason not in reasons:
                    reasons[reason] = writer.more((("reason", reason),))
                yield row.labels, reasons[reason], count
