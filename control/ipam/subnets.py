"""The addresses of one subnet: which are taken, by whom, which were released a moment ago, and which comes next."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final, final

import msgspec

from control.ipam.base import Pool
from control.ipam.defaults import span
from control.ipam.ranges import RangeSet
from control.model import Subnet, to_json

# So many of a pool's last released addresses are kept back for as long as any other address is free. Peers' neighbour
# caches and connection tracking may still know a released address's last owner.
KEPT_BACK: Final = 64


@final
class PoolRecord(msgspec.Struct):
    """The stored form of a pool: the pool itself, the last address that it handed out unasked, and those kept back."""

    pool: msgspec.Raw
    cursor: str
    kept_back: list[str]


_encode = msgspec.json.Encoder().encode


def reserved_addresses(subnet: Subnet) -> dict[int, str]:
    """The addresses that no endpoint may have, with what they are.

    Source: RFC 1122, section 3.2.1.3 (network, broadcast), RFC 3021 (/31 has neither), RFC 4291, section 2.6.1
    (subnet-router anycast), RFC 6164 (not on /127).
    """
    if subnet.max_prefixlen - subnet.prefixlen < 2:
        return {}
    first, last = span(subnet)
    if subnet.version == 6:
        return {first: "subnet-router anycast"}
    return {first: "network", last: "broadcast"}


@final
class SubnetState:
    """What is taken in one subnet, shared by the pools that cut it into ranges; not thread-safe.

    `blocked` holds the addresses that the search for a free one steps over: reserved, leased and kept back.
    """

    __slots__ = ("_family", "_width", "address_type", "blocked", "first", "last", "pools", "reserved", "subnet")

    def __init__(self, subnet: Subnet) -> None:
        self.subnet = subnet
        self.address_type = type(subnet.network_address)
        self._family = AF_INET if subnet.version == 4 else AF_INET6
        self._width = subnet.max_prefixlen // 8
        self.first, self.last = span(subnet)
        self.reserved = reserved_addresses(subnet)
        self.pools: list[PoolState] = []
        self.blocked = RangeSet()
        for value in self.reserved:
            self.blocked.add(value)

    def text(self, value: int) -> str:
        """The address as inet_ntop(3) writes it, five times faster than str() of an IPv6Address."""
        return inet_ntop(self._family, value.to_bytes(self._width))

    def holder(self, value: int) -> PoolState | None:
        """The pool that has leased the address."""
        return next((pool for pool in self.pools if value in pool.leases), None)

    def used(self) -> int:
        """The number of addresses reserved or leased."""
        return self.blocked.count - sum(len(pool.kept_back) for pool in self.pools)


@final
class PoolState:
    """One pool at work: its leases (address: owner) and its place in the round; not thread-safe.

    `free` counts the addresses of the range that are neither reserved nor leased. `kept_back` maps the last released
    addresses of the range to their text, oldest first.
    """

    __slots__ = ("_raw", "cursor", "first", "free", "kept_back", "last", "leases", "pool", "subnet")

    def __init__(self, pool: Pool, subnet: SubnetState) -> None:
        self.pool = pool
        self.subnet = subnet
        self.first, self.last = span(pool.ip_range or pool.subnet)
        self.free = self.last - self.first + 1 - subnet.blocked.count_within(self.first, self.last)
        self.cursor = self.last
        self.leases: dict[int, str] = {}
        self.kept_back: dict[int, str] = {}
        self._raw = msgspec.Raw(to_json(pool))
        subnet.pools.append(self)

    def record(self) -> bytes:
        """The pool's stored form.

        It is stored when the pool is made and with each release into its range, which is enough: whatever was handed
        out after the last release is still leased, so a search from the older cursor steps over it to the same address.
        """
        return _encode(PoolRecord(self._raw, self.subnet.text(self.cursor), list(self.kept_back.values())))

    def take_next(self, owner: str) -> int | None:
        """Leases and returns the next free address in the round, or else the one kept back longest."""
        value = self.subnet.blocked.next_gap(self.cursor, self.first, self.last)
        if value is not None:
            self.cursor = value
        else:
            value = next(iter(self.kept_back), None)
            if value is None:
                return None
        self.take(value, owner)
        return value

    def take(self, value: int, owner: str) -> None:
        """Leases an address of the subnet that is neither reserved nor leased."""
        self.subnet.blocked.add(value)
        self.leases[value] = owner
        for pool in self.subnet.pools:
            if pool.first <= value <= pool.last:
                pool.free -= 1
                pool.kept_back.pop(value, None)

    def give_back(self, value: int, text: str) -> list[PoolState]:
        """Ends the pool's lease of an address; returns the pools whose range it is in, which now keep it back."""
        del self.leases[value]
        keepers = [pool for pool in self.subnet.pools if pool.first <= value <= pool.last]
        if not keepers:
            self.subnet.blocked.discard(value)
        for pool in keepers:
            pool.free += 1
            pool.keep_back(value, text)
        return keepers

    def keep_back(self, value: int, text: str) -> None:
        """Takes note of a blocked address of the range as kept back; frees the one that was kept back longest."""
        self.kept_back[value] = text
        if len(self.kept_back) > KEPT_BACK:
            oldest = next(iter(self.kept_back))
            del self.kept_back[oldest]
            self.subnet.blocked.discard(oldest)

    def restore(self, record: PoolRecord) -> None:
        """Takes up the place in the round, once the leases are in; raises ValueError for a damaged record."""
        self.cursor = self._parse(record.cursor)
        for text in record.kept_back:
            value = self._parse(text)
            if value in self.subnet.reserved:
                raise ValueError(f"{text} cannot have been handed out")
            if self.subnet.holder(value) is None:
                self.subnet.blocked.add(value)
                self.keep_back(value, text)

    def _parse(self, text: str) -> int:
        value = int(self.subnet.address_type(text))
        if not self.first <= value <= self.last:
            raise ValueError(f"{text} is not in {self.pool.ip_range or self.pool.subnet}")
        return value

    def leave(self) -> None:
        """Takes the pool, its leases and what it keeps back out of the subnet."""
        self.subnet.pools.remove(self)
        for value in self.leases:
            self.subnet.blocked.discard(value)
            for pool in self.subnet.pools:
                if pool.first <= value <= pool.last:
                    pool.free += 1
        for value in self.kept_back:
            self.subnet.blocked.discard(value)
