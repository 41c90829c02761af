"""The bits of ethtool's answers that are read, for what no device of a namespace has: LRO. The others: tests/netns."""

from __future__ import annotations

import ctypes
import errno
import struct

import pytest

from datapath import offloads

# linux/ethtool.h: ETHTOOL_GTXCSUM and so on, and ETH_FLAG_LRO among the flags
COMMANDS = {"tx_checksum": 0x16, "scatter_gather": 0x18, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}
FLAGS, LRO, ANOTHER = 0x25, 1 << 15, 1 << 14


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What a driver answers to each command; it does not know those that it has no answer to."""
    answers: dict[int, int] = {}

    def ioctl(fd: object, number: int, request: bytes) -> int:
        name, address = struct.unpack("16sP16x", request)
        assert (number, name.rstrip(b"\0")) == (0x8946, b"eth0")
        (command,) = struct.unpack("=I", ctypes.string_at(address, 4))
        if command not in answers:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        ctypes.memmove(address + 4, struct.pack("=I", answers[command]), 4)
        return 0

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    return answers


@pytest.mark.parametrize(("flags", "is_on"), [(LRO, True), (LRO | ANOTHER, True), (ANOTHER, False), (0, False)])
def test_lro_is_one_of_the_flags(card: dict[int, int], flags: int, is_on: bool) -> None:
    card[FLAGS] = flags
    found = offloads.read("eth0")
    assert found is not None
    assert (found.lro, found.gro) == (is_on, False)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_of_the_others_has_a_command(card: dict[int, int], name: str) -> None:
    card[COMMANDS[name]] = 1
    found = offloads.read("eth0")
    assert [each for each in (*COMMANDS, "lro") if getattr(found, each)] == [name]
