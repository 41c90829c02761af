"""Keeps published ports from everybody else on the host, by a socket that is bound to each and does nothing else.

A published port's packets are handed on before any socket sees them (`datapath.nft`), so the kernel would let a second
program listen there in vain. While the port is bound here, that program is told so (EADDRINUSE), and a port that
somebody has already is noticed. No process is needed, only descriptors, two for a port of all addresses. Where packets
are not handed on, as those from ::1, a TCP client is refused at once, because nothing listens.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from threading import Lock
from typing import Final

Address = IPv4Address | IPv6Address
_Key = tuple[str, Address, int]

_EVERY4: Final = IPv4Address("0.0.0.0")
_EVERY6: Final = IPv6Address("::")
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_LISTEN: Final = 0x0A
_LEAST_BUFFER: Final = 1
"""What a socket's receive buffer is set to: the kernel makes that its minimum of some 2 KiB (socket(7))."""


class PortInUse(OSError):
    """A port cannot be had, because somebody else has it; the message says who."""


class HostPorts:
    """The ports that are held, in the network namespace of the threads that call. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sockets: dict[_Key, socket.socket] = {}
        self._has_raised_limit = False

    def hold(
        self,
        protocol: str,
        host_ip: Address | None,
        first: int,
        count: int = 1,
        *,
        v4: bool = True,
        v6: bool = True,
    ) -> None:
        """Holds `count` ports from `first` on, all or none.

        They are those of `host_ip`, or without it of every address, of the families asked for. Raises PortInUse, also
        for ports that are held already, and OSError when the host does not have the address or the process no room for
        more descriptors.
        """
        with self._lock, ExitStack() as undo:
            self._raise_limit()
            made: dict[_Key, socket.socket] = {}
            for address in _addresses(host_ip, v4=v4, v6=v6):
                for port in range(first, first + count):
                    made[protocol, address, port] = undo.enter_context(self._bound(protocol, address, port))
            undo.pop_all()
            self._sockets |= made

    def release(self, protocol: str, host_ip: Address | None, first: int, count: int = 1) -> None:
        """Lets go of ports; those that are not held are no error."""
        with self._lock:
            for address in _addresses(host_ip):
                for port in range(first, first + count):
                    if (held := self._sockets.pop((protocol, address, port), None)) is not None:
                        held.close()

    def ephemeral_ports(self) -> range:
        """The ports that the kernel takes when none is asked for (ip(7), ip_local_port_range). Raises OSError."""
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return range(int(first), int(last) + 1)

    def close(self) -> None:
        """Lets go of all ports; may be repeated."""
        with self._lock:
            while self._sockets:
                self._sockets.popitem()[1].close()

    def _bound(self, protocol: str, address: Address, port: int) -> socket.socket:
        try:
            return _bind(protocol, address, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                owner = self._own(protocol, address, port) or f"in use by {_owner(protocol, address, port)}"
                raise PortInUse(errno.EADDRINUSE, f"port {port}/{protocol} of {address} is {owner}") from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise OSError(error.errno, f"this host has no address {address} to publish a port of") from error
            if error.errno in (errno.EMFILE, errno.ENFILE):
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                raise OSError(
                    error.errno,
                    f"no room for port {port}/{protocol} of {address}: each takes a file descriptor, "
                    f"and linkspand may have {limit} (LimitNOFILE= of its unit)",
                ) from error
            raise OSError(error.errno, f"cannot hold port {port}/{protocol} of {address}: {error.strerror}") from error

    def _own(self, protocol: str, address: Address, port: int) -> str | None:
        """What to say of a port that is held here, for this address or one that includes it or lies in it."""
        for held_protocol, held, held_port in self._sockets:
            if (held_protocol, held_port, held.version) == (protocol, port, address.version) and (
                held == address or held.is_unspecified or address.is_unspecified
            ):
                return "published already" + (f" with {held}" if held != address else "")
        return None

    def _raise_limit(self) -> None:
        """Takes all the descriptors that the process may have: ranges need many, and nothing here uses select(2)."""
        if not self._has_raised_limit:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            self._has_raised_limit = True


def _addresses(host_ip: Address | None, *, v4: bool = True, v6: bool = True) -> list[Address]:
    if host_ip is not None:
        return [host_ip]
    return [*([_EVERY4] if v4 else []), *([_EVERY6] if v6 else [])]


def _bind(protocol: str, address: Address, port: int) -> socket.socket:
    made = socket.socket(_FAMILIES[address.version], _KINDS[protocol])
    try:
        if address.version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            # Connections that a program before us had closed must not keep the port for another minute; but afterwards
            # nobody may share it.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((str(address), port))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LEAST_BUFFER)  # nobody reads what comes
            made.bind((str(address), port))
    except OSError:
        made.close()
        raise
    return made


def _owner(protocol: str, address: Address, port: int) -> str:
    """Who has the port, as `nginx (process 123)`."""
    inodes = [inode for _, inode in sorted(_sockets_at(protocol, address, port), reverse=True)]
    owners = _processes(set(inodes))
    return next((owners[inode] for inode in inodes if inode in owners), "another process")


def _sockets_at(protocol: str, address: Address, port: int) -> Iterator[tuple[bool, int]]:
    """(is listening, inode) of the sockets that stand in the way (proc(5), /proc/net/tcp).

    A TCP socket that is bound and neither listens nor is connected is in no list.
    """
    for table in (Path("/proc/thread-self/net", f"{protocol}{suffix}") for suffix in ("", "6")):
        with suppress(FileNotFoundError):  # no IPv6
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                words, _, local_port = local.partition(":")
                if int(local_port, 16) == port and _is_in_the_way(_address(words), address):
                    yield int(state, 16) == _LISTEN, int(rest[5])


def _is_in_the_way(there: Address, wanted: Address) -> bool:
    """A socket of IPv6 may have IPv4's addresses too: all of them, or one that is mapped."""
    if there.version == 6 and wanted.version == 4:
        mapped = _EVERY4 if there.is_unspecified else there.ipv4_mapped
        return mapped is not None and _is_in_the_way(mapped, wanted)
    return there == wanted or (there.version == wanted.version and (there.is_unspecified or wanted.is_unspecified))


def _address(words: str) -> Address:
    """An address as the kernel prints it: 32-bit words of network order, read as numbers of the machine's order."""
    packed = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _processes(inodes: set[int]) -> dict[int, str]:
    """The processes that have the sockets open, by the sockets' inodes, as far as this process may look."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, str] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and len(found) < len(wanted):
            with suppress(OSError):  # it ends meanwhile
                for descriptor in os.listdir(process / "fd"):
                    inode = wanted.get(os.readlink(process / "fd" / descriptor))
                    if inode is not None and inode not in found:
                        found[inode] = f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return found
