"""VXLAN devices (RFC 7348): the port of an overlay network's bridge by which other nodes' endpoints are reached.

The device and its entries (`datapath.vxlan_peers`) carry all traffic by themselves, and talk to any other VTEP. Nothing
is learned from what arrives. A packet that is too big for the way to a node is answered with ICMP by the kernel
(net/ipv4/ip_tunnel_core.c, skb_tunnel_check_pmtu, Linux 5.9).
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from datapath import devices, netns, rtnl, rtnl_vxlan

OVERHEAD_BYTES: Final = {4: 50, 6: 70}
"""What VXLAN puts around an inner packet, by the IP version of the nodes' addresses: IP, UDP, VXLAN and Ethernet."""

MAC_PREFIX: Final = b"\x02\x4e"


@dataclass(frozen=True, slots=True)
class Peer:
    """An endpoint of another node.

    `addresses` are all that it answers for, its IPv6 link-local one included; `node` is where its packets are sent, and
    `node_mac` the MAC of the device with that address, empty when it is not known. `is_direct` says that the node takes
    its packets without VXLAN too.
    """

    mac: bytes
    addresses: tuple[IPv4Address | IPv6Address, ...]
    node: IPv4Address | IPv6Address
    node_mac: bytes = b""
    is_direct: bool = False


@dataclass(frozen=True, slots=True)
class Vtep:
    """A network's VXLAN device on this node.

    `local` is the address that it sends from and that peers send to; `mtu` is what fits inside, see OVERHEAD_BYTES.
    `socket_in` is the path of the network namespace that its outer packets come from and go to, None for the caller's.
    """

    ifname: str
    bridge: str
    vni: int
    local: IPv4Address | IPv6Address
    mtu: int
    socket_in: str | None = None

    @property
    def mac(self) -> bytes:
        """A locally administered address that VNI and node settle: it tells the device from one that others made."""
        return MAC_PREFIX + hashlib.blake2s(self.vni.to_bytes(4) + self.local.packed, digest_size=4).digest()


def add(vtep: Vtep) -> None:
    """The device, up, as a port of its bridge, without entries; may be repeated.

    One that is there and is not as it should be is made anew. Raises NetlinkError: EEXIST when another device has the
    VNI, EADDRINUSE when something else has UDP port 4789.
    """
    bridge = devices.need_ifindex(vtep.bridge)
    if _problems_of_device(vtep):
        devices.delete_links([vtep.ifname])
        _create(vtep, bridge)
    index = devices.need_ifindex(vtep.ifname)
    try:
        with rtnl.Rtnl() as netlink:
            netlink.apply(
                [
                    rtnl_vxlan.vxlan_port(index, vtep.ifname),
                    rtnl.link_no_auto_address(index, vtep.ifname),
                    rtnl.link_up(index, vtep.ifname),
                ]
            )
    except rtnl.NetlinkError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise rtnl.NetlinkError(
            errno.EADDRINUSE,
            f"UDP port {rtnl_vxlan.PORT} is used by {_port_holder(vtep)}: end that, overlay networks need the port",
        ) from error


def _create(vtep: Vtep, bridge: int) -> None:
    """The kernel keeps a VXLAN device's socket in the namespace in which it was asked for the device."""
    try:
        with netns.opened("/proc/thread-self/ns/net") as here, rtnl.Rtnl(vtep.socket_in) as netlink:
            netlink.apply(
                [
                    rtnl_vxlan.vxlan_add(
                        vtep.ifname,
                        vni=vtep.vni,
                        local=vtep.local,
                        mac=vtep.mac,
                        mtu=vtep.mtu,
                        master=bridge,
                        netns_fd=here,
                    )
                ]
            )
    except rtnl.NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        raise rtnl.NetlinkError(
            errno.EEXIST, f"VNI {vtep.vni} is used by {_vni_holder(vtep)} on this host: choose another"
        ) from error


def remove(vtep: Vtep) -> None:
    """Deletes the device with its entries; what the bridge knows of peers stays as long as the bridge. May be
    repeated."""
    devices.delete_links([vtep.ifname])


def problems(vtep: Vtep) -> list[str]:
    """What is not as `add` makes it, in words; changes nothing. Raises OSError."""
    found = _problems_of_device(vtep)
    if found:
        return found
    link = _link(vtep.ifname)
    port = dict(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")["attrs"])
    settings = {
        "up": (True, bool(link["flags"] & rtnl.IFF_UP)),
        "learning": (0, port.get("IFLA_BRPORT_LEARNING")),
        "flood": (0, port.get("IFLA_BRPORT_UNICAST_FLOOD")),
        "neigh_suppress": (1, port.get("IFLA_BRPORT_NEIGH_SUPPRESS")),
        "mcast_router": (rtnl_vxlan.MDB_RTR_TYPE_PERM, port.get("IFLA_BRPORT_MULTICAST_ROUTER")),
    }
    return _differing(vtep.ifname, settings)


def _problems_of_device(vtep: Vtep) -> list[str]:
    """What only making the device anew would mend."""
    link = _link(vtep.ifname)
    if link is None:
        return [f"device {vtep.ifname} is missing"]
    info = link.get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "vxlan":
        return [f"device {vtep.ifname} is no VXLAN device"]
    data = info.get_attr("IFLA_INFO_DATA")
    local = data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6")
    settings = {
        "master": (devices.ifindex(vtep.bridge), link.get_attr("IFLA_MASTER")),
        "address": (vtep.mac.hex(":"), link.get_attr("IFLA_ADDRESS")),
        "mtu": (vtep.mtu, link.get_attr("IFLA_MTU")),
        "id": (vtep.vni, data.get_attr("IFLA_VXLAN_ID")),
        "local": (str(vtep.local), local),
        "dstport": (rtnl_vxlan.PORT, data.get_attr("IFLA_VXLAN_PORT")),
        "learning": (0, data.get_attr("IFLA_VXLAN_LEARNING")),
        "tos": (rtnl_vxlan.VXLAN_TOS_INHERIT, data.get_attr("IFLA_VXLAN_TOS")),
    }
    return _differing(vtep.ifname, settings)


def _differing(ifname: str, settings: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{ifname} has {name} {has}, not {want}" for name, (want, has) in settings.items() if want != has]


def _link(ifname: str) -> Any:
    """A device as pyroute2 shows it, None without one."""
    try:
        with IPRoute() as ip:
            return ip.link("get", ifname=ifname)[0]
    except Pyroute2Error as error:
        if error.code != errno.ENODEV:
            raise rtnl.NetlinkError(error.code, f"cannot look at {ifname}: {error.args[1]}") from error
        return None


def _vni_holder(vtep: Vtep) -> str:
    """The device that keeps the kernel from making another one with the VNI, in words."""
    holders = [
        ifname
        for ifname, data in _vxlan_devices()
        if data.get_attr("IFLA_VXLAN_ID") == vtep.vni and data.get_attr("IFLA_VXLAN_PORT") == rtnl_vxlan.PORT
    ]
    # A device that was moved, as those of Docker's swarm are, goes on using the socket where it was made.
    return f"device {holders[0]}" if holders else "a VXLAN device that was moved to another network namespace"


def _port_holder(vtep: Vtep) -> str:
    """Who keeps the kernel from opening the UDP port, in words."""
    for ifname, data in _vxlan_devices():
        if ifname != vtep.ifname and data.get_attr("IFLA_VXLAN_PORT") == rtnl_vxlan.PORT and devices.is_up(ifname):
            return f"VXLAN device {ifname}, which has other settings"
    return "another program or VXLAN device"


def _vxlan_devices() -> list[tuple[str, Any]]:
    with IPRoute() as ip:
        return [
            (link.get_attr("IFLA_IFNAME"), info.get_attr("IFLA_INFO_DATA"))
            for link in ip.get_links()
            if (info := link.get_attr("IFLA_LINKINFO")) is not None and info.get_attr("IFLA_INFO_KIND") == "vxlan"
        ]
