"""Ethernet frames to be traced: the packets that a sandbox's kernel sends first to an address.

MAC addresses are 6 bytes; lengths and checksums are right. Both addresses of a packet are of one family.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

from datapath import rtnl_vxlan
from datapath.checksum import internet_checksum

Address = IPv4Address | IPv6Address
Protocol = Literal["tcp", "udp", "icmp"]

SOURCE_PORT: Final = 49152  # the first of those that nobody is registered for (RFC 6335, 6)
VXLAN_PORT: Final = rtnl_vxlan.PORT
BROADCAST: Final = b"\xff" * 6

_ETH_P: Final = {4: 0x0800, 6: 0x86DD}
_ETH_P_ARP: Final = 0x0806
_IPPROTO: Final = {("tcp", 4): 6, ("tcp", 6): 6, ("udp", 4): 17, ("udp", 6): 17, ("icmp", 4): 1, ("icmp", 6): 58}
_TTL: Final = 64
_DO_NOT_FRAGMENT: Final = 0x4000
_SYN: Final = 0x02
_WINDOW: Final = 64240
_ECHO_REQUEST: Final = {4: 8, 6: 128}
_SOLICITATION: Final = 135
_ADVERTISEMENT: Final = 136
_ND_HOP_LIMIT: Final = 255
_UDP_BYTES: Final = 8
_VXLAN_BYTES: Final = 8
_HAS_VNI: Final = 0x08000000


@dataclass(frozen=True)
class Outer:
    """What stands around a packet in VXLAN (RFC 7348)."""

    source: Address
    destination: Address
    source_port: int
    destination_port: int
    vni: int
    inner: bytes


def packet(
    macs: tuple[bytes, bytes], addresses: tuple[Address, Address], protocol: Protocol, port: int, size: int = 0
) -> bytes:
    """A TCP SYN, a UDP datagram or an echo request; `macs` and `addresses` are the source's and the destination's.

    `size` is that of the payload in bytes.
    """
    source, destination = addresses
    version, number = source.version, _IPPROTO[protocol, source.version]
    payload = bytes(size)
    if protocol == "tcp":
        message = struct.pack("!HHIIBBHHH", SOURCE_PORT, port, 1, 0, 5 << 4, _SYN, _WINDOW, 0, 0) + payload
        checksum_at = 16
    elif protocol == "udp":
        message = struct.pack("!HHHH", SOURCE_PORT, port, 8 + size, 0) + payload
        checksum_at = 6
    else:
        message = struct.pack("!BBHHH", _ECHO_REQUEST[version], 0, 0, 1, 1) + payload
        checksum_at = 2
    pseudo = b"" if number == _IPPROTO["icmp", 4] else _pseudo_header(source, destination, number, len(message))
    message = _with_checksum(message, checksum_at, pseudo)
    return _ethernet(macs, _ETH_P[version]) + _ip(source, destination, number, message, _TTL)


def vxlan(macs: tuple[bytes, bytes], ends: tuple[Address, Address], vni: int, inner: bytes) -> bytes:
    """A frame in VXLAN (RFC 7348), as a node sends it; `macs` and `ends` are the outer ones, the source's first.

    It comes from SOURCE_PORT, and has no UDP checksum (RFC 7348, 5; RFC 6935).
    """
    length = _UDP_BYTES + _VXLAN_BYTES + len(inner)
    headers = struct.pack("!HHHHII", SOURCE_PORT, VXLAN_PORT, length, 0, _HAS_VNI, vni << 8)
    return _ethernet(macs, _ETH_P[ends[0].version]) + _ip(*ends, _IPPROTO["udp", 4], headers + inner, _TTL)


def question(mac: bytes, address: Address, target: Address) -> bytes:
    """The ARP request (RFC 826) or neighbour solicitation (RFC 4861) with which the owner of `address` looks for the
    MAC of `target`."""
    if isinstance(target, IPv4Address):
        body = struct.pack("!HHBBH6s4s6s4s", 1, _ETH_P[4], 6, 4, 1, mac, address.packed, bytes(6), target.packed)
        return _ethernet((mac, BROADCAST), _ETH_P_ARP) + body
    group = IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + target.packed[13:])
    message = struct.pack("!BBHI16sBB6s", _SOLICITATION, 0, 0, 0, target.packed, 1, 1, mac)
    message = _with_checksum(message, 2, _pseudo_header(address, group, _IPPROTO["icmp", 6], len(message)))
    macs = (mac, b"\x33\x33" + group.packed[12:])
    return _ethernet(macs, _ETH_P[6]) + _ip(address, group, _IPPROTO["icmp", 6], message, _ND_HOP_LIMIT)


def answer(frame: bytes) -> bytes:
    """The MAC that an ARP reply, or a neighbour advertisement with its one option, gives for an address.

    Raises ValueError for any other frame.
    """
    if frame[12:14] == struct.pack("!H", _ETH_P_ARP) and frame[20:22] == b"\0\2":
        return frame[22:28]
    if frame[12:14] == struct.pack("!H", _ETH_P[6]) and frame[54:55] == bytes([_ADVERTISEMENT]):
        return frame[80:86]
    raise ValueError(f"neither an ARP reply nor a neighbour advertisement: {frame[:86].hex()}")


def outer(frame: bytes) -> Outer:
    """The outer headers of a frame in VXLAN without IP options, and what is in it. Raises ValueError for another."""
    try:
        version = frame[14] >> 4
        length, at, width = {4: (20, 26, 4), 6: (40, 22, 16)}[version]
        udp = 14 + length
        source_port, destination_port = struct.unpack_from("!HH", frame, udp)
        (vni,) = struct.unpack_from("!I", frame, udp + 12)
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError(f"not a packet in VXLAN: {frame[:70].hex()}") from error
    return Outer(
        source=ip_address(frame[at : at + width]),
        destination=ip_address(frame[at + width : at + 2 * width]),
        source_port=source_port,
        destination_port=destination_port,
        vni=vni >> 8,
        inner=frame[udp + 16 :],
    )


def mac_of(text: str) -> bytes:
    """The bytes of a MAC with colons or dashes; raises ValueError for what is not hex."""
    return bytes.fromhex(text.replace(":", "").replace("-", ""))


def group_mac(address: Address) -> bytes:
    """The MAC of a multicast address (RFC 1112, 6.4; RFC 2464, 7)."""
    if isinstance(address, IPv4Address):
        return b"\x01\x00\x5e" + bytes([address.packed[1] & 0x7F]) + address.packed[2:]
    return b"\x33\x33" + address.packed[12:]


def _ethernet(macs: tuple[bytes, bytes], ethertype: int) -> bytes:
    return macs[1] + macs[0] + struct.pack("!H", ethertype)


def _ip(source: Address, destination: Address, protocol: int, message: bytes, ttl: int) -> bytes:
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(message), protocol, ttl)
        return head + source.packed + destination.packed + message
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 1, _DO_NOT_FRAGMENT, ttl, protocol, 0)
    return _with_checksum(head + source.packed + destination.packed, 10, b"") + message


def _pseudo_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    return source.packed + destination.packed + struct.pack("!II", length, protocol)


def _with_checksum(data: bytes, at: int, pseudo: bytes) -> bytes:
    checksum = internet_checksum(pseudo + data) or 0xFFFF
    return data[:at] + struct.pack("!H", checksum) + data[at + 2 :]
