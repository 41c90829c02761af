"""Macvlan endpoints against the kernel's own macvlan, made by hand on a parent of its own; and their host beside them.

One switch and one other machine behind both parents. The programs of linkspan are on one parent alone.
"""

from __future__ import annotations

from typing import Final

from bench import latency, paths, throughput
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import percentile, ratios, spread
from bench.world import World, world

OUT_BY_HAND, OUT = "by hand, to another machine", "Linkspan, to another machine"
LOCAL_BY_HAND, LOCAL = "by hand, endpoint to endpoint", "Linkspan, endpoint to endpoint"
FROM_HOST, BRIDGED = "Linkspan, host to endpoint", "Linkspan's bridge, host to endpoint"
NETWORK: Final = "pub"
STREAM_ROUNDS: Final = 40
_HOST: Final = "/proc/1/ns/net"
_BY_HAND, _OURS = 21, 20
"""The subnets, 10.N.0.0/24: by hand on eth2, linkspan's on eth1."""


def build(machine: World) -> list[Path]:
    """All paths; the host has an address on eth1 only, and the other machine, .2, one in each subnet."""
    switch, other = machine.netns("switch"), machine.netns("other")
    machine.ip(switch, "link", "add", "br0", "up", "type", "bridge")
    for port, end, ifname in (("p1", _HOST, "eth1"), ("p2", _HOST, "eth2"), ("p3", other, "eth0")):
        machine.ip(end, "link", "add", ifname, "type", "veth", "peer", "name", port, "netns", switch)
        machine.ip(switch, "link", "set", port, "master", "br0", "up")
        machine.ip(end, "link", "set", ifname, "up")
    machine.ip(_HOST, "address", "add", f"10.{_OURS}.0.10/24", "dev", "eth1")
    for number in (_BY_HAND, _OURS):
        machine.ip(other, "address", "add", f"10.{number}.0.2/24", "dev", "eth0")
    hand = [_by_hand(machine, number) for number in (0, 1)]
    config = {"Subnet": f"10.{_OURS}.0.0/24", "Gateway": f"10.{_OURS}.0.2", "IPRange": f"10.{_OURS}.0.64/26"}
    options = {"parent": "eth1", "linkspan.conflict_check": "off"}
    body = {"Name": NETWORK, "Driver": "macvlan", "Options": options, "IPAM": {"Config": [config]}}
    machine.api("POST", "/networks/create", body)
    ours = [machine.sandbox(f"m{number}", NETWORK) for number in (0, 1)]
    host_target = machine.sandbox("m2", NETWORK)
    machine.api("POST", "/networks/create", {"Name": paths.FAST_NETWORK})
    bridged = machine.sandbox("b0", paths.FAST_NETWORK)
    address = paths.address_of
    return [
        Path(OUT_BY_HAND, machine, hand[0], other, f"10.{_BY_HAND}.0.2"),
        Path(OUT, machine, ours[0], other, f"10.{_OURS}.0.2"),
        Path(LOCAL_BY_HAND, machine, hand[0], hand[1], f"10.{_BY_HAND}.0.21"),
        Path(LOCAL, machine, ours[0], ours[1], address(machine, "m1", NETWORK)),
        Path(FROM_HOST, machine, _HOST, host_target, address(machine, "m2", NETWORK)),
        Path(BRIDGED, machine, _HOST, bridged, address(machine, "b0", paths.FAST_NETWORK)),
    ]


def _by_hand(machine: World, number: int) -> str:
    end = machine.netns(f"h{number}")
    machine.ip(_HOST, "link", "add", "link", "eth2", "name", f"h{number}", "type", "macvlan", "mode", "bridge")
    machine.ip(_HOST, "link", "set", f"h{number}", "name", "eth0", "netns", end)
    machine.ip(end, "address", "add", f"10.{_BY_HAND}.0.{20 + number}/24", "dev", "eth0")
    machine.ip(end, "link", "set", "eth0", "up")
    return end


def suite(rounds: int) -> Result:
    """Round trips and streams over all paths, in a world of its own."""
    with world() as machine:
        machine.start()
        built = build(machine)
        measured = latency.measure(built, rounds)
        streams = throughput.measure(built[:4], STREAM_ROUNDS)
    tables, bars = [], []
    for proto in latency.PROTOS:
        trips = {path.name: measured[path.name, proto] for path in built}
        bases = {OUT: OUT_BY_HAND, LOCAL: LOCAL_BY_HAND}
        rows = []
        for name, samples in trips.items():
            p50, against = spread(samples.p50s()), trips[bases.get(name, name)]
            rows.append(
                [
                    name,
                    f"{p50.median:.2f}",
                    f"{p50.low:.2f} .. {p50.high:.2f}",
                    f"{percentile(samples.ordered(), 99):.1f}",
                    f"{ratios(samples.p50s(), against.p50s()).median:.3f}",
                ]
            )
        title = f"{proto.upper()} round trip, {latency.PAYLOAD_BYTES} B, both ends on one core: us"
        tables.append(Table(title, ("", "p50", "10 % .. 90 % of rounds", "p99", "x by hand"), rows))
        for name, base in bases.items():
            ratio = ratios(trips[name].p50s(), trips[base].p50s())
            bars.append(Bar(f"{proto.upper()} round trip p50, {name}, against {base}", "<=", 1.0, ratio))
    rows = []
    for name, rates in streams.items():
        rate = spread([value / 1e9 for value in rates])
        rows.append([name, f"{rate.median:.1f}", f"{rate.low:.1f} .. {rate.high:.1f}"])
    tables.append(Table("TCP throughput, one stream: Gbit/s", ("", "median", "10 % .. 90 %"), rows))
    bars += [
        Bar(f"throughput, {name}, against by hand", ">=", 1.0, ratios(streams[name], streams[base]))
        for name, base in ((OUT, OUT_BY_HAND), (LOCAL, LOCAL_BY_HAND))
    ]
    p50s = {f"{name}, {proto}": one.p50s() for (name, proto), one in measured.items()}
    return Result(tables, bars, {"p50_us": p50s, "bits_per_second": dict(streams)})
