"""A frame of a macvlan endpoint: through the kernel's macvlan or the switch in eBPF, and the programs of the parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from control.drivers.walk import KERNEL, Path, Walk, is_for, macs
from control.model import Endpoint
from datapath import kernel_path
from datapath.kernel_path import Device
from datapath.trace import NOTE_SHORT, Run, Tracer

OUT: Final = "ls_parent_out"
IN: Final = "ls_parent_in"
LIMIT: Final = "ls_station_out"
SWITCH_OUT: Final = "ls_switch_out"
SWITCH_IN: Final = "ls_switch_in"


@dataclass(frozen=True)
class Way:
    """What the driver knows: the parent's device, the endpoints on it in bridge mode, the mode of the sender's network,
    and the programs, None where none runs, and `why`. `is_limited`: ls_station_out runs in the sandbox."""

    parent: str
    bridged: Sequence[Endpoint]
    mode: str
    tracer: Tracer | None
    why: str = ""
    is_limited: bool = False


def follow(walk: Walk, way: Way) -> None:
    """Follows the frame from the endpoint's device on; raises OSError and LoaderError."""
    parent = kernel_path.device(way.parent)
    if parent is None:
        walk.finish("lost", "", f"the parent {way.parent} is gone")
        return
    if walk.endpoint.host_ifname and way.tracer is not None:
        _switched(walk, way, way.tracer, parent)
    else:
        _macvlan(walk, way, parent)


def _macvlan(walk: Walk, way: Way, parent: Device) -> None:
    name = walk.endpoint.ifname
    own = kernel_path.device(name, netns_path=walk.netns_path)
    mode = own.macvlan_mode if own is not None and own.macvlan_mode else way.mode
    if way.tracer is not None and way.is_limited:
        walk.tell(LIMIT, name, way.tracer.run(LIMIT, walk.frame, context=walk.endpoint.slot))
        if walk.end is not None:
            return
    sibling = _find(way.bridged, walk) if mode == "bridge" else None
    if sibling is not None and not walk.mac[0] & 1:
        walk.say(KERNEL, name, "macvlan", f"macvlan in bridge mode takes it to {parent.ifname}'s ingress", walk.inside)
        if way.tracer is not None:
            walk.tell(IN, parent.ifname, way.tracer.run(IN, walk.frame, parent.ifindex))
        if walk.end is None:
            walk.arrive(sibling, "slow")
        return
    copies = ", and copies it to the others in bridge mode" if walk.mac[0] & 1 and mode == "bridge" else ""
    walk.say(KERNEL, name, "macvlan", f"macvlan in mode {mode} sends it out by {parent.ifname}{copies}", walk.inside)
    run: Run | None = None
    if way.tracer is None:
        walk.say(KERNEL, parent.ifname, "no_program", f"no program runs on {parent.ifname}: {way.why}")
    else:
        run = way.tracer.run(OUT, walk.frame, parent.ifindex)
        walk.tell(OUT, parent.ifname, run)
        if walk.end is not None:
            return
        if run.operand("redirect_in") is not None:
            walk.tell(IN, parent.ifname, way.tracer.run(IN, run.packet, parent.ifindex, context=NOTE_SHORT))
            _to_host(walk, parent)
            return
    _out(walk, way, parent, run, "slow")


def _switched(walk: Walk, way: Way, tracer: Tracer, parent: Device) -> None:
    name = walk.endpoint.host_ifname
    port = kernel_path.device(name)
    if port is None:
        walk.finish(
            "lost", "", f"device {name}, the endpoint's host end, is gone: linkspand makes it again at its start"
        )
        return
    run = tracer.run(SWITCH_OUT, walk.frame, port.ifindex)
    is_group = bool(walk.mac[0] & 1)
    peer = run.operand("redirect_peer")
    if is_group and run.operand("drop") is None and run.operand("sender") is not None:
        for each in run.decisions:
            if each.what != "sender":
                walk.say(SWITCH_OUT, name, each.what, walk.words(each))
        _out(walk, way, parent, run, "fast")
        return
    walk.tell(SWITCH_OUT, name, run)
    if walk.end is not None:
        return
    if peer is not None:
        walk.deliver(peer, "fast")
    elif run.operand("redirect_in") is not None:
        walk.tell(SWITCH_IN, parent.ifname, tracer.run(SWITCH_IN, run.packet, parent.ifindex, context=NOTE_SHORT))
        _to_host(walk, parent)
    else:
        walk.tell(OUT, parent.ifname, tracer.run(OUT, run.packet, parent.ifindex))
        _out(walk, way, parent, run, "fast")


def _out(walk: Walk, way: Way, parent: Device, run: Run | None, path: Path) -> None:
    """What is at the other end of the wire, and for a question or a group, who else hears it."""
    if walk.is_question:
        owner = _owner(way.bridged, walk)
        own = kernel_path.route(walk.destination)
        is_hosts = own is not None and own.type == "local"
        if owner is not None:
            walk.answer = macs(owner)
            walk.finish(
                "answered", "slow", f"{walk.names.of(owner)} answers: it has {walk.destination}, at {owner.mac}"
            )
        elif is_hosts and run is not None and run.operand("copy_in" if path == "slow" else "redirect_in"):
            walk.answer = parent.mac
            walk.finish(
                "answered", "slow", f"the host's kernel answers: it has {walk.destination}, at {parent.mac.hex(':')}"
            )
        elif is_hosts:
            walk.finish(
                "lost", "", f"the host has {walk.destination}, and does not hear what goes out by {parent.ifname}"
            )
        else:
            walk.finish(
                "unknown", "", f"whoever has {walk.destination} on {parent.ifname}'s wire answers, or nobody does"
            )
        return
    if walk.mac == parent.mac:
        walk.finish("lost", "slow", f"goes out by {parent.ifname}: the host, which has that MAC, never sees it")
        return
    walk.finish(
        "sent", path, f"leaves by {parent.ifname} ({path} path); what becomes of it on the wire this host cannot know"
    )


def _to_host(walk: Walk, parent: Device) -> None:
    if walk.end is not None:
        return
    own = kernel_path.route(walk.destination, source=walk.source, iif=parent.ifindex)
    if own is not None and own.type == "local":
        walk.say(KERNEL, parent.ifname, "route", f"route {own.matched} (local): the host has {walk.destination}")
    walk.finish("delivered", "fast", f"arrives at the host by way of {parent.ifname} (fast path)")


def _find(bridged: Sequence[Endpoint], walk: Walk) -> Endpoint | None:
    text = walk.mac.hex(":")
    return next((each for each in bridged if each.mac == text and each.id != walk.endpoint.id), None)


def _owner(bridged: Sequence[Endpoint], walk: Walk) -> Endpoint | None:
    others = (each for each in bridged if each.id != walk.endpoint.id)
    return next((each for each in others if is_for(each, walk.destination)), None)
