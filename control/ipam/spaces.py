"""The pools of all address spaces: whose subnets are taken, and which pool an id names."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import final

from control.errors import Forbidden, InvalidArgument, NotFound
from control.ipam.base import Pool
from control.ipam.defaults import span
from control.ipam.subnets import PoolState, SubnetState
from control.model import Subnet


def checked_pool(space: str, subnet: Subnet, ip_range: Subnet | None, owner: str) -> Pool:
    """Builds a pool with its id; raises InvalidArgument for one that could never work."""
    if not space or "/" in space or "|" in space:
        raise InvalidArgument(f"invalid address space {space!r}: give it a name without '/' and '|'")
    if subnet.is_multicast or subnet.is_loopback or not subnet.prefixlen:
        raise InvalidArgument(
            f"invalid address pool: {subnet} is no range for hosts (a default route, loopback or multicast); "
            "choose another with --subnet"
        )
    if ip_range is not None:
        (first, last), (range_first, range_last) = span(subnet), span(ip_range)
        if ip_range.version != subnet.version or range_first < first or range_last > last:
            raise InvalidArgument(
                f"invalid address subpool: {ip_range} does not lie inside {subnet}; choose another with --ip-range"
            )
    pool_id = f"{space}/{subnet}" if ip_range is None else f"{space}/{subnet}/{ip_range}"
    return Pool(id=pool_id, space=space, subnet=subnet, ip_range=ip_range, owner=owner)


def owner_of(pool: Pool) -> str:
    """The pool's owner as messages name it."""
    return pool.owner or f"address space {pool.space}"


@final
class AddressSpaces:
    """Pools by id, and each space's subnets in order; not thread-safe."""

    def __init__(self) -> None:
        self._pools: dict[str, PoolState] = {}
        # Per space and IP version: subnets that never overlap, sorted, and their first addresses to bisect in.
        self._subnets: dict[tuple[str, int], tuple[list[int], list[SubnetState]]] = {}

    def get(self, pool_id: str) -> PoolState:
        """Raises NotFound."""
        try:
            return self._pools[pool_id]
        except KeyError:
            raise NotFound(f"address space does not contain specified address pool: {pool_id}") from None

    def subnets(self, space: str, version: int) -> Sequence[SubnetState]:
        """The subnets of a space and IP version in address order; none of them overlap."""
        return self._subnets.get((space, version), ([], []))[1]

    def add(self, pool: Pool) -> PoolState:
        """Raises Forbidden when the pool would share addresses with another one of its space."""
        firsts, subnets = self._subnets.setdefault((pool.space, pool.subnet.version), ([], []))
        first, last = span(pool.subnet)
        i = bisect_right(firsts, last) - 1
        if i < 0 or subnets[i].last < first:
            state = SubnetState(pool.subnet)
            firsts.insert(i + 1, first)
            subnets.insert(i + 1, state)
        else:
            state = subnets[i]
            self._refuse_overlap(pool, state)
        self._pools[pool.id] = added = PoolState(pool, state)
        return added

    def remove(self, pool: PoolState) -> None:
        """Takes out a pool, and its subnet with the last pool of it."""
        del self._pools[pool.pool.id]
        pool.leave()
        if not pool.subnet.pools:
            firsts, subnets = self._subnets[pool.pool.space, pool.pool.subnet.version]
            i = bisect_left(firsts, pool.subnet.first)
            del firsts[i], subnets[i]

    @staticmethod
    def _refuse_overlap(pool: Pool, state: SubnetState) -> None:
        wanted_first, wanted_last = span(pool.ip_range or pool.subnet)
        for other in state.pools:
            shares_subnet = (
                state.subnet == pool.subnet and pool.ip_range is not None and other.pool.ip_range is not None
            )
            if shares_subnet and (wanted_last < other.first or other.last < wanted_first):
                continue
            wanted = f"ip-range {pool.ip_range} of {pool.subnet}" if shares_subnet else str(pool.subnet)
            held = other.pool.ip_range if shares_subnet else other.pool.subnet
            raise Forbidden(
                f"Pool overlaps with other one on this address space: {wanted} overlaps {held} "
                f"of {owner_of(other.pool)}; choose another with {'--ip-range' if shares_subnet else '--subnet'}"
            )
