"""Where the kernel takes a packet: its own answers, from routes, neighbours and bridges of a network namespace.

Looks, and changes nothing. Raises NetlinkError for what the kernel does not tell; what is not there is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from datapath import netns, rtnl, rtnl_vxlan

Address = IPv4Address | IPv6Address
T = TypeVar("T")

_RTM_F_FIB_MATCH: Final = 0x2000
_ROUTE_TYPES: Final = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
_VALID: Final = {0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe", 0x40: "noarp", 0x80: "permanent"}


@dataclass(frozen=True)
class Route:
    """A route, and the way by it. `type` is "unicast", "local", "broadcast" or "multicast"; `matched` is the route as
    it stands in the table, as in "10.0.0.0/8" or "default"; `gateway` is None on the device's own link."""

    type: str
    matched: str
    ifname: str
    ifindex: int
    gateway: Address | None
    source: Address | None


@dataclass(frozen=True)
class Device:
    """A device. `master` is the ifindex of the bridge whose port it is, 0 for none; `is_isolated`: as such a port it
    exchanges nothing with other isolated ones. `peer` is the ifindex of a veth's other end, or of the device below.
    `macvlan_mode` is empty for other devices."""

    ifindex: int
    ifname: str
    kind: str
    mac: bytes
    master: int
    peer: int
    is_isolated: bool
    macvlan_mode: str


def route(
    destination: Address, *, source: Address | None = None, iif: int = 0, netns_path: str | None = None
) -> Route | None:
    """How the kernel sends to the address, or forwards what came in from `source` by the device `iif`; None if it
    does not."""
    return _inside(netns_path, partial(_route, destination, source, iif))


def neighbour(address: Address, ifindex: int, *, netns_path: str | None = None) -> tuple[bytes, str] | None:
    """The MAC that the kernel has for an address on a device, and the entry's state, if it would use it."""
    return _inside(netns_path, partial(_neighbour, address, ifindex))


def device(which: int | str, *, netns_path: str | None = None) -> Device | None:
    """A device by ifindex or name."""
    return _inside(netns_path, partial(_device, which))


def bridge_entry(bridge: int, mac: bytes) -> int | None:
    """The ifindex of the bridge's port that a MAC is behind, the bridge's own for its own; None for one it floods."""
    with rtnl.Rtnl() as netlink:
        found = netlink.get(rtnl_vxlan.bridge_entry_get(bridge, mac))
    return None if found is None else rtnl_vxlan.entry(found).ifindex


def vxlan_entry(vxlan: Device, mac: bytes) -> Address | None:
    """The node that a VXLAN device sends frames for a MAC to."""
    with rtnl.Rtnl() as netlink:
        for body in netlink.dump(rtnl_vxlan.fdb_dump(vxlan.ifindex, vxlan.ifname)):
            entry = rtnl_vxlan.entry(body)
            if entry.mac == mac and entry.destination:
                return ip_address(entry.destination)
    return None


def flooded_ports(bridge: int) -> list[str]:
    """The names of all ports of a bridge."""
    with IPRoute() as ip:
        return sorted(link.get_attr("IFLA_IFNAME") for link in ip.get_links() if link.get_attr("IFLA_MASTER") == bridge)


def _inside(netns_path: str | None, function: Callable[[], T]) -> T:
    return function() if netns_path is None else netns.call(netns_path, function)


def _route(destination: Address, source: Address | None, iif: int) -> Route | None:
    asked: dict[str, Any] = {"dst": str(destination)}
    if source is not None:
        asked["src"] = str(source)
    if iif:
        asked["iif"] = iif
    try:
        with IPRoute() as ip:
            way = ip.route("get", **asked)[0]
            try:
                entry = ip.route("get", **asked, flags=_RTM_F_FIB_MATCH)[0]
            except Pyroute2Error:  # a host's own route of the local table, for one
                entry = way
            index = int(way.get_attr("RTA_OIF"))
            name = str(ip.get_links(index)[0].get_attr("IFLA_IFNAME"))
    except Pyroute2Error:
        return None
    via, own = way.get_attr("RTA_GATEWAY"), way.get_attr("RTA_PREFSRC")
    matched = entry.get_attr("RTA_DST")
    return Route(
        type=_ROUTE_TYPES.get(way["type"], f"type {way['type']}"),
        matched=f"{matched}/{entry['dst_len']}" if matched and entry["dst_len"] else "default",
        ifname=name,
        ifindex=index,
        gateway=ip_address(via) if via else None,
        source=ip_address(own) if own else None,
    )


def _neighbour(address: Address, ifindex: int) -> tuple[bytes, str] | None:
    query = rtnl_vxlan.neighbour_get(ifindex, f"ifindex {ifindex}", address.packed)
    with rtnl.Rtnl() as netlink:
        found = netlink.get(query)
    if found is None:
        return None
    entry = rtnl_vxlan.entry(found)
    state = _VALID.get(entry.state)
    return (entry.mac, state) if state and entry.mac else None


def _device(which: int | str) -> Device | None:
    try:
        with IPRoute() as ip:
            found = ip.get_links(which) if isinstance(which, int) else ip.get_links(ifname=which)
    except Pyroute2Error:
        return None
    if not found:
        return None
    link = found[0]
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else ""
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
    data = info.get_attr("IFLA_INFO_DATA") if info and kind == "macvlan" else None
    return Device(
        ifindex=int(link["index"]),
        ifname=str(link.get_attr("IFLA_IFNAME")),
        kind=kind or "",
        mac=bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
        master=int(link.get_attr("IFLA_MASTER") or 0),
        peer=int(link.get_attr("IFLA_LINK") or 0),
        is_isolated=bool(port and hasattr(port, "get_attr") and port.get_attr("IFLA_BRPORT_ISOLATED")),
        macvlan_mode=str(data.get_attr("IFLA_MACVLAN_MODE") or "") if data else "",
    )
