"""All devices of a network namespace in one rtnetlink dump, requested and parsed in C."""

from __future__ import annotations

import os
from operator import itemgetter
from typing import NamedTuple

from datapath._native import ffi, lib
from datapath.abi import layout


class LinkInfo(NamedTuple):
    """One device.

    `master` is the ifindex of the bridge it is a port of (0: none). `peer` is the ifindex of a veth's other end, in the
    namespace of that end, or of the lower device (0: none). `kind` is as in `ip -d link` ("" for lo and hardware).
    `flags` are IFF_*, `operstate` is RFC 2863's (6: up). Counters are the device's own since it was made.
    """

    ifindex: int
    ifname: str
    master: int
    flags: int
    mtu: int
    mac: bytes
    kind: str
    peer: int
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    alias: str
    operstate: int


_ROW, _COLUMNS = layout("struct ls_link")
_pick = itemgetter(*(_COLUMNS.index(name) for name in (*LinkInfo._fields, "mac_len")))


def dump(sock_fd: int | None = None) -> list[LinkInfo]:
    """The devices seen by an AF_NETLINK socket (`netns.open_socket`; None: the calling thread's namespace).

    One thread at a time may use a socket. A dump during which devices come or go is begun again, up to 8 times; the
    last one stands, and each device that was there all the time is in it. Raises OSError.
    """
    array = ffi.new("struct ls_link **")
    count = lib.ls_links_dump(-1 if sock_fd is None else sock_fd, array)
    if count < 0:
        raise OSError(-count, f"dump links (RTM_GETLINK): {os.strerror(-count)}")
    try:
        rows = bytes(ffi.buffer(array[0], count * _ROW.size)) if count else b""
    finally:
        lib.ls_links_free(array[0])
    return [_link_info(row) for row in _ROW.iter_unpack(rows)]


def _link_info(row: tuple[object, ...]) -> LinkInfo:
    (
        ifindex, ifname, master, flags, mtu, mac, kind, peer,
        rx_packets, rx_bytes, tx_packets, tx_bytes, alias, operstate, mac_len,
    ) = _pick(row)  # fmt: skip
    return LinkInfo(
        ifindex, _text(ifname), master, flags, mtu, mac[:mac_len], _text(kind), peer,
        rx_packets, rx_bytes, tx_packets, tx_bytes, _text(alias), operstate,
    )  # fmt: skip


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
