"""Round trips of many echo requests at once (RFC 792, RFC 4443), each from a network namespace of its own.

An answer's time is the kernel's own, from when the packet came in (socket(7), SO_TIMESTAMPNS): what this process takes
to wake up does not count.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from datapath import netns
from datapath.checksum import internet_checksum

_AT_ONCE: Final = 64
"""Sockets that are open at a time."""
_V4: Final = (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0)
_V6: Final = (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129)
_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("@ll")
_NO_NAMESPACE: Final = frozenset({errno.ENOENT, errno.EINVAL})


@dataclass(frozen=True, slots=True)
class Ask:
    """One echo request, from the namespace at `netns_path` (None: the caller's) and from `source` if given."""

    target: IPv4Address | IPv6Address
    netns_path: str | None = None
    source: IPv4Address | IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`seconds` is None when nothing came back; `is_asked` is False when the namespace is gone."""

    seconds: float | None = None
    is_asked: bool = True


class _Open:
    """A request that was sent, and the socket that its answer comes to."""

    def __init__(self, ask: Ask) -> None:
        family, protocol, self._request, self._reply = _V4 if ask.target.version == 4 else _V6
        self._token = os.urandom(8)
        self.socket = socket.socket(fileno=netns.open_socket(ask.netns_path, family, socket.SOCK_RAW, protocol))
        try:
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            if ask.source is not None:
                self.socket.bind((str(ask.source), 0))
            self.socket.connect((str(ask.target), 0))
            message = struct.pack("!BBHHH", self._request, 0, 0, 0, 0) + self._token
            if family == socket.AF_INET:  # over IPv6 the kernel does that
                message = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
            self._sent, self._sent_ns = time.monotonic(), time.time_ns()
            self.socket.send(message)
        except OSError:
            self.socket.close()
            raise

    def answer(self) -> float | None:
        """The round trip, if what has come is the answer."""
        try:
            heard, said, _, _ = self.socket.recvmsg(2048, socket.CMSG_SPACE(_TIMESPEC.size))
        except OSError:  # an ICMP error, or nothing after all
            return None
        elapsed = time.monotonic() - self._sent
        if self.socket.family == socket.AF_INET:  # with its IP header (raw(7))
            heard = heard[(heard[0] & 0x0F) * 4 :]
        if heard[:1] != bytes([self._reply]) or heard[8:] != self._token:
            return None
        for level, kind, data in said:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(data[: _TIMESPEC.size])
                by_kernel: float = (seconds * 1_000_000_000 + nanoseconds - self._sent_ns) / 1e9
                if 0 < by_kernel < elapsed:  # unless the clock was set meanwhile
                    return by_kernel
        return elapsed


def round_trips(asks: Sequence[Ask], timeout_s: float) -> list[Answer]:
    """Sends the requests, 64 at a time, and waits for each lot for `timeout_s` at most; needs CAP_NET_RAW."""
    return [
        answer for start in range(0, len(asks), _AT_ONCE) for answer in _lot(asks[start : start + _AT_ONCE], timeout_s)
    ]


def _lot(asks: Sequence[Ask], timeout_s: float) -> Iterator[Answer]:
    answers: dict[int, Answer] = {}
    waiting: dict[int, tuple[int, _Open]] = {}
    poll = select.poll()
    for number, ask in enumerate(asks):
        try:
            sent = _Open(ask)
        except OSError as error:
            is_gone = ask.netns_path is not None and error.errno in _NO_NAMESPACE
            answers[number] = Answer(is_asked=not is_gone)
            continue
        waiting[sent.socket.fileno()] = number, sent
        poll.register(sent.socket, select.POLLIN)
    end = time.monotonic() + timeout_s
    while waiting and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            number, sent = waiting[fd]
            seconds = sent.answer()
            if seconds is not None:
                answers[number] = Answer(seconds)
                poll.unregister(fd)
                sent.socket.close()
                del waiting[fd]
    for _, sent in waiting.values():
        sent.socket.close()
    return iter([answers.get(number, Answer()) for number in range(len(asks))])
