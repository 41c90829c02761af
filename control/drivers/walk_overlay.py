"""A packet of another node's endpoint, as it arrives here: past the uplink's program, or through the kernel's VXLAN."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from control.drivers.walk import KERNEL, Address, Walk, macs
from control.drivers.walk_bridge import Way, bridged, from_host
from control.drivers.walk_host import routed, tell_others
from datapath import devices, frames, kernel_path
from datapath.fast_peers import NO_MAC, PROGRAM
from datapath.kernel_path import Device
from datapath.nft_walk import Firewall
from datapath.vxlan import Peer


@dataclass(frozen=True)
class Arrival:
    """How the packet comes: from `sender` to `local`, this node's address, by the device with the ifindex `uplink`, 0
    where no route tells.

    `vxlan` is the network's VXLAN device. `problem` says why no program runs at the uplink, empty where one is to.
    `not_direct` says why the packet comes in VXLAN, empty for one that comes without; None on networks that know no
    other.
    """

    sender: Peer
    local: Address
    uplink: int
    vxlan: str
    problem: str = ""
    not_direct: str | None = None


def arrive(walk: Walk, way: Way, arrival: Arrival, mac: bytes | None) -> None:
    """Follows the packet, sent by the endpoint's MAC or by `mac`; raises OSError and LoaderError."""
    sender = arrival.sender
    ends = (walk.source, walk.destination)
    walk.frame = frames.packet((mac or sender.mac, macs(walk.endpoint)), ends, walk.protocol, walk.port)
    if way.tunnels:
        _tunnelled(walk, way, way.tunnels, arrival)
        return
    uplink = kernel_path.device(arrival.uplink)
    if uplink is None:
        node = walk.names.node(sender.node)
        walk.finish("unknown", "", f"there is no route to {node}, so nothing tells by which device its packets come")
    elif arrival.not_direct == "":
        walk.frame = frames.packet((mac or sender.node_mac, uplink.mac), ends, walk.protocol, walk.port)
        _direct(walk, way, arrival, uplink)
    else:
        _in_vxlan(walk, way, arrival, uplink)


def _direct(walk: Walk, way: Way, arrival: Arrival, uplink: Device) -> None:
    text = f"comes from {walk.names.node(arrival.sender.node)} without VXLAN, from MAC {walk.frame[6:12].hex(':')}"
    walk.say(KERNEL, uplink.ifname, "arrival", text)
    _past_program(walk, way, arrival, uplink, walk.frame)
    if walk.end is None:
        routed(walk, uplink, partial(from_host, walk, way))


def _in_vxlan(walk: Walk, way: Way, arrival: Arrival, uplink: Device) -> None:
    sender, name = arrival.sender, uplink.ifname
    if arrival.not_direct:
        walk.say(KERNEL, name, "not_direct", f"not direct: {arrival.not_direct}")
    source = f"{sender.node} port {frames.SOURCE_PORT} (for the flow's)"
    ends = f"{source} to {arrival.local} port {frames.VXLAN_PORT}, VNI {walk.network.vni}"
    walk.say(KERNEL, name, "arrival", f"comes from {walk.names.node(sender.node)} in VXLAN: UDP from {ends}")
    macs_outside = sender.node_mac or NO_MAC, uplink.mac
    frame = frames.vxlan(macs_outside, (sender.node, arrival.local), walk.network.vni, walk.frame)
    _past_program(walk, way, arrival, uplink, frame)
    if walk.end is None:
        tell_others(walk, Firewall(), "input", name)
        _out_of_vxlan(walk, way, arrival)


def _past_program(walk: Walk, way: Way, arrival: Arrival, uplink: Device, frame: bytes) -> None:
    """What the program at the uplink makes of the frame, as it comes; the walk's end if it is dropped or delivered."""
    name, why = uplink.ifname, way.why or arrival.problem
    if way.tracer is None or why:
        walk.say(KERNEL, name, "no_program", f"no program takes it at {name}: {why}")
    elif way.running.at(walk, PROGRAM, uplink, "ingress", "the kernel's path takes all"):
        run = way.tracer.run(PROGRAM, frame, uplink.ifindex)
        walk.tell(PROGRAM, name, run)
        host_end = run.operand("redirect_peer")
        if host_end is not None:
            walk.deliver(host_end, "fast")
        elif walk.end is None:
            walk.say(PROGRAM, name, "kernel", "left to the kernel as it is: the host's own stack gets it")


def _out_of_vxlan(walk: Walk, way: Way, arrival: Arrival) -> None:
    name = arrival.vxlan
    device = kernel_path.device(name)
    if device is None or not devices.is_up(name):
        walk.finish("lost", "slow", f"VXLAN device {name} is gone or down: `linkspan doctor --cluster --mend` mends it")
        return
    walk.say(KERNEL, name, "vxlan", f"VXLAN device of VNI {walk.network.vni}: takes the outer headers off")
    bridged(walk, device, way)


def _tunnelled(walk: Walk, way: Way, tunnels: str, arrival: Arrival) -> None:
    node = walk.names.node(arrival.sender.node)
    tunnel = kernel_path.route(arrival.sender.node, netns_path=tunnels)
    if tunnel is None:
        walk.finish("lost", "", f"there is no tunnel to {node}, so nothing is taken from there")
        return
    text = f"comes from {node} in VXLAN out of WireGuard device {tunnel.ifname}, in the tunnels' namespace"
    walk.say(KERNEL, tunnel.ifname, "arrival", text)
    text = f"network {walk.network.name} is encrypted: what is from other nodes is the kernel's alone, by WireGuard"
    walk.say(KERNEL, arrival.vxlan, "encrypted", text)
    _out_of_vxlan(walk, way, arrival)
