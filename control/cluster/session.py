"""A node's way to its cluster: one etcd client, the store that the node writes through, and the view that it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from control.cluster.etcd import Etcd
from control.cluster.etcd_errors import EtcdUnavailable
from control.cluster.records import Node, RemoteEndpoint
from control.cluster.store import ClusterStore, Displaced
from control.cluster.view import NODES, View
from control.cluster_spec import ClusterSpec
from control.errors import Conflict
from control.model import Address, EndpointId, EndpointSpec, Network, NetworkId, NetworkSpec, Subnet


@dataclass(frozen=True)
class Told:
    """Who is told: `changed` of networks by their ids, and whether nodes changed; `state` of why the view is not up to
    date, "" when it is; `lease_lost`; `asked` of what etcd was asked and how long it took, in seconds. All come in
    threads of the client, but for the last."""

    changed: Callable[[frozenset[NetworkId], bool], None]
    state: Callable[[str], None]
    lease_lost: Callable[[], None]
    asked: Callable[[str, float], None] = lambda _operation, _seconds: None


class ClusterSession:
    """Implements `control.global_networks.Session`. Thread-safe. Methods raise EtcdUnavailable and EtcdRefused.

    `open` connects to nobody yet, so that a node can wait for its etcd.
    """

    def __init__(self, spec: ClusterSpec, incarnation: str, told: Told, *, lease_s: int) -> None:
        self.node = spec.name
        self.spec = spec
        self.incarnation = incarnation
        self._told = told
        self._etcd = Etcd(spec.etcd, cacert=spec.cacert, cert=spec.cert, key=spec.key, asked=told.asked)
        self._store = ClusterStore(self._etcd, spec.cluster, spec.name, ttl_s=lease_s, on_lease_lost=told.lease_lost)
        self._view = View(self._etcd, spec.cluster, self._changed, told.state)
        self._is_following = False

    def open(self) -> None:
        """Raises InvalidArgument for what cannot be a URL, or files that cannot be read."""
        self._etcd.start()

    def close(self) -> None:
        """The node's records stay until their lease ends. Idempotent."""
        self._view.close()
        self._store.close()
        self._etcd.close()

    def register(
        self, identity: str, *, mtu: int, mac: str, public_keys: tuple[tuple[int, str], ...]
    ) -> tuple[str, int]:
        """Makes this host a node, again if it was one; returns the cluster's identity and the node's id.

        Raises Conflict where another node has the name, or the cluster is another one than `identity` ("" for any).
        """
        found = self._store.identity()
        if identity and found != identity:
            raise Conflict(
                f"the cluster {self.spec.cluster} at {', '.join(self.spec.etcd)} is another one than node {self.node} "
                "is in, of the same name: give the URLs of the right etcd, or leave with --force and join this one"
            )
        node = self._store.register(self.spec.advertise, self.incarnation, mtu=mtu, mac=mac, public_keys=public_keys)
        return found, node.id

    def follow(self) -> None:
        """Follows the cluster from now on. Idempotent.

        After `restore`: what many nodes write while they start is read at once then, and does not come to each of them
        one by one.
        """
        if not self._is_following:
            self._is_following = True
            self._view.start()

    def publish_keys(self, keys: tuple[tuple[int, str], ...]) -> None:
        """Has the other nodes know these public keys of this one."""
        self._store.update_node(public_keys=keys)

    def publish_device(self, *, mtu: int, mac: str) -> None:
        """Has the other nodes know how the device is now that has this node's address."""
        known = self.nodes().get(self.node)
        if known is not None and (known.mtu, known.mac) != (mtu, mac):
            self._store.update_node(mtu=mtu, mac=mac)

    def restore(self, own: Mapping[NetworkId, Mapping[str, RemoteEndpoint]]) -> list[Displaced]:
        """Has the cluster know these endpoints of the node and no others; returns those that it has no room for."""
        return self._store.restore(
            {(network_id, EndpointId(id_)): each for network_id, found in own.items() for id_, each in found.items()}
        )

    def leave(self) -> None:
        """Takes all records of this node out of the cluster. Idempotent."""
        self._store.leave()

    def _changed(self, changed: frozenset[str]) -> None:
        networks = frozenset(NetworkId(each) for each in changed if each != NODES)
        self._told.changed(networks, NODES in changed)

    # -- networks and endpoints ------------------------------------------------------------------------------------

    def create(self, spec: NetworkSpec, network_id: NetworkId, *, vni: int, avoid: Collection[Subnet]) -> Network:
        return self._store.create_network(spec, network_id, vni=vni, avoid=tuple(avoid)).on_host()

    def remove(self, network: Network) -> None:
        self._store.remove_network(network.id)

    def take(
        self, network: Network, endpoint_id: EndpointId, spec: EndpointSpec, avoid: Collection[Address]
    ) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Raises NotFound when the network is no longer in the cluster, whatever the view says of it: that may lag."""
        if not self.is_read:
            raise EtcdUnavailable(f"network {network.name} cannot be joined before the cluster was read: {self.waits}")
        known = {*self._view.taken(network.id), *map(int, avoid)} if avoid else self._view.taken(network.id)
        given: list[Address] = []
        try:
            for version, wanted in ((4, spec.ipv4), (6, spec.ipv6)):
                if any(pool.subnet.version == version for pool in network.pools):
                    given.append(self._store.take_address(network, endpoint_id, version, wanted=wanted, known=known))
        except Exception:
            self.withdraw(network.id, endpoint_id, given)
            raise
        ipv4 = next((each for each in given if isinstance(each, IPv4Address)), None)
        return ipv4, next((each for each in given if isinstance(each, IPv6Address)), None)

    def publish(self, network_id: NetworkId, endpoint_id: EndpointId, endpoint: RemoteEndpoint) -> None:
        self._store.put_endpoint(network_id, endpoint_id, endpoint)

    def withdraw(self, network_id: NetworkId, endpoint_id: EndpointId, addresses: Collection[Address]) -> None:
        self._store.remove_endpoint(network_id, endpoint_id, addresses)

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """That of etcd which the view is of; 0 as long as nothing was read."""
        return self._view.revision

    @property
    def why_waiting(self) -> str:
        return self._view.why_waiting

    @property
    def is_read(self) -> bool:
        return self._view.revision > 0

    def network_ids(self) -> set[NetworkId]:
        return set(self._view.networks)

    def network(self, network_id: NetworkId) -> Network | None:
        found = self._view.network(network_id)
        return None if found is None else found.on_host()

    def endpoints(self, network_id: NetworkId) -> Mapping[EndpointId, RemoteEndpoint]:
        return self._view.endpoints(network_id)

    @property
    def waits(self) -> str:
        return f"this node waits for etcd at {', '.join(self.spec.etcd)} ({self._view.why_waiting}): try again"

    def forget(self, network_id: NetworkId) -> None:
        """Keeps no more of the network's endpoints in mind than has to be; for one that is not on this node."""
        self._view.forget(network_id)

    def nodes(self) -> Mapping[str, Node]:
        return self._view.nodes

    def require_synchronized(self) -> None:
        """Raises EtcdUnavailable unless changes come as they are made."""
        if not self.is_read or self._view.why_waiting:
            raise EtcdUnavailable(f"what the cluster holds is not known now: {self.waits}")

    def networks_by_node(self, used: Collection[NetworkId]) -> Counter[str]:
        """On how many networks each node has endpoints; those in `used` stay in mind."""
        counted: Counter[str] = Counter()
        for network_id in self._view.networks:
            counted.update({each.node for each in self._view.endpoints(network_id).values()})
            if network_id not in used:
                self._view.forget(network_id)
        return counted
