"""The address blocks that networks get when their users name no subnet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final, final

import msgspec

from control.errors import InvalidArgument
from control.model import Subnet


@final
class DefaultPool(msgspec.Struct, frozen=True):
    """One stretch of addresses, `base`, that is cut into networks of prefix length `size`.

    Raises InvalidArgument for a size that does not fit the base.
    """

    base: Subnet
    size: int

    def __post_init__(self) -> None:
        if not self.base.prefixlen <= self.size <= self.base.max_prefixlen:
            raise InvalidArgument(
                f"default address pool {self.base} cannot be cut into /{self.size} networks: "
                f"give a size from {self.base.prefixlen} to {self.base.max_prefixlen}"
            )


# Docker's list (daemon/libnetwork/ipamutils): 31 networks.
DOCKER_V4: Final = (
    *(DefaultPool(IPv4Network((f"172.{second}.0.0", 16)), 16) for second in range(17, 32)),
    DefaultPool(IPv4Network("192.168.0.0/16"), 20),
)


def ula_pool(global_id: bytes) -> DefaultPool:
    """The unique local /48 of a 40-bit Global ID, cut into /64s. Source: RFC 4193, section 3.1."""
    return DefaultPool(IPv6Network((b"\xfd" + global_id + bytes(10), 48)), 64)


def span(subnet: Subnet) -> tuple[int, int]:
    """The first and the last address of a subnet as numbers."""
    return int(subnet.network_address), int(subnet.broadcast_address)


def first_free_block(pool: DefaultPool, taken: Iterable[tuple[int, int]]) -> Subnet | None:
    """The lowest block of the pool that overlaps none of `taken`: (first, last) pairs sorted by their first.

    Takes one step for each pair, however many blocks the pool has.
    """
    size = 1 << (pool.base.max_prefixlen - pool.size)
    candidate, end = span(pool.base)
    for first, last in taken:
        if last < candidate:
            continue
        if first >= candidate + size:
            break
        candidate = (last // size + 1) * size
    return type(pool.base)((candidate, pool.size)) if candidate <= end else None


def blockers(pools: Sequence[DefaultPool], named: Iterable[tuple[Subnet, str]]) -> list[str]:
    """Says for each subnet that lies in the way of the pools, all of one family, what it is and whose; in order."""
    spans = [span(pool.base) for pool in pools]
    in_the_way = {
        (*span(subnet), f"{subnet} ({name})")
        for subnet, name in named
        if any(first <= span(subnet)[1] and span(subnet)[0] <= last for first, last in spans)
    }
    return [text for _, _, text in sorted(in_the_way)]
