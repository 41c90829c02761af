"""Devices, addresses and routes of the daemon's own network namespace, through pyroute2.

What is done once a network, where a millisecond does not matter; the join path uses `datapath.rtnl`.
Functions block, may be called from any thread, and may be repeated.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from datapath import netns, rtnl

_RTN_UNICAST = 1
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER = 1
_SIOCETHTOOL = 0x8946
_ETHTOOL_GLINK, _ETHTOOL_SGRO = 0x0A, 0x2C


@contextmanager
def _iproute(what: str, *tolerated: int) -> Iterator[Any]:
    try:
        # Strict: the kernel filters dumps itself (NETLINK_GET_STRICT_CHK, Linux 4.20).
        with IPRoute(strict_check=True) as ip:
            yield ip
    except Pyroute2Error as error:
        if error.code not in tolerated:
            raise rtnl.NetlinkError(error.code, f"cannot {what}: {error.args[1]}") from error


def ifindex(ifname: str) -> int | None:
    """The device's index in the calling thread's network namespace, or None."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return None


def need_ifindex(ifname: str) -> int:
    """The device's index; raises NetlinkError naming it."""
    index = ifindex(ifname)
    if index is None:
        raise rtnl.NetlinkError(errno.ENODEV, f"device {ifname} is gone")
    return index


def mtu(ifname: str) -> int:
    """The device's MTU in bytes (netdevice(7), SIOCGIFMTU); raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        reply = fcntl.ioctl(control, _SIOCGIFMTU, struct.pack("16si20x", ifname.encode(), 0))
    return int(struct.unpack_from("=i", reply, 16)[0])


def mac(ifname: str) -> bytes:
    """The device's MAC, empty where it has none, as a tunnel has not (SIOCGIFHWADDR); raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        reply = fcntl.ioctl(control, _SIOCGIFHWADDR, struct.pack("16sH22x", ifname.encode(), 0))
    kind, address = struct.unpack_from("=H6s", reply, 16)
    return bytes(address) if kind == _ARPHRD_ETHER else b""


def is_up(ifname: str) -> bool:
    """Whether the device is there and was set up (netdevice(7), SIOCGIFFLAGS)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            reply = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sh22x", ifname.encode(), 0))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return False
    return bool(struct.unpack_from("=h", reply, 16)[0] & rtnl.IFF_UP)


def has_had_carrier(index: int) -> bool:
    """Whether the device ever had a carrier, as a veth has when both ends are up; raises NetlinkError."""
    with _iproute(f"look at device {index}") as ip:
        return bool(ip.get_links(index)[0].get_attr("IFLA_CARRIER_UP_COUNT"))


def take_note_of_carrier(ifname: str) -> None:
    """Has the kernel act on the device's carrier now.

    It does so by itself a little later (net/core/link_watch.c); until then it drops what is sent to a device that has
    just got a carrier, and a bridge does not forward to it. Asking for the link's state (SIOCETHTOOL, ETHTOOL_GLINK)
    makes it catch up. Raises OSError.
    """
    _ethtool(None, ifname, _ETHTOOL_GLINK, 0)


def enable_gro(netns_path: str | None, ifname: str) -> None:
    """Turns on generic receive offload. A veth has the receive queue that XDP redirects into only with it
    (drivers/net/veth.c, veth_xdp_xmit). Raises OSError."""
    _ethtool(netns_path, ifname, _ETHTOOL_SGRO, 1)


def _ethtool(netns_path: str | None, ifname: str, command: int, data: int) -> None:
    value = ctypes.create_string_buffer(struct.pack("=II", command, data))
    request = struct.pack("16sP16x", ifname.encode(), ctypes.addressof(value))
    with socket.socket(fileno=netns.open_socket(netns_path, socket.AF_INET, socket.SOCK_DGRAM)) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)


def add_bridge(ifname: str, *, mac: str, mtu: int, ipv6: bool, snooping: bool = True) -> None:
    """A Linux bridge, up.

    `mac` keeps its address from changing with its ports; without `ipv6` it gets no address of its own. The host takes
    no routes and addresses from whoever is on the bridge. Without `snooping` all ports get all multicast. A bridge of
    that name that is there is taken; raises FileExistsError for another's device, which is left as it is.
    """
    settings = {} if snooping else {"br_mcast_snooping": 0}
    with _iproute(f"add bridge {ifname}", errno.EEXIST) as ip:
        ip.link("add", ifname=ifname, kind="bridge", address=mac, **settings)
    index = socket.if_nametoindex(ifname)
    # Not at creation: only a later change tells br_netfilter, which else drops fragments of more than 1,500 bytes.
    with _iproute(f"set MTU and MAC of {ifname}") as ip:
        (link,) = ip.get_links(index)
        if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "bridge":
            raise FileExistsError(errno.EEXIST, f"the name of bridge {ifname} is taken by another device: rename that")
        ip.link("set", index=index, mtu=mtu)
        if link.get_attr("IFLA_ADDRESS") != mac:  # to set it makes the device forget its neighbours
            ip.link("set", index=index, address=mac)
    ignore_router_advertisements(ifname)
    requests = [] if ipv6 else [rtnl.link_no_auto_address(index, ifname)]
    with rtnl.Rtnl() as netlink:
        netlink.apply([*requests, rtnl.link_up(index, ifname)])


def ignore_router_advertisements(ifname: str) -> None:
    """Keeps a device of the calling thread's namespace from taking routes and addresses from routers, and from asking
    for them."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{ifname}/accept_ra")
    if switch.exists():
        switch.write_text("0")


def enable_ipv6(ifname: str) -> None:
    """Lets a device of the calling thread's namespace have IPv6 where new devices have none, unless the kernel has
    none either."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6")
    if switch.exists():
        switch.write_text("0")


def holder(address: IPv4Address | IPv6Address) -> str | None:
    """The device that has an address of this namespace, None when none has."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with _iproute(f"look for address {address}") as ip:
        for found in ip.get_addr(family=family):
            held = found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS")
            if held == str(address):
                return socket.if_indextoname(found["index"])
    return None


def add_addresses(ifname: str, addresses: Sequence[IPv4Interface | IPv6Interface]) -> None:
    """Adds addresses to a device of this namespace."""
    index = socket.if_nametoindex(ifname)
    with rtnl.Rtnl() as netlink:
        netlink.apply([rtnl.addr_add(index, ifname, address) for address in addresses])


def add_trunk(ifname: str, bridge: str, peer_ifname: str, peer_bridge: str, *, mtu: int, isolated: bool) -> None:
    """A veth pair that joins two bridges; both ends learn and flood, as a cable between switches does.

    With `isolated` nothing passes between the end in `bridge` and other isolated ports of that bridge. The peer goes
    up last, so a trunk whose peer is up is whole.
    """
    with _iproute(f"add veth {ifname}", errno.EEXIST) as ip:
        ip.link("add", ifname=ifname, kind="veth", mtu=mtu, peer={"ifname": peer_ifname, "mtu": mtu})
    for end, master, is_isolated in ((ifname, bridge, isolated), (peer_ifname, peer_bridge, False)):
        index = need_ifindex(end)
        with _iproute(f"make {end} a port of {master}") as ip:
            ip.link("set", index=index, master=need_ifindex(master))
        with rtnl.Rtnl() as netlink:
            netlink.apply(
                [
                    rtnl.bridge_port(index, end, learning=True, unicast_flood=True, isolated=is_isolated),
                    rtnl.link_no_auto_address(index, end),
                    rtnl.link_up(index, end),
                ]
            )


def delete_links(ifnames: Sequence[str]) -> None:
    """Deletes devices; those that are not there are no error."""
    with rtnl.Rtnl() as netlink:
        netlink.apply([rtnl.link_delete(ifname) for ifname in ifnames])


def routed_networks() -> list[IPv4Network | IPv6Network]:
    """Where the host's unicast routes lead, without link-local ones and those of the table `local`.

    Default routes say nothing of who is there, nor do the two halves (/1) that VPN clients lay over them.
    """
    networks: list[IPv4Network | IPv6Network] = []
    with _iproute("list routes") as ip:
        for family in (socket.AF_INET, socket.AF_INET6):
            # Every device has a multicast route, and an endpoint a device: thousands that nobody wants to see.
            for route in ip.get_routes(family=family, type=_RTN_UNICAST):
                destination = route.get_attr("RTA_DST")
                if destination is None or route.get_attr("RTA_TABLE") == 255:
                    continue
                network = ip_network(f"{destination}/{route['dst_len']}")
                if network.prefixlen > 1 and not network.is_link_local and not network.is_multicast:
                    networks.append(network)
    return networks


def default_mtu() -> int:
    """The MTU of the device that the IPv4 default route leaves by, 1500 without one."""
    with _iproute("look up the default route") as ip:
        for route in ip.get_default_routes(family=socket.AF_INET):
            index = route.get_attr("RTA_OIF")
            if index:
                return int(ip.get_links(index)[0].get_attr("IFLA_MTU"))
    return 1500


def enable_forwarding(*, ipv6: bool) -> None:
    """Turns on routing in this namespace; interfaces that took router advertisements go on taking them.

    Linux stops accepting advertisements (accept_ra 1) once an interface forwards; 2 means "also when forwarding"
    (Documentation/networking/ip-sysctl.rst).
    """
    root = Path("/proc/sys/net")
    switch = root / "ipv4/ip_forward"
    if switch.read_text().strip() != "1":
        switch.write_text("1")
    switch = root / "ipv6/conf/all/forwarding"
    if ipv6 and switch.exists() and switch.read_text().strip() != "1":
        for accept in root.glob("ipv6/conf/*/accept_ra"):
            if accept.parent.name not in ("all", "default") and accept.read_text().strip() == "1":
                accept.write_text("2")
        switch.write_text("1")
