"""Macvlan endpoints as veth pairs: eBPF programs at the host ends and on the parent do what a macvlan device does.

Nothing carries packets without the programs, so a host that cannot run them cannot have such a network. One network to
a parent: all its endpoints are on one bridge, which copies group packets to them. Which kind of device is the faster
one was measured: docs/adr/0014.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import msgspec

from control.drivers import inside
from control.drivers.base import Join
from control.drivers.inside import mac_bytes
from control.drivers.options import ACCEL, MTU, is_on
from control.errors import Conflict, InvalidArgument, NotImplementedByDriver
from control.model import Endpoint, Network, NetworkSpec
from control.plan import Step
from datapath import devices, links, rtnl
from datapath.parents import Parent
from datapath.switch import Switching
from datapath.uplink import Uplinks

DEVICE: Final = "linkspan.macvlan_device"
PARENT_HOOK: Final = "linkspan.parent_hook"
VETH: Final = "veth"
_DEVICES: Final = ("macvlan", VETH)
_HOOKS: Final = ("tc", "xdp")
_OUR_VETH: Final = re.compile(r"lv[0-9a-f]{12}")
_OUR_BRIDGE: Final = re.compile(r"lv-[0-9a-f]{12}")


def check_device(option: str, value: str) -> None:
    if value not in _DEVICES:
        raise InvalidArgument(f"invalid value {value!r} for option {option}: use one of {', '.join(_DEVICES)}")


def check_hook(option: str, value: str) -> None:
    if value not in _HOOKS:
        raise InvalidArgument(f"invalid value {value!r} for option {option}: use one of {', '.join(_HOOKS)}")


def is_switched(network: Network | NetworkSpec) -> bool:
    """Whether the network's endpoints are veth pairs."""
    return network.options.get(DEVICE) == VETH


def switching(network: Network) -> Switching | None:
    """How the parent's programs switch for the network; None where it has macvlan devices."""
    if not is_switched(network):
        return None
    return Switching(_bridge(network), "xdp" if network.options.get(PARENT_HOOK) == "xdp" else "tc")


def check(spec: NetworkSpec, mode: str, parent: str | None, on_it: Sequence[Network], uplinks: Uplinks) -> None:
    """Raises for what a network of veth pairs cannot be, and for one that would have to share its parent with one."""
    if not is_switched(spec):
        if PARENT_HOOK in spec.options:
            raise InvalidArgument(f"option {PARENT_HOOK} goes with {DEVICE}={VETH} alone")
        for other in filter(is_switched, on_it):
            raise Conflict(f"parent {parent} has network {other.name} with {DEVICE}={VETH}, which has it to itself")
        return
    if not parent:
        raise InvalidArgument(f"option {DEVICE}={VETH} needs a parent: name one, or use the driver bridge")
    if mode == "passthru":
        raise InvalidArgument(f"option {DEVICE}={VETH} cannot be had in mode {mode}: leave it out")
    if not is_on(spec, ACCEL):
        raise InvalidArgument(f"option {DEVICE}={VETH} cannot be had with {ACCEL}=off: its programs carry all packets")
    for other in on_it:
        raise Conflict(
            f"parent {parent} has network {other.name}: a network with {DEVICE}={VETH} has its parent to itself"
        )
    if uplinks.problem:
        raise NotImplementedByDriver(f"option {DEVICE}={VETH} cannot be had, leave it out: {uplinks.problem}")


def settle(endpoint: Endpoint) -> Endpoint:
    return msgspec.structs.replace(endpoint, host_ifname=f"lv{endpoint.id[:12]}")


def network_steps(network: Network, parent: Callable[[], Parent]) -> Sequence[Step]:
    bridge = _bridge(network)
    return [
        Step(
            f"create the bridge {bridge} that copies group packets",
            lambda: _add_bridge(network, _mtu(network, parent())),
            partial(devices.delete_links, [bridge]),
        )
    ]


def device_step(join: Join, parent: Callable[[], Parent]) -> Step:
    host = join.endpoint.host_ifname
    return Step(f"create veth {host} on {_bridge(join.network)}", partial(_add, join, parent), partial(_delete, host))


def set_up_inside(join: Join, netns_path: str) -> None:
    inside.set_up(join, netns_path)
    devices.take_note_of_carrier(join.endpoint.host_ifname)


def sweep(networks: Collection[Network], endpoints: Collection[Endpoint]) -> None:
    """Deletes devices of this kind that no record knows."""
    known = {_bridge(network) for network in networks} | {endpoint.host_ifname for endpoint in endpoints}
    devices.delete_links([link.ifname for link in links.dump() if _is_ours(link) and link.ifname not in known])


def remains(endpoint: Endpoint) -> bool:
    """An engine that gives an endpoint up moves its peer back, as the kernel then tells by the carrier it had."""
    index = devices.ifindex(endpoint.host_ifname)
    if index is None:
        return False
    is_here = endpoint.is_remote and devices.ifindex(endpoint.ifname) is not None
    return not (is_here and devices.has_had_carrier(index))


def has_bridge(network: Network) -> bool:
    return devices.ifindex(_bridge(network)) is not None


def is_whole(network: Network, endpoint: Endpoint) -> bool:
    present = {link.ifname: link for link in links.dump()}
    link, bridge = present.get(endpoint.host_ifname), present.get(_bridge(network))
    if link is None or bridge is None or link.master != bridge.ifindex or not link.flags & rtnl.IFF_UP:
        return False
    return not (endpoint.is_remote and endpoint.ifname in present) or remains(endpoint)


def _bridge(network: Network) -> str:
    return f"lv-{network.id[:12]}"


def _mtu(network: Network, parent: Parent) -> int:
    """What the network says, else its parent's."""
    return int(network.options.get(MTU, parent.mtu))


def _is_ours(link: links.LinkInfo) -> bool:
    return (link.kind == "veth" and _OUR_VETH.fullmatch(link.ifname) is not None) or (
        link.kind == "bridge" and _OUR_BRIDGE.fullmatch(link.ifname) is not None
    )


def _add_bridge(network: Network, mtu: int) -> None:
    mac = ":".join(("02", *(network.id[at : at + 2] for at in range(0, 10, 2))))
    devices.add_bridge(_bridge(network), mac=mac, mtu=mtu, ipv6=False, snooping=False)


def _add(join: Join, parent: Callable[[], Parent]) -> None:
    endpoint, bridge = join.endpoint, _bridge(join.network)
    master = devices.ifindex(bridge)
    if master is None:
        raise Conflict(f"bridge {bridge} of network {join.network.name} is gone: restart linkspand to make it again")
    host, index = endpoint.host_ifname, devices.ifindex(endpoint.host_ifname)
    if index is None:
        netns_fd = None if join.netns_path is None else os.open(join.netns_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with rtnl.Rtnl() as netlink:
                netlink.apply(
                    [
                        rtnl.veth_add(
                            host,
                            master=master,
                            peer_ifname=endpoint.ifname,
                            peer_netns_fd=netns_fd,
                            peer_mac=mac_bytes(endpoint.mac),
                            mtu=_mtu(join.network, parent()),
                        )
                    ]
                )
        finally:
            if netns_fd is not None:
                os.close(netns_fd)
        if join.network.options.get(PARENT_HOOK) == "xdp":
            devices.enable_gro(join.netns_path, endpoint.ifname)
        index = devices.need_ifindex(host)
    with rtnl.Rtnl() as netlink:
        netlink.apply(
            [
                rtnl.link_master(index, host, master),
                rtnl.bridge_port(index, host, learning=False, unicast_flood=False, isolated=True),
                rtnl.link_no_auto_address(index, host),
                rtnl.link_up(index, host),
            ]
        )


def _delete(host: str) -> None:
    devices.delete_links([host])
