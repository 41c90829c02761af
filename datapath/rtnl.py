"""Batches of rtnetlink requests: many changes in one system call, each acknowledged on its own.

An endpoint's join is a dozen changes. Through pyroute2 each costs a message object, an event loop turn and a system
call, about 0.8 ms (docs/adr/0002); packed here it costs 10 us, so the join path uses this module and everything else
pyroute2. Requests are plain bytes; tests compare every one with what pyroute2 packs and look at the result with `ip`.

Source: RFC 3549; Linux include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour,pkt_sched,pkt_cls}.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final

from datapath import netns

NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP: Final = 0x300
NLM_F_DUMP_INTR: Final = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED: Final = 0x8000

RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK = 16, 17, 19
RTM_NEWADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH = 20, 24, 25, 28, 29
RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER = 36, 37, 44, 45
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109

IFF_UP: Final = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO = 1, 3, 4, 5, 10, 12, 18
IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 26, 28, 52, 53
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFLA_MACVLAN_MODE, IFLA_VLAN_ID = 1, 2, 1, 1, 1
MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IFLA_BRPORT_LEARNING, IFLA_BRPORT_UNICAST_FLOOD, IFLA_BRPORT_ISOLATED = 8, 9, 33
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD: Final = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
NDA_DST, NDA_LLADDR, NTF_SELF, NTF_MASTER, NUD_NOARP, NUD_PERMANENT = 1, 2, 0x02, 0x04, 0x40, 0x80
TCA_KIND, TCA_OPTIONS, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK = 1, 2, 13, 14
TCA_BPF_CLASSID, TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT = 3, 6, 7, 8, 1
TC_H_CLSACT, TCM_IFINDEX_MAGIC_BLOCK = 0xFFFFFFF1, 0xFFFFFFFF
ETH_P_ALL: Final = 0x0003

_SIOCGIFINDEX: Final = 0x8933
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
# Dumps that are begun again when the table changes meanwhile.
_DUMP_ATTEMPTS: Final = 8
_NLMSGERR_ATTR_MSG: Final = 1
_NLM_F_ACK_TLVS: Final = 0x200


class NetlinkError(OSError):
    """The kernel refused one request; the text names the request and gives the kernel's own explanation."""


@dataclass(frozen=True)
class Request:
    """One rtnetlink request, without sequence number.

    `what` completes "cannot ...". Errors in `tolerated` mean that the work was already done.
    """

    what: str
    type: int
    flags: int
    body: bytes
    tolerated: frozenset[int] = frozenset()


_EXISTS: Final = frozenset({errno.EEXIST})
# Acknowledgements wait in the socket, 768 bytes each, of 208 KiB that a socket has by default.
_BATCH: Final = 100
_GONE: Final = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL})


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return struct.pack("=HH", len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def u8(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=B", value))


def u16(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def nest(kind: int, *attrs: bytes) -> bytes:
    return attr(kind | NLA_F_NESTED, b"".join(attrs))


def _ifinfo(index: int = 0, *, up: bool | None = None, family: int = 0) -> bytes:
    flags = IFF_UP if up else 0
    return struct.pack("=BxHiII", family, 0, index, flags, 0 if up is None else IFF_UP)


def veth_add(
    ifname: str, *, master: int, peer_ifname: str, peer_netns_fd: int | None, peer_mac: bytes, mtu: int
) -> Request:
    """A veth pair, both ends down: the host end a port of `master`, the peer in the other namespace if there is one."""
    peer = _ifinfo() + b"".join(
        (
            text(IFLA_IFNAME, peer_ifname),
            attr(IFLA_ADDRESS, peer_mac),
            u32(IFLA_MTU, mtu),
            u32(IFLA_NET_NS_FD, peer_netns_fd) if peer_netns_fd is not None else b"",
        )
    )
    body = _ifinfo() + b"".join(
        (
            text(IFLA_IFNAME, ifname),
            u32(IFLA_MTU, mtu),
            u32(IFLA_MASTER, master),
            nest(
                IFLA_LINKINFO,
                text(IFLA_INFO_KIND, "veth"),
                nest(IFLA_INFO_DATA, attr(VETH_INFO_PEER | NLA_F_NESTED, peer)),
            ),
        )
    )
    return Request(f"add veth {ifname} with peer {peer_ifname}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def macvlan_add(ifname: str, *, lower: int, mode: str, mac: bytes, mtu: int | None, netns_fd: int | None) -> Request:
    """A macvlan device, down, in the other namespace, if there is one, on the device `lower` of the socket's.

    `mode` is one of MACVLAN_MODES; without `mtu` it has that of `lower`. In the mode passthru the kernel gives it the
    MAC of `lower`, whatever `mac` says (drivers/net/macvlan.c, macvlan_common_newlink).
    """
    body = _ifinfo() + b"".join(
        (
            text(IFLA_IFNAME, ifname),
            attr(IFLA_ADDRESS, mac),
            u32(IFLA_MTU, mtu) if mtu is not None else b"",
            u32(IFLA_LINK, lower),
            u32(IFLA_NET_NS_FD, netns_fd) if netns_fd is not None else b"",
            nest(
                IFLA_LINKINFO,
                text(IFLA_INFO_KIND, "macvlan"),
                nest(IFLA_INFO_DATA, u32(IFLA_MACVLAN_MODE, MACVLAN_MODES[mode])),
            ),
        )
    )
    return Request(f"add macvlan {ifname}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def vlan_add(ifname: str, *, lower: int, vlan_id: int) -> Request:
    """The 802.1Q sub-interface `vlan_id` of the device `lower`, down, with its MAC and MTU."""
    body = _ifinfo() + b"".join(
        (
            text(IFLA_IFNAME, ifname),
            u32(IFLA_LINK, lower),
            nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, "vlan"), nest(IFLA_INFO_DATA, u16(IFLA_VLAN_ID, vlan_id))),
        )
    )
    return Request(f"add VLAN {ifname}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def link_add(ifname: str, kind: str, *, mtu: int) -> Request:
    """A device of a kind that needs nothing else to be said, down; one that is there is no error."""
    body = _ifinfo() + b"".join(
        (text(IFLA_IFNAME, ifname), u32(IFLA_MTU, mtu), nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind)))
    )
    return Request(f"add {kind} {ifname}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, _EXISTS)


def altname_add(ifname: str, altname: str) -> Request:
    """One more name for a device (ip-link(8), "altname"); a device that has it already is no error."""
    body = _ifinfo() + text(IFLA_IFNAME, ifname) + nest(IFLA_PROP_LIST, text(IFLA_ALT_IFNAME, altname))
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(f"add the altname {altname} to {ifname}", RTM_NEWLINKPROP, flags, body, _EXISTS)


def altname_delete(ifname: str, altname: str) -> Request:
    """Takes the name off; a device that does not have it, or is not there, is no error."""
    body = _ifinfo() + text(IFLA_IFNAME, ifname) + nest(IFLA_PROP_LIST, text(IFLA_ALT_IFNAME, altname))
    return Request(f"delete the altname {altname} of {ifname}", RTM_DELLINKPROP, 0, body, _GONE | {errno.EINVAL})


def link_delete(ifname: str) -> Request:
    """Deletes a device by name; a device that is not there is no error."""
    return Request(f"delete {ifname}", RTM_DELLINK, 0, _ifinfo() + text(IFLA_IFNAME, ifname), _GONE)


def link_up(index: int, label: str) -> Request:
    return Request(f"set {label} up", RTM_NEWLINK, 0, _ifinfo(index, up=True))


def link_rename(index: int, label: str, ifname: str) -> Request:
    """Gives a device that is down another name."""
    return Request(f"rename {label} to {ifname}", RTM_SETLINK, 0, _ifinfo(index) + text(IFLA_IFNAME, ifname))


def link_master(index: int, label: str, master: int) -> Request:
    """Makes a device a port of a bridge."""
    return Request(f"make {label} a port", RTM_SETLINK, 0, _ifinfo(index) + u32(IFLA_MASTER, master))


def link_restore(index: int, label: str, *, mtu: int, mac: bytes | None = None) -> Request:
    """Gives a device its MTU and MAC again."""
    attrs = u32(IFLA_MTU, mtu) + (attr(IFLA_ADDRESS, mac) if mac is not None else b"")
    return Request(f"restore MTU and MAC of {label}", RTM_SETLINK, 0, _ifinfo(index) + attrs)


def link_no_auto_address(index: int, label: str) -> Request:
    """Keeps the kernel from giving the device an IPv6 link-local address of its own making."""
    body = _ifinfo(index) + nest(
        IFLA_AF_SPEC, nest(socket.AF_INET6, u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE))
    )
    return Request(f"set addrgenmode of {label}", RTM_SETLINK, 0, body, frozenset({errno.EAFNOSUPPORT}))


def bridge_port(index: int, label: str, *, learning: bool, unicast_flood: bool, isolated: bool) -> Request:
    """Settings of a bridge port; see bridge(8) for what they mean."""
    body = _ifinfo(index, family=socket.AF_BRIDGE) + nest(
        IFLA_PROTINFO,
        u8(IFLA_BRPORT_LEARNING, learning),
        u8(IFLA_BRPORT_UNICAST_FLOOD, unicast_flood),
        u8(IFLA_BRPORT_ISOLATED, isolated),
    )
    return Request(f"set the bridge port {label}", RTM_SETLINK, 0, body)


def fdb_add(index: int, label: str, mac: bytes) -> Request:
    """A static entry in the FDB of the bridge that the port `index` belongs to; takes the MAC from another port."""
    body = _fdb_entry(index, mac)
    return Request(f"add {mac.hex(':')} to the FDB of {label}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def fdb_delete(index: int, label: str, mac: bytes) -> Request:
    """Deletes the entry; one that is not there is no error."""
    return Request(f"delete {mac.hex(':')} from the FDB of {label}", RTM_DELNEIGH, 0, _fdb_entry(index, mac), _GONE)


def _fdb_entry(index: int, mac: bytes, state: int = NUD_NOARP, flags: int = NTF_MASTER) -> bytes:
    return struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, state, flags, 0) + attr(NDA_LLADDR, mac)


def mac_filter_add(index: int, label: str, mac: bytes) -> Request:
    """Has a device take in packets for one more MAC (bridge(8), "fdb add ... self"); one that it has is no error."""
    what = f"have {label} take packets for {mac.hex(':')}"
    return Request(
        what, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_EXCL, _fdb_entry(index, mac, NUD_PERMANENT, NTF_SELF), _EXISTS
    )


def mac_filter_delete(index: int, label: str, mac: bytes) -> Request:
    """Undoes `mac_filter_add`; a device that is gone, or does not have the MAC, is no error."""
    what = f"have {label} take no more packets for {mac.hex(':')}"
    return Request(what, RTM_DELNEIGH, 0, _fdb_entry(index, mac, NUD_PERMANENT, NTF_SELF), _GONE | {errno.EINVAL})


def neighbour_add(index: int, label: str, address: IPv4Address | IPv6Address, mac: bytes) -> Request:
    """A permanent neighbour, which is never asked for and never forgotten; takes the place of what was learned."""
    body = _neighbour(index, address) + attr(NDA_LLADDR, mac)
    what = f"add the neighbour {address} to {label}"
    return Request(what, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def neighbour_delete(index: int, label: str, address: IPv4Address | IPv6Address) -> Request:
    """Deletes a neighbour; one that is not there is no error."""
    what = f"delete the neighbour {address} from {label}"
    return Request(what, RTM_DELNEIGH, 0, _neighbour(index, address), _GONE)


def _neighbour(index: int, address: IPv4Address | IPv6Address) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return struct.pack("=BxxxiHBB", family, index, NUD_PERMANENT, 0, 0) + attr(NDA_DST, address.packed)


def addr_add(index: int, label: str, address: IPv4Interface | IPv6Interface) -> Request:
    """An address; IPv6 without duplicate address detection, because IPAM knows that there is no duplicate."""
    family, flags = (socket.AF_INET, 0) if address.version == 4 else (socket.AF_INET6, IFA_F_NODAD)
    scope = 253 if address.is_link_local else 0
    body = struct.pack("=BBBBi", family, address.network.prefixlen, flags, scope, index) + b"".join(
        (attr(IFA_LOCAL, address.ip.packed), attr(IFA_ADDRESS, address.ip.packed))
    )
    return Request(f"add {address} to {label}", RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, _EXISTS)


def default_route_add(index: int, label: str, gateway: bytes, *, replace: bool = True) -> Request:
    """The default route of the gateway's family; `gateway` is packed, in network order.

    Without `replace` one that is there stays.
    """
    family = socket.AF_INET if len(gateway) == 4 else socket.AF_INET6
    # table main, protocol boot, scope universe, type unicast
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 3, 0, 1, 0) + b"".join(
        (attr(RTA_GATEWAY, gateway), u32(RTA_OIF, index))
    )
    what = f"add the default route via {socket.inet_ntop(family, gateway)} dev {label}"
    if replace:
        return Request(what, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)
    return Request(what, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, _EXISTS)


def clsact_add(index: int, label: str, ingress_block: int, egress_block: int) -> Request:
    """A clsact qdisc whose filters are those of two shared blocks (tc(8), "shared block")."""
    body = struct.pack("=BxxxiIII", 0, index, TC_H_CLSACT & 0xFFFF0000, TC_H_CLSACT, 0) + b"".join(
        (text(TCA_KIND, "clsact"), u32(TCA_INGRESS_BLOCK, ingress_block), u32(TCA_EGRESS_BLOCK, egress_block))
    )
    return Request(f"add clsact to {label}", RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, _EXISTS)


def clsact_delete(index: int, label: str) -> Request:
    """Deletes the clsact qdisc with its filters; a device without one is no error."""
    body = struct.pack("=BxxxiIII", 0, index, TC_H_CLSACT & 0xFFFF0000, TC_H_CLSACT, 0)
    return Request(f"delete clsact from {label}", RTM_DELQDISC, 0, body, _GONE | {errno.EINVAL})


def block_program(block: int, prog_fd: int, name: str, *, replace: bool) -> Request:
    """The one direct-action program of a shared block; with `replace` it is swapped for all devices at once."""
    info = (1 << 16) | socket.htons(ETH_P_ALL)  # priority 1, all protocols
    body = struct.pack("=BxxxIIII", 0, TCM_IFINDEX_MAGIC_BLOCK, 1, block, info) + b"".join(
        (
            text(TCA_KIND, "bpf"),
            nest(
                TCA_OPTIONS,
                u32(TCA_BPF_FD, prog_fd),
                text(TCA_BPF_NAME, name),
                u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT),
            ),
        )
    )
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return Request(f"attach {name} to block {block}", RTM_NEWTFILTER, flags, body, frozenset() if replace else _EXISTS)


def block_clear(block: int) -> Request:
    """Takes every program off a shared block; a block that is not there is no error."""
    body = struct.pack("=BxxxIIII", 0, TCM_IFINDEX_MAGIC_BLOCK, 0, block, 0)
    return Request(f"clear block {block}", RTM_DELTFILTER, 0, body, _GONE | {errno.EINVAL})


class Rtnl:
    """A rtnetlink socket in one network namespace. Not thread-safe: one thread at a time.

    Blocks until the kernel is done.
    """

    def __init__(self, netns_path: str | None = None) -> None:
        """Opens the socket in the namespace pinned at `netns_path`, or in the caller's; raises OSError."""
        fd = netns.open_socket(
            netns_path, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket = socket.socket(fileno=fd)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        # The kernel filters dumps itself (Linux 4.20).
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._sequence = 0

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def ifindex(self, ifname: str) -> int | None:
        """The index of a device in the socket's namespace (netdevice(7), SIOCGIFINDEX), or None."""
        try:
            reply = fcntl.ioctl(self._socket, _SIOCGIFINDEX, struct.pack("16si20x", ifname.encode(), 0))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        return int(struct.unpack_from("=i", reply, 16)[0])

    def apply(self, requests: Sequence[Request]) -> None:
        """Sends the requests, many at once; the kernel works through all of them, also past one that fails.

        Raises NetlinkError for the first that failed with an error it does not tolerate.
        """
        failures = [self._apply(requests[start : start + _BATCH]) for start in range(0, len(requests), _BATCH)]
        for failure in filter(None, failures):
            raise failure

    def get(self, query: Request) -> bytes | None:
        """The body of the one message that answers, None for what is not there; raises NetlinkError."""
        bodies, _ = self._ask(query, 0)
        return bodies[0] if bodies else None

    def dump(self, query: Request) -> list[bytes]:
        """The bodies of all messages that answer; raises NetlinkError.

        A dump during which the table changes is begun again, up to 8 times; the last one stands.
        """
        for _ in range(_DUMP_ATTEMPTS):
            bodies, is_whole = self._ask(query, NLM_F_DUMP)
            if is_whole:
                break
        return bodies

    def _ask(self, query: Request, flags: int) -> tuple[list[bytes], bool]:
        self._sequence += 1
        header = struct.pack(
            "=IHHII", len(query.body) + 16, query.type, query.flags | flags | NLM_F_REQUEST, self._sequence, 0
        )
        self._socket.send(header + query.body)
        bodies: list[bytes] = []
        is_whole = True
        while True:
            data = self._socket.recv(65536)
            offset = 0
            while offset + 16 <= len(data):
                length, kind, message_flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
                body = data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                is_whole = is_whole and not message_flags & NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return bodies, is_whole
                if kind == NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", body)[0])
                    if code in query.tolerated:
                        return bodies, is_whole
                    raise NetlinkError(code, f"cannot {query.what}: {os.strerror(code)}")
                bodies.append(body)
                if not flags & NLM_F_DUMP:
                    return bodies, is_whole

    def _apply(self, requests: Sequence[Request]) -> NetlinkError | None:
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(b"".join(_pack(request, first + i) for i, request in enumerate(requests)))
        failure: NetlinkError | None = None
        pending = len(requests)
        while pending:
            for sequence, code, message in _acks(self._socket.recv(65536)):
                if not first <= sequence <= self._sequence:
                    continue
                pending -= 1
                request = requests[sequence - first]
                if code and code not in request.tolerated and failure is None:
                    explanation = f": {message}" if message else ""
                    failure = NetlinkError(code, f"cannot {request.what}: {os.strerror(code)}{explanation}")
        return failure


def _pack(request: Request, sequence: int) -> bytes:
    flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
    header = struct.pack("=IHHII", len(request.body) + 16, request.type, flags, sequence, 0)
    return header + request.body


def _acks(data: bytes) -> Iterable[tuple[int, int, str]]:
    """(sequence, errno or 0, the kernel's explanation) of each acknowledgement in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, offset + 16)
            message = ""
            if flags & _NLM_F_ACK_TLVS:
                # With NETLINK_CAP_ACK the echo of the request is its header alone.
                message = _explanation(data[offset + 36 : offset + length])
            yield sequence, -code, message
        offset += (length + 3) & ~3


def _explanation(tlvs: bytes) -> str:
    offset = 0
    while offset + 4 <= len(tlvs):
        length, kind = struct.unpack_from("=HH", tlvs, offset)
        if length < 4:
            break
        if kind & 0x3FFF == _NLMSGERR_ATTR_MSG:
            return tlvs[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    return ""
