"""Networks of the cluster: made and removed by any node, each in one transaction."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network
from typing import Any, Final

import msgspec

from control import addressing, decoding
from control.cluster import etcd_messages as api
from control.cluster.etcd import Etcd
from control.cluster.records import (
    MAX_VNI,
    MIN_VNI,
    AddressHolder,
    GlobalNetwork,
    Keys,
    NetworkSubnets,
    Pools,
    RemoteEndpoint,
)
from control.errors import Conflict, Forbidden, InvalidArgument
from control.ipam.defaults import DefaultPool, ula_pool
from control.ipam.pools import PoolIpam
from control.model import NetworkId, NetworkSpec, PoolConfig, Subnet, from_json, to_json, utcnow

DEFAULT_POOL: Final = DefaultPool(IPv4Network("10.128.0.0/9"), 24)
"""Where IPv4 subnets come from that nobody chose: 32,768 networks, none of them in the way of Docker's."""
_PATIENCE_S: Final = 15.0
_PAUSE_S: Final = 0.02
_HOLDERS_NAMED: Final = 100


class ClusterNetworks:
    """Thread-safe. Another node may win at any moment; then it is tried again with what that node wrote."""

    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self._etcd = etcd
        self._keys = keys

    def create(
        self, spec: NetworkSpec, network_id: NetworkId, ula: bytes, vni: int, avoid: Sequence[Subnet]
    ) -> GlobalNetwork:
        """See ClusterStore.create_network."""
        if vni and not MIN_VNI <= vni <= MAX_VNI:
            raise InvalidArgument(f"VNI {vni} of network {spec.name} is not one of {MIN_VNI} to {MAX_VNI}")
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            pools, revision = self._pools()
            # The name first: who asks again for what there is already should not hear of subnets.
            self._check_name(spec.name, network_id)
            subnets = _settled(spec, network_id, pools, ula, avoid)
            network = _network(spec, network_id, vni or MIN_VNI + secrets.randbelow(MAX_VNI - MIN_VNI + 1), subnets)
            found = self._store(network, pools, revision, is_vni_chosen=bool(vni))
            if found is not None:
                return found
            time.sleep(random.uniform(0, _PAUSE_S))
        raise Conflict(f"network {spec.name} cannot be created: others change networks all the time; try again")

    def _store(
        self, network: GlobalNetwork, pools: Pools, revision: int, *, is_vni_chosen: bool
    ) -> GlobalNetwork | None:
        """Writes the network; returns it as it is in the cluster, or None when somebody else came first."""
        keys = [self._keys.network(network.id), self._keys.name(network.name), self._keys.vni(network.vni)]
        subnets = NetworkSubnets(network.name, tuple(pool.subnet for pool in network.pools))
        more = Pools({**pools.networks, network.id: subnets})
        result = self._etcd.txn(
            [*map(api.is_absent, keys), api.is_unchanged(self._keys.pools, revision)],
            [
                api.put(keys[0], to_json(network)),
                *(api.put(key, msgspec.json.encode(network.id)) for key in keys[1:]),
                api.put(self._keys.pools, to_json(more)),
            ],
            [api.get(key) for key in keys],
        )
        if result.succeeded:
            return network
        own, name, vni = (response.range.kvs for response in result.responses)
        if own:
            return from_json(GlobalNetwork, own[0].value)
        if name:
            raise _name_taken(network.name)
        if vni and is_vni_chosen:
            holder = self._etcd.get(self._keys.network(decoding.decode(vni[0].value, str)))
            named = from_json(GlobalNetwork, holder.value).name if holder else "that was just removed"
            raise Conflict(f"VNI {network.vni} is in use by network {named}: choose another, or let one be chosen")
        return None

    def remove(self, network_id: NetworkId) -> None:
        """See ClusterStore.remove_network."""
        key = self._keys.network(network_id)
        addresses, endpoints = self._keys.addresses_of(network_id), self._keys.endpoints_of(network_id)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            stored = self._etcd.get(key)
            if stored is None:
                return
            network = from_json(GlobalNetwork, stored.value)
            pools, revision = self._pools()
            left = Pools({other: subnets for other, subnets in pools.networks.items() if other != network_id})
            gone = [key, self._keys.name(network.name), self._keys.vni(network.vni)]
            result = self._etcd.txn(
                [
                    api.is_unchanged(key, stored.mod_revision),
                    api.is_unchanged(self._keys.pools, revision),
                    api.are_absent(addresses),
                    api.are_absent(endpoints),
                ],
                [*map(api.delete, gone), api.put(self._keys.pools, to_json(left))],
                [api.get_some(addresses, _HOLDERS_NAMED), api.get_some(endpoints, _HOLDERS_NAMED)],
            )
            if result.succeeded:
                return
            held, joined = (response.range.kvs for response in result.responses)
            if held or joined:
                raise _in_use(network, held, joined)
            time.sleep(random.uniform(0, _PAUSE_S))
        raise Conflict(f"network {network_id[:12]} cannot be removed: others change networks all the time; try again")

    def _pools(self) -> tuple[Pools, int]:
        stored = self._etcd.get(self._keys.pools)
        return (Pools(), 0) if stored is None else (from_json(Pools, stored.value), stored.mod_revision)

    def _check_name(self, name: str, network_id: NetworkId) -> None:
        stored = self._etcd.get(self._keys.name(name))
        if stored is not None and decoding.decode(stored.value, str) != network_id:
            raise _name_taken(name)


def _name_taken(name: str) -> Conflict:
    return Conflict(f"network with name {name} already exists in the cluster")


def _settled(
    spec: NetworkSpec, network_id: NetworkId, pools: Pools, ula: bytes, avoid: Sequence[Subnet]
) -> tuple[PoolConfig, ...]:
    """Subnets, gateways and ranges by the rules of local networks, among the cluster's subnets."""
    ipam = PoolIpam((DEFAULT_POOL, ula_pool(ula)))
    for other, taken in pools.networks.items():
        for subnet in taken.subnets if other != network_id else ():
            ipam.request_pool(addressing.LOCAL_SPACE, subnet=subnet, owner=f"network {taken.name}")
    owner = f"network {spec.name}"
    settled, _ = addressing.request_pools(ipam, spec, owner=owner, is_needed=True, avoid=avoid)
    return tuple(msgspec.structs.replace(pool, pool_id="") for pool in settled)


def _network(spec: NetworkSpec, network_id: NetworkId, vni: int, pools: tuple[PoolConfig, ...]) -> GlobalNetwork:
    return GlobalNetwork(
        id=network_id,
        name=spec.name,
        vni=vni,
        created=utcnow(),
        driver=spec.driver,
        internal=spec.internal,
        attachable=spec.attachable,
        enable_ipv4=spec.enable_ipv4,
        enable_ipv6=spec.enable_ipv6,
        ipam_driver=spec.ipam_driver,
        ipam_options=spec.ipam_options,
        pools=pools,
        options=spec.options,
        labels=spec.labels,
        config_from=spec.config_from,
    )


def _in_use(network: GlobalNetwork, held: Iterable[Any], joined: Iterable[Any]) -> Forbidden:
    nodes = {from_json(RemoteEndpoint, kv.value).node for kv in joined}
    nodes |= {from_json(AddressHolder, kv.value).node for kv in held}
    return Forbidden(
        f"error while removing network: network {network.name} id {network.id} has active endpoints on "
        f"{', '.join(sorted(nodes))}; disconnect them there first"
    )
