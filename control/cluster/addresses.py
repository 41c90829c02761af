"""Addresses of global networks: each is one key in etcd, made by whoever takes it and never overwritten."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from control.cluster import etcd_messages as api
from control.cluster.etcd import Etcd
from control.cluster.records import AddressHolder, GlobalNetwork, Keys
from control.errors import Exhausted, Forbidden, InvalidArgument, NotFound
from control.ipam.defaults import span
from control.ipam.subnets import reserved_addresses
from control.model import Address, EndpointId, Network, NetworkId, PoolConfig, from_json

_GUESSES: Final = 3
"""So many addresses that others have are run into before all of the network's are read."""
_SPREAD: Final = 1 << 16


@dataclass(frozen=True)
class _Pool:
    """Where addresses are taken from: first..last, both included, and not `reserved`."""

    number: int
    config: PoolConfig
    first: int
    last: int
    reserved: frozenset[int]

    @property
    def size(self) -> int:
        return self.last - self.first + 1


class Addresses:
    """Takes and gives back, for one node. Thread-safe.

    Each node goes round a pool from a place of its own, so two that ask at the same time seldom want the same address,
    and one that was given back is taken again when the round is over. What it costs does not grow with the network, as
    long as the caller knows mostly what is taken.
    """

    def __init__(self, etcd: Etcd, keys: Keys, node: str) -> None:
        self._etcd = etcd
        self._keys = keys
        self._node = node
        self._lock = threading.Lock()
        self._cursors: dict[tuple[NetworkId, int], int] = {}

    def take(
        self,
        network: GlobalNetwork | Network,
        endpoint_id: EndpointId,
        version: int,
        *,
        lease: int,
        node_id: int,
        wanted: Address | None,
        known: Collection[int],
    ) -> Address:
        """See ClusterStore.take_address."""
        pools = [_pool(number, pool) for number, pool in enumerate(network.pools) if pool.subnet.version == version]
        if not pools:
            raise InvalidArgument(f"network {network.name} has no IPv{version} subnet: create it with one")
        if wanted is not None:
            self._check(network, pools, wanted)
            holder = self._create(network, endpoint_id, wanted, lease)
            if holder is not None:
                raise Forbidden(
                    f"Address already in use: {wanted} of network {network.name} is held by endpoint "
                    f"{holder.endpoint[:12]} on node {holder.node}; choose another, or release that one first"
                )
            return wanted
        return self._take_any(network, endpoint_id, pools, known, lease, node_id)

    def give_back(self, network_id: NetworkId, endpoint_id: EndpointId, address: Address) -> None:
        """Takes the address from the endpoint, if it has it."""
        key = self._keys.address(network_id, address)
        self._etcd.txn([api.has_value(key, self.holder(endpoint_id))], [api.delete(key)])

    def holder(self, endpoint_id: EndpointId) -> bytes:
        """What the key of an address holds that an endpoint of this node has."""
        return msgspec.json.encode(AddressHolder(endpoint_id, self._node))

    def forget(self, network_id: NetworkId) -> None:
        """Drops what is kept for a network that is gone."""
        with self._lock:
            for key in [key for key in self._cursors if key[0] == network_id]:
                del self._cursors[key]

    def _take_any(
        self,
        network: GlobalNetwork | Network,
        endpoint_id: EndpointId,
        pools: list[_Pool],
        known: Collection[int],
        lease: int,
        node_id: int,
    ) -> Address:
        met: set[int] = set()
        is_exact = False
        while True:
            value = self._next(network.id, pools, known, met, node_id)
            if value is None and is_exact:
                break
            if value is None or len(met) == _GUESSES:
                known, met, is_exact = self._read(network.id), set(), True
                continue
            address = _address(pools[0], value)
            if self._create(network, endpoint_id, address, lease) is None:
                return address
            met.add(value)
            is_exact = False
        where = ", ".join(str(pool.config.ip_range or pool.config.subnet) for pool in pools)
        raise Exhausted(
            f"no available addresses on network {network.name}: all of {where} are taken; disconnect endpoints that "
            "are no longer needed, or create a network with a larger --subnet or --ip-range"
        )

    def _next(
        self, network_id: NetworkId, pools: list[_Pool], known: Collection[int], met: Collection[int], node_id: int
    ) -> int | None:
        """The next address of the round that is not known to be taken, from the first pool that has one."""
        for pool in pools:
            with self._lock:
                value = self._cursors.get((network_id, pool.number), _start(pool, node_id) - 1)
                # Among so many there is one that is in none of the sets.
                for _ in range(min(pool.size, len(known) + len(met) + len(pool.reserved) + 1)):
                    value = value + 1 if pool.first <= value + 1 <= pool.last else pool.first
                    if value not in known and value not in met and value not in pool.reserved:
                        self._cursors[network_id, pool.number] = value
                        return value
        return None

    def _read(self, network_id: NetworkId) -> set[int]:
        """All that are taken; takes as long as there are."""
        prefix = self._keys.addresses_of(network_id)
        return {int(_parsed(kv.key[len(prefix) :].decode())) for kv in self._etcd.prefix(prefix, keys_only=True)}

    def _create(
        self, network: GlobalNetwork | Network, endpoint_id: EndpointId, address: Address, lease: int
    ) -> AddressHolder | None:
        """Takes the address; returns who has it when that is another endpoint."""
        key, network_key = self._keys.address(network.id, address), self._keys.network(network.id)
        mine = self.holder(endpoint_id)
        while True:
            result = self._etcd.txn(
                [api.is_absent(key), api.is_present(network_key)],
                [api.put(key, mine, lease)],
                [api.get(key), api.get(network_key)],
            )
            if result.succeeded:
                return None
            found, there = (response.range.kvs for response in result.responses)
            if not there:
                raise NotFound(f"network {network.name} is no longer in the cluster")
            if found and found[0].value != mine:
                return from_json(AddressHolder, found[0].value)
            # The endpoint's own, from an answer that was lost or from an older lease; else it was given back just now.
            if found:
                is_same = api.is_unchanged(key, found[0].mod_revision)
                if self._etcd.txn([is_same], [api.put(key, mine, lease)]).succeeded:
                    return None

    def _check(self, network: GlobalNetwork | Network, pools: list[_Pool], wanted: Address) -> None:
        pool = next((pool for pool in pools if wanted in pool.config.subnet), None)
        if pool is None:
            subnets = ", ".join(str(pool.config.subnet) for pool in pools)
            raise InvalidArgument(
                f"invalid address {wanted}: no configured subnet contains it: network {network.name} has {subnets}"
            )
        if int(wanted) in pool.reserved:
            raise InvalidArgument(
                f"requested address is reserved: {wanted} is the network's own in {pool.config.subnet} of network "
                f"{network.name} (gateway, auxiliary, or not for hosts); choose another"
            )


def _pool(number: int, config: PoolConfig) -> _Pool:
    first, last = span(config.ip_range or config.subnet)
    own = [*config.aux_addresses.values(), *([config.gateway] if config.gateway is not None else [])]
    reserved = frozenset({*reserved_addresses(config.subnet), *map(int, own)})
    return _Pool(number, config, first, last, reserved)


def _start(pool: _Pool, node_id: int) -> int:
    """Where a node begins its round: the first one at the beginning, the others far from each other (multiples of the
    golden ratio), within the first 65,536 addresses, which are the ones that are easy to read."""
    spread = min(pool.size, _SPREAD)
    return pool.first + (((node_id - 1) * 40_503 & 0xFFFF) * spread >> 16)


def _address(pool: _Pool, value: int) -> Address:
    return IPv4Address(value) if pool.config.subnet.version == 4 else IPv6Address(value)


def _parsed(text: str) -> Address:
    return IPv6Address(text) if ":" in text else IPv4Address(text)
