"""What ls_ep_out must decide, written a second time from the RFCs and abi.h: bytes in, verdict and reason out.

Looks at one packet of the lab's endpoint A. Shares no code and no table with the programs.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tests.bpf.lab import GATEWAY4, GATEWAY6, SLOW, A, B

Judgement = tuple[str, str | None]

KERNEL: Final = ("kernel", None)
FAST: Final = ("fast", None)
MALFORMED: Final = ("drop", "malformed")
TOO_DEEP: Final = ("drop", "too_deep")

MAC: Final = A.mac_bytes
OWN4: Final = IPv4Address(A.ip4).packed
OWN6: Final = (IPv6Address(A.ip6).packed, IPv6Address(A.ip6_ll).packed)
NONE6: Final = bytes(16)
KNOWN4: Final = {IPv4Address(address).packed for address in (B.ip4, SLOW.ip4, GATEWAY4)}
KNOWN6: Final = {IPv6Address(a).packed for a in (B.ip6, B.ip6_ll, SLOW.ip6, SLOW.ip6_ll, GATEWAY6)}
VLAN: Final = (0x8100, 0x88A8)
EXTENSIONS: Final = (0, 43, 44, 51, 60, 135, 139, 140)


def judge(frame: bytes) -> Judgement:
    if frame[6:12] != MAC:
        return "drop", "spoofed_mac"
    at, tags, ethertype = 14, 0, int.from_bytes(frame[12:14])
    while ethertype in VLAN:
        tags += 1
        if tags > 2:
            return TOO_DEEP
        if len(frame) < at + 4:
            return MALFORMED
        ethertype = int.from_bytes(frame[at + 2 : at + 4])
        at += 4
    check = {0x0800: _ip4, 0x0806: _arp, 0x86DD: _ip6}.get(ethertype)
    if check is None:
        return KERNEL
    verdict = check(frame, frame[at:], tags)
    if verdict is not None:
        return verdict
    return FAST if not tags and frame[:6] == B.mac_bytes else KERNEL


def _ip4(frame: bytes, packet: bytes, tags: int) -> Judgement | None:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return MALFORMED
    header = (packet[0] & 15) * 4
    if header < 20 or len(packet) < header:
        return MALFORMED
    if packet[12:16] == bytes(4):
        return KERNEL
    return None if packet[12:16] == OWN4 else ("drop", "spoofed_ip4")


def _arp(frame: bytes, packet: bytes, tags: int) -> Judgement | None:
    if len(packet) < 28 or packet[:6] != bytes.fromhex("000108000604"):
        return MALFORMED
    operation, sha, spa, tpa = packet[6:8], packet[8:14], packet[14:18], packet[24:28]
    if sha != MAC:
        return "drop", "spoofed_arp"
    if spa == bytes(4):
        return KERNEL
    if spa != OWN4:
        return "drop", "spoofed_arp"
    is_asked = operation == b"\0\1" and frame[:6] == b"\xff" * 6 and not tags
    return FAST if is_asked and tpa in KNOWN4 else None


def _ip6(frame: bytes, packet: bytes, tags: int) -> Judgement | None:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return MALFORMED
    source, header, at, headers, is_cut = packet[8:24], packet[6], 40, 0, False
    while header in EXTENSIONS:
        headers += 1
        if headers > 8:
            return TOO_DEEP
        if len(packet) < at + 8:
            return MALFORMED
        length = {44: 8, 51: packet[at + 1] * 4 + 8}.get(header, packet[at + 1] * 8 + 8)
        if header == 44:
            offset = int.from_bytes(packet[at + 2 : at + 4])
            if offset & 0xFFF8:
                header = 59
                break
            is_cut |= bool(offset & 1)
        if len(packet) < at + length:
            return MALFORMED
        at, header = at + length, packet[at]
    if header == 58:
        if len(packet) < at + 4:
            return MALFORMED
        if 133 <= packet[at] <= 136:
            if source not in (*OWN6, NONE6):
                return "drop", "spoofed_nd"
            return _nd(frame, packet, at, is_cut, tags)
    if source == NONE6:
        return KERNEL
    return None if source in OWN6 else ("drop", "spoofed_ip6")


def _nd(frame: bytes, packet: bytes, at: int, is_cut: bool, tags: int) -> Judgement | None:
    end = 40 + int.from_bytes(packet[4:6])
    kind, target = packet[at], packet[at + 8 : at + 24]
    options = at + {133: 8, 134: 16, 135: 24, 136: 24}[kind]
    if is_cut or end > len(packet) or options > end:
        return MALFORMED
    if kind == 136 and target not in OWN6:
        return "drop", "spoofed_nd"
    first, rest, count = packet[options:end], options, 0
    while rest < end:
        if count == 16:
            return TOO_DEEP
        if len(packet) < rest + 8 or not packet[rest + 1] or rest + packet[rest + 1] * 8 > end:
            return MALFORMED
        if packet[rest] in (1, 2) and packet[rest + 2 : rest + 8] != MAC:
            return "drop", "spoofed_nd"
        rest += packet[rest + 1] * 8
        count += 1
    if packet[8:24] == NONE6:
        return KERNEL
    is_asked = (
        (kind, packet[at + 1], at, packet[7], packet[24]) == (135, 0, 40, 255, 0xFF)
        and frame[0] & 1
        and not tags
        and len(first) == 8
        and first[0] == 1
    )
    return FAST if is_asked and target in KNOWN6 else None
