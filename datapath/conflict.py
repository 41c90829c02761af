"""Whether somebody has an address already: looked up among the host's own, asked for on the link.

An answer must reach whoever asks the way it would reach the endpoint, and other macvlan devices on the parent hear
nothing of what the parent itself sends. So the questions are sent from a macvlan device with the endpoint's MAC, in an
empty network namespace that ends with them: no address, route or device of the host's is touched, and the kernel takes
all of it away, with the parent's promiscuity, if linkspand is killed meanwhile.

IPv4 is asked for by ARP probes, IPv6 by neighbour solicitations of duplicate address detection. Nobody learns anything
from either, because the sender's address is left out.

Source: RFC 5227, 2.1 (IPv4 address conflict detection); RFC 4862, 5.4 (DAD); RFC 826; RFC 4861, 4.3, 4.4 and 7.1.
"""

from __future__ import annotations

import ctypes
import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from pyroute2 import IPRoute

from datapath import netns, rtnl
from datapath.checksum import internet_checksum

Address = IPv4Address | IPv6Address

PROBES: Final = 3
INTERVAL_S: Final = 0.1
WAIT_S: Final = 0.2
"""How often it is asked, how far apart, and how long is listened after the last.

RFC 5227 takes 4 to 7 s (2.1.1: up to 1 s before the first, 1 to 2 s between, 2 s after), for networks where a second
passes before an answer, and allows for shorter times where the link is known (1.3). A parent leads into a switched
network: answers come within a millisecond, from a station whose radio sleeps within a beacon interval or two of 102 ms.
Three questions, as in the RFC, because any may be lost.
"""

_IFNAME: Final = "probe0"
_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_BROADCAST: Final = b"\xff" * 6
_ALL_NODES: Final = bytes.fromhex("333300000001")
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST, _PACKET_OTHERHOST = 263, 1, 0, 3
_SO_ATTACH_FILTER: Final = 26
_PARENT_GONE: Final = (errno.ENETDOWN, errno.ENXIO)
_IFA_F_DADFAILED: Final = 0x08

_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_ARP_ETHERNET_IPV4: Final = (1, 0x0800, 6, 4)
_ARP_REQUEST, _ARP_REPLY = 1, 2
_IP6: Final = struct.Struct("!IHBB16s16s")
_ND: Final = struct.Struct("!BBHI16s")
_ICMPV6, _SOLICITATION, _ADVERTISEMENT = 58, 135, 136
_UNSPECIFIED: Final = bytes(16)
_SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")
_ND_HOP_LIMIT: Final = 255
"""Of all neighbour discovery: what has it was not routed here (RFC 4861, 3.1)."""


@dataclass(frozen=True)
class Holder:
    """Who has an address. `ifname` is the device of this host that it is on, None for somebody else's."""

    address: Address
    mac: bytes
    ifname: str | None = None


def on_host(addresses: Sequence[Address]) -> Holder | None:
    """The device of this namespace that has one of the addresses, whichever network it is on.

    Linux answers ARP for all its addresses on every device, and sends what is for one of them nowhere else. An IPv6
    address that lost its own duplicate address detection is not in use.
    """
    with IPRoute(strict_check=True) as ip:
        for message in ip.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            address = ip_address(text)
            if address not in addresses or (message.get_attr("IFA_FLAGS") or 0) & _IFA_F_DADFAILED:
                continue
            (link,) = ip.get_links(message["index"])
            mac = bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", ""))
            return Holder(address, mac, link.get_attr("IFLA_IFNAME"))
    return None


def on_link(lower: int, addresses: Sequence[Address], *, mac: bytes, is_passthru: bool = False) -> Holder | None:
    """Somebody on the link of the device `lower` who has one of the addresses, or asks for it at the same time.

    `mac` is the endpoint's; with `is_passthru` it is that of `lower`, which must have no macvlan device. Blocks for
    (PROBES - 1) * INTERVAL_S + WAIT_S, shorter when there is an answer. Heard are the network beyond `lower`, and
    macvlan devices on it in mode bridge; those in the modes private and vepa hear the network alone.
    Raises NetlinkError: EBUSY for a `lower` that is in use otherwise, EADDRINUSE or EBUSY for a MAC that is.
    """
    with rtnl.Rtnl() as outside:
        add = partial(
            rtnl.macvlan_add, _IFNAME, lower=lower, mode="passthru" if is_passthru else "bridge", mac=mac, mtu=None
        )
        return netns.call(None, lambda: _ask_from_here(outside, add, addresses, mac))


def _ask_from_here(
    outside: rtnl.Rtnl, add: Callable[..., rtnl.Request], addresses: Sequence[Address], mac: bytes
) -> Holder | None:
    """Asks from a device that is made in the calling thread's namespace, and is gone at the end."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        outside.apply([add(netns_fd=here)])
    finally:
        os.close(here)
    with rtnl.Rtnl() as netlink, ExitStack() as opened:
        # Not left to the namespace's end, which the kernel comes to later: the endpoint's device needs the MAC.
        opened.callback(netlink.apply, [rtnl.link_delete(_IFNAME)])
        index = socket.if_nametoindex(_IFNAME)
        netlink.apply([rtnl.link_no_auto_address(index, _IFNAME), rtnl.link_up(index, _IFNAME)])
        return _ask([opened.enter_context(_Question(address, mac)) for address in addresses])


class _Question:
    """The question who has one address, and a socket that lets through what may be an answer."""

    def __init__(self, address: Address, mac: bytes) -> None:
        self.address = address
        groups: tuple[bytes, ...] = ()
        if isinstance(address, IPv4Address):
            self._protocol, self._group, self._probe = _ETH_P_ARP, _BROADCAST, arp_probe(address, mac)
            self._judge: Callable[[bytes, bytes], bytes | None] = partial(judge_arp, address, mac)
            instructions = arp_filter(address)
        else:
            group = multicast_mac(solicited_node(address))
            self._protocol, self._group, self._probe = _ETH_P_IPV6, group, solicitation(address)
            self._judge = partial(judge_nd, address, mac)
            groups, instructions = (group, _ALL_NODES), nd_filter(address)
        # Protocol 0 takes nothing in: the filter must be there first.
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            attach_filter(self.socket, instructions)
            index = socket.if_nametoindex(_IFNAME)
            for each in groups:
                membership = struct.pack("=iHH8s", index, _PACKET_MR_MULTICAST, len(each), each)
                self.socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
            self.socket.bind((_IFNAME, self._protocol))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> _Question:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self) -> None:
        """A question that the device cannot take is as one that is lost on the way."""
        try:
            self.socket.sendto(self._probe, (_IFNAME, self._protocol, 0, 0, self._group))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, *_PARENT_GONE):
                raise

    def answer(self) -> Holder | None:
        """What the frames say that have come in; raises OSError when the device is gone or down."""
        while True:
            try:
                data, (_, _, packet_type, _, source) = self.socket.recvfrom(2048)
            except BlockingIOError:
                return None
            # What is of another VLAN is marked as another host's (net/core/dev.c, __netif_receive_skb_core).
            holder = self._judge(data, source) if packet_type != _PACKET_OTHERHOST else None
            if holder is not None:
                return Holder(self.address, holder)


def _ask(questions: Sequence[_Question]) -> Holder | None:
    with selectors.DefaultSelector() as selector:
        for question in questions:
            selector.register(question.socket, selectors.EVENT_READ, question)
        for number in range(PROBES):
            for question in questions:
                question.send()
            end = time.monotonic() + (INTERVAL_S if number < PROBES - 1 else WAIT_S)
            try:
                holder = _listen(selector, end)
            except OSError as error:
                if error.errno not in _PARENT_GONE:
                    raise
                return None  # the parent has gone, and with it everybody who could answer
            if holder is not None:
                return holder
    return None


def _listen(selector: selectors.BaseSelector, end: float) -> Holder | None:
    while (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            holder: Holder | None = key.data.answer()
            if holder is not None:
                return holder
    return None


# -- packets, without the Ethernet header --------------------------------------------------------------------------


def arp_probe(address: IPv4Address, mac: bytes) -> bytes:
    """Asks who has the address without saying who asks (RFC 5227, 2.1.1)."""
    return _ARP.pack(*_ARP_ETHERNET_IPV4, _ARP_REQUEST, mac, bytes(4), bytes(6), address.packed)


def judge_arp(address: IPv4Address, mac: bytes, packet: bytes, source: bytes) -> bytes | None:
    """The MAC of who has the address, or probes for it while `mac` does; None for any other packet (RFC 5227, 2.1.1).

    A reflection of a probe of ours is nobody's. `source`, from the Ethernet header, says nothing in ARP.
    """
    if len(packet) < _ARP.size:
        return None
    *kind, operation, sender_mac, sender, _, target = _ARP.unpack_from(packet)
    if tuple(kind) != _ARP_ETHERNET_IPV4 or operation not in (_ARP_REQUEST, _ARP_REPLY):
        return None
    is_probe = operation == _ARP_REQUEST and sender == bytes(4) and target == address.packed
    if sender == address.packed or (is_probe and sender_mac != mac):
        return bytes(sender_mac)
    return None


def solicitation(address: IPv6Address) -> bytes:
    """The neighbour solicitation of duplicate address detection, IPv6 header included (RFC 4862, 5.4.2)."""
    destination = solicited_node(address)
    message = bytearray(_ND.pack(_SOLICITATION, 0, 0, 0, address.packed))
    struct.pack_into("!H", message, 2, _checksum(_UNSPECIFIED, destination, bytes(message)))
    header = _IP6.pack(6 << 28, len(message), _ICMPV6, _ND_HOP_LIMIT, _UNSPECIFIED, destination)
    return header + bytes(message)


def judge_nd(address: IPv6Address, mac: bytes, packet: bytes, source: bytes) -> bytes | None:
    """The MAC `source` if the packet shows that it has the address, or is about to (RFC 4862, 5.4.3 and 5.4.4).

    What is not valid says nothing (RFC 4861, 7.1), nor does a solicitation of ours that is reflected.
    """
    if len(packet) < _IP6.size + _ND.size:
        return None
    _, length, protocol, hop_limit, sender, destination = _IP6.unpack_from(packet)
    message = packet[_IP6.size : _IP6.size + length]
    if protocol != _ICMPV6 or hop_limit != _ND_HOP_LIMIT or not _ND.size <= length == len(message):
        return None
    kind, code, _, _, target = _ND.unpack_from(message)
    if code != 0 or target != address.packed or _checksum(sender, destination, message) != 0:
        return None
    is_probe = kind == _SOLICITATION and sender == _UNSPECIFIED
    return source if kind == _ADVERTISEMENT or (is_probe and source != mac) else None


def solicited_node(address: IPv6Address) -> bytes:
    """The group that whoever has the address is in (RFC 4291, 2.7.1)."""
    return _SOLICITED_NODE + address.packed[13:]


def multicast_mac(group: bytes) -> bytes:
    """RFC 2464, section 7."""
    return b"\x33\x33" + group[12:]


def _checksum(sender: bytes, destination: bytes, message: bytes) -> int:
    """Of an ICMPv6 message, host byte order; 0 when its own is in it and right (RFC 4443, 2.3; RFC 1071)."""
    return internet_checksum(sender + destination + struct.pack("!II", len(message), _ICMPV6) + message)


# -- socket filters: what is not about the address never wakes us, however busy the network is ---------------------

_LOAD_WORD, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
"""BPF_LD | BPF_ABS of four bytes, of one; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K (linux/bpf_common.h)."""

Instruction = tuple[int, int, int, int]


def arp_filter(address: IPv4Address) -> list[Instruction]:
    """Passes ARP packets with the address as sender's or target's."""
    value = int(address)
    return [
        (_LOAD_WORD, 0, 0, 14),
        (_JUMP_EQUAL, 2, 0, value),
        (_LOAD_WORD, 0, 0, 24),
        (_JUMP_EQUAL, 0, 1, value),
        (_RETURN, 0, 0, 0xFFFF),
        (_RETURN, 0, 0, 0),
    ]


def nd_filter(address: IPv6Address) -> list[Instruction]:
    """Passes ICMPv6 messages of the kinds of neighbour discovery with the address as target."""
    program: list[Instruction] = [
        (_LOAD_BYTE, 0, 0, 6),
        (_JUMP_EQUAL, 0, 12, _ICMPV6),
        (_LOAD_BYTE, 0, 0, 40),
        (_JUMP_EQUAL, 1, 0, _SOLICITATION),
        (_JUMP_EQUAL, 0, 9, _ADVERTISEMENT),
    ]
    for word, left in enumerate((6, 4, 2, 0)):
        value = int.from_bytes(address.packed[word * 4 : word * 4 + 4])
        program += [(_LOAD_WORD, 0, 0, 48 + word * 4), (_JUMP_EQUAL, 0, left + 1, value)]
    return [*program, (_RETURN, 0, 0, 0xFFFF), (_RETURN, 0, 0, 0)]


def attach_filter(on: socket.socket, instructions: Sequence[Instruction]) -> None:
    """Has the kernel pass the socket only what the classic BPF program does (socket(7), SO_ATTACH_FILTER)."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    on.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(instructions), ctypes.addressof(code)))
