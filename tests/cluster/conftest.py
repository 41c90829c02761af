"""An etcd for each pytest worker, and a cluster of its own in it for each test."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest

from control.cluster.etcd import Etcd
from control.cluster.records import GlobalNetwork
from control.cluster.store import ClusterStore
from control.model import EndpointId, NetworkId, NetworkSpec, PoolSpec, Subnet
from tests.etcd_server import EtcdMember, etcd_cluster

MakeStore = Callable[..., ClusterStore]


@pytest.fixture(scope="session")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMember]:
    """For tests that leave it as it is, but for keys of their own cluster."""
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as members:
        yield members[0]


@pytest.fixture
def etcd(member: EtcdMember) -> Iterator[Etcd]:
    with Etcd([member.url]) as client:
        yield client


@pytest.fixture
def cluster() -> str:
    return f"c{secrets.token_hex(6)}"


@pytest.fixture
def root(cluster: str) -> str:
    return f"/linkspan/{cluster}/"


@pytest.fixture
def make_store(member: EtcdMember, cluster: str) -> Iterator[MakeStore]:
    """Makes the store of a node with a client of its own, registered unless `address` is 0."""
    with ExitStack() as stack:

        def make(name: str, address: int = 1, incarnation: str = "first", **options: object) -> ClusterStore:
            client = stack.enter_context(Etcd([member.url]))
            store = ClusterStore(client, cluster, name, **options)  # type: ignore[arg-type]
            stack.callback(store.close)
            if address:
                store.register(node_address(address), incarnation)
            return store

        yield make


@pytest.fixture
def store(make_store: MakeStore) -> ClusterStore:
    return make_store("n1")


def node_address(number: int) -> IPv4Address:
    return IPv4Address("192.0.2.0") + number


def network_id() -> NetworkId:
    return NetworkId(secrets.token_hex(32))


def endpoint_id() -> EndpointId:
    return EndpointId(secrets.token_hex(32))


def spec(name: str, *subnets: Subnet, **fields: object) -> NetworkSpec:
    pools = tuple(PoolSpec(subnet=subnet) for subnet in subnets)
    return NetworkSpec(name=name, driver="overlay", pools=pools, **fields)  # type: ignore[arg-type]


def made(store: ClusterStore, name: str, *subnets: Subnet, **fields: object) -> GlobalNetwork:
    return store.create_network(spec(name, *subnets, **fields), network_id())
