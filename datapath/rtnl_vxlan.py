"""rtnetlink requests for VXLAN devices, their FDB, and the neighbours that a bridge answers for.

As in `datapath.rtnl`, and for the same reason: a network has thousands of peers, and a peer half a dozen entries. MACs
and addresses are packed, in network order.

Source: Linux include/uapi/linux/{if_link,neighbour}.h, drivers/net/vxlan/vxlan_core.c, net/core/rtnetlink.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from datapath.rtnl import (
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IFLA_PROTINFO,
    NDA_DST,
    NDA_LLADDR,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NTF_MASTER,
    NTF_SELF,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_SETLINK,
    Request,
    attr,
    nest,
    text,
    u8,
    u32,
)

PORT: Final = 4789
"""The UDP port that IANA assigned to VXLAN."""
NO_MAC: Final = bytes(6)
"""The MAC whose entries say where broadcast and multicast go."""

NLM_F_APPEND: Final = 0x800
RTM_GETNEIGH: Final = 30
NDA_IFINDEX: Final = 8
NDA_MASTER: Final = 9
NTF_EXT_LEARNED: Final = 0x10
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_TOS, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT = 1, 4, 6, 7, 15
IFLA_VXLAN_LOCAL6, IFLA_VXLAN_UDP_CSUM, IFLA_VXLAN_UDP_ZERO_CSUM6_RX, IFLA_VXLAN_DF = 17, 18, 20, 29
VXLAN_TOS_INHERIT, VXLAN_DF_INHERIT = 1, 2
IFLA_BRPORT_LEARNING, IFLA_BRPORT_UNICAST_FLOOD, IFLA_BRPORT_MULTICAST_ROUTER, IFLA_BRPORT_NEIGH_SUPPRESS = 8, 9, 25, 32
MDB_RTR_TYPE_PERM: Final = 2

_GONE: Final = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT})
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_NLA: Final = struct.Struct("=HH")


def vxlan_add(
    ifname: str,
    *,
    vni: int,
    local: IPv4Address | IPv6Address,
    mac: bytes,
    mtu: int,
    master: int,
    netns_fd: int | None = None,
) -> Request:
    """A VXLAN device, down, that sends from `local` and learns nothing, as a port of the bridge `master`.

    Device and bridge are in the network namespace of `netns_fd`, or with None where the request goes to; that is where
    outer packets are in any case.

    - The outer header takes DSCP and ECN from the inner one (RFC 2983, RFC 6040), and DF of IPv4 (RFC 2003, 3.1), so
      that a path with a lower MTU is found out for those who want to know. Its TTL is the host's default: a segment
      is one hop for what is inside, however many the underlay has.
    - Outer UDP checksums: none over IPv4, as RFC 7348 has it. Over IPv6 they are sent, because a VTEP drops those of
      zero unless told otherwise, and zero is taken from others, who may leave the inner checksums to protect the
      packet (RFC 6935, section 5). Devices share the UDP port with those of the same mind about that, and no others.
    """
    is_v4 = local.version == 4
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + b"".join(
        (
            text(IFLA_IFNAME, ifname),
            attr(IFLA_ADDRESS, mac),
            u32(IFLA_MTU, mtu),
            u32(IFLA_MASTER, master),
            u32(IFLA_NET_NS_FD, netns_fd) if netns_fd is not None else b"",
            nest(
                IFLA_LINKINFO,
                text(IFLA_INFO_KIND, "vxlan"),
                nest(
                    IFLA_INFO_DATA,
                    u32(IFLA_VXLAN_ID, vni),
                    attr(IFLA_VXLAN_LOCAL if is_v4 else IFLA_VXLAN_LOCAL6, local.packed),
                    u8(IFLA_VXLAN_TOS, VXLAN_TOS_INHERIT),
                    u8(IFLA_VXLAN_LEARNING, 0),
                    attr(IFLA_VXLAN_PORT, struct.pack("!H", PORT)),
                    u8(IFLA_VXLAN_UDP_CSUM, not is_v4),
                    u8(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, not is_v4),
                    u32(IFLA_VXLAN_DF, VXLAN_DF_INHERIT),
                ),
            ),
        )
    )
    return Request(f"add VXLAN device {ifname}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def vxlan_port(index: int, label: str) -> Request:
    """Settings of a VXLAN device as a bridge port (bridge(8)): no learning, no unknown unicast.

    The bridge answers ARP and ND for the neighbours that it knows behind the port, and asks nothing by it that it can
    answer. All multicast goes out by it, for nobody tells this bridge of the groups that others have joined.
    """
    body = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, index, 0, 0) + nest(
        IFLA_PROTINFO,
        u8(IFLA_BRPORT_LEARNING, 0),
        u8(IFLA_BRPORT_UNICAST_FLOOD, 0),
        u8(IFLA_BRPORT_MULTICAST_ROUTER, MDB_RTR_TYPE_PERM),
        u8(IFLA_BRPORT_NEIGH_SUPPRESS, 1),
    )
    return Request(f"set the bridge port {label}", RTM_SETLINK, 0, body)


def fdb_replace(index: int, label: str, mac: bytes, node: bytes) -> Request:
    """Has a VXLAN device send what is for `mac` to `node`, and no longer to another: one change, without a gap."""
    what = f"send what is for {mac.hex(':')} from {label} to {_text(node)}"
    return Request(what, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _fdb_entry(index, mac) + attr(NDA_DST, node))


def fdb_delete(index: int, label: str, mac: bytes) -> Request:
    """Deletes every entry of a VXLAN device for `mac`; none is no error."""
    return Request(f"delete {mac.hex(':')} from {label}", RTM_DELNEIGH, 0, _fdb_entry(index, mac), _GONE)


def broadcast_add(index: int, label: str, node: bytes) -> Request:
    """Has a VXLAN device send a copy of every broadcast and multicast to `node`; one that gets it is no error."""
    body = _fdb_entry(index, NO_MAC) + attr(NDA_DST, node)
    return Request(f"send broadcasts from {label} to {_text(node)}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_APPEND, body)


def broadcast_delete(index: int, label: str, node: bytes) -> Request:
    """Undoes `broadcast_add`; a node that gets none is no error."""
    body = _fdb_entry(index, NO_MAC) + attr(NDA_DST, node)
    return Request(f"send no more broadcasts from {label} to {_text(node)}", RTM_DELNEIGH, 0, body, _GONE)


def _fdb_entry(index: int, mac: bytes) -> bytes:
    return _NDMSG.pack(socket.AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0) + attr(NDA_LLADDR, mac)


def peer_neighbour_replace(index: int, label: str, address: bytes, mac: bytes) -> Request:
    """A permanent neighbour marked as known by a control plane (ip-neighbour(8), extern_learn), which tells those that
    are peers from others; it takes the place of what was there, and is replaced by who comes after."""
    body = _neighbour(index, address, NUD_PERMANENT, NTF_EXT_LEARNED) + attr(NDA_LLADDR, mac)
    return Request(f"add the peer {_text(address)} to {label}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def neighbour_delete(index: int, label: str, address: bytes) -> Request:
    """Deletes a neighbour; one that is not there is no error."""
    return Request(f"delete the peer {_text(address)} from {label}", RTM_DELNEIGH, 0, _neighbour(index, address), _GONE)


def neighbour_get(index: int, label: str, address: bytes) -> Request:
    """Asks for one neighbour."""
    return Request(f"look up {_text(address)} on {label}", RTM_GETNEIGH, 0, _neighbour(index, address), _GONE)


def _neighbour(index: int, address: bytes, state: int = 0, flags: int = 0) -> bytes:
    return _NDMSG.pack(_family(address), index, state, flags, 0) + attr(NDA_DST, address)


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _text(address: bytes) -> str:
    return socket.inet_ntop(_family(address), address)


def fdb_dump(index: int, label: str) -> Request:
    """Asks for what a VXLAN device and its bridge know of MACs behind it."""
    body = _NDMSG.pack(socket.AF_BRIDGE, index, 0, 0, 0)
    return Request(f"list the FDB of {label}", RTM_GETNEIGH, 0, body)


def bridge_entry_get(bridge: int, mac: bytes) -> Request:
    """Asks a bridge for the port that it has a MAC behind (RTM_GETNEIGH of one entry, Linux 5.0)."""
    body = _NDMSG.pack(socket.AF_BRIDGE, 0, 0, NTF_MASTER, 0) + attr(NDA_LLADDR, mac) + u32(NDA_MASTER, bridge)
    return Request(f"look up {mac.hex(':')} on bridge {bridge}", RTM_GETNEIGH, 0, body, _GONE)


def neighbours_dump(index: int, label: str, family: int) -> Request:
    """Asks for all neighbours of a device, of AF_INET or AF_INET6."""
    body = _NDMSG.pack(family, 0, 0, 0, 0) + u32(NDA_IFINDEX, index)
    return Request(f"list the neighbours on {label}", RTM_GETNEIGH, 0, body)


class Entry(NamedTuple):
    """What a RTM_NEWNEIGH says: an entry of an FDB or a neighbour. `state` is NUD_*, `flags` NTF_*, `destination`
    packed, in network order; empty bytes are not said. `ifindex` is the device's, of a bridge's FDB the port's."""

    ifindex: int
    state: int
    flags: int
    mac: bytes
    destination: bytes


def entry(body: bytes) -> Entry:
    """Reads one message's body."""
    _, ifindex, state, flags, _ = _NDMSG.unpack_from(body)
    mac = destination = b""
    offset = _NDMSG.size
    while offset + _NLA.size <= len(body):
        length, kind = _NLA.unpack_from(body, offset)
        if length < _NLA.size:
            break
        if kind == NDA_LLADDR:
            mac = body[offset + 4 : offset + length]
        elif kind == NDA_DST:
            destination = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return Entry(ifindex, state, flags, mac, destination)
