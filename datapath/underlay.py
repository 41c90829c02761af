"""The underlay: by which device, from which address, and how big, packets get to another node."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from datapath import rtnl

_RTN_LOCAL: Final = 2


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address.

    `source` is the address that packets have when nothing else is asked for. `gateway` is the next hop, None when the
    address is on the device's own layer 2 segment. `mtu` in bytes is the device's, or less when the route says so or
    when the kernel was told on the way (RFC 1191, RFC 8201). `mac` is the device's, empty when it has none.
    """

    ifname: str
    ifindex: int
    mac: bytes
    mtu: int
    source: IPv4Address | IPv6Address
    gateway: IPv4Address | IPv6Address | None
    is_local: bool

    @property
    def is_on_link(self) -> bool:
        """Whether the address is another host's on the same layer 2 segment."""
        return self.gateway is None and not self.is_local


def route(address: IPv4Address | IPv6Address, source: IPv4Address | IPv6Address | None = None) -> Route:
    """How the kernel would send to the address, from `source` if given, in the caller's network namespace.

    Raises NetlinkError when there is no way, or `source` is not this host's.
    """
    question = {"dst": str(address)}
    if source is not None:
        if not owns(source):  # which the kernel asks for IPv4 only
            raise rtnl.NetlinkError(
                errno.EADDRNOTAVAIL, f"no route to {address} from {source}, which is no address of this host"
            )
        question["src"] = str(source)
    try:
        with IPRoute() as ip:
            found = ip.route("get", **question)[0]
            index = int(found.get_attr("RTA_OIF"))
            link = ip.get_links(index)[0]
    except Pyroute2Error as error:
        raise rtnl.NetlinkError(error.code, f"no route to {address}: {error.args[1]}") from error
    return Route(
        ifname=str(link.get_attr("IFLA_IFNAME")),
        ifindex=index,
        mac=bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
        mtu=_mtu(found, link),
        source=source or ip_address(found.get_attr("RTA_PREFSRC")),
        gateway=_gateway(found),
        is_local=found["type"] == _RTN_LOCAL,
    )


def owns(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host has the address, in the caller's network namespace. Raises nothing for one it cannot reach."""
    try:
        return route(address).is_local
    except rtnl.NetlinkError:
        return False


def _mtu(found: Any, link: Any) -> int:
    metrics = found.get_attr("RTA_METRICS")
    limit = metrics.get_attr("RTAX_MTU") if metrics is not None else None
    device = int(link.get_attr("IFLA_MTU"))
    return min(int(limit), device) if limit else device


def _gateway(found: Any) -> IPv4Address | IPv6Address | None:
    via = found.get_attr("RTA_VIA")  # an IPv4 route by way of an IPv6 router (RFC 5549)
    text = found.get_attr("RTA_GATEWAY") or (via["addr"] if via else None)
    return ip_address(text) if text else None
