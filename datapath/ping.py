"""Echo requests (RFC 792, RFC 4443): whether an address is reached from another."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from datapath.checksum import internet_checksum

_V4: Final = (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0)
_V6: Final = (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129)

_HEADERS: Final = {4: 28, 6: 48}
"""IP and ICMP, in bytes."""
_PROBE: Final = 3
"""IP_PMTUDISC_PROBE: with DF, whatever the kernel believes the path takes (ip(7))."""
_WHOLE: Final = {4: (socket.IPPROTO_IP, 10, _PROBE), 6: (socket.IPPROTO_IPV6, 23, _PROBE)}


def answers(
    address: IPv4Address | IPv6Address, source: IPv4Address | IPv6Address | None = None, timeout_s: float = 1.0
) -> bool:
    """Whether the address answers one echo request from `source`, in the caller's network namespace, in time.

    Blocks until it does, or for the whole time. Needs CAP_NET_RAW. Raises OSError when `source` is not this host's.
    """
    return _answers(address, source, timeout_s, 0)


def reaches(address: IPv4Address | IPv6Address, size: int, timeout_s: float = 1.0) -> bool:
    """As `answers`, for an IP packet of at least `size` bytes that nobody on the way may cut up, nor this host.

    Raises OSError (EMSGSIZE) where this host's own device does not take it.
    """
    return _answers(address, None, timeout_s, size)


def _answers(
    address: IPv4Address | IPv6Address, source: IPv4Address | IPv6Address | None, timeout_s: float, size: int
) -> bool:
    family, protocol, request, reply = _V4 if address.version == 4 else _V6
    token = os.urandom(8) + bytes(max(0, size - _HEADERS[address.version] - 8))
    message = struct.pack("!BBHHH", request, 0, 0, 0, 0) + token
    if family == socket.AF_INET:  # over IPv6 the kernel does that
        message = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
    deadline = time.monotonic() + timeout_s
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        if size:
            raw.setsockopt(*_WHOLE[address.version])
        if source is not None:
            raw.bind((str(source), 0))
        try:
            raw.connect((str(address), 0))
            raw.send(message)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise
            return False
        try:
            while (left := deadline - time.monotonic()) > 0:
                raw.settimeout(left)
                heard = raw.recv(1 << 16)
                if family == socket.AF_INET:  # with its IP header (raw(7))
                    heard = heard[(heard[0] & 0x0F) * 4 :]
                if heard[:1] == bytes([reply]) and heard[8:] == token:
                    return True
        except OSError:
            return False
    return False
