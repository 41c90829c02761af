"""Macvlan endpoints, both kinds of devices, against the kernel's own macvlan made by hand; and their host beside them.

One switch and one other machine behind all parents, each of which has one kind: by hand, linkspan's macvlan devices,
and linkspan's veth pairs with the parent's switch in tc and in XDP.
"""

from __future__ import annotations

from typing import Final

from bench import latency, paths, throughput
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import percentile, ratios, spread
from bench.world import World, world

BY_HAND: Final = "by hand"
KINDS: Final = {
    "macvlan": {},
    "veth, tc": {"linkspan.macvlan_device": "veth"},
    "veth, XDP": {"linkspan.macvlan_device": "veth", "linkspan.parent_hook": "xdp"},
}
"""Linkspan's kinds of devices, by the options of their network; the first is the default."""
BRIDGED: Final = "Linkspan's bridge, host to endpoint"
STREAM_ROUNDS: Final = 20
_HOST: Final = "/proc/1/ns/net"
_SUBNETS: Final = {BY_HAND: 20} | {kind: 21 + number for number, kind in enumerate(KINDS)}
"""10.N.0.0/24, on the parent ethN."""


def out(kind: str) -> str:
    return f"{kind}, to another machine"


def local(kind: str) -> str:
    return f"{kind}, endpoint to endpoint"


def from_host(kind: str) -> str:
    return f"{kind}, host to endpoint"


def build(machine: World) -> list[Path]:
    """All paths; the host, .10, has addresses on linkspan's parents, and the other machines, .2, one in each subnet."""
    switch, other, whole = (machine.netns(name) for name in ("switch", "other", "whole"))
    machine.ip(switch, "link", "add", "br0", "up", "type", "bridge")
    ends = [(f"p{number}", _HOST, f"eth{number}") for number in _SUBNETS.values()]
    for port, end, ifname in (*ends, ("p1", other, "eth0"), ("p2", whole, "eth0")):
        machine.ip(end, "link", "add", ifname, "type", "veth", "peer", "name", port, "netns", switch)
        machine.ip(switch, "link", "set", port, "master", "br0", "up")
        machine.ip(end, "link", "set", ifname, "up")
    # What a veth leaves of checksums for later, XDP loses; on a cable they are in the packet.
    machine.run("nsenter", f"--net={whole}", "--", "ethtool", "-K", "eth0", "tx", "off")
    others = {kind: whole if "XDP" in kind else other for kind in _SUBNETS}
    for kind, number in _SUBNETS.items():
        machine.ip(others[kind], "address", "add", f"10.{number}.0.2/24", "dev", "eth0")
        if kind != BY_HAND:
            machine.ip(_HOST, "address", "add", f"10.{number}.0.10/24", "dev", f"eth{number}")
    built = _paths_by_hand(machine, others[BY_HAND])
    for kind in KINDS:
        built += _paths(machine, others[kind], kind)
    machine.api("POST", "/networks/create", {"Name": paths.FAST_NETWORK})
    bridged = machine.sandbox("b0", paths.FAST_NETWORK)
    return [*built, Path(BRIDGED, machine, _HOST, bridged, paths.address_of(machine, "b0", paths.FAST_NETWORK))]


def _paths(machine: World, other: str, kind: str) -> list[Path]:
    number = _SUBNETS[kind]
    network = f"pub{number}"
    config = {"Subnet": f"10.{number}.0.0/24", "Gateway": f"10.{number}.0.2", "IPRange": f"10.{number}.0.64/26"}
    options = {"parent": f"eth{number}", "linkspan.conflict_check": "off", **KINDS[kind]}
    body = {"Name": network, "Driver": "macvlan", "Options": options, "IPAM": {"Config": [config]}}
    machine.api("POST", "/networks/create", body)
    names = [f"m{number}-{end}" for end in (0, 1, 2)]
    ends = [machine.sandbox(name, network) for name in names]
    return [
        Path(out(kind), machine, ends[0], other, f"10.{number}.0.2"),
        Path(local(kind), machine, ends[0], ends[1], paths.address_of(machine, names[1], network)),
        Path(from_host(kind), machine, _HOST, ends[2], paths.address_of(machine, names[2], network)),
    ]


def _paths_by_hand(machine: World, other: str) -> list[Path]:
    subnet = _SUBNETS[BY_HAND]
    ends = [_by_hand(machine, number) for number in (0, 1)]
    return [
        Path(out(BY_HAND), machine, ends[0], other, f"10.{subnet}.0.2"),
        Path(local(BY_HAND), machine, ends[0], ends[1], f"10.{subnet}.0.21"),
    ]


def _by_hand(machine: World, number: int) -> str:
    end = machine.netns(f"h{number}")
    machine.ip(
        _HOST,
        "link",
        "add",
        "link",
        f"eth{_SUBNETS[BY_HAND]}",
        "name",
        f"h{number}",
        "type",
        "macvlan",
        "mode",
        "bridge",
    )
    machine.ip(_HOST, "link", "set", f"h{number}", "name", "eth0", "netns", end)
    machine.ip(end, "address", "add", f"10.{_SUBNETS[BY_HAND]}.0.{20 + number}/24", "dev", "eth0")
    machine.ip(end, "link", "set", "eth0", "up")
    return end


def against() -> dict[str, str]:
    """What each path that has one is compared with."""
    kinds = (BY_HAND, *KINDS)
    return {of(kind): of(BY_HAND) for kind in kinds for of in (out, local)}


def suite(rounds: int) -> Result:
    """Round trips and streams over all paths, in a world of its own."""
    with world() as machine:
        machine.start()
        built = build(machine)
        measured = latency.measure(built, rounds)
        streams = throughput.measure([path for path in built if path.name in against()], STREAM_ROUNDS)
    tables, bars = [], []
    for proto in latency.PROTOS:
        trips = {path.name: measured[path.name, proto] for path in built}
        bases = {name: base for name, base in against().items() if name != base}
        rows = []
        for name, samples in trips.items():
            p50, other = spread(samples.p50s()), trips[bases.get(name, name)]
            rows.append(
                [
                    name,
                    f"{p50.median:.2f}",
                    f"{p50.low:.2f} .. {p50.high:.2f}",
                    f"{percentile(samples.ordered(), 99):.1f}",
                    f"{ratios(samples.p50s(), other.p50s()).median:.3f}",
                ]
            )
        title = f"{proto.upper()} round trip, {latency.PAYLOAD_BYTES} B, both ends on one core: us"
        tables.append(Table(title, ("", "p50", "10 % .. 90 % of rounds", "p99", "x by hand"), rows))
        for name in (out("macvlan"), local("macvlan")):
            base = bases[name]
            ratio = ratios(trips[name].p50s(), trips[base].p50s())
            bars.append(Bar(f"{proto.upper()} round trip p50, {name}, against {base}", "<=", 1.0, ratio))
    rows = []
    for name, rates in streams.items():
        rate = spread([value / 1e9 for value in rates])
        by_hand = ratios(rates, streams[against()[name]]).median
        rows.append([name, f"{rate.median:.1f}", f"{rate.low:.1f} .. {rate.high:.1f}", f"{by_hand:.2f}"])
    tables.append(Table("TCP throughput, one stream: Gbit/s", ("", "median", "10 % .. 90 %", "x by hand"), rows))
    bars += [
        Bar(f"throughput, {name}, against by hand", ">=", 1.0, ratios(streams[name], streams[against()[name]]))
        for name in (out("macvlan"), local("macvlan"))
    ]
    p50s = {f"{name}, {proto}": one.p50s() for (name, proto), one in measured.items()}
    return Result(tables, bars, {"p50_us": p50s, "bits_per_second": dict(streams)})
