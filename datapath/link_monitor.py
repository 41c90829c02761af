"""Tells which devices of a network namespace have changed, come or gone, without asking for it again and again.

Source: rtnetlink(7), netlink(7); linux/rtnetlink.h and if_link.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from datapath import rtnl

_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_LINK = 270, 1, 1
_NLA_TYPE_MASK: Final = 0x3FFF
_HEADERS: Final = 16 + 16  # of netlink, and struct ifinfomsg
BUFFER_BYTES: Final = 4 << 20
"""Room for some 3,600 messages: the kernel doubles it, and counts 2.3 KiB for most of them (socket(7), SO_RCVBUF)."""
_KINDS: Final = frozenset({rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK})


class LinkChange(NamedTuple):
    """A device that has changed or come, under the name that it had then, or, with `is_gone`, that has left."""

    ifindex: int
    ifname: str
    is_gone: bool


class LinkMonitor:
    """A netlink socket that becomes readable when devices of the namespace that it was made in change.

    Not thread-safe.
    """

    def __init__(self, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_LINK)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def changes(self) -> set[LinkChange] | None:
        """Reads what has happened since the last call, without waiting.

        None when the kernel had more to tell than there is room for: any device may have changed. Raises OSError.
        """
        found: set[LinkChange] = set()
        is_complete = True
        while True:
            try:
                found.update(_changes(self._socket.recv(1 << 16)))
            except BlockingIOError:
                return found if is_complete else None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_complete = False


def _changes(data: bytes) -> Iterator[LinkChange]:
    offset = 0
    while offset + _HEADERS <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < _HEADERS:
            return
        family, index = struct.unpack_from("=BxxxI", data, offset + 16)
        # With AF_BRIDGE it is about the port of a bridge, whose device is told of by itself.
        if kind in _KINDS and family == socket.AF_UNSPEC:
            yield LinkChange(index, _name(data, offset + _HEADERS, offset + length), kind == rtnl.RTM_DELLINK)
        offset += (length + 3) & ~3


def _name(data: bytes, offset: int, end: int) -> str:
    while offset + 4 <= min(end, len(data)):
        length, attribute = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        if attribute & _NLA_TYPE_MASK == rtnl.IFLA_IFNAME:
            return data[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    return ""
