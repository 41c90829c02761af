"""Series of endpoints and networks: packets, bytes, drops and latencies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Final

from control.counted import Counts
from control.drivers.base import EndpointCounters
from control.metrics.writer import Octaves, Tallies, Timed, Writer
from control.model import Network
from datapath.exposition import Labelled
from datapath.latency import Histograms, Kind

_PATHS: Final = (("out", "fast"), ("out", "slow"), ("in", "fast"), ("in", "slow"))
_FORWARDED: Final = (Kind.FAST, Kind.SLOW)
_FORWARDING: Final = Octaves(-20, -8)
"""0.95 us to 3.9 ms."""
_ROUND_TRIP: Final = Octaves(-16, 0, 2)
"""15 us to 1 s."""


def endpoints(counts: Counts, writer: Writer) -> Iterator[bytes]:
    """Each endpoint's series; what it has not got any of yet, drops of a reason or samples, it has no series of."""
    of_network = {network.id: _labels(network, writer) for network, _ in counts.networks}
    owners = Labelled(
        (
            endpoint.slot,
            of_network[network.id] + writer.more((("endpoint", endpoint.id[:12]), ("sandbox", sandbox))),
        )
        for network, endpoint, sandbox, _ in counts.endpoints
    )
    counters = [counted for *_, counted in counts.endpoints]
    yield from _families("linkspan_endpoint", "an endpoint", owners, counters, counts.latencies, writer)


def networks(counts: Counts, writer: Writer) -> Iterator[bytes]:
    """The sums of networks over their endpoints on this host, those included that have gone."""
    owners = Labelled((place, _labels(network, writer)) for place, (network, _) in enumerate(counts.networks))
    counters = [counted for _, counted in counts.networks]
    yield from _families(
        "linkspan_network", "a network's endpoints", owners, counters, counts.network_latencies, writer
    )


def _labels(network: Network, writer: Writer) -> bytes:
    return writer.labels((("network", network.name), ("driver", network.driver)))


def _families(
    prefix: str,
    whose: str,
    owners: Labelled,
    counters: Sequence[EndpointCounters],
    latencies: Histograms,
    writer: Writer,
) -> Iterator[bytes]:
    yield from writer.counters(
        f"{prefix}_packets",
        f"Packets that {whose} sent (out) and got (in), by the path that carried them.",
        _by_path(owners, counters, writer, "packets"),
    )
    yield from writer.counters(
        f"{prefix}_bytes",
        "Bytes of those packets, Ethernet headers included.",
        _by_path(owners, counters, writer, "bytes"),
    )
    yield from writer.counters(
        f"{prefix}_drops", f"Packets of {whose} that were dropped, by reason.", _drops(owners, counters, writer)
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


def _by_path(owners: Labelled, counters: Sequence[EndpointCounters], writer: Writer, unit: str) -> Tallies:
    kinds = (writer.more((("direction", direction), ("path", path))) for direction, path in _PATHS)
    values = attrgetter(*(f"{direction}_{path}_{unit}" for direction, path in _PATHS))
    return Tallies(list(chain.from_iterable(map(values, counters))), owners, Labelled(enumerate(kinds)))


def _drops(owners: Labelled, counters: Sequence[EndpointCounters], writer: Writer) -> Tallies:
    reasons = dict.fromkeys(reason for each in counters for reason, count in each.drops.items() if count)
    kinds = Labelled(enumerate(writer.more((("reason", reason),)) for reason in reasons))
    values = [each.drops.get(reason, 0) for each in counters for reason in reasons]
    return Tallies(values, owners, kinds, is_sparse=True)
