"""Overlay networks between two hosts, against the underlay itself and the kernel's own VXLAN device on a bridge.

The underlay and the kernel's VXLAN run between hosts without linkspan, so that no rule of ours is on their way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from bench import latency, paths, throughput
from bench.latency import Samples
from bench.nodes import Nodes, joined_nodes
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import Spread, percentile, ratios, spread
from bench.world import BenchError
from datapath.fast_peers import HEARD_OF_S

UNDERLAY: Final = "underlay, host to host"
KERNEL: Final = "kernel VXLAN + bridge"
TUNNEL: Final = "Linkspan, VXLAN"
DIRECT: Final = "Linkspan, direct"
NO_ACCEL: Final = "Linkspan, accel=off"
NETWORKS: Final[Mapping[str, Mapping[str, str]]] = {
    TUNNEL: {"linkspan.direct": "off"},
    DIRECT: {"linkspan.direct": "on"},
    NO_ACCEL: {"linkspan.direct": "off", "linkspan.accel": "off"},
}
"""Linkspan's ways, by the options of their network."""
NETWORK_OF: Final = {TUNNEL: "fabric", DIRECT: "fabric-direct", NO_ACCEL: "fabric-slow"}
BARS: Final = {
    "round trip rate": {UNDERLAY: 0.94, KERNEL: 1.4},
    "throughput, one stream": {UNDERLAY: 0.94, KERNEL: 1.05},
}
"""What a sandbox on another host is promised to have of each, at least."""
ACCELERATED: Final = (TUNNEL, DIRECT)
STREAM_ROUNDS: Final = 80


def build(cluster: Nodes, names: Sequence[str] = tuple(NETWORKS)) -> list[Path]:
    """The underlay, the kernel's VXLAN, and Linkspan's ways of these names."""
    hosts = cluster.plain_hosts()
    built = [cluster.underlay(UNDERLAY, hosts), cluster.kernel_vxlan(KERNEL, hosts)]
    for name in names:
        cluster.create(NETWORK_OF[name], NETWORKS[name])
        built.append(cluster.sandboxes(name, NETWORK_OF[name]))
    if DIRECT in names:
        time.sleep(HEARD_OF_S)  # until then its packets take VXLAN
    return built


def rates(samples: Samples) -> list[float]:
    """Round trips a second, a value a round, as netperf's TCP_RR counts them."""
    return [len(one) / sum(one) * 1e6 for one in samples.rounds]


def fast_packets(cluster: Nodes, name: str) -> int:
    """How many packets of the client's node have taken the fast path of one of Linkspan's ways."""
    return paths.packets(cluster[0], NETWORK_OF[name])["fast"]


def suite(rounds: int) -> Result:
    """Round trips and streams over all paths, between two nodes and two plain hosts of one underlay."""
    with joined_nodes(2) as cluster:
        built = build(cluster)
        measured = latency.measure(built, rounds)
        for name in ACCELERATED:
            if fast_packets(cluster, name) < len(measured[name, "tcp"].ordered()):
                raise BenchError(f"the round trips of {name} did not go the fast path")
        streams = throughput.measure(built, STREAM_ROUNDS)
    tables, bars = [], []
    for proto in latency.PROTOS:
        by_name = {path.name: rates(measured[path.name, proto]) for path in built}
        title = f"{proto.upper()} round trips, {latency.PAYLOAD_BYTES} B, both ends on one core: a second"
        p99s = {path.name: percentile(measured[path.name, proto].ordered(), 99) for path in built}
        tables.append(_table(title, by_name, 1, {name: f"{p99:.1f}" for name, p99 in p99s.items()}, "p99 us"))
        if proto == "tcp":
            bars += _bars("round trip rate", by_name)
    tables.append(_table("TCP throughput, one stream: Gbit/s", streams, 1e9))
    bars += _bars("throughput, one stream", streams)
    data = {
        "round_trips_per_second": {f"{name}, {proto}": rates(one) for (name, proto), one in measured.items()},
        "bits_per_second": dict(streams),
    }
    return Result(tables, bars, data)


def against(values: Mapping[str, Sequence[float]], name: str) -> dict[str, Spread]:
    """The ratios of one path to the underlay and to the kernel's VXLAN, round by round."""
    return {base: ratios(values[name], values[base]) for base in (UNDERLAY, KERNEL)}


def _bars(what: str, values: Mapping[str, Sequence[float]]) -> list[Bar]:
    return [
        Bar(f"{what}, {name}, against {base}", ">=", BARS[what][base], ratio)
        for name in ACCELERATED
        for base, ratio in against(values, name).items()
    ]


def _table(
    title: str,
    values: Mapping[str, Sequence[float]],
    unit: float,
    more: Mapping[str, str] | None = None,
    column: str = "",
) -> Table:
    digits = 0 if unit == 1 else 1
    rows = []
    for name, each in values.items():
        rate, ratio = spread([value / unit for value in each]), against(values, name)
        cells = [f"{rate.median:.{digits}f}", f"{rate.low:.{digits}f} .. {rate.high:.{digits}f}"]
        cells += [f"{ratio[base].median:.3f}" for base in (UNDERLAY, KERNEL)]
        rows.append([name, *cells, *([more[name]] if more else [])])
    columns = ["", "median", "10 % .. 90 % of rounds", "x underlay", "x kernel", *([column] if more else [])]
    return Table(title, columns, rows)
