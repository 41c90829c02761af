"""DHCP messages for IPv4, as frames: what a client sends is built, what it hears is judged.

What comes in is anybody's. `parse` takes a frame that is whole and right, or raises Malformed, and nothing else.

Source: RFC 2131, 2 and 4.1 (format, construction); RFC 2132 (options); RFC 3396 (an option in several pieces);
RFC 951; RFC 791; RFC 768; RFC 1071.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from pyroute2.dhcp.enums.dhcp import MessageType, Option

from datapath.checksum import internet_checksum

BROADCAST_MAC: Final = b"\xff" * 6
BROADCAST: Final = IPv4Address("255.255.255.255")
UNSPECIFIED: Final = IPv4Address(0)
SERVER_PORT, CLIENT_PORT = 67, 68
FOR_EVER: Final = 0xFFFFFFFF
"""The lease time that never ends, in seconds (RFC 2131, 3.3)."""

_ETH: Final = struct.Struct("!6s6sH")
_IP: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")
_BOOTP: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_ETH_P_IP, _UDP_PROTOCOL, _TTL = 0x0800, 17, 64
_FRAGMENT: Final = 0x3FFF
"""More fragments, and the offset of this one."""
_REQUEST, _REPLY, _ETHERNET, _MAC_LENGTH = 1, 2, 1, 6
_FLAG_BROADCAST: Final = 0x8000
_COOKIE: Final = b"\x63\x82\x53\x63"
_LEAST: Final = 300
"""Octets of a BOOTP message (RFC 1542, 2.1), less than which some relays drop."""
_OVERLOAD_FILE, _OVERLOAD_NAME = 1, 2
_ANSWERS: Final = (MessageType.OFFER, MessageType.ACK, MessageType.NAK)


class Malformed(ValueError):
    """A frame that is no answer of a DHCP server; the text says why."""


@dataclass(frozen=True)
class Answer:
    """What a server said: an offer, an acknowledgement, or a refusal, which has no address and no times.

    Times are seconds from now; `lease_s` is FOR_EVER for a lease that does not end. `server_mac` is who sent the frame,
    a relay's where the server is not on the link. `prefixlen` and `router` are None where the server did not say.
    """

    kind: MessageType
    xid: int
    mac: bytes
    server: IPv4Address
    server_mac: bytes
    address: IPv4Address = UNSPECIFIED
    lease_s: int = 0
    renew_s: float = 0.0
    rebind_s: float = 0.0
    prefixlen: int | None = None
    router: IPv4Address | None = None
    text: str = ""


def build(
    kind: MessageType,
    *,
    xid: int,
    mac: bytes,
    seconds: int = 0,
    address: IPv4Address = UNSPECIFIED,
    options: Mapping[Option, bytes],
    server: tuple[IPv4Address, bytes] | None = None,
) -> bytes:
    """The frame of a client's message, from its MAC.

    `address` is one that the client has and uses (ciaddr): without it the answer is asked for as a broadcast, which
    somebody without an address can take in. With `server`, address and MAC, the frame is for that one alone.
    """
    flags = 0 if address != UNSPECIFIED else _FLAG_BROADCAST
    nobody = UNSPECIFIED.packed
    message = _BOOTP.pack(
        _REQUEST, _ETHERNET, _MAC_LENGTH, 0, xid, min(seconds, 0xFFFF), flags,
        address.packed, nobody, nobody, nobody, mac, b"", b"", _COOKIE,
    )  # fmt: skip
    for code, value in {Option.MESSAGE_TYPE: bytes([kind]), **options}.items():
        message += bytes([code, len(value)]) + value
    message = (message + bytes([Option.END])).ljust(_LEAST, b"\0")
    target, target_mac = server or (BROADCAST, BROADCAST_MAC)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, _UDP.size + len(message), 0) + message
    # A sum of 0 stands for none (RFC 768).
    total = _udp_checksum(address.packed, target.packed, udp) or 0xFFFF
    udp = udp[:6] + total.to_bytes(2) + udp[8:]
    length = _IP.size + len(udp)
    fields = (0x45, 0, length, 0, 0, _TTL, _UDP_PROTOCOL)
    header = _IP.pack(*fields, 0, address.packed, target.packed)
    header = _IP.pack(*fields, internet_checksum(header), address.packed, target.packed)
    return _ETH.pack(target_mac, mac, _ETH_P_IP) + header + udp


def parse(frame: bytes, *, is_summed: bool = True) -> Answer:
    """A server's answer; raises Malformed. Not `is_summed` is a frame whose UDP checksum is still to be filled in."""
    try:
        return _parse(frame, is_summed)
    except struct.error as error:
        raise Malformed("it is cut off") from error


def _parse(frame: bytes, is_summed: bool) -> Answer:
    _, source_mac, protocol = _ETH.unpack_from(frame)
    if protocol != _ETH_P_IP:
        raise Malformed(f"it is of protocol {protocol:#x}")
    message = _udp_payload(frame[_ETH.size :], is_summed)
    op, kind, length, _, xid, _, _, _, yours, _, _, mac, name, file, cookie = _BOOTP.unpack_from(message)
    if (op, kind, length, cookie) != (_REPLY, _ETHERNET, _MAC_LENGTH, _COOKIE):
        raise Malformed("it is no reply of DHCP over Ethernet")
    options = _all_options(message[_BOOTP.size :], file, name)
    said = options.get(Option.MESSAGE_TYPE, b"")
    if len(said) != 1 or said[0] not in _ANSWERS:
        raise Malformed(f"its message type {said.hex()!r} is none of a server's answers")
    server = _address(options, Option.SERVER_ID)
    if server is None or not _is_host(server):
        raise Malformed("it does not say which server it is from")
    answer = Answer(
        kind=MessageType(said[0]), xid=xid, mac=mac[:_MAC_LENGTH], server=server, server_mac=source_mac,
        text=_printable(options.get(Option.MESSAGE, b"")),
    )  # fmt: skip
    return answer if answer.kind is MessageType.NAK else _granted(answer, IPv4Address(yours), options)


def _granted(answer: Answer, address: IPv4Address, options: Mapping[int, bytes]) -> Answer:
    if not _is_host(address):
        raise Malformed(f"{address} is no address that somebody could have")
    lease_s = _seconds(options, Option.LEASE_TIME)
    if not lease_s:
        raise Malformed("it does not say for how long")
    renew_s: float | None = _seconds(options, Option.RENEWAL_TIME)
    rebind_s: float | None = _seconds(options, Option.REBINDING_TIME)
    # RFC 2131, 4.4.5: the defaults, and the order that must hold.
    if not rebind_s or rebind_s >= lease_s:
        rebind_s = 0.875 * lease_s
    if not renew_s or renew_s >= rebind_s:
        renew_s = min(0.5 * lease_s, rebind_s)
    return Answer(
        kind=answer.kind, xid=answer.xid, mac=answer.mac, server=answer.server, server_mac=answer.server_mac,
        text=answer.text, address=address, lease_s=lease_s, renew_s=renew_s, rebind_s=rebind_s,
        prefixlen=_prefixlen(options), router=_router(options),
    )  # fmt: skip


def _udp_payload(packet: bytes, is_summed: bool) -> bytes:
    version, _, length, _, fragment, _, protocol, _, source, target = _IP.unpack_from(packet)
    header = (version & 15) * 4
    if version >> 4 != 4 or header < _IP.size or not header + _UDP.size <= length <= len(packet):
        raise Malformed("its IP header does not fit it")
    if protocol != _UDP_PROTOCOL or fragment & _FRAGMENT:
        raise Malformed("it is no whole UDP packet")
    if internet_checksum(packet[:header]):
        raise Malformed("its IP checksum is wrong")
    udp = packet[header:length]
    _, port, size, checksum = _UDP.unpack_from(udp)
    if port != CLIENT_PORT or not _UDP.size <= size <= len(udp):
        raise Malformed("its UDP header does not fit it")
    if checksum and is_summed and _udp_checksum(source, target, udp[:size]):
        raise Malformed("its UDP checksum is wrong")
    return udp[_UDP.size : size]


def _all_options(field: bytes, file: bytes, name: bytes) -> dict[int, bytes]:
    """Every option by its code, put together where it comes in pieces (RFC 3396, 7)."""
    options: dict[int, bytes] = {}
    _collect(options, field)
    overload = options.get(Option.OPTION_OVERLOAD, b"\0")
    if len(overload) != 1:
        raise Malformed("its option overload is malformed")
    for flag, more in ((_OVERLOAD_FILE, file), (_OVERLOAD_NAME, name)):
        if overload[0] & flag:
            _collect(options, more)
    return options


def _collect(options: dict[int, bytes], field: bytes) -> None:
    at = 0
    while at < len(field) and field[at] != Option.END:
        if field[at] == Option.PAD:
            at += 1
            continue
        end = at + 2 + field[at + 1] if at + 1 < len(field) else len(field) + 1
        if end > len(field):
            raise Malformed(f"its option {field[at]} is cut off")
        options[field[at]] = options.get(field[at], b"") + field[at + 2 : end]
        at = end


def _address(options: Mapping[int, bytes], code: Option) -> IPv4Address | None:
    """The only or first address of an option, which is that of the highest preference."""
    value = options.get(code)
    if value is None:
        return None
    if not value or len(value) % 4:
        raise Malformed(f"its option {code} holds no addresses")
    return IPv4Address(value[:4])


def _router(options: Mapping[int, bytes]) -> IPv4Address | None:
    router = _address(options, Option.ROUTER)
    return router if router is not None and _is_host(router) else None


def _seconds(options: Mapping[int, bytes], code: Option) -> int | None:
    value = options.get(code)
    if value is None:
        return None
    if len(value) != 4:
        raise Malformed(f"its option {code} is no time")
    return int.from_bytes(value)


def _prefixlen(options: Mapping[int, bytes]) -> int | None:
    value = options.get(Option.SUBNET_MASK)
    if value is None:
        return None
    bits = f"{int.from_bytes(value):032b}"
    if len(value) != 4 or "01" in bits or bits[0] == "0":
        raise Malformed(f"its subnet mask {value.hex()} is none")
    return bits.count("1")


def _is_host(address: IPv4Address) -> bool:
    return not (address.is_multicast or address.is_loopback or address.is_reserved or address.packed[0] == 0)


def _printable(text: bytes) -> str:
    """For log lines and messages: what anybody may have sent must not break out of them."""
    return "".join(char if char.isprintable() else "?" for char in text.decode("ascii", "replace").rstrip("\0"))


def _udp_checksum(source: bytes, target: bytes, udp: bytes) -> int:
    """0 when the packet's own is in it and right."""
    return internet_checksum(source + target + struct.pack("!HH", _UDP_PROTOCOL, len(udp)) + udp)
