"""A packet that has come to the host's own stack: by which route, past which rules, and out where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from control.drivers.walk import KERNEL, Address, Walk, is_for, macs
from control.errors import InvalidArgument
from datapath import kernel_path
from datapath.frames import Protocol
from datapath.kernel_path import Device, Route
from datapath.nft_walk import Firewall, Packet, Ruling, translated

_TABLE = "table inet linkspan"

Onto = Callable[[Device, bytes], None]
"""Follows what the host sends on a bridge to a MAC."""


def came_in_by(walk: Walk) -> Device | None:
    """The device that a packet of the walk's origin comes by, which the walk is told; None ends it.

    Raises InvalidArgument for an origin that is not outside.
    """
    origin = walk.origin or walk.source
    back = kernel_path.route(origin)
    device = None if back is None else kernel_path.device(back.ifindex)
    if back is None or device is None:
        text = f"the host has no route to {origin}, so nothing tells by which device its packets come"
        walk.finish("unknown", "", text)
        return None
    if back.type != "unicast":
        raise InvalidArgument(f"{origin} is no address of another machine: its route is {back.type}")
    if Firewall().is_bridge(device.ifname):
        raise InvalidArgument(f"{origin} is on a network of this host, by {device.ifname}: begin at a sandbox there")
    walk.say(KERNEL, device.ifname, "arrival", f"comes by {device.ifname}: route {back.matched} leads to {origin}")
    return device


def published(source: Address, destination: Address, protocol: Protocol, port: int) -> Address | None:
    """The address of the endpoint that a port of the host's address stands for, as the host's rules have it."""
    packet = Packet(source, destination, protocol, port, "", is_local=True)
    return Firewall().judge("prerouting", packet).to


def routed(walk: Walk, came_in: Device, onto: Onto) -> None:
    """Follows what the kernel routes that came in by a device."""
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
    _leave(walk, firewall, packet, way, onto)


def _leave(walk: Walk, firewall: Firewall, packet: Packet, way: Route, onto: Onto) -> None:
    ruling = firewall.judge("postrouting", packet)
    if ruling.verdict == "masquerade":
        own = kernel_path.route(packet.destination)
        source = own.source if own is not None else None
        text = f"{_TABLE}, {_named(ruling)}: source becomes {source or f'an address of {way.ifname}'}"
        walk.say(KERNEL, way.ifname, "masquerade", text)
    bridge = kernel_path.device(way.ifindex) if firewall.is_bridge(way.ifname) else None
    if bridge is not None:
        mac = _asked(walk, packet.destination, bridge)
        if mac is not None:
            onto(bridge, mac)
        return
    walk.finish("sent", "slow", f"leaves by {way.ifname} for {way.gateway or packet.destination} (slow path)")


def _asked(walk: Walk, address: Address, bridge: Device) -> bytes | None:
    """The MAC that the host has, or gets, for an address on a network's bridge; None ends the walk."""
    known, owner = kernel_path.neighbour(address, bridge.ifindex), walk.names.find(lambda each: is_for(each, address))
    if known is not None:
        walk.say(KERNEL, bridge.ifname, "neighbour", f"neighbour {address} is {known[0].hex(':')} ({known[1]})")
        return known[0]
    if owner is not None:
        text = f"{address} is no known neighbour: asked for its MAC, {walk.names.of(owner)} answers: {owner.mac}"
        walk.say(KERNEL, bridge.ifname, "question", text)
        return macs(owner)
    walk.finish("lost", "slow", f"nobody on {bridge.ifname} has {address}: the host asks for its MAC in vain")
    return None


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
