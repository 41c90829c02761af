"""What rtnetlink tells of one network namespace: addresses, default routes, neighbours, FDB, bridge ports, hooks.

Each function is one dump, read here because a host has thousands of devices. They take an open `Rtnl` and raise
NetlinkError. Devices are ifindexes.

Source: Linux include/uapi/linux/{if_addr,if_bridge,if_link,neighbour,pkt_cls,pkt_sched,rtnetlink}.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Final

from datapath import rtnl
from datapath.rtnl import Request, Rtnl

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface

_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE, _RTM_GETNEIGH, _RTM_GETQDISC, _RTM_GETTFILTER = 18, 22, 26, 30, 38, 46
_IFLA_XDP: Final = 43
_XDP_DRV_PROG_ID, _XDP_SKB_PROG_ID, _XDP_PROG_ID, _XDP_ATTACHED, _XDP_ATTACHED_SKB = 5, 6, 4, 2, 2
_BPF_ID: Final = 11
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBi")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_TCMSG: Final = struct.Struct("=BxxxiIII")
_NO_BLOCK: Final = frozenset({errno.EINVAL, errno.ENOENT})
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`mac` is empty for one that is being looked for."""

    mac: bytes
    is_permanent: bool


@dataclass(frozen=True, slots=True)
class BridgePort:
    """Settings of a bridge port; see bridge(8)."""

    learning: bool
    unicast_flood: bool
    isolated: bool


@dataclass(frozen=True, slots=True)
class Clsact:
    """A clsact or ingress qdisc; its blocks are 0 where its filters are the device's own."""

    kind: str
    ingress_block: int
    egress_block: int


@dataclass(frozen=True, slots=True)
class Filter:
    """A tc filter; `program` is the id of its eBPF program, 0 where it has none."""

    priority: int
    kind: str
    program: int


@dataclass(frozen=True, slots=True)
class Xdp:
    """The XDP program of a device."""

    program: int
    is_generic: bool


def attributes(raw: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes that follow a message's header, the last one of each kind."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(raw):
        length, kind = struct.unpack_from("=HH", raw, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def addresses(netlink: Rtnl) -> dict[int, set[Interface]]:
    """The addresses of every device that has any."""
    found: defaultdict[int, set[Interface]] = defaultdict(set)
    for body in netlink.dump(Request("list addresses", _RTM_GETADDR, 0, _IFADDR.pack(0, 0, 0, 0, 0))):
        _, prefix, _, _, index = _IFADDR.unpack_from(body)
        attrs = attributes(body, _IFADDR.size)
        raw = attrs.get(rtnl.IFA_LOCAL) or attrs.get(rtnl.IFA_ADDRESS)
        if raw:
            found[index].add(ip_interface((ip_address(raw), prefix)))
    return dict(found)


def default_routes(netlink: Rtnl) -> dict[int, set[Address]]:
    """The gateways of the default routes in the table main, by device."""
    found: defaultdict[int, set[Address]] = defaultdict(set)
    for family in _FAMILIES:
        body = _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, _RTN_UNICAST, 0)
        for each in netlink.dump(Request("list routes", _RTM_GETROUTE, 0, body)):
            prefix = each[1]
            attrs = attributes(each, _RTMSG.size)
            if prefix == 0 and rtnl.RTA_GATEWAY in attrs and rtnl.RTA_OIF in attrs:
                (index,) = struct.unpack("=I", attrs[rtnl.RTA_OIF])
                found[index].add(ip_address(attrs[rtnl.RTA_GATEWAY]))
    return dict(found)


def neighbours(netlink: Rtnl) -> dict[int, dict[Address, Neighbour]]:
    """The neighbours of every device that has any."""
    found: defaultdict[int, dict[Address, Neighbour]] = defaultdict(dict)
    for family in _FAMILIES:
        query = Request("list neighbours", _RTM_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0))
        for body in netlink.dump(query):
            _, index, state, _, _ = _NDMSG.unpack_from(body)
            attrs = attributes(body, _NDMSG.size)
            if rtnl.NDA_DST in attrs:
                neighbour = Neighbour(attrs.get(rtnl.NDA_LLADDR, b""), bool(state & rtnl.NUD_PERMANENT))
                found[index][ip_address(attrs[rtnl.NDA_DST])] = neighbour
    return dict(found)


def static_fdb(netlink: Rtnl) -> dict[int, set[bytes]]:
    """The MACs that bridges were told are behind a port, by port."""
    found: defaultdict[int, set[bytes]] = defaultdict(set)
    for body in netlink.dump(Request("list the FDB", _RTM_GETNEIGH, 0, _NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0))):
        _, index, state, flags, _ = _NDMSG.unpack_from(body)
        mac = attributes(body, _NDMSG.size).get(rtnl.NDA_LLADDR, b"")
        if state & rtnl.NUD_NOARP and not flags & rtnl.NTF_SELF:
            found[index].add(mac)
    return dict(found)


def bridge_ports(netlink: Rtnl) -> dict[int, BridgePort]:
    """The settings of every bridge port."""
    found = {}
    body = _IFINFO.pack(socket.AF_BRIDGE, 0, 0, 0, 0)
    for each in netlink.dump(Request("list bridge ports", _RTM_GETLINK, 0, body)):
        index = _IFINFO.unpack_from(each)[2]
        settings = attributes(attributes(each, _IFINFO.size).get(rtnl.IFLA_PROTINFO, b""))
        if settings:
            found[index] = BridgePort(
                learning=settings.get(rtnl.IFLA_BRPORT_LEARNING, b"\0") != b"\0",
                unicast_flood=settings.get(rtnl.IFLA_BRPORT_UNICAST_FLOOD, b"\0") != b"\0",
                isolated=settings.get(rtnl.IFLA_BRPORT_ISOLATED, b"\0") != b"\0",
            )
    return found


def xdp(netlink: Rtnl) -> dict[int, Xdp]:
    """The XDP program of every device that has one; of two the driver's."""
    found = {}
    for body in netlink.dump(Request("list devices", _RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0))):
        said = attributes(attributes(body, _IFINFO.size).get(_IFLA_XDP, b""))
        ids = {kind: struct.unpack("=I", raw)[0] for kind, raw in said.items() if kind >= _XDP_PROG_ID}
        native = ids.get(_XDP_DRV_PROG_ID, 0)
        program = native or ids.get(_XDP_SKB_PROG_ID, 0) or ids.get(_XDP_PROG_ID, 0)
        if program:
            found[_IFINFO.unpack_from(body)[2]] = Xdp(program, is_generic=said[_XDP_ATTACHED][0] == _XDP_ATTACHED_SKB)
    return found


def clsacts(netlink: Rtnl) -> dict[int, Clsact]:
    """The clsact or ingress qdisc of every device that has one."""
    found = {}
    for body in netlink.dump(Request("list qdiscs", _RTM_GETQDISC, 0, _TCMSG.pack(0, 0, 0, 0, 0))):
        attrs = attributes(body, _TCMSG.size)
        kind = attrs.get(rtnl.TCA_KIND, b"").rstrip(b"\0").decode()
        if kind in ("clsact", "ingress"):
            blocks = [
                struct.unpack("=I", attrs[each])[0] if each in attrs else 0
                for each in (rtnl.TCA_INGRESS_BLOCK, rtnl.TCA_EGRESS_BLOCK)
            ]
            found[_TCMSG.unpack_from(body)[1]] = Clsact(kind, *blocks)
    return found


def filters(netlink: Rtnl, index: int, parent: int) -> list[Filter]:
    """The filters at one hook of a device, in the order in which they run."""
    return _filters(netlink, _TCMSG.pack(0, index, 0, parent, 0), f"list the filters of ifindex {index}")


def block_filters(netlink: Rtnl, block: int) -> list[Filter]:
    """The filters of a shared block, in the order in which they run; none of a block that is not there."""
    body = struct.pack("=BxxxIIII", 0, rtnl.TCM_IFINDEX_MAGIC_BLOCK, 0, block, 0)
    return _filters(netlink, body, f"list the filters of block {block}")


def _filters(netlink: Rtnl, body: bytes, what: str) -> list[Filter]:
    found = []
    for each in netlink.dump(Request(what, _RTM_GETTFILTER, 0, body, _NO_BLOCK)):
        *_, handle, _, info = _TCMSG.unpack_from(each)
        attrs = attributes(each, _TCMSG.size)
        if handle == 0:  # the head of a list of filters, not one of them
            continue
        said = attributes(attrs.get(rtnl.TCA_OPTIONS, b""))
        kind = attrs.get(rtnl.TCA_KIND, b"").rstrip(b"\0").decode()
        program = struct.unpack("=I", said[_BPF_ID])[0] if kind == "bpf" and _BPF_ID in said else 0
        found.append(Filter(info >> 16, kind, program))
    return sorted(found, key=lambda each: each.priority)
