"""Endpoints that are veth pairs with their host end on a Linux bridge: what the drivers that have such make alike."""

from __future__ import annotations

from collections.abc import Mapping

from control.drivers.base import Join
from control.drivers.inside import mac_bytes
from control.errors import Conflict
from control.model import Endpoint
from datapath import devices, links, netns, rtnl


def add_veth(join: Join, bridge: str) -> None:
    """The veth pair with its host end on the bridge, of which it has the MTU. Raises Conflict without the bridge."""
    endpoint = join.endpoint
    master = devices.ifindex(bridge)
    if master is None:
        raise Conflict(f"bridge {bridge} of network {join.network.name} is gone: restart linkspand to make it again")
    index = devices.ifindex(endpoint.host_ifname)
    if index is not None:
        with rtnl.Rtnl() as netlink:
            netlink.apply(
                [
                    rtnl.link_master(index, endpoint.host_ifname, master),
                    rtnl.link_restore(index, endpoint.host_ifname, mtu=devices.mtu(bridge)),
                ]
            )
        _restore_peer(join, devices.mtu(bridge))
        return
    with netns.opened(join.netns_path) as netns_fd, rtnl.Rtnl() as netlink:
        netlink.apply(
            [
                rtnl.veth_add(
                    endpoint.host_ifname,
                    master=master,
                    peer_ifname=endpoint.ifname,
                    peer_netns_fd=netns_fd,
                    peer_mac=mac_bytes(endpoint.mac),
                    mtu=devices.mtu(bridge),
                )
            ]
        )


def _restore_peer(join: Join, mtu: int) -> None:
    """Gives the end in the sandbox its MTU and MAC again, where it is still there."""
    if join.netns_path is None:
        return
    with rtnl.Rtnl(join.netns_path) as netlink:
        wanted, ifname = (mtu, mac_bytes(join.endpoint.mac)), join.endpoint.ifname
        for link in links.dump(netlink.fileno()):
            if link.ifname == ifname and (link.mtu, link.mac) != wanted:
                netlink.apply([rtnl.link_restore(link.ifindex, ifname, mtu=mtu, mac=wanted[1])])


def remains(endpoint: Endpoint) -> bool:
    """See Driver.remains. An engine that gives an endpoint up moves its peer back, as the kernel then tells by the
    carrier it had."""
    index = devices.ifindex(endpoint.host_ifname)
    if index is None:
        return False
    is_here = endpoint.is_remote and devices.ifindex(endpoint.ifname) is not None
    return not (is_here and devices.has_had_carrier(index))


def is_whole(endpoint: Endpoint, bridge: str, present: Mapping[str, links.LinkInfo]) -> bool:
    """Whether the endpoint's host end is a port of the bridge and up, and its peer is where it belongs; `present` are
    the host's devices by name."""
    link, master = present.get(endpoint.host_ifname), present.get(bridge)
    if link is None or master is None or link.master != master.ifindex or not link.flags & rtnl.IFF_UP:
        return False
    is_here = endpoint.is_remote and endpoint.ifname in present
    return not is_here or remains(endpoint)
