"""The builds of the endpoint program that are compared: today's sources, and a frozen copy of how they once were.

The frozen copy is a text for the compiler and the contents of its maps as bytes. It needs nothing of today's sources.
So it is compiled by the same compiler, for the same kernel and in the same run as today's, and differs from it by what
has been changed since. `python -m bench.gate --freeze` makes it anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from bench.gate.bed import RECEIVER, SENDER, Build
from datapath import abi
from datapath.loader import sources

PROGRAM: Final = "ls_ep_out"
FROZEN_TEXT: Final = Path(__file__).with_name("frozen") / f"{PROGRAM}.c"
FROZEN_ELEMENTS: Final = FROZEN_TEXT.with_suffix(".json")
_SEGMENT: Final = 9
_LINE_MARKS: Final = re.compile(r"^#line .*\n", re.MULTILINE)


def _mac(last: int) -> bytes:
    return bytes.fromhex(f"02420a0900{last:02x}")


def _endpoint(slot: int) -> abi.Endpoint:
    return abi.Endpoint(
        segment=_SEGMENT,
        slot=slot,
        ip4=IPv4Address(f"10.9.0.{slot}"),
        mac=_mac(slot),
        flags=abi.EP_FAST,
        ip6=IPv6Address(f"fd09::{slot}"),
        ip6_ll=None,
    )


def _ethernet(destination: int, ethertype: int) -> bytes:
    return _mac(destination) + _mac(1) + ethertype.to_bytes(2, "big")


def _ip4(source: int, destination: int, to_mac: int) -> bytes:
    """A UDP datagram of 64 bytes with the sender's MAC; its checksums, which no program looks at, are 0."""
    header = bytes.fromhex("4500005c0001400040110000") + bytes((10, 9, 0, source, 10, 9, 0, destination))
    return _ethernet(to_mac, 0x0800) + header + bytes.fromhex("1b591b5a00480000") + bytes(64)


def _ip6(source: int, destination: int) -> bytes:
    addresses = b"".join(ip_address(f"fd09::{last}").packed for last in (source, destination))
    tcp = bytes.fromhex("1b591b5a00000001000000015018ffff00000000") + bytes(64)
    return _ethernet(destination, 0x86DD) + bytes.fromhex("6000000000540640") + addresses + tcp


_SHOT, _REDIRECT, _UNSPEC = 2, 7, 0xFFFFFFFF  # TC_ACT_*, as unsigned
CASES: Final[Mapping[str, tuple[bytes, int]]] = {
    "udp4": (_ip4(1, 2, to_mac=2), _REDIRECT),
    "tcp6": (_ip6(1, 2), _REDIRECT),
    "to the kernel": (_ip4(1, 99, to_mac=99), _UNSPEC),
    "forged": (_ip4(2, 2, to_mac=2), _SHOT),
}
"""Packets of the sender, and the verdict that all builds must agree on."""


def today(directory: Path = sources.DIRECTORY) -> Build:
    """The program as the sources in `directory` have it."""
    elements: dict[str, dict[bytes, bytes]] = {
        "ep_by_if": {},
        "fdb": {},
        "epoch": {bytes(4): (1).to_bytes(8, "little")},
    }
    for ifindex, slot in ((SENDER, 1), (RECEIVER, 2)):
        endpoint = _endpoint(slot)
        elements["ep_by_if"][ifindex.to_bytes(4, "little")] = endpoint.pack()
        elements["fdb"][abi.FdbKey(_SEGMENT, endpoint.mac).pack()] = abi.FdbEntry(ifindex, slot).pack()
    return Build(PROGRAM, sources.flatten(directory, sources.PROGRAMS[PROGRAM]), elements)


def frozen() -> Build:
    """The program as it was when it was frozen."""
    kept = json.loads(FROZEN_ELEMENTS.read_text())
    elements = {
        name: {bytes.fromhex(key): bytes.fromhex(value) for key, value in each.items()} for name, each in kept.items()
    }
    return Build(PROGRAM, FROZEN_TEXT.read_text(), elements)


def freeze(build: Build) -> None:
    """Writes the frozen copy."""
    FROZEN_TEXT.parent.mkdir(exist_ok=True)
    FROZEN_TEXT.write_text(_LINE_MARKS.sub("", build.text))
    kept = {name: {key.hex(): value.hex() for key, value in each.items()} for name, each in build.elements.items()}
    FROZEN_ELEMENTS.write_text(json.dumps(kept, indent=1) + "\n")
