"""Macvlan endpoints as veth pairs: eBPF programs at the host ends and on the parent do what a macvlan device does.

Nothing carries packets without the programs, so a host that cannot run them cannot have such a network. One network to
a parent: all its endpoints are on one bridge, which copies group packets to them. Which kind of device is the faster
one was measured: docs/adr/0014.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

from control.drivers import inside, ports_of_bridge, returned
from control.drivers.base import Join
from control.drivers.inside import mac_bytes
from control.drivers.macvlan_options import DEVICE, PARENT_HOOK, PASSTHRU, VETH, is_switched, mode_of, parent_hook
from control.drivers.macvlan_parents import PARENT, FollowedParents
from control.drivers.options import ACCEL, MTU, is_on
from control.errors import Conflict, InvalidArgument, NotImplementedByDriver
from control.model import Endpoint, EndpointId, Network, NetworkId, NetworkSpec
from control.plan import Step
from datapath import devices, links, rtnl
from datapath.parents import Parent
from datapath.switch import Switching
from datapath.uplink import Uplinks

_OUR_VETH: Final = re.compile(r"lv[0-9a-f]{12}")
_OUR_BRIDGE: Final = re.compile(r"lv-[0-9a-f]{12}")


def check(spec: NetworkSpec, on_it: Sequence[Network], uplinks: Uplinks) -> None:
    """Raises for what a network of veth pairs cannot be, and for one that would have to share its parent with one."""
    parent = spec.options.get(PARENT)
    if not is_switched(spec):
        if PARENT_HOOK in spec.options:
            raise InvalidArgument(f"option {PARENT_HOOK} goes with {DEVICE}={VETH} alone")
        for other in filter(is_switched, on_it):
            raise Conflict(f"parent {parent} has network {other.name} with {DEVICE}={VETH}, which has it to itself")
        return
    if not parent:
        raise InvalidArgument(f"option {DEVICE}={VETH} needs a parent: name one, or use the driver bridge")
    if mode_of(spec) == PASSTHRU:
        raise InvalidArgument(f"option {DEVICE}={VETH} cannot be had in mode {PASSTHRU}: leave it out")
    if not is_on(spec, ACCEL):
        raise InvalidArgument(f"option {DEVICE}={VETH} cannot be had with {ACCEL}=off: its programs carry all packets")
    for other in on_it:
        raise Conflict(
            f"parent {parent} has network {other.name}: a network with {DEVICE}={VETH} has its parent to itself"
        )
    if uplinks.problem:
        raise NotImplementedByDriver(f"option {DEVICE}={VETH} cannot be had, leave it out: {uplinks.problem}")


def switching(network: Network) -> Switching | None:
    """How the parent's programs switch for the network; None where it has macvlan devices."""
    return Switching(bridge_of(network), parent_hook(network)) if is_switched(network) else None


def bridge_of(network: Network) -> str:
    """The bridge that copies group packets."""
    return f"lv-{network.id[:12]}"


def host_ifname(endpoint_id: str) -> str:
    return f"lv{endpoint_id[:12]}"


class VethPairs:
    """The same as `MacvlanDevices`, of the other kind."""

    def __init__(self, parents: FollowedParents, uplinks: Uplinks) -> None:
        self._parents = parents
        self._uplinks = uplinks

    def network_steps(self, network: Network) -> Sequence[Step]:
        bridge = bridge_of(network)
        return [
            Step(
                f"create the bridge {bridge} that copies group packets",
                partial(self._add_bridge, network),
                partial(devices.delete_links, [bridge]),
                kind="bridge",
            )
        ]

    def step(self, join: Join, where: str) -> Step:
        """Makes the pair, with one end in the endpoint's sandbox or for its engine."""
        host = join.endpoint.host_ifname
        what = f"create veth {host} on {bridge_of(join.network)} {where}"
        return Step(what, partial(self._add, join), partial(devices.delete_links, [host]), kind="veth")

    def remains(self, endpoint: Endpoint) -> bool:
        return ports_of_bridge.remains(endpoint)

    def has_network(self, network: Network) -> bool:
        return devices.ifindex(bridge_of(network)) is not None

    def whole(
        self, joined: Sequence[tuple[Network, Endpoint]], lower: Mapping[NetworkId, int | None]
    ) -> set[EndpointId]:
        """The pair does not go with the parent, but what the programs know of it does."""
        present = {link.ifname: link for link in links.dump()} if joined else {}
        return {
            endpoint.id
            for network, endpoint in joined
            if ports_of_bridge.is_whole(endpoint, bridge_of(network), present)
            and (self._uplinks.problem or self._uplinks.knows(self._parents.ifname(network), mac_bytes(endpoint.mac)))
        }

    def sweep(self, networks: Collection[Network], endpoints: Collection[Endpoint]) -> None:
        """Deletes devices of this kind that no record knows."""
        known = {bridge_of(network) for network in networks} | {endpoint.host_ifname for endpoint in endpoints}
        devices.delete_links([link.ifname for link in links.dump() if _is_ours(link) and link.ifname not in known])

    def set_up(self, join: Join, netns_path: str) -> None:
        """The inside of the sandbox; one of an engine's is set up as the engine had it."""
        if join.sandbox is None:
            mac = mac_bytes(join.endpoint.mac)
            with rtnl.Rtnl(netns_path) as netlink:
                found = [link for link in links.dump(netlink.fileno()) if link.kind == "veth" and link.mac == mac]
            if not found:
                return
            join = returned.prepare_as_engine(join, netns_path, found[0])
        inside.set_up(join, netns_path)
        devices.take_note_of_carrier(join.endpoint.host_ifname)

    def limit(self, network: Network, endpoint: Endpoint, netns_path: str) -> None:
        """The program at the host end has seen to that."""

    def _add_bridge(self, network: Network) -> None:
        mac = ":".join(("02", *(network.id[at : at + 2] for at in range(0, 10, 2))))
        mtu = _mtu(network, self._parents.need(network))
        devices.add_bridge(bridge_of(network), mac=mac, mtu=mtu, ipv6=False, snooping=False)

    def _add(self, join: Join) -> None:
        network, endpoint, host = join.network, join.endpoint, join.endpoint.host_ifname
        is_new = devices.ifindex(host) is None
        if is_new:
            self._parents.need(network)
        ports_of_bridge.add_veth(join, bridge_of(network))
        if is_new and parent_hook(network) == "xdp":
            devices.enable_gro(join.netns_path, endpoint.ifname)
        index = devices.need_ifindex(host)
        with rtnl.Rtnl() as netlink:
            netlink.apply(
                [
                    rtnl.bridge_port(index, host, learning=False, unicast_flood=False, isolated=True),
                    rtnl.link_no_auto_address(index, host),
                    rtnl.link_up(index, host),
                ]
            )


def _mtu(network: Network, parent: Parent) -> int:
    """What the network says, else its parent's."""
    return int(network.options.get(MTU, parent.mtu))


def _is_ours(link: links.LinkInfo) -> bool:
    return (link.kind == "veth" and _OUR_VETH.fullmatch(link.ifname) is not None) or (
        link.kind == "bridge" and _OUR_BRIDGE.fullmatch(link.ifname) is not None
    )
