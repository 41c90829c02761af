"""Notices when somebody else deletes the nftables table, as `nft flush ruleset` and a reload of nftables.service do.

Source: linux/netfilter/nf_tables.h and nfnetlink.h; netlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

from datapath.nft import TABLE

_NETLINK_NETFILTER: Final = 12
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES = 270, 1, 7
_DELTABLE: Final = 10 << 8 | 2  # NFNL_SUBSYS_NFTABLES, NFT_MSG_DELTABLE
_NFTA_TABLE_NAME: Final = 1
_NFPROTO_INET: Final = 1
_NLA_TYPE_MASK: Final = 0x3FFF
_HEADERS: Final = 16 + 4  # of netlink and of nfnetlink
_BUFFER_BYTES: Final = 1 << 20
_NAME: Final = TABLE.split()[1].encode()


class TableMonitor:
    """A netlink socket that becomes readable when rules of the namespace that it was made in change.

    Not thread-safe.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def was_deleted(self) -> bool:
        """Reads what has happened, without waiting; true also when the kernel had more to tell than there is room
        for."""
        deleted = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return deleted
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                deleted = True
            else:
                deleted |= any(_is_deletion(message) for message in _messages(data))


def _messages(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + 16 <= len(data):
        (length,) = struct.unpack_from("=I", data, offset)
        if length < 16:
            return
        yield data[offset : offset + length]
        offset += (length + 3) & ~3


def _is_deletion(message: bytes) -> bool:
    (kind,) = struct.unpack_from("=H", message, 4)
    if kind != _DELTABLE or len(message) < _HEADERS or message[16] != _NFPROTO_INET:
        return False
    offset = _HEADERS
    while offset + 4 <= len(message):
        length, attribute = struct.unpack_from("=HH", message, offset)
        if length < 4:
            return False
        if attribute & _NLA_TYPE_MASK == _NFTA_TABLE_NAME:
            return message[offset + 4 : offset + length].rstrip(b"\0") == _NAME
        offset += (length + 3) & ~3
    return False
