"""A cluster in memory, as one node of it has it: what others would do, a test does to its dictionaries."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from control.cluster.records import Node, RemoteEndpoint
from control.errors import ControlError, Forbidden
from control.model import (
    Address,
    EndpointId,
    EndpointSpec,
    Network,
    NetworkId,
    NetworkSpec,
    NetworkState,
    PoolConfig,
    Subnet,
)

SUBNET = IPv4Network("10.128.0.0/24")
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


def node(name: str, number: int) -> Node:
    return Node(name=name, id=number, address=IPv4Address(f"10.0.0.{number}"), since=WHEN, incarnation=name)


def remote(on: str, number: int, *names: str) -> RemoteEndpoint:
    address = SUBNET[number]
    mac = f"02:42:{address.packed.hex(':')}"
    return RemoteEndpoint(node=on, mac=mac, ipv4=address, names=names or (f"box{number}",))


def global_network(name: str) -> Network:
    """With an id that its name gives."""
    return Network(
        id=NetworkId(name.encode().hex().ljust(64, "0")),
        name=name,
        driver="overlay",
        state=NetworkState.ACTIVE,
        created=WHEN,
        segment=0,
        scope="global",
        pools=(PoolConfig(subnet=SUBNET, gateway=SUBNET[1]),),
        vni=4096,
    )


class FakeSession:
    """Implements `control.global_networks.Session` for node a; `failure` is raised by all that changes something."""

    node = "a"

    def __init__(self) -> None:
        self.is_read = True
        self.failure: ControlError | None = None
        self.there: dict[NetworkId, Network] = {}
        self.members = {"a": node("a", 1), "b": node("b", 2)}
        self.known: dict[NetworkId, dict[EndpointId, RemoteEndpoint]] = {}
        self.taken: dict[Address, str] = {}
        self.vnis: list[int] = []

    def create(self, spec: NetworkSpec, network_id: NetworkId, *, vni: int, avoid: Collection[Subnet]) -> Network:
        self._fail()
        self.vnis.append(vni)
        made = global_network(spec.name)
        self.there[made.id] = made
        return made

    def remove(self, network: Network) -> None:
        self._fail()
        if self.known.get(network.id):
            raise Forbidden(f"network {network.name} has endpoints on node b")
        self.there.pop(network.id, None)

    def take(
        self, network: Network, endpoint_id: EndpointId, spec: EndpointSpec, avoid: Collection[Address]
    ) -> tuple[IPv4Address | None, IPv6Address | None]:
        self._fail()
        free = (spec.ipv4,) if spec.ipv4 else list(SUBNET.hosts())[1:]
        address = next(each for each in free if each not in self.taken and each not in avoid)
        self.taken[address] = endpoint_id
        return address, None

    def publish(self, network_id: NetworkId, endpoint_id: EndpointId, endpoint: RemoteEndpoint) -> None:
        self._fail()
        self.known.setdefault(network_id, {})[endpoint_id] = endpoint

    def withdraw(self, network_id: NetworkId, endpoint_id: EndpointId, addresses: Collection[Address]) -> None:
        self._fail()
        self.known.get(network_id, {}).pop(endpoint_id, None)
        for address in addresses:
            self.taken.pop(address, None)

    def network_ids(self) -> set[NetworkId]:
        return set(self.there)

    def network(self, network_id: NetworkId) -> Network | None:
        return self.there.get(network_id)

    def endpoints(self, network_id: NetworkId) -> Mapping[EndpointId, RemoteEndpoint]:
        return dict(self.known.get(network_id, {}))

    def forget(self, network_id: NetworkId) -> None:
        pass

    def nodes(self) -> Mapping[str, Node]:
        return dict(self.members)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
