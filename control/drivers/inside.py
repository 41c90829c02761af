"""The inside of a sandbox: what a device gets there, whichever driver made it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Final

from control.addressing import gateway_for, link_local
from control.drivers.base import Join
from control.errors import Conflict
from control.model import Address, Endpoint
from datapath import devices, netns, rtnl
from datapath.expected import Device

_LINK_LOCAL_BITS: Final = {4: 16, 6: 64}
"""Of the prefix of a link-local address, by family (RFC 3927, 2.1; RFC 4291, 2.5.6)."""


def set_up(join: Join, netns_path: str, *, gateway_mac: bytes | None = None) -> None:
    """Gives the endpoint's device its addresses, sets it up, and makes the network's gateway the default router.

    The link goes up last of what lets packets through. The gateway is the only router: else each sandbox could make
    itself the router of the others, and each would ask all others for one again and again. With `gateway_mac` nobody
    asks for the gateway's MAC either. An engine's sandbox keeps a default route that it has. May be repeated. Raises
    Conflict, and NetlinkError for what the kernel refuses.
    """
    endpoint = join.endpoint
    if endpoint.ipv6 is not None:
        netns.call(netns_path, partial(devices.ignore_router_advertisements, endpoint.ifname))
    with rtnl.Rtnl(netns_path) as netlink:
        index = netlink.ifindex(endpoint.ifname)
        if index is None:
            raise Conflict(f"device {endpoint.ifname} is gone from sandbox {join.holder}: disconnect and connect it")
        label = f"{endpoint.ifname} in sandbox {join.holder}"
        requests = [rtnl.link_no_auto_address(index, label)]
        requests += [rtnl.addr_add(index, label, address) for address in _addresses(endpoint)]
        requests.append(rtnl.link_up(index, label))
        for is_default, gateway in _gateways(join):
            if gateway_mac is not None:
                requests.append(rtnl.neighbour_add(index, label, gateway, gateway_mac))
            if is_default:
                is_ours = join.sandbox is not None
                requests.append(rtnl.default_route_add(index, label, gateway.packed, replace=is_ours))
        netlink.apply(requests)


def expected(join: Join, kind: str, *, mtu: int | None, gateway_mac: bytes | None = None) -> Device:
    """The device as `set_up` leaves it."""
    gateways = list(_gateways(join))
    return Device(
        ifname=join.endpoint.ifname,
        kind=kind,
        mac=mac_bytes(join.endpoint.mac),
        mtu=mtu,
        addresses=_addresses(join.endpoint),
        neighbours={} if gateway_mac is None else {gateway: gateway_mac for _, gateway in gateways},
        gateways=[gateway for is_default, gateway in gateways if is_default],
    )


def _addresses(endpoint: Endpoint) -> list[IPv4Interface | IPv6Interface]:
    """With the link-local ones."""
    addresses: list[IPv4Interface | IPv6Interface] = [a for a in (endpoint.ipv4, endpoint.ipv6) if a is not None]
    own = [link_local(endpoint.mac)] if endpoint.ipv6 is not None else []
    return addresses + [ip_interface((ip, _LINK_LOCAL_BITS[ip.version])) for ip in (*own, *endpoint.link_local_ips)]


def _gateways(join: Join) -> Iterator[tuple[bool, Address]]:
    """(whether it is the default router, gateway) by family."""
    endpoint = join.endpoint
    for is_default, address in ((join.default_v4, endpoint.ipv4), (join.default_v6, endpoint.ipv6)):
        gateway = gateway_for(join.network, address)
        if gateway is not None:
            yield is_default, gateway


def mac_bytes(text: str) -> bytes:
    """Six bytes of the written form with colons."""
    return bytes.fromhex(text.replace(":", ""))
