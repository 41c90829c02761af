"""Networks and addresses of a cluster: what one node has, no other gets."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import pytest

from control.cluster.records import RemoteEndpoint
from control.cluster.store import ClusterStore
from control.errors import Conflict, Exhausted, Forbidden, InvalidArgument, NotFound
from control.model import NetworkSpec, NetworkState, PoolSpec
from tests.cluster.conftest import MakeStore, endpoint_id, made, network_id, spec
from tests.etcd_server import EtcdMember

NET = IPv4Network("10.7.0.0/24")


def test_network_is_settled_and_known_to_all(store: ClusterStore, member: EtcdMember, root: str) -> None:
    network = made(store, "net", enable_ipv6=True)
    v4, v6 = network.pools
    assert v4.subnet == IPv4Network("10.128.0.0/24")
    assert v4.gateway == IPv4Address("10.128.0.1")
    assert v6.subnet.prefixlen == 64
    assert v6.subnet.subnet_of(IPv6Network("fd00::/8"))
    assert 4096 <= network.vni < 1 << 24
    assert json.loads(member.get(f"{root}names/net") or "") == network.id
    assert json.loads(member.get(f"{root}vnis/{network.vni}") or "") == network.id
    here = network.on_host()
    assert (here.scope, here.name, here.pools, here.state) == ("global", "net", network.pools, NetworkState.ACTIVE)
    assert here.options["com.docker.network.driver.overlay.vxlanid_list"] == str(network.vni)
    store.remove_network(network.id)
    assert made(store, "net").pools[0].subnet == v4.subnet


def test_chosen_subnets_step_around_what_is_there(store: ClusterStore) -> None:
    made(store, "one", ip_network("10.128.0.0/24"))
    avoid = [ip_network("10.128.1.0/25")]
    assert store.create_network(spec("two"), network_id(), avoid=avoid).pools[0].subnet == ip_network("10.128.2.0/24")


def test_name_vni_and_subnet_are_taken_once(store: ClusterStore) -> None:
    network = store.create_network(spec("one", NET), network_id(), vni=5000)
    assert network.vni == 5000
    with pytest.raises(Conflict, match="network with name one already exists"):
        made(store, "one")
    with pytest.raises(Conflict, match="VNI 5000 is in use by network one"):
        store.create_network(spec("two"), network_id(), vni=5000)
    with pytest.raises(Forbidden, match="network one"):
        made(store, "two", IPv4Network("10.7.0.128/25"))
    with pytest.raises(InvalidArgument, match="VNI 1 of network two"):
        store.create_network(spec("two"), network_id(), vni=1)


def test_nodes_that_create_at_once_share_nothing(make_store: MakeStore) -> None:
    stores = [make_store(f"n{number}", number + 1) for number in range(4)]

    def create(number: int) -> object:
        try:
            return made(stores[number % 4], f"net{number // 2}")
        except Conflict:
            return None

    with ThreadPoolExecutor(16) as pool:
        networks = [network for network in pool.map(create, range(16)) if network is not None]
    assert sorted(network.name for network in networks) == sorted(f"net{number}" for number in range(8))
    assert len({network.vni for network in networks}) == 8
    assert len({network.pools[0].subnet for network in networks}) == 8


def test_network_in_use_is_not_removed(make_store: MakeStore) -> None:
    one, two = make_store("n1"), make_store("n2", 2)
    network = made(one, "net", NET)
    mine = endpoint_id()
    address = two.take_address(network, mine, 4)
    with pytest.raises(Forbidden, match="has active endpoints on n2; disconnect"):
        one.remove_network(network.id)
    record = RemoteEndpoint(node="n2", mac="02:42:00:00:00:01")
    two.remove_endpoint(network.id, mine, [address])
    two.put_endpoint(network.id, mine, record)
    with pytest.raises(Forbidden, match="on n2"):
        one.remove_network(network.id)
    two.remove_endpoint(network.id, mine)
    one.remove_network(network.id)
    with pytest.raises(NotFound, match="no longer in the cluster"):
        two.take_address(network, mine, 4)
    with pytest.raises(NotFound, match="no longer in the cluster"):
        two.put_endpoint(network.id, mine, record)


# -- addresses -------------------------------------------------------------------------------------------------------


def test_nodes_that_ask_at_once_never_get_the_same_address(make_store: MakeStore) -> None:
    stores = [make_store(f"n{number}", number + 1) for number in range(3)]
    network = made(stores[0], "net", IPv4Network("10.7.0.0/26"))

    def take(number: int) -> object:
        try:
            return stores[number % 3].take_address(network, endpoint_id(), 4)
        except Exhausted:
            return None

    with ThreadPoolExecutor(12) as pool:
        taken = list(pool.map(take, range(66)))
    # 64 addresses less network, broadcast and gateway.
    assert taken.count(None) == 66 - 61
    expected = set(IPv4Network("10.7.0.0/26").hosts()) - {IPv4Address("10.7.0.1")}
    assert {address for address in taken if address is not None} == expected


def test_address_given_back_is_not_the_next_to_be_taken(store: ClusterStore) -> None:
    network = made(store, "net", NET)
    first = endpoint_id()
    address = store.take_address(network, first, 4)
    assert address == IPv4Address("10.7.0.2")
    store.remove_endpoint(network.id, first, [address])
    assert [store.take_address(network, endpoint_id(), 4) for _ in range(2)] == [address + 1, address + 2]


def test_addresses_come_from_the_range_and_step_over_what_is_known_and_reserved(store: ClusterStore) -> None:
    pool = PoolSpec(
        subnet=NET,
        ip_range=IPv4Network("10.7.0.16/29"),
        gateway=IPv4Address("10.7.0.17"),
        aux_addresses={"printer": IPv4Address("10.7.0.18")},
    )
    network = store.create_network(NetworkSpec(name="net", pools=(pool,)), network_id())
    known = {int(IPv4Address("10.7.0.16")), int(IPv4Address("10.7.0.19"))}
    taken = [str(store.take_address(network, endpoint_id(), 4, known=known)) for _ in range(4)]
    assert taken == ["10.7.0.20", "10.7.0.21", "10.7.0.22", "10.7.0.23"]
    # What the caller believed to be taken is not: that is found out before the network is said to be full.
    rest = {str(store.take_address(network, endpoint_id(), 4, known=known)) for _ in range(2)}
    assert rest == {"10.7.0.16", "10.7.0.19"}
    with pytest.raises(Exhausted, match=r"all of 10\.7\.0\.16/29 are taken"):
        store.take_address(network, endpoint_id(), 4, known=known)


def test_wanted_address(store: ClusterStore) -> None:
    network = made(store, "net", NET)
    holder = endpoint_id()
    store.take_address(network, holder, 4, wanted=IPv4Address("10.7.0.9"))
    with pytest.raises(Forbidden, match=f"10.7.0.9 of network net is held by endpoint {holder[:12]} on node n1"):
        store.take_address(network, endpoint_id(), 4, wanted=IPv4Address("10.7.0.9"))
    for reserved in ("10.7.0.0", "10.7.0.1", "10.7.0.255"):
        with pytest.raises(InvalidArgument, match="requested address is reserved"):
            store.take_address(network, endpoint_id(), 4, wanted=IPv4Address(reserved))
    with pytest.raises(InvalidArgument, match=r"no configured subnet contains it: network net has 10\.7\.0\.0/24"):
        store.take_address(network, endpoint_id(), 4, wanted=IPv4Address("10.8.0.9"))
    with pytest.raises(InvalidArgument, match="has no IPv6 subnet"):
        store.take_address(network, endpoint_id(), 6)


def test_only_its_holder_gives_an_address_back(make_store: MakeStore, member: EtcdMember, root: str) -> None:
    one, two = make_store("n1"), make_store("n2", 2)
    network = made(one, "net", NET)
    mine = endpoint_id()
    address = one.take_address(network, mine, 4)
    two.remove_endpoint(network.id, mine, [address])
    one.remove_endpoint(network.id, endpoint_id(), [address])
    assert member.keys(f"{root}addresses/") == [f"{root}addresses/{network.id}/{address}"]
    one.remove_endpoint(network.id, mine, [address])
    assert member.keys(f"{root}addresses/") == []
