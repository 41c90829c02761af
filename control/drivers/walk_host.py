"""A frame that has come to the host's own stack: by which route, past which rules, and out where."""

from __future__ import annotations

from dataclasses import replace

from control.drivers.walk import KERNEL, Walk
from datapath import kernel_path
from datapath.kernel_path import Device, Route
from datapath.nft_walk import Firewall, Packet, Ruling, translated

_TABLE = "table inet linkspan"


def routed(walk: Walk, came_in: Device) -> None:
    """Follows what the kernel routes that came in by a bridge."""
    firewall = Firewall()
    protocol = walk.protocol if walk.protocol != "icmp" else {4: "icmp", 6: "icmpv6"}[walk.source.version]
    packet = Packet(walk.source, walk.destination, protocol, walk.port, came_in.ifname)
    way = _route(packet, came_in)
    packet = replace(packet, is_local=way is not None and way.type == "local")
    if _is_dropped(walk, firewall.judge("guard", packet)):
        return
    ruling = firewall.judge("prerouting", packet)
    if ruling.verdict == "dnat":
        packet = translated(packet, ruling)
        walk.say(
            KERNEL,
            came_in.ifname,
            "dnat",
            f"{_TABLE}, {_named(ruling)}: destination becomes {_end(packet)} (published)",
        )
        way = _route(packet, came_in)
    if way is None:
        walk.finish("dropped", "slow", f"the host forwards nothing from {came_in.ifname} to {packet.destination}")
        return
    via = f" via {way.gateway}" if way.gateway else ""
    walk.say(KERNEL, way.ifname, "route", f"route {way.matched} ({way.type}): by {way.ifname}{via}")
    if way.type == "local":
        tell_others(walk, firewall, "input", way.ifname)
        walk.finish("delivered", "slow", f"arrives at the host, which has {packet.destination} (slow path)")
        return
    packet = replace(packet, oif=way.ifname)
    ruling = firewall.judge("forward", packet)
    if _is_dropped(walk, ruling):
        return
    walk.say(
        KERNEL, way.ifname, "forward", f"{_TABLE}, chain forward lets it through: {ruling.rule or 'no rule drops it'}"
    )
    tell_others(walk, firewall, "forward", way.ifname)
    _leave(walk, firewall, packet, way)


def _leave(walk: Walk, firewall: Firewall, packet: Packet, way: Route) -> None:
    ruling = firewall.judge("postrouting", packet)
    if ruling.verdict == "masquerade":
        own = kernel_path.route(packet.destination)
        source = own.source if own is not None else None
        text = f"{_TABLE}, {_named(ruling)}: source becomes {source or f'an address of {way.ifname}'}"
        walk.say(KERNEL, way.ifname, "masquerade", text)
    out = kernel_path.device(way.ifindex)
    known = kernel_path.neighbour(packet.destination, way.ifindex)
    port = kernel_path.bridge_entry(way.ifindex, known[0]) if known and out and out.kind == "bridge" else None
    if port is not None and known is not None:
        walk.say(KERNEL, way.ifname, "fdb", f"neighbour {packet.destination} is {known[0].hex(':')}")
        walk.deliver(port, "slow")
        return
    walk.finish("sent", "slow", f"leaves by {way.ifname} for {way.gateway or packet.destination} (slow path)")


def _route(packet: Packet, came_in: Device) -> Route | None:
    return kernel_path.route(packet.destination, source=packet.source, iif=came_in.ifindex)


def _is_dropped(walk: Walk, ruling: Ruling) -> bool:
    if ruling.verdict == "drop":
        walk.say(KERNEL, "", "dropped", f"{_TABLE}, {_named(ruling)}")
        walk.finish("dropped", "slow", f"{_TABLE} drops it: {_named(ruling)}")
    elif ruling.verdict == "unknown":
        walk.finish("unknown", "slow", f"{_TABLE} has a rule that this trace does not know: {_named(ruling)}")
    return walk.end is not None


def tell_others(walk: Walk, firewall: Firewall, hook: str, ifname: str) -> None:
    """Tells who else's rules see what passes a hook."""
    others = firewall.others(hook)
    if others:
        walk.say(KERNEL, ifname, "others", f"not judged here, but they see it: chains {', '.join(others)}")


def _named(ruling: Ruling) -> str:
    return f"chain {ruling.chain}: {ruling.rule}" if ruling.rule else f"chain {ruling.chain}"


def _end(packet: Packet) -> str:
    host = f"[{packet.destination}]" if packet.destination.version == 6 else str(packet.destination)
    return f"{host}:{packet.port}"
