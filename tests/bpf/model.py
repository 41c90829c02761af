"""What ls_ep_out must decide, written a second time from the RFCs and abi.h: bytes in, verdict and reason out.

Looks at one packet of a host of the lab's. Shares no code and no table with the programs.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from tests.bpf.lab import ENGINES, GATEWAY4, GATEWAY6, SLOW, A, B, Host

Judgement = tuple[str, str | None]

KERNEL: Final = ("kernel", None)
FAST: Final = ("fast", None)
MALFORMED: Final = ("drop", "malformed")
TOO_DEEP: Final = ("drop", "too_deep")

NONE6: Final = bytes(16)
FAST_MACS: Final = {host.mac_bytes for host in (A, B, ENGINES)}
VLAN: Final = (0x8100, 0x88A8)
EXTENSIONS: Final = (0, 43, 44, 51, 60, 135, 139, 140)


def _packed(*addresses: str) -> set[bytes]:
    return {ip_address(address).packed for address in addresses if address}


def _all(host: Host) -> set[bytes]:
    return _packed(host.ip4, host.ip6, host.ip6_ll, host.ll4, host.ll6)


TAKEN: Final = _all(A) | _all(B) | _all(SLOW) | _packed(GATEWAY4, GATEWAY6)
ANSWERED: Final = TAKEN - _packed(SLOW.ll4, SLOW.ll6)


def _source(me: Host, address: bytes, reason: str) -> Judgement | None:
    """None for an address of the sender's own."""
    if address in _all(me):
        return None
    is_link_local = address[:2] == b"\xa9\xfe" if len(address) == 4 else address[0] == 0xFE and address[1] >> 6 == 2
    return KERNEL if me.is_engines and is_link_local and address not in TAKEN else ("drop", reason)


def judge(frame: bytes, me: Host = A) -> Judgement:
    if frame[6:12] != me.mac_bytes:
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
    verdict = check(me, frame, frame[at:], tags)
    if verdict is not None:
        return verdict
    return FAST if not tags and frame[:6] in FAST_MACS - {me.mac_bytes} else KERNEL


def _ip4(me: Host, frame: bytes, packet: bytes, tags: int) -> Judgement | None:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return MALFORMED
    header = (packet[0] & 15) * 4
    if header < 20 or len(packet) < header:
        return MALFORMED
    if packet[12:16] == bytes(4):
        return KERNEL
    return _source(me, packet[12:16], "spoofed_ip4")


def _arp(me: Host, frame: bytes, packet: bytes, tags: int) -> Judgement | None:
    if len(packet) < 28 or packet[:6] != bytes.fromhex("000108000604"):
        return MALFORMED
    operation, sha, spa, tpa = packet[6:8], packet[8:14], packet[14:18], packet[24:28]
    if sha != me.mac_bytes:
        return "drop", "spoofed_arp"
    if spa == bytes(4):
        return KERNEL
    if verdict := _source(me, spa, "spoofed_arp"):
        return verdict
    is_asked = operation == b"\0\1" and frame[:6] == b"\xff" * 6 and not tags
    return FAST if is_asked and tpa in ANSWERED - _all(me) else None


def _ip6(me: Host, frame: bytes, packet: bytes, tags: int) -> Judgement | None:
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
            verdict = KERNEL if source == NONE6 else _source(me, source, "spoofed_nd")
            return verdict if verdict and verdict[0] == "drop" else _nd(me, frame, packet, at, is_cut, tags, verdict)
    return KERNEL if source == NONE6 else _source(me, source, "spoofed_ip6")


def _nd(
    me: Host, frame: bytes, packet: bytes, at: int, is_cut: bool, tags: int, sender: Judgement | None
) -> Judgement | None:
    end = 40 + int.from_bytes(packet[4:6])
    kind, target = packet[at], packet[at + 8 : at + 24]
    options = at + {133: 8, 134: 16, 135: 24, 136: 24}[kind]
    if is_cut or end > len(packet) or options > end:
        return MALFORMED
    claim = _source(me, target, "spoofed_nd") if kind == 136 else None
    if claim and claim[0] == "drop":
        return claim
    first, rest, count = packet[options:end], options, 0
    while rest < end:
        if count == 16:
            return TOO_DEEP
        if len(packet) < rest + 8 or not packet[rest + 1] or rest + packet[rest + 1] * 8 > end:
            return MALFORMED
        if packet[rest] in (1, 2) and packet[rest + 2 : rest + 8] != me.mac_bytes:
            return "drop", "spoofed_nd"
        rest += packet[rest + 1] * 8
        count += 1
    if sender or claim:
        return KERNEL
    is_asked = (
        (kind, packet[at + 1], at, packet[7], packet[24]) == (135, 0, 40, 255, 0xFF)
        and frame[0] & 1
        and not tags
        and len(first) == 8
        and first[0] == 1
    )
    return FAST if is_asked and target in ANSWERED - _all(me) else None
