"""Round trips between two network stacks, measured from one thread with a socket in each.

Nobody has to be woken up: a message is on the other side when send(2) returns, so a round trip is the path's own time
and that of four system calls, and repeats far better than between two processes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Final, Literal

from datapath import links, netns, rtnl
from datapath._native import ffi, lib
from datapath.rtnl import Rtnl

Proto = Literal["tcp", "udp"]
PROTOS: Final[tuple[Proto, ...]] = ("tcp", "udp")
Address = IPv4Address | IPv6Address

MESSAGE_BYTES: Final = 64
BULK_BYTES: Final = 60_000
"""One packet of TCP, cut by the last device (GSO), with any usual MTU: as streams have them."""
_BUFFER_BYTES: Final = 1 << 20
_TIMEOUT_S: Final = 1
_CARRIER_S: Final = 5
_OPER_UP: Final = 6  # linux/if.h, IF_OPER_UP
_TIMEVAL: Final = struct.Struct("@ll")
_VETH_ADDRESSES: Final = (ip_interface("192.0.2.1/30"), ip_interface("192.0.2.2/30"))
_VETH_MAC: Final = bytes.fromhex("0242a9fe0102")
_VETH_MTU: Final = 1500


@dataclass(frozen=True)
class Stack:
    """A network stack and the address that it is reached at; `netns_path` None is the calling thread's own."""

    netns_path: str | None
    address: Address


@dataclass(frozen=True)
class Ends:
    """Two connected sockets; closing them ends a namespace that nothing else holds."""

    a: socket.socket
    b: socket.socket

    def close(self) -> None:
        """Idempotent."""
        self.a.close()
        self.b.close()

    def round_trips(self, count: int, size: int = MESSAGE_BYTES) -> list[int]:
        """Nanoseconds from a to b and back, of messages of 1 to 65,536 bytes, one after the other.

        Raises TimeoutError when nothing arrives within a second, and OSError.
        """
        return self._messages(count, size, is_answered=True)

    def messages(self, count: int, size: int) -> list[int]:
        """As `round_trips`, from a to b alone: what comes back are TCP's own acknowledgements."""
        return self._messages(count, size, is_answered=False)

    def _messages(self, count: int, size: int, *, is_answered: bool) -> list[int]:
        found = ffi.new("__u64[]", count)
        result = lib.ls_probe_messages(self.a.fileno(), self.b.fileno(), size, count, is_answered, found)
        if result < 0:
            raise _error(-result)
        return list(found)


@contextmanager
def veth_pair() -> Iterator[tuple[Stack, Stack]]:
    """Two stacks joined by nothing but a veth pair, which no file holds: they end with the block or the process."""
    with ExitStack() as undo:
        paths, sockets = [], []
        for _ in _VETH_ADDRESSES:
            fd = netns.call(None, lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            undo.callback(os.close, fd)
            paths.append(f"/proc/self/fd/{fd}")
            sockets.append(undo.enter_context(Rtnl(paths[-1])))
        sockets[0].apply(
            [rtnl.veth_add("eth0", master=0, peer_ifname="eth0", peer_netns_fd=fd, peer_mac=_VETH_MAC, mtu=_VETH_MTU)]
        )
        for each, address in zip(sockets, _VETH_ADDRESSES, strict=True):
            index = each.ifindex("eth0")
            assert index is not None, "it was just made"
            each.apply([rtnl.addr_add(index, "eth0", address), rtnl.link_up(index, "eth0")])
        for each in sockets:
            _await_carrier(each)
        yield Stack(paths[0], _VETH_ADDRESSES[0].ip), Stack(paths[1], _VETH_ADDRESSES[1].ip)


def connected(proto: Proto, a: Stack, b: Stack) -> Ends:
    """Sockets of `a` and `b` that are connected to each other. Raises TimeoutError and OSError."""
    with ExitStack() as undo:
        ends = []
        for stack in (a, b):
            kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
            family = socket.AF_INET if stack.address.version == 4 else socket.AF_INET6
            end = socket.socket(fileno=netns.open_socket(stack.netns_path, family, kind | socket.SOCK_CLOEXEC))
            undo.callback(end.close)
            # Not settimeout(), which would make the descriptor non-blocking.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                end.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(_TIMEOUT_S, 0))
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # who reads what it writes never waits for room
                end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            end.bind((str(stack.address), 0))
            ends.append(end)
        try:
            joined = _tcp(*ends) if proto == "tcp" else _udp(*ends)
        except BlockingIOError as error:
            raise _error(errno.EAGAIN) from error
        undo.pop_all()
    if proto == "tcp":
        ends[1].close()  # it has listened
    return joined


def _await_carrier(end: Rtnl) -> None:
    """Waits until eth0 of the socket's namespace sends: the kernel takes up a device's carrier in its own time."""
    deadline = time.monotonic() + _CARRIER_S
    while all(link.operstate != _OPER_UP for link in links.dump(end.fileno()) if link.ifname == "eth0"):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"the veth pair has no carrier after {_CARRIER_S} s")
        time.sleep(0.001)


def _udp(a: socket.socket, b: socket.socket) -> Ends:
    a.connect(b.getsockname())
    b.connect(a.getsockname())
    return Ends(a, b)


def _tcp(a: socket.socket, b: socket.socket) -> Ends:
    b.listen(1)
    try:
        a.connect(b.getsockname())
    except OSError as error:
        if error.errno == errno.EINPROGRESS:  # what SO_SNDTIMEO makes of a connect(2) that takes too long
            raise _error(errno.EAGAIN) from error
        raise
    accepted, _ = b.accept()
    for end in (a, accepted):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(_TIMEOUT_S, 0))
    return Ends(a, accepted)


def _error(code: int) -> OSError:
    if code == errno.EAGAIN:
        return TimeoutError(errno.ETIMEDOUT, f"no answer within {_TIMEOUT_S} s")
    return OSError(code, os.strerror(code))
