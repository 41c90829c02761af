"""A frame of a macvlan endpoint: through the kernel's macvlan or the switch in eBPF, and the programs of the parent.

From the endpoint (`follow`), or to it from the parent's wire (`arrive`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from control.drivers.walk import KERNEL, Path, Walk, is_for, macs
from control.drivers.walk_hooks import Running
from control.model import Endpoint
from datapath import frames, kernel_path
from datapath.kernel_path import Device
from datapath.trace import NOTE_SHORT, Run, Tracer

OUT: Final = "ls_parent_out"
IN: Final = "ls_parent_in"
LIMIT: Final = "ls_station_out"
SWITCH_OUT: Final = "ls_switch_out"
SWITCH_IN: Final = "ls_switch_in"
SWITCH_XDP: Final = "ls_switch_xdp"

_STRANGER: Final = bytes.fromhex("020000000001")
"""Stands for the MAC of a machine that this host does not know."""


@dataclass(frozen=True)
class Way:
    """What the driver knows: the parent's device, the endpoints on it in bridge mode, the mode of the network, and the
    programs, None where none is to run, and `why`; whether they are where they are to be.

    `is_limited`: ls_station_out runs in the sandbox. `is_xdp`: ls_switch_xdp takes what the wire brings.
    """

    parent: str
    bridged: Sequence[Endpoint]
    mode: str
    tracer: Tracer | None
    running: Running
    why: str = ""
    is_limited: bool = False
    is_xdp: bool = False


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
    if way.tracer is not None and way.is_limited and own is not None:
        otherwise = "nothing limits its broadcasts"
        if way.running.at(walk, LIMIT, own, "egress", otherwise, inside=True):
            walk.tell(LIMIT, name, way.tracer.run(LIMIT, walk.frame, context=walk.endpoint.slot))
        if walk.end is not None:
            return
    sibling = _find(way.bridged, walk) if mode == "bridge" else None
    if sibling is not None and not walk.mac[0] & 1:
        walk.say(KERNEL, name, "macvlan", f"macvlan in bridge mode takes it to {parent.ifname}'s ingress", walk.inside)
        _past_parent(walk, way, parent)
        if walk.end is None:
            walk.arrive(sibling, "slow")
        return
    copies = ", and copies it to the others in bridge mode" if walk.mac[0] & 1 and mode == "bridge" else ""
    walk.say(KERNEL, name, "macvlan", f"macvlan in mode {mode} sends it out by {parent.ifname}{copies}", walk.inside)
    run: Run | None = None
    if way.tracer is None:
        walk.say(KERNEL, parent.ifname, "no_program", f"no program runs on {parent.ifname}: {way.why}")
    elif way.running.at(walk, OUT, parent, "egress", "the kernel's path takes all, and the host is not reached"):
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
    if not way.running.at(walk, SWITCH_OUT, port, "ingress", "nothing else carries what the sandbox sends"):
        walk.finish("lost", "", f"no program takes it at {name}, and its bridge hands on nothing")
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
        if way.running.at(walk, OUT, parent, "egress", "nothing more is done to it there"):
            walk.tell(OUT, parent.ifname, tracer.run(OUT, run.packet, parent.ifindex))
        _out(walk, way, parent, run, "fast")


def arrive(walk: Walk, way: Way, mac: bytes | None) -> None:
    """Follows a frame that the parent's wire brings for the endpoint, from `mac` or whom the host knows to have the
    address that it is sent from; raises OSError and LoaderError."""
    parent = kernel_path.device(way.parent)
    if parent is None:
        walk.finish("lost", "", f"the parent {way.parent} is gone")
        return
    walk.frame = frames.packet(
        (mac or _mac_of_sender(walk, parent), macs(walk.endpoint)),
        (walk.source, walk.destination),
        walk.protocol,
        walk.port,
    )
    if walk.endpoint.host_ifname and way.tracer is not None:
        _arrive_switched(walk, way, way.tracer, parent)
        return
    if way.tracer is None:
        walk.say(KERNEL, parent.ifname, "no_program", f"no program runs on {parent.ifname}: {way.why}")
    else:
        _past_parent(walk, way, parent)
    if walk.end is None:
        text = f"macvlan knows whose {walk.mac.hex(':')} is"
        walk.say(KERNEL, parent.ifname, "macvlan", text)
        walk.arrive(walk.endpoint, "slow")


def _mac_of_sender(walk: Walk, parent: Device) -> bytes:
    origin = walk.origin or walk.source
    known = kernel_path.neighbour(origin, parent.ifindex)
    if known is not None:
        walk.say(KERNEL, parent.ifname, "neighbour", f"neighbour {origin} is {known[0].hex(':')} ({known[1]})")
        return known[0]
    stands = f"{_STRANGER.hex(':')} stands for it (--from-mac)"
    walk.say(KERNEL, parent.ifname, "no_neighbour", f"the host does not know the MAC of {origin}: {stands}")
    return _STRANGER


def _arrive_switched(walk: Walk, way: Way, tracer: Tracer, parent: Device) -> None:
    name = parent.ifname
    if way.is_xdp and way.running.at(walk, SWITCH_XDP, parent, "ingress", f"{SWITCH_IN} takes all"):
        if _is_redirected(walk, tracer, SWITCH_XDP, parent, "redirect"):
            return
        walk.say(SWITCH_XDP, name, "kernel", f"left to the kernel as it is: {SWITCH_IN} gets it")
    is_running = way.running.at(walk, SWITCH_IN, parent, "ingress", "nothing else takes it to the sandbox")
    if is_running and _is_redirected(walk, tracer, SWITCH_IN, parent, "redirect_peer"):
        return
    if walk.end is None:
        walk.finish("lost", "slow", f"the host's own stack gets it, which does not have {walk.mac.hex(':')}")


def _is_redirected(walk: Walk, tracer: Tracer, program: str, parent: Device, how: str) -> bool:
    """Whether the program at the parent's ingress takes the frame straight to the sandbox, which then is told."""
    run = tracer.run(program, walk.frame, parent.ifindex)
    walk.tell(program, parent.ifname, run)
    to = run.operand(how)
    if to is None:
        return False
    walk.deliver(to, "fast")
    return True


def _past_parent(walk: Walk, way: Way, parent: Device) -> None:
    """What the program at the parent's ingress makes of a frame for a macvlan device."""
    if way.tracer is not None and way.running.at(walk, IN, parent, "ingress", "it is neither judged nor counted"):
        walk.tell(IN, parent.ifname, way.tracer.run(IN, walk.frame, parent.ifindex))


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
