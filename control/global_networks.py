"""Networks of the whole cluster: their records here follow the cluster's, which gives out addresses and is told of
endpoints.

A node knows all global networks, and has endpoints of those that its sandboxes are on. What the cluster holds is
changed by transactions there, never here first. While it cannot be reached, what is known stays as it is: endpoints
go on and may leave, and whatever needs the cluster is refused. Design: docs/adr/0015.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

import msgspec

from control import addressing
from control.cluster.records import Node, RemoteEndpoint
from control.cluster.secrecy import tunnel_address
from control.cluster_spec import not_joined
from control.counted import Counted
from control.deps import Deps
from control.drivers.inside import mac_bytes
from control.drivers.options import is_encrypted
from control.errors import Conflict, ControlError, DatapathFailed, Forbidden
from control.events import Event, EventBus
from control.lost_nodes import LostNodes
from control.model import (
    Address,
    Endpoint,
    EndpointId,
    EndpointSpec,
    Network,
    NetworkId,
    NetworkSpec,
    Sandbox,
    Subnet,
)
from control.plan import Step
from control.records import Records
from datapath.vxlan import Peer

LOG = logging.getLogger(__name__)

GLOBAL: Final = "global"


class Session(Protocol):
    """The way to the cluster of a node that is in one. Methods raise ControlError; those that change something block,
    for some seconds where etcd does not answer."""

    node: str

    def create(self, spec: NetworkSpec, network_id: NetworkId, *, vni: int, avoid: Collection[Subnet]) -> Network:
        """The network as all nodes have it from now on: with a VNI, the one that is given or any (0), and pools, those
        of `spec` or others than in `avoid`."""

    def remove(self, network: Network) -> None:
        """Raises Forbidden, naming the nodes that have endpoints on it; harmless for one that is gone."""

    def take(
        self, network: Network, endpoint_id: EndpointId, spec: EndpointSpec, avoid: Collection[Address]
    ) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Addresses that nobody else on the network has, those of `spec` or others than in `avoid`, which are of
        endpoints that the cluster does not know."""

    def publish(self, network_id: NetworkId, endpoint_id: EndpointId, endpoint: RemoteEndpoint) -> None:
        """Makes the endpoint known to all nodes."""

    def withdraw(self, network_id: NetworkId, endpoint_id: EndpointId, addresses: Collection[Address]) -> None:
        """Takes the endpoint and its addresses back; harmless for what is gone."""

    @property
    def is_read(self) -> bool:
        """Whether what follows is known."""

    def network_ids(self) -> set[NetworkId]:
        """The global networks."""

    def network(self, network_id: NetworkId) -> Network | None:
        """As it is on a host, but for `segment`."""

    def endpoints(self, network_id: NetworkId) -> Mapping[EndpointId, RemoteEndpoint]:
        """The network's endpoints on all nodes."""

    def forget(self, network_id: NetworkId) -> None:
        """Keeps no more of the network's endpoints in mind than has to be."""

    def nodes(self) -> Mapping[str, Node]:
        """The nodes that have a lease."""


class GlobalNetworks:
    """Thread-safe. `names_changed` is called with a network whose endpoints on other nodes may have changed."""

    def __init__(self, deps: Deps, records: Records, counted: Counted, bus: EventBus) -> None:
        self.names_changed: Callable[[Network], None] = lambda _: None
        self._deps = deps
        self._records = records
        self._counted = counted
        self._bus = bus
        self._session: Session | None = None
        self._following = threading.Lock()
        self._taken: dict[str, list[Address]] = {}
        self._known: dict[NetworkId, Mapping[EndpointId, RemoteEndpoint]] = {}
        self._seen: dict[str, Node] = {}
        self._refused: dict[NetworkId, str] = {}
        self.lost = LostNodes(deps.answers, lambda networks: self.follow(networks))

    # -- a session -----------------------------------------------------------------------------------------------

    def enter(self, session: Session) -> None:
        """Follows a cluster from now on; `follow` is called when something is there to follow."""
        self._session = session

    def exit(self) -> None:
        """Follows no cluster any more; what is known stays."""
        self._session = None

    def forget_all(self) -> None:
        """Drops the records of all global networks, which have no endpoints here. Raises StoreError."""
        for network in self.networks():
            self._drop(network)
        self._known.clear()

    def _need(self, network_name: str) -> Session:
        if self._session is None:
            raise not_joined(network_name)
        return self._session

    def elsewhere(self, network: Network) -> dict[Address, tuple[str, ...]]:
        """The endpoints of a network on other nodes by address, with their names; none while the host is no node."""
        session = self._session
        if session is None:
            return {}
        others = (each for each in session.endpoints(network.id).values() if each.node != session.node)
        return {address: each.names for each in others for address in each.addresses}

    def node_addresses(self) -> dict[str, tuple[Address, Address]]:
        """Of the cluster's nodes by name, this one included, those on the underlay and in the tunnels; none while the
        host is no node."""
        nodes = {} if self._session is None else self._session.nodes()
        return {name: (node.address, tunnel_address(node.id)) for name, node in nodes.items()}

    def networks(self) -> list[Network]:
        """All global networks that this host has records of."""
        return [network for network in self._records.networks() if network.is_global]

    def networks_here(self) -> list[Network]:
        """Those with endpoints on this host."""
        return [network for network in self.networks() if self._records.on_network(network.id)]

    # -- networks ------------------------------------------------------------------------------------------------

    def create(self, spec: NetworkSpec, network_id: NetworkId) -> Network:
        """Makes a network for the whole cluster; raises Forbidden where there is none, Conflict, Exhausted."""
        session = self._need(spec.name)
        driver = self._deps.driver(spec.driver)
        made = session.create(
            driver.settle_spec(spec), network_id, vni=driver.wanted_vni(spec), avoid=self._deps.routed_networks()
        )
        with self._following:
            return self._records.network_by_id(made.id) or self._add(made)

    def remove(self, network: Network) -> None:
        """Removes a network that no node has an endpoint on; raises Forbidden otherwise."""
        self._need(network.name).remove(network)
        with self._following:
            if self._records.network_by_id(network.id) is not None:
                self._drop(network)

    def _add(self, network: Network) -> Network:
        """Raises Conflict when a network of this host has the name."""
        with self._records.lock:
            if self._records.has_network_named(network.name):
                raise Conflict(
                    f"global network {network.name} cannot be had here, where a network of this host has its name: "
                    "remove that one"
                )
            segment = self._records.segments.take()
            network = msgspec.structs.replace(network, segment=segment)
            try:
                self._records.commit(put=[network])
            except ControlError:
                self._records.segments.give_back(segment)
                raise
        self._emit("create", network)
        return network

    def _drop(self, network: Network) -> None:
        noted, forget = self._counted.network_ended(network.id)
        self._records.commit(drop=[network], changes=noted)
        forget()
        self._refused.pop(network.id, None)
        self._emit("destroy", network)

    def _emit(self, action: str, network: Network) -> None:
        self._bus.emit(Event("network", action, network.id, {"name": network.name, "type": network.driver}))

    def problems(self) -> dict[str, str]:
        """What of the cluster this node cannot have, and why, by network in messages' words."""
        return {f"network {id_[:12]}": why for id_, why in self._refused.items()}

    # -- endpoints -----------------------------------------------------------------------------------------------

    def take(self, network: Network, endpoint_id: EndpointId, spec: EndpointSpec) -> EndpointSpec:
        """`spec` with addresses that are the endpoint's alone in the cluster until it leaves.

        Raises InvalidArgument, Forbidden (an address that is taken), Conflict (a MAC), Exhausted.
        """
        session = self._need(network.name)
        addressing.given_addresses(network, spec)  # those that were asked for can be
        known = session.endpoints(network.id)
        lost = self.lost.endpoints(network.id, known).values()
        untold = self._untold(network.id, known)
        for address in (spec.ipv4, spec.ipv6):
            if address in untold:
                raise Forbidden(
                    f"Address already in use: {address} of network {network.name} is held by endpoint "
                    f"{untold[address][:12]} on this node; choose another, or disconnect that one first"
                )
        if spec.mac is not None:
            mac = addressing.check_mac(spec.mac, network, ())
            others = (*(each for each in known.values() if each.node != session.node), *lost)
            holder = next((each.node for each in others if each.mac == mac), None)
            if holder is not None:
                raise Conflict(f"MAC address {mac} is in use on network {network.name} by node {holder}")
        avoid = {*untold, *(address for each in lost for address in each.addresses)}
        ipv4, ipv6 = session.take(network, endpoint_id, spec, avoid)
        self._taken[endpoint_id] = [address for address in (ipv4, ipv6) if address is not None]
        return msgspec.structs.replace(spec, ipv4=ipv4, ipv6=ipv6)

    def _untold(self, network_id: NetworkId, known: Collection[EndpointId]) -> dict[Address, EndpointId]:
        """Addresses of this node's endpoints that the cluster does not know, as after its lease was lost: the cluster
        would give them to anybody."""
        own = (each for each in self._records.on_network(network_id) if each.id not in known)
        return {address: each.id for each in own for address in each.addresses}

    def published(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Step:
        """The step that makes an endpoint known to all nodes, and withdraws it."""
        return Step(
            f"tell the cluster of {endpoint.id[:12]}",
            lambda: self._need(network.name).publish(network.id, endpoint.id, self.told(network, endpoint, sandbox)),
            lambda: self._withdraw(network, endpoint.id, endpoint.addresses),
            kind="cluster",
        )

    def told(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> RemoteEndpoint:
        """What other nodes get to know of an endpoint of this node, which is in a cluster."""
        return RemoteEndpoint(
            node=self._need("").node,
            mac=endpoint.mac,
            ipv4=endpoint.ipv4.ip if endpoint.ipv4 else None,
            ipv6=endpoint.ipv6.ip if endpoint.ipv6 else None,
            names=(sandbox.name, *endpoint.aliases),
            direct=self._deps.driver_of(network).takes_direct(network),
        )

    def own(self) -> dict[NetworkId, dict[str, RemoteEndpoint]]:
        """What other nodes are to know of all endpoints of this one that are joined or joining."""
        found: dict[NetworkId, dict[str, RemoteEndpoint]] = {}
        with self._records.lock:
            for network in self.networks():
                for endpoint in self._records.on_network(network.id):
                    sandbox = self._records.sandbox(endpoint.sandbox_id)
                    found.setdefault(network.id, {})[endpoint.id] = self.told(network, endpoint, sandbox)
        return found

    def give_back(self, network: Network, endpoint_id: EndpointId) -> None:
        """Takes back what the cluster knows of an endpoint that could not join; harmless otherwise."""
        if endpoint_id in self._taken:
            self._withdraw(network, endpoint_id, self._taken[endpoint_id])

    def _withdraw(self, network: Network, endpoint_id: EndpointId, addresses: Collection[Address]) -> None:
        """Never raises: what the cluster does not hear of now it is told when the node next restores its records."""
        self._taken.pop(endpoint_id, None)
        if self._session is None:
            return
        try:
            self._session.withdraw(network.id, endpoint_id, addresses)
        except ControlError as error:
            LOG.warning("net=%s: the cluster still has endpoint %s: %s", network.name, endpoint_id[:12], error)

    def withdraw_gone(self, told: Mapping[NetworkId, Mapping[str, RemoteEndpoint]]) -> None:
        """Takes back those that left while the cluster was told of them."""
        for network_id, endpoints in told.items():
            network = self._records.network_by_id(network_id)
            for endpoint_id, endpoint in endpoints.items():
                if network is not None and self._records.endpoint(endpoint_id) is None:
                    self._withdraw(network, EndpointId(endpoint_id), endpoint.addresses)

    def tell_again(self) -> None:
        """Has the cluster know this node's endpoints as they are now, where that has changed since it was told.

        Raises ControlError.
        """
        session = self._session
        if session is None or not session.is_read:
            return
        changed: dict[NetworkId, dict[str, RemoteEndpoint]] = {}
        for network_id, endpoints in self.own().items():
            known = session.endpoints(network_id)
            for id_, endpoint in endpoints.items():
                if known.get(EndpointId(id_), endpoint) != endpoint:
                    changed.setdefault(network_id, {})[id_] = endpoint
                    session.publish(network_id, EndpointId(id_), endpoint)
        self.withdraw_gone(changed)

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, changed: Collection[NetworkId] | None) -> None:
        """Brings records and drivers in line with the cluster for the networks in `changed`, None for all.

        What resists stops nothing else. Does nothing as long as the cluster was not read.
        """
        with self._following:
            session = self._session
            if session is None or not session.is_read:
                return
            nodes = session.nodes()
            for name in nodes:
                self.lost.returned(name)
            self._seen.update(nodes)
            concerned = {*session.network_ids(), *(each.id for each in self.networks())} if changed is None else changed
            for id_ in concerned:
                try:
                    self._follow_one(session, id_)
                except (ControlError, OSError) as error:
                    if self._refused.get(id_) != str(error):
                        LOG.error("net=%s: this node does not follow the cluster: %s", id_[:12], error)
                    self._refused[id_] = str(error)

    def _follow_one(self, session: Session, network_id: NetworkId) -> None:
        wanted, here = session.network(network_id), self._records.network_by_id(network_id)
        if wanted is None:
            self._gone(here)
            return
        if here is None:
            here = self._add(wanted)
        if self._records.on_network(here.id):
            self._keep_lost(session, here)
        else:
            self._known.pop(here.id, None)
            session.forget(here.id)
        self._deps.driver_of(here).peers_changed(here)
        self.names_changed(here)
        self._refused.pop(here.id, None)

    def _gone(self, here: Network | None) -> None:
        if here is None:
            return
        if self._records.on_network(here.id):
            raise Conflict(
                f"network {here.name} was removed while this node was away, and has endpoints here: disconnect them"
            )
        self._known.pop(here.id, None)
        self._drop(here)

    def _keep_lost(self, session: Session, network: Network) -> None:
        """Those that have vanished together with their node's lease are kept as long as the node answers.

        This node's own vanish so too, when the cluster is read before it has registered again; they are no peers.
        """
        now, nodes = session.endpoints(network.id), session.nodes()
        lost = self._seen.keys() - nodes.keys() - {session.node}
        vanished: dict[str, dict[str, RemoteEndpoint]] = {}
        for id_, endpoint in self._known.get(network.id, {}).items():
            if id_ not in now and endpoint.node in lost:
                vanished.setdefault(endpoint.node, {})[id_] = endpoint
        for node, endpoints in vanished.items():
            self.lost.keep(self._seen[node], network.id, endpoints)
        self._known[network.id] = now

    def _elsewhere(self, session: Session, network_id: NetworkId) -> dict[str, RemoteEndpoint]:
        """The network's endpoints on other nodes, lost ones included."""
        known = session.endpoints(network_id)
        others: dict[str, RemoteEndpoint] = {id_: each for id_, each in known.items() if each.node != session.node}
        return others | self.lost.endpoints(network_id, known)

    # -- looking -------------------------------------------------------------------------------------------------

    def peers(self, network_id: NetworkId) -> list[Peer] | None:
        """The network's endpoints on other nodes as the datapath knows them; None as long as nobody can tell."""
        session = self._session
        if session is None or not session.is_read:
            return None
        alive = session.nodes()
        nodes = {**self.lost.nodes(), **alive}
        # A VXLAN device has addresses of one family; nodes of the other are refused when they join.
        version = self._deps.peering.address.version if self._deps.peering.address is not None else 4
        network = self._records.network_by_id(network_id)
        is_secret = network is not None and is_encrypted(network)
        return [
            _peer(each, nodes[each.node], is_secret=is_secret, is_alive=each.node in alive)
            for each in self._elsewhere(session, network_id).values()
            if each.node in nodes and nodes[each.node].address.version == version
        ]

    def names(self, network: Network) -> dict[Address, Sequence[str]]:
        """Who is called what on other nodes."""
        session = self._session
        if session is None or not self._records.on_network(network.id):
            return {}
        others = self._elsewhere(session, network.id).values()
        return {address: each.names for each in others for address in each.addresses}

    def unknown(self, network: Network) -> list[str]:
        """In words, what the cluster knows of this node's endpoints other than they are."""
        session = self._need(network.name)
        own = self.own().get(network.id, {})
        known = {str(id_): each for id_, each in session.endpoints(network.id).items() if each.node == session.node}
        problems = [f"endpoint {id_[:12]} is in the cluster and not here" for id_ in known.keys() - own.keys()]
        for id_, endpoint in own.items():
            if id_ not in known:
                problems.append(f"endpoint {id_[:12]} is not in the cluster")
            elif known[id_] != endpoint:
                problems.append(f"endpoint {id_[:12]} is another in the cluster")
        return problems

    def mend(self) -> None:
        """Brings what this node has of other nodes in line with the cluster, whatever was done to it before.

        Raises DatapathFailed.
        """
        with self._following:
            for network in self.networks_here():
                try:
                    self._deps.driver_of(network).peers_changed(network, anew=True)
                except OSError as error:
                    raise DatapathFailed(f"network {network.name} cannot be mended: {error}") from error

    def nodes_on(self, network_id: NetworkId) -> set[str]:
        """The nodes with endpoints on the network."""
        session = self._session
        return set() if session is None else {each.node for each in session.endpoints(network_id).values()}

    def usage(self, network: Network) -> dict[str, tuple[int, int]]:
        """Addresses in use in the whole cluster, and still to be had, by subnet."""
        session = self._session
        endpoints = () if session is None else session.endpoints(network.id).values()
        found = {}
        for pool in network.pools:
            reserved = {*pool.aux_addresses.values(), *((pool.gateway,) if pool.gateway else ())}
            used = len(reserved) + sum(address in pool.subnet for each in endpoints for address in each.addresses)
            size = pool.subnet.num_addresses - (2 if pool.subnet.version == 4 and pool.subnet.prefixlen < 31 else 0)
            found[str(pool.subnet)] = used, max(size - used, 0)
        return found


def _peer(endpoint: RemoteEndpoint, node: Node, *, is_secret: bool, is_alive: bool) -> Peer:
    """An endpoint with IPv6 has a link-local address besides. A lost node may not know whose packets it gets, and takes
    VXLAN from anybody."""
    addresses = endpoint.addresses
    if endpoint.ipv6 is not None:
        addresses = (*addresses, addressing.link_local(endpoint.mac))
    return Peer(
        mac=mac_bytes(endpoint.mac),
        addresses=addresses,
        node=tunnel_address(node.id) if is_secret else node.address,
        node_mac=mac_bytes(node.mac),
        is_direct=endpoint.direct and is_alive,
    )
