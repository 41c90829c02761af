"""Published ports: which ports of the host an endpoint gets, and that nobody else has them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import Final, Protocol

import msgspec

from control.errors import Conflict, InvalidArgument
from control.model import Endpoint, Network, PublishedPort

PROTOCOLS: Final = ("tcp", "udp")
_PORT_MAX: Final = 65535

HostAddress = IPv4Address | IPv6Address


class PortHolder(Protocol):
    """Keeps ports of the host from everybody else. Thread-safe; see datapath.host_ports.HostPorts.

    `host_ip` is None for all addresses of the families that are asked for; else families do not matter.
    """

    def hold(
        self,
        protocol: str,
        host_ip: HostAddress | None,
        first: int,
        count: int = 1,
        *,
        v4: bool = True,
        v6: bool = True,
    ) -> None:
        """All of them or none; raises OSError naming the port and who has it, or the address that is not the host's."""

    def release(self, protocol: str, host_ip: HostAddress | None, first: int, count: int = 1) -> None:
        """Idempotent."""

    def ephemeral_ports(self) -> range:
        """The ports that the host gives out by itself."""

    def close(self) -> None:
        """Releases all; idempotent."""


class PortWish(msgspec.Struct, frozen=True, kw_only=True):
    """One `-p`: a port of the endpoint, and the ports of the host of which it is to get one, 0 for any."""

    protocol: str
    port: int
    host_ip: HostAddress | None = None
    host_port: int = 0
    host_port_end: int = 0


def check(wishes: Sequence[PortWish], endpoint: Endpoint) -> None:
    """Raises InvalidArgument for a wish that can never be fulfilled."""
    for wish in wishes:
        if wish.protocol not in PROTOCOLS:
            raise InvalidArgument(
                f"port {wish.port}/{wish.protocol} cannot be published: only {' and '.join(PROTOCOLS)} can"
            )
        last = wish.host_port_end or wish.host_port
        if not 1 <= wish.port <= _PORT_MAX or not 0 <= wish.host_port <= last <= _PORT_MAX:
            raise InvalidArgument(
                f"invalid port mapping {wish.host_port}-{last}:{wish.port}: ports are 1 to {_PORT_MAX}"
            )
        if wish.host_ip == IPv6Address("::1"):
            raise InvalidArgument(
                f"port {wish.port}/{wish.protocol} cannot be published at ::1: IPv6 has no way out of the host for it, "
                "use 127.0.0.1"
            )
        if wish.host_ip is not None and (endpoint.ipv4 if wish.host_ip.version == 4 else endpoint.ipv6) is None:
            raise InvalidArgument(
                f"port {wish.port}/{wish.protocol} cannot be published at {wish.host_ip}: "
                f"the endpoint has no IPv{wish.host_ip.version} address"
            )


def settle(
    wishes: Sequence[PortWish], endpoint: Endpoint, others: Sequence[tuple[Network, Endpoint]], holder: PortHolder
) -> tuple[PublishedPort, ...]:
    """Finds and holds a port of the host for every wish; ports in a row become one.

    Raises InvalidArgument, and Conflict naming the port and who has it, with nothing held.
    """
    check(wishes, endpoint)
    settled: list[PublishedPort] = []
    try:
        for port in _fixed(wishes):
            owner = _owner(port, others)
            if owner is not None:
                raise Conflict(f"port {port} cannot be published: {owner}")
            hold(port, endpoint, holder)
            settled.append(port)
        for wish in wishes:
            if not _is_fixed(wish):
                settled.append(_choose(wish, endpoint, others, holder))
    except Exception:
        release(settled, holder)
        raise
    return tuple(settled)


def hold(port: PublishedPort, endpoint: Endpoint, holder: PortHolder) -> None:
    """Raises Conflict naming who has it, if it is not to be had."""
    families = {"v4": endpoint.ipv4 is not None, "v6": endpoint.ipv6 is not None}
    try:
        holder.hold(port.protocol, published_at(port), port.host_port, port.count, **families)
    except OSError as error:
        raise Conflict(f"port {port} cannot be published: {error.strerror or error}") from error


def release(ports: Iterable[PublishedPort], holder: PortHolder) -> None:
    """Idempotent."""
    for port in ports:
        holder.release(port.protocol, published_at(port), port.host_port, port.count)


def published_at(port: PublishedPort) -> HostAddress | None:
    """The address of the host, None for all."""
    assert port.host_ip is None or isinstance(port.host_ip, IPv4Address | IPv6Address)
    return port.host_ip


def _is_fixed(wish: PortWish) -> bool:
    return wish.host_port > 0 and wish.host_port_end in (0, wish.host_port)


def _fixed(wishes: Iterable[PortWish]) -> list[PublishedPort]:
    """The wishes that leave no choice, those in a row as one; a wish that is said twice is one."""
    ports: list[PublishedPort] = []
    fixed = {(w.protocol, str(w.host_ip or ""), w.host_port, w.port, w.host_ip) for w in wishes if _is_fixed(w)}
    for protocol, _, host_port, port, host_ip in sorted(fixed, key=lambda wish: wish[:4]):
        last = ports[-1] if ports else None
        if (
            last is not None
            and (last.protocol, last.host_ip) == (protocol, host_ip)
            and (last.host_port + last.count, last.port + last.count) == (host_port, port)
        ):
            ports[-1] = msgspec.structs.replace(last, count=last.count + 1)
        else:
            ports.append(PublishedPort(protocol=protocol, port=port, host_ip=host_ip, host_port=host_port))
    return ports


def _choose(
    wish: PortWish, endpoint: Endpoint, others: Sequence[tuple[Network, Endpoint]], holder: PortHolder
) -> PublishedPort:
    candidates = range(wish.host_port, wish.host_port_end + 1) if wish.host_port else holder.ephemeral_ports()
    # Not the lowest that is free: a port that was just given back would go to somebody else at once.
    first = 0 if wish.host_port else secrets.randbelow(len(candidates))
    for number in chain(candidates[first:], candidates[:first]):
        port = PublishedPort(protocol=wish.protocol, port=wish.port, host_ip=wish.host_ip, host_port=number)
        if _owner(port, others) is not None:
            continue
        try:
            hold(port, endpoint, holder)
        except Conflict:
            continue
        return port
    raise Conflict(
        f"port {wish.port}/{wish.protocol} cannot be published: all ports of the host from {candidates.start} to "
        f"{candidates.stop - 1} are in use"
    )


def _owner(port: PublishedPort, others: Sequence[tuple[Network, Endpoint]]) -> str | None:
    """Who has published the port, or one of its range, in words."""
    for network, endpoint in others:
        for taken in endpoint.ports:
            if _meet(port, taken):
                name = endpoint.sandbox_key.rpartition("/")[2] or endpoint.id[:12]
                return f"{taken} is published by sandbox {name[:12]} on network {network.name}"
    return None


def _meet(a: PublishedPort, b: PublishedPort) -> bool:
    if a.protocol != b.protocol:
        return False
    if a.host_port + a.count <= b.host_port or b.host_port + b.count <= a.host_port:
        return False
    if a.host_ip is None or b.host_ip is None:
        return True
    same_family = a.host_ip.version == b.host_ip.version
    return same_family and (a.host_ip == b.host_ip or a.host_ip.is_unspecified or b.host_ip.is_unspecified)
