"""The built-in IPAM: pools as sparse sets in memory, made durable by the changes that each call returns.

A pool is stored as kind "pool" under its id; a lease as kind "lease", id "<pool id>|<address>", body {"owner": …}; the
host's ULA Global ID as kind "meta", id "ula". Changes must reach the store in the order in which they were returned.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final, final

import msgspec

from control import decoding
from control.errors import ControlError, Exhausted, Forbidden, InvalidArgument, StoreError
from control.ipam.base import Pool
from control.ipam.defaults import DOCKER_V4, DefaultPool, blockers, first_free_block, span, ula_pool
from control.ipam.spaces import AddressSpaces, checked_pool, owner_of
from control.ipam.subnets import PoolRecord, PoolState
from control.model import Address, Subnet, from_json
from control.store.base import Change, Delete, Put, Store

_BLOCKERS_NAMED: Final = 8

_encode = msgspec.json.Encoder().encode


@final
class _Lease(msgspec.Struct):
    owner: str


@final
class _UlaRecord(msgspec.Struct):
    global_id: str


@final
class PoolIpam:
    """Implements `control.ipam.base.Ipam` for address spaces of any name.

    `default_pools` are tried in order; an IP version that has none in it uses the built-in ones: Docker's for IPv4, and
    for IPv6 a ULA /48 of this host (RFC 4193) cut in /64s, the same for as long as the store lives.
    """

    def __init__(self, default_pools: Sequence[DefaultPool] = ()) -> None:
        self._lock = threading.Lock()
        self._spaces = AddressSpaces()
        self._default_pools = {
            version: tuple(pool for pool in default_pools if pool.base.version == version) for version in (4, 6)
        }
        self._ula_id = secrets.token_bytes(5)

    def load(self, store: Store) -> None:
        """Raises StoreError, naming the record, for one that is damaged or contradicts another; nothing is taken up."""
        spaces = AddressSpaces()
        ula_id = self._ula_id
        records: list[tuple[str, PoolState, PoolRecord]] = []
        for record_id, body in store.read("meta"):
            if record_id == "ula":
                with _reading("meta", record_id):
                    ula_id = bytes.fromhex(decoding.decode(body, _UlaRecord).global_id)
                    ula_pool(ula_id)
        for record_id, body in store.read("pool"):
            with _reading("pool", record_id):
                record = decoding.decode(body, PoolRecord)
                stored = from_json(Pool, bytes(record.pool))
                pool = checked_pool(stored.space, stored.subnet, stored.ip_range, stored.owner)
                if pool.id != record_id:
                    raise ValueError(f"it describes pool {pool.id}")
                records.append((record_id, spaces.add(pool), record))
        for record_id, body in store.read("lease"):
            with _reading("lease", record_id):
                pool_id, _, text = record_id.rpartition("|")
                state = spaces.get(pool_id)
                value = _free_value(state, ip_address(text))
                state.take(value, decoding.decode(body, _Lease).owner)
        for record_id, state, record in records:
            with _reading("pool", record_id):
                state.restore(record)
        with self._lock:
            self._spaces = spaces
            self._ula_id = ula_id

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
        """A given subnet is not held against `avoid`. Raises InvalidArgument also for a subnet no host can have."""
        with self._lock:
            changes: list[Change] = []
            if subnet is None:
                if ip_range is not None:
                    raise InvalidArgument(f"invalid address pool: ip-range {ip_range} needs its subnet; add --subnet")
                if v6 and not self._default_pools[6]:
                    changes.append(Put("meta", "ula", _encode(_UlaRecord(self._ula_id.hex()))))
                subnet = self._default_subnet(space, 6 if v6 else 4, list(avoid))
            elif v6 and subnet.version != 6:
                raise InvalidArgument(f"invalid address pool: {subnet} is not an IPv6 subnet; choose one with --subnet")
            state = self._spaces.add(checked_pool(space, subnet, ip_range, owner))
            changes.append(_put_pool(state))
            return state.pool, changes

    def release_pool(self, pool_id: str) -> Sequence[Change]:
        with self._lock:
            state = self._spaces.get(pool_id)
            self._spaces.remove(state)
            changes: list[Change] = [Delete("lease", f"{pool_id}|{state.subnet.text(value)}") for value in state.leases]
            changes.append(Delete("pool", pool_id))
            return changes

    def request_address(
        self, pool_id: str, address: Address | None = None, *, owner: str = ""
    ) -> tuple[Address, Sequence[Change]]:
        with self._lock:
            state = self._spaces.get(pool_id)
            if address is None:
                value = state.take_next(owner)
                if value is None:
                    raise _exhausted(state)
            else:
                value = _free_value(state, address)
                state.take(value, owner)
            lease = Put("lease", f"{pool_id}|{state.subnet.text(value)}", _encode(_Lease(owner)))
            # Never the caller's object, which may be an interface or carry a scope id.
            return state.subnet.address_type(value), (lease,)

    def release_address(self, pool_id: str, address: Address) -> Sequence[Change]:
        with self._lock:
            state = self._spaces.get(pool_id)
            value = int(address)
            if address.version != state.pool.subnet.version or value not in state.leases:
                return ()
            text = state.subnet.text(value)
            keepers = state.give_back(value, text)
            return (Delete("lease", f"{pool_id}|{text}"), *map(_put_pool, keepers))

    def find(self, pool_id: str, owner: str) -> Address | None:
        """Takes as long as the pool has leases."""
        with self._lock:
            state = self._spaces.get(pool_id)
            value = next((value for value, holder in state.leases.items() if holder == owner), None)
            return None if value is None else state.subnet.address_type(value)

    def pools(self, space: str) -> list[Pool]:
        with self._lock:
            return [state.pool for state in self._states(space)]

    def untouched(self, space: str) -> set[str]:
        with self._lock:
            return {state.pool.id for state in self._states(space) if not state.leases}

    def _states(self, space: str) -> list[PoolState]:
        return [state for v in (4, 6) for subnet in self._spaces.subnets(space, v) for state in subnet.pools]

    def usage(self, pool_id: str) -> tuple[int, int]:
        """Both are exact, and O(1); the first counts the whole subnet, as Docker's IPsInUse does."""
        with self._lock:
            state = self._spaces.get(pool_id)
            return state.subnet.used(), state.free

    def _default_subnet(self, space: str, version: int, avoid: Sequence[Subnet]) -> Subnet:
        builtin = DOCKER_V4 if version == 4 else (ula_pool(self._ula_id),)
        pools = self._default_pools[version] or builtin
        subnets = self._spaces.subnets(space, version)
        taken = [(state.first, state.last) for state in subnets]
        taken.extend(span(other) for other in avoid if other.version == version)
        taken.sort()
        for pool in pools:
            block = first_free_block(pool, taken)
            if block is not None:
                return block
        named = [(state.subnet, owner_of(state.pools[0].pool)) for state in subnets]
        named.extend((other, "in use on this host") for other in avoid if other.version == version)
        in_the_way = blockers(pools, named)
        shown = ", ".join(in_the_way[:_BLOCKERS_NAMED])
        if len(in_the_way) > _BLOCKERS_NAMED:
            shown += f" and {len(in_the_way) - _BLOCKERS_NAMED} more"
        raise Exhausted(
            f"all predefined address pools have been fully subnetted; in the way are {shown}; "
            "remove networks that are no longer needed, choose a subnet with --subnet, or configure more default pools"
        )


def _put_pool(state: PoolState) -> Change:
    return Put("pool", state.pool.id, state.record())


def _free_value(state: PoolState, address: Address) -> int:
    """The number of an address that may be leased; raises InvalidArgument or Forbidden."""
    subnet = state.subnet
    value = int(address)
    if address.version != subnet.subnet.version or not subnet.first <= value <= subnet.last:
        raise InvalidArgument(
            f"requested address is out of range: {address} is not in {subnet.subnet} of {owner_of(state.pool)}; "
            f"choose one from {subnet.subnet}"
        )
    if value in subnet.reserved:
        raise InvalidArgument(
            f"requested address is reserved: {address} is the {subnet.reserved[value]} address of {subnet.subnet} "
            f"of {owner_of(state.pool)}; choose another"
        )
    holder = subnet.holder(value)
    if holder is not None:
        raise Forbidden(
            f"Address already in use: {address} of {subnet.subnet} is held by "
            f"{holder.leases[value] or owner_of(holder.pool)}; choose another, or release that one first"
        )
    return value


def _exhausted(state: PoolState) -> Exhausted:
    where = f"{state.pool.ip_range or state.pool.subnet} of {owner_of(state.pool)}"
    return Exhausted(
        f"no available addresses on this pool: all of {where} are taken; disconnect endpoints that are no longer "
        "needed, or create a network with a larger --subnet or --ip-range"
    )


@contextmanager
def _reading(kind: str, record_id: str) -> Iterator[None]:
    try:
        yield
    except (ControlError, msgspec.MsgspecError, ValueError) as error:
        raise StoreError(
            f"stored record {kind} {record_id} is damaged: {error}; stop linkspand and restore a copy of its state "
            "file, or move the file away to start anew; networks that run go on"
        ) from error
