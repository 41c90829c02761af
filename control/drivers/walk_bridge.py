"""A frame of an endpoint behind a host end: past its programs, the Linux bridge, and the VXLAN device on it.

And a packet from outside, which the host routes to the bridge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from control.drivers.walk import KERNEL, Address, Path, Walk, is_for, macs
from control.drivers.walk_hooks import Running
from control.drivers.walk_host import came_in_by, routed
from control.errors import InvalidArgument
from datapath import frames, kernel_path
from datapath.kernel_path import Device
from datapath.trace import Run, Tracer

PROGRAM_OUT: Final = "ls_ep_out"
PROGRAM_IN: Final = "ls_ep_in"


@dataclass(frozen=True)
class Way:
    """What a driver knows of its network: the programs, None where none is to run, and `why`; whether they are where
    they are to be.

    `tunnels` is the namespace that the VXLAN device of an encrypted network sends into. `not_direct` says, where
    packets may go without VXLAN, why those for a node do not.
    """

    tracer: Tracer | None
    running: Running
    why: str = ""
    tunnels: str | None = None
    not_direct: Callable[[Address], str] | None = None


def follow(walk: Walk, way: Way) -> None:
    """Follows the frame from the endpoint's host end on; raises OSError and LoaderError."""
    name = walk.endpoint.host_ifname
    port = kernel_path.device(name)
    if port is None:
        walk.finish(
            "lost", "", f"device {name}, the endpoint's host end, is gone: linkspand makes it again at its start"
        )
        return
    if way.tracer is None:
        walk.say(KERNEL, name, "no_program", f"no program runs on {name}: {way.why}")
    elif way.running.at(walk, PROGRAM_OUT, port, "ingress", "the kernel's path takes all"):
        run = way.tracer.run(PROGRAM_OUT, walk.frame, port.ifindex)
        walk.tell(PROGRAM_OUT, name, run)
        if walk.end is not None:
            return
        if run.action == "redirect":
            _redirected(walk, way, run)
            return
        walk.say(PROGRAM_OUT, name, "kernel", "left to the kernel as it is: the bridge gets it")
    bridged(walk, port, way)


def _redirected(walk: Walk, way: Way, run: Run) -> None:
    peer = run.operand("redirect_peer")
    if run.operand("answered") is not None:
        walk.answer = frames.answer(run.packet)
        walk.finish("answered", "fast", f"{walk.destination} is at {walk.answer.hex(':')}")
    elif peer is not None:
        walk.deliver(peer, "fast")
    elif run.operand("vxlan") is not None:
        outer = frames.outer(run.packet)
        ends = f"{outer.source} port {outer.source_port} to {outer.destination} port {outer.destination_port}"
        if way.not_direct is not None:
            walk.say(PROGRAM_OUT, "", "not_direct", f"not direct: {way.not_direct(outer.destination)}")
        walk.say(PROGRAM_OUT, "", "outer", f"outer headers: UDP from {ends}, VNI {outer.vni}")
        uplink = kernel_path.device(run.operand("redirect_neigh") or 0)
        _away(walk, walk.names.node(outer.destination), f"in VXLAN by {_name(uplink)}", "fast")
    else:
        uplink = kernel_path.device(run.operand("redirect") or 0)
        whose = run.packet[:6].hex(":")
        _away(walk, f"the node with MAC {whose}", f"without VXLAN by {_name(uplink)}", "fast")


def bridged(walk: Walk, port: Device, way: Way) -> None:
    """Follows a frame that a port has taken in through its bridge; raises OSError."""
    bridge = kernel_path.device(port.master) if port.master else None
    if bridge is None:
        walk.finish("lost", "slow", f"{port.ifname} is no port of a bridge: linkspand mends that at its start")
        return
    if walk.is_question:
        _asked(walk, port, bridge)
        return
    if walk.mac[0] & 1:
        ports = kernel_path.flooded_ports(bridge.ifindex)
        others = ", ".join(name for name in ports if name != port.ifname) or "no other port"
        walk.say(KERNEL, bridge.ifname, "flood", f"the bridge copies it to the host and to {others}")
        walk.finish("delivered", "slow", f"copies arrive at all that are on {bridge.ifname} (slow path)")
        return
    _handed_on(walk, bridge, port, way)


def arrive(walk: Walk, way: Way, mac: bytes | None) -> None:
    """Follows a packet from outside that the host routes, to the endpoint or to a port of the host that stands for it.

    Raises InvalidArgument for one that cannot come from outside, OSError and LoaderError.
    """
    if mac is not None:
        raise InvalidArgument(f"the host routes to network {walk.network.name}: no rule looks at a MAC, leave it out")
    device = came_in_by(walk)
    if device is not None:
        ends = (walk.source, walk.destination)
        walk.frame = frames.packet((bytes(6), device.mac), ends, walk.protocol, walk.port)
        routed(walk, device, partial(from_host, walk, way))


def from_host(walk: Walk, way: Way, bridge: Device, mac: bytes) -> None:
    """Follows what the host itself sends on a bridge to a MAC; raises OSError."""
    walk.frame = mac + walk.frame[6:]
    _handed_on(walk, bridge, None, way)


def _handed_on(walk: Walk, bridge: Device, port: Device | None, way: Way) -> None:
    """To whom a bridge gives what came in by a port, or with None from the host."""
    behind = bridge.ifindex if walk.mac == bridge.mac else kernel_path.bridge_entry(bridge.ifindex, walk.mac)
    out = kernel_path.device(behind) if behind is not None else None
    shown = walk.mac.hex(":")
    if out is None:
        walk.say(KERNEL, bridge.ifname, "no_fdb", f"bridge fdb: no port has {shown}")
        walk.finish(
            "lost", "slow", f"nothing on {bridge.ifname} has {shown}, and no endpoint's port takes what is flooded"
        )
    elif out.ifindex == bridge.ifindex:
        walk.say(KERNEL, bridge.ifname, "fdb", f"bridge fdb: {shown} is the bridge's own, so the host routes")
        routed(walk, bridge, partial(from_host, walk, way))
    elif port is not None and port.is_isolated and out.is_isolated:
        walk.finish(
            "dropped", "slow", f"the bridge drops it: ports {port.ifname} and {out.ifname} are isolated (no icc)"
        )
    else:
        walk.say(KERNEL, bridge.ifname, "fdb", f"bridge fdb: {shown} is behind {out.ifname}")
        _out_of(walk, out, way)


def _out_of(walk: Walk, out: Device, way: Way) -> None:
    if out.kind == "vxlan":
        _tunnelled(walk, out, way)
        return
    endpoint = walk.names.find(lambda each: each.host_ifname == out.ifname)
    peer = None if endpoint is not None else kernel_path.device(out.peer)
    if peer is not None and peer.master:  # the trunk to another shard of the network
        walk.say(KERNEL, out.ifname, "trunk", f"by the trunk to {peer.ifname}")
        bridged(walk, peer, way)
        return
    is_others = endpoint is not None and endpoint.network_id != walk.network.id  # who may have other programs, or none
    tracer, otherwise = None if is_others else way.tracer, "what it gets is not counted"
    if tracer is not None and way.running.at(walk, PROGRAM_IN, out, "egress", otherwise):
        walk.say(PROGRAM_IN, out.ifname, "counted", "counted as delivered by the slow path")
    walk.deliver(out.ifindex, "slow")


def _asked(walk: Walk, port: Device, bridge: Device) -> None:
    """Who answers a question that all on the bridge get."""
    target = walk.destination
    walk.say(KERNEL, bridge.ifname, "flood", f"the bridge asks all: who has {target}?")
    own = kernel_path.route(target)
    owner = walk.names.find(lambda each: each.network_id == walk.network.id and is_for(each, target))
    there = kernel_path.device(owner.host_ifname) if owner is not None else None
    if own is not None and own.type == "local":
        walk.answer = bridge.mac
        walk.finish("answered", "slow", f"the host's kernel answers: it has {target}, at {bridge.mac.hex(':')}")
    elif owner is not None and there is not None and not (port.is_isolated and there.is_isolated):
        walk.answer = macs(owner)
        walk.finish("answered", "slow", f"{walk.names.of(owner)} answers: it has {target}, at {owner.mac}")
    elif owner is not None:
        walk.finish("dropped", "slow", f"{walk.names.of(owner)} has {target}, but is not asked: isolated (no icc)")
    else:
        _asked_elsewhere(walk, bridge)


def _asked_elsewhere(walk: Walk, bridge: Device) -> None:
    for name in kernel_path.flooded_ports(bridge.ifindex):
        port = kernel_path.device(name)
        if port is None or port.kind != "vxlan":
            continue
        known = kernel_path.neighbour(walk.destination, port.ifindex) or kernel_path.neighbour(
            walk.destination, bridge.ifindex
        )
        if known is not None:
            walk.answer = known[0]
            walk.finish("answered", "slow", f"the kernel answers for another node: {walk.answer.hex(':')} ({name})")
            return
    walk.finish(
        "lost", "slow", f"nobody on network {walk.network.name} has {walk.destination}: the question is in vain"
    )


def _tunnelled(walk: Walk, vxlan: Device, way: Way) -> None:
    node = kernel_path.vxlan_entry(vxlan, walk.mac)
    if node is None:
        walk.finish("lost", "slow", f"VXLAN device {vxlan.ifname} knows no node for {walk.mac.hex(':')}")
        return
    walk.say(KERNEL, vxlan.ifname, "vxlan", f"vxlan fdb: {walk.mac.hex(':')} is on {walk.names.node(node)}")
    if way.tunnels:
        text = f"network {walk.network.name} is encrypted: what is for other nodes is the kernel's alone, by WireGuard"
        walk.say(KERNEL, vxlan.ifname, "encrypted", text)
    out = kernel_path.route(node, netns_path=way.tunnels)
    if out is None:
        walk.finish("lost", "slow", f"there is no route to {node}")
        return
    where = "in the tunnels' namespace" if way.tunnels else "on the underlay"
    walk.say(KERNEL, out.ifname, "route", f"route {out.matched} {where}: by {out.ifname}")
    how = f"encrypted by WireGuard device {out.ifname}" if way.tunnels else f"in VXLAN by {out.ifname}"
    _away(walk, walk.names.node(node), how, "slow")


def _away(walk: Walk, node: str, how: str, path: Path) -> None:
    walk.finish(
        "sent",
        path,
        f"leaves for {node} {how} ({path} path); what becomes of it there this node cannot know",
    )


def _name(found: Device | None) -> str:
    return found.ifname if found is not None else "a device that is gone"
