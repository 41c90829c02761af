"""The cluster's records, as one node writes them: every change is a transaction, and its own hang on its lease.

A call whose answer was lost may be made again: each finds out what it did the first time.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from control.cluster import etcd_messages as api
from control.cluster.addresses import Addresses
from control.cluster.etcd import Background, Etcd
from control.cluster.etcd_errors import LeaseLost
from control.cluster.etcd_messages import KeyValue
from control.cluster.networks import ClusterNetworks
from control.cluster.records import (
    MAX_NODE_ID,
    AddressHolder,
    GlobalNetwork,
    Keys,
    Node,
    RemoteEndpoint,
    Settings,
    check_name,
)
from control.errors import Conflict, Exhausted, NotFound
from control.model import Address, EndpointId, Network, NetworkId, NetworkSpec, Subnet, from_json, to_json, utcnow

LOG = logging.getLogger(__name__)

TTL_S: Final = 10
"""So long after its death a node's records are gone, and its peers forget it."""
_PATIENCE_S: Final = 15.0
_RANDOM_AMONG: Final = 64
_PER_BATCH: Final = api.MAX_OPS // 3
"""Endpoints in one transaction: a record and two addresses each."""

Place = tuple[NetworkId, EndpointId]


@dataclass(frozen=True)
class Displaced:
    """An endpoint of this node that the cluster has no room for any more, and why: its address is another's since, or
    its network is gone."""

    network_id: NetworkId
    endpoint_id: EndpointId
    why: str


class ClusterStore:
    """One node's hand in the cluster. Thread-safe; blocks on etcd and raises what Etcd does, besides what is said.

    `on_lease_lost` is called, in a thread of its own, when etcd has ended the lease: all records of this node are gone
    then, and it is to `register` and `restore`.
    """

    def __init__(
        self,
        etcd: Etcd,
        cluster: str,
        node: str,
        *,
        ttl_s: int = TTL_S,
        on_lease_lost: Callable[[], None] = lambda: None,
    ) -> None:
        check_name("node", node)
        self._etcd = etcd
        self._keys = Keys(cluster)
        self._name = node
        self._ttl_s = ttl_s
        self._on_lease_lost = on_lease_lost
        self._lock = threading.Lock()
        self._lease = 0
        self._old_leases: set[int] = set()
        self._renewing: Background | None = None
        self._node: Node | None = None
        self._settings: Settings | None = None
        self._networks = ClusterNetworks(etcd, self._keys)
        self._addresses = Addresses(etcd, self._keys, node)

    # -- the cluster ---------------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """What is settled for the cluster; the first node settles it."""
        if self._settings is None:
            new = Settings(id=secrets.token_hex(16), ula=secrets.token_hex(5), created=utcnow())
            result = self._etcd.txn(
                [api.is_absent(self._keys.settings)],
                [api.put(self._keys.settings, to_json(new))],
                [api.get(self._keys.settings)],
            )
            if result.succeeded:
                self._settings = new
            else:
                self._settings = from_json(Settings, result.responses[0].range.kvs[0].value)
        return self._settings

    def identity(self) -> str:
        """Tells the cluster from any other of the same name. A node that remembers another one is at the wrong etcd."""
        return self.settings().id

    # -- this node -----------------------------------------------------------------------------------------------

    def register(
        self,
        address: Address,
        incarnation: str,
        *,
        mtu: int = 0,
        mac: str = "",
        public_keys: Sequence[tuple[int, str]] = (),
    ) -> Node:
        """Takes the name, a node id and a lease, and keeps that alive.

        A node that returns, with the incarnation and the address it had, takes its name and id over at once; what it
        had written stays until `restore`. Raises Conflict when another node has the name.
        """
        self.settings()
        lease = self._etcd.grant(self._ttl_s)
        try:
            node, old_lease = self._take_name(
                Node(
                    name=self._name,
                    id=self._node.id if self._node is not None else 0,
                    address=address,
                    since=utcnow(),
                    incarnation=incarnation,
                    mtu=mtu,
                    mac=mac,
                    public_keys=tuple(public_keys),
                ),
                lease,
            )
        except Exception:
            self._etcd.revoke(lease)
            raise
        with self._lock:
            self._old_leases |= {old_lease, self._lease} - {0, lease}
            if self._renewing is not None:
                self._renewing.stop()
            self._lease, self._node = lease, node
            self._renewing = self._etcd.keep_alive(lease, self._ttl_s, lambda: self._lost(lease))
        return node

    def _take_name(self, wanted: Node, lease: int) -> tuple[Node, int]:
        """The node as it is written, and the lease that it was written under before (0 when it was not)."""
        key = self._keys.node(self._name)
        deadline = time.monotonic() + _PATIENCE_S
        attempt = 0
        while time.monotonic() < deadline:
            stored = self._etcd.get(key)
            if stored is None:
                node = msgspec.structs.replace(wanted, id=self._free_id(wanted.id, attempt))
                compare = [api.is_absent(key), api.is_absent(self._keys.number(node.id))]
            else:
                node = msgspec.structs.replace(wanted, id=self._same_node(stored, wanted).id)
                compare = [api.is_unchanged(key, stored.mod_revision)]
            number = api.put(self._keys.number(node.id), msgspec.json.encode(self._name), lease)
            if self._etcd.txn(compare, [api.put(key, to_json(node), lease), number]).succeeded:
                return node, 0 if stored is None else stored.lease
            attempt += 1
        raise Conflict(f"node {self._name} could not be registered: too many nodes do so at the same time; try again")

    def _same_node(self, stored: KeyValue, wanted: Node) -> Node:
        old = from_json(Node, stored.value)
        if (old.incarnation, old.address) != (wanted.incarnation, wanted.address):
            raise Conflict(
                f"node name {self._name} is in use by a node at {old.address} since {old.since:%Y-%m-%d %H:%M} UTC: "
                f"choose another --name; or if that was this host before, stop it, and try again after {self._ttl_s} s"
            )
        return old

    def _free_id(self, before: int, attempt: int) -> int:
        """The id that the node had, else the lowest, else one of the lower ones, since others take the lowest too."""
        prefix = self._keys.number(0)[:-1]
        taken = {int(kv.key[len(prefix) :]) for kv in self._etcd.prefix(prefix, keys_only=True)}
        if before and before not in taken:
            return before
        free = [number for number in range(1, len(taken) + 1 + _RANDOM_AMONG * attempt + 1) if number not in taken]
        free = [number for number in free if number <= MAX_NODE_ID]
        if not free:
            raise Exhausted(f"the cluster has {MAX_NODE_ID} nodes: no more can join")
        return secrets.choice(free) if attempt else free[0]

    def update_node(self, **changes: Any) -> Node:
        """Writes the node's own record with `changes` (`mtu`, `mac`, `public_keys`); raises LeaseLost."""
        with self._lock:
            node = msgspec.structs.replace(self._registered(), **changes)
            key = self._keys.node(self._name)
            if not self._etcd.txn([api.is_present(key)], [api.put(key, to_json(node), self._lease)]).succeeded:
                raise LeaseLost(f"node {self._name} is no longer registered in the cluster")
            self._node = node
        return node

    def leave(self) -> None:
        """Takes all records of this node out of the cluster, at once. Idempotent."""
        with self._lock:
            if self._renewing is not None:
                self._renewing.stop()
            for lease in {self._lease, *self._old_leases} - {0}:
                self._etcd.revoke(lease)
            self._lease, self._node, self._renewing = 0, None, None
            self._old_leases.clear()

    def close(self) -> None:
        """Renews the lease no more and leaves all records as they are: for a node that returns within the time of its
        lease."""
        if self._renewing is not None:
            self._renewing.stop()

    def restore(self, endpoints: Mapping[Place, RemoteEndpoint]) -> list[Displaced]:
        """Writes these under the present lease, with their addresses, and drops what else an older lease holds.

        Returns those that could not be written. Nothing that is written goes away in between.
        """
        lease = self._live_lease()
        displaced: list[Displaced] = []
        places = list(endpoints)
        for i in range(0, len(places), _PER_BATCH):
            displaced += self._restore({place: endpoints[place] for place in places[i : i + _PER_BATCH]}, lease)
        with self._lock:
            old, self._old_leases = self._old_leases, set()
        for each in old:
            self._etcd.revoke(each)
        return displaced

    def _restore(self, batch: Mapping[Place, RemoteEndpoint], lease: int) -> list[Displaced]:
        displaced: list[Displaced] = []
        compare: dict[str, Any] = {}
        puts: list[Any] = []
        stored = self._read(batch)
        for (network_id, endpoint_id), record in batch.items():
            network_key = self._keys.network(network_id)
            mine = self._addresses.holder(endpoint_id)
            addresses = {self._keys.address(network_id, address): address for address in record.addresses}
            why = "its network is no longer in the cluster" if stored[network_key] is None else ""
            for key, address in addresses.items():
                kv = stored[key]
                if kv is not None and kv.value != mine:
                    holder = from_json(AddressHolder, kv.value)
                    why = why or f"{address} is held by endpoint {holder.endpoint[:12]} on node {holder.node} since"
            if why:
                displaced.append(Displaced(network_id, endpoint_id, why))
                continue
            compare[network_key] = api.is_present(network_key)
            puts.append(api.put(self._keys.endpoint(network_id, endpoint_id), to_json(record), lease))
            for key in addresses:
                kv = stored[key]
                compare[key] = api.is_unchanged(key, kv.mod_revision if kv is not None else 0)
                puts.append(api.put(key, mine, lease))
        if not puts or self._etcd.txn(list(compare.values()), puts).succeeded:
            return displaced
        return self._restore(batch, lease)  # somebody took one of these addresses, or removed a network, just now

    def _read(self, batch: Mapping[Place, RemoteEndpoint]) -> dict[str, KeyValue | None]:
        """What there is under the keys of networks and addresses that the batch needs."""
        keys = {self._keys.network(network_id) for network_id, _ in batch}
        for (network_id, _), record in batch.items():
            keys.update(self._keys.address(network_id, address) for address in record.addresses)
        ordered = list(keys)
        found: dict[str, KeyValue | None] = {}
        for i in range(0, len(ordered), api.MAX_OPS):
            part = ordered[i : i + api.MAX_OPS]
            result = self._etcd.txn([], [api.get(key) for key in part])
            for key, response in zip(part, result.responses, strict=True):
                found[key] = response.range.kvs[0] if response.range.kvs else None
        return found

    # -- networks ------------------------------------------------------------------------------------------------

    def create_network(
        self, spec: NetworkSpec, network_id: NetworkId, *, vni: int = 0, avoid: Sequence[Subnet] = ()
    ) -> GlobalNetwork:
        """Makes a network for all nodes: name, VNI and subnets are its own alone.

        Subnets that the spec leaves open come from 10.128.0.0/9 and the cluster's ULA, around `avoid`; gateways are
        settled as on local networks. Raises Conflict for a name or VNI that is taken; InvalidArgument, Forbidden and
        Exhausted as IPAM does. The same id again returns the network that there is.
        """
        ula = bytes.fromhex(self.settings().ula)
        return self._networks.create(spec, network_id, ula, vni, avoid)

    def remove_network(self, network_id: NetworkId) -> None:
        """Raises Forbidden, with the nodes, while any has an endpoint or an address there. Harmless when it is gone."""
        self._networks.remove(network_id)
        self._addresses.forget(network_id)

    # -- endpoints -----------------------------------------------------------------------------------------------

    def take_address(
        self,
        network: GlobalNetwork | Network,
        endpoint_id: EndpointId,
        version: int,
        *,
        wanted: Address | None = None,
        known: Collection[int] = (),
    ) -> Address:
        """An address that no other endpoint of the cluster has, the wanted one or any.

        `known` are those that are taken as far as the caller knows (`View.taken`): a hint that saves questions. Raises
        Exhausted, InvalidArgument, Forbidden for an address that another endpoint has, NotFound, LeaseLost.
        """
        lease = self._live_lease()
        return self._addresses.take(
            network, endpoint_id, version, lease=lease, node_id=self._registered().id, wanted=wanted, known=known
        )

    def put_endpoint(self, network_id: NetworkId, endpoint_id: EndpointId, record: RemoteEndpoint) -> None:
        """Writes or replaces the record; raises NotFound when the network is gone, LeaseLost."""
        network_key, key = self._keys.network(network_id), self._keys.endpoint(network_id, endpoint_id)
        put = api.put(key, to_json(record), self._live_lease())
        if not self._etcd.txn([api.is_present(network_key)], [put]).succeeded:
            raise NotFound(f"network {network_id[:12]} is no longer in the cluster")

    def remove_endpoint(
        self, network_id: NetworkId, endpoint_id: EndpointId, addresses: Collection[Address] = ()
    ) -> None:
        """Takes the record away, and gives these addresses back. Harmless for what is gone, or another's by now."""
        self._etcd.txn([], [api.delete(self._keys.endpoint(network_id, endpoint_id))])
        for address in addresses:
            self._addresses.give_back(network_id, endpoint_id, address)

    # -- the lease -------------------------------------------------------------------------------------------------

    def _lost(self, lease: int) -> None:
        with self._lock:
            if lease != self._lease:
                return
            self._lease = 0
        LOG.warning("the lease of node %s is over: its records in etcd are gone", self._name)
        self._on_lease_lost()

    def _live_lease(self) -> int:
        lease = self._lease
        if not lease:
            raise LeaseLost(f"node {self._name} is not registered in the cluster now")
        return lease

    def _registered(self) -> Node:
        if self._node is None:
            raise LeaseLost(f"node {self._name} is not registered in the cluster now")
        return self._node
