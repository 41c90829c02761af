"""The contract of IP address management: pools in address spaces, addresses requested from pools and released.

An Ipam keeps its state in memory and returns, with each change, the store changes that make it durable; the caller
writes them in one transaction with the records that use them, and calls the opposite method if that write fails.
So an address and the endpoint that holds it are never stored apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from control.model import Address, Subnet
from control.store.base import Change, Store


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet in an address space, with the part of it that addresses are taken from.

    `id` is "<space>/<subnet>" or "<space>/<subnet>/<ip_range>". `owner` says for whom, as in "network 3f…", for
    messages.
    """

    id: str
    space: str
    subnet: Subnet
    ip_range: Subnet | None = None
    owner: str = ""


class Ipam(Protocol):
    """Thread-safe, and never blocks on anything but its own lock."""

    def load(self, store: Store) -> None:
        """Takes up the stored pools and leases; called once, before anything else."""

    def request_pool(
        self,
        space: str,
        *,
        subnet: Subnet | None = None,
        ip_range: Subnet | None = None,
        v6: bool = False,
        avoid: Iterable[Subnet] = (),
        owner: str = "",
    ) -> tuple[Pool, Sequence[Change]]:
        """Takes a pool: the given subnet, or the first default one that overlaps no pool of the space and nothing in
        `avoid`.

        Raises InvalidArgument for a range outside its subnet, Forbidden for a subnet that overlaps another pool
        ("Pool overlaps with other one on this address space", naming it and its owner), Exhausted when no default
        pool is left. Two pools of one subnet may exist when both have an ip_range and the ranges are disjoint.
        """

    def release_pool(self, pool_id: str) -> Sequence[Change]:
        """Gives the pool and whatever leases are left in it back; raises NotFound."""

    def request_address(
        self, pool_id: str, address: Address | None = None, *, owner: str = ""
    ) -> tuple[Address, Sequence[Change]]:
        """Takes the given address, or the next free one of the pool's range.

        A given address may lie anywhere in the subnet, not only in the range. The network and (IPv4, shorter than /31)
        broadcast addresses, and the IPv6 subnet-router anycast address, are never handed out unasked and refused
        when asked for. A released address is handed out again only after the rest of the range was.
        Raises NotFound, InvalidArgument (outside the subnet), Forbidden ("Address already in use", naming the owner),
        Exhausted ("no available addresses on this pool").
        """

    def release_address(self, pool_id: str, address: Address) -> Sequence[Change]:
        """Gives an address back; harmless when it is not taken. Raises NotFound for the pool."""

    def find(self, pool_id: str, owner: str) -> Address | None:
        """An address of the pool that was requested for `owner`; raises NotFound for the pool."""

    def pools(self, space: str) -> list[Pool]:
        """The pools of the space."""

    def untouched(self, space: str) -> set[str]:
        """The pools of the space of which nobody holds an address."""

    def usage(self, pool_id: str) -> tuple[int, int]:
        """Addresses in use (reserved ones included), and addresses still to be had from the range."""
