"""Nodes of a cluster: names, ids, leases, and their records when they return."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network

import pytest

from control.cluster.etcd_errors import LeaseLost
from control.cluster.records import RemoteEndpoint
from control.cluster.session import ClusterSession, Told
from control.cluster_spec import ClusterSpec
from control.errors import Conflict, InvalidArgument
from tests.cluster.conftest import MakeStore, endpoint_id, made, network_id, node_address, spec
from tests.etcd_server import EtcdMember
from tests.waiting import until

NET = IPv4Network("10.7.0.0/24")


def endpoint(node: str, ipv4: str) -> RemoteEndpoint:
    return RemoteEndpoint(node=node, mac="02:42:0a:07:00:02", ipv4=IPv4Address(ipv4), names=("web",))


def test_node_is_written_under_its_lease(make_store: MakeStore, member: EtcdMember, root: str) -> None:
    store = make_store("n1", 0)
    node = store.register(node_address(1), "first", mtu=1450, mac="02:00:00:00:00:01", public_keys=[(1, "a2V5")])
    assert json.loads(member.get(f"{root}nodes/n1") or "") == {
        "name": "n1", "id": 1, "address": "192.0.2.1", "since": node.since.isoformat().replace("+00:00", "Z"),
        "incarnation": "first", "mtu": 1450, "mac": "02:00:00:00:00:01", "public_keys": [[1, "a2V5"]],
    }  # fmt: skip
    store.leave()
    store.leave()
    assert member.keys(root) == [f"{root}settings"]


def test_a_node_that_starts_again_is_written_with_its_keys_at_once(member: EtcdMember, cluster: str, root: str) -> None:
    where = ClusterSpec(etcd=(member.url,), advertise=node_address(1), name="n1", cluster=cluster)
    told = Told(lambda networks, nodes: None, lambda why: None, lambda: None)
    for _ in "stopped", "started again":
        session = ClusterSession(where, "first", told, lease_s=10)
        session.open()
        session.register("", mtu=1450, mac="", public_keys=((1, "a2V5"),))
        session.close()
        assert json.loads(member.get(f"{root}nodes/n1") or "")["public_keys"] == [[1, "a2V5"]]


def test_all_nodes_at_once_get_ids_of_their_own(make_store: MakeStore) -> None:
    stores = [make_store(f"n{number}", 0) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        nodes = list(pool.map(lambda pair: pair[1].register(node_address(pair[0]), "first"), enumerate(stores)))
    assert len({node.id for node in nodes}) == 12
    assert len({store.identity() for store in stores}) == 1


@pytest.mark.parametrize(("address", "incarnation"), [(1, "other"), (2, "first"), (2, "other")])
def test_name_of_a_live_node_is_refused_to_another(make_store: MakeStore, address: int, incarnation: str) -> None:
    make_store("n1", 1, "first")
    with pytest.raises(Conflict, match=r"node name n1 is in use by a node at 192\.0\.2\.1 since .*choose another"):
        make_store("n1", address, incarnation)


def test_returning_node_takes_over_at_once_and_what_is_gone_goes(
    make_store: MakeStore, member: EtcdMember, root: str
) -> None:
    before = make_store("n1")
    network = made(before, "net", NET)
    kept, gone = endpoint_id(), endpoint_id()
    for each, address in ((kept, "10.7.0.2"), (gone, "10.7.0.3")):
        before.take_address(network, each, 4, wanted=IPv4Address(address))
        before.put_endpoint(network.id, each, endpoint("n1", address))
    before.close()  # as if it had been killed
    after = make_store("n1")
    assert len(member.keys(f"{root}endpoints/")) == 2
    assert after.restore({(network.id, kept): endpoint("n1", "10.7.0.2")}) == []
    assert member.keys(f"{root}endpoints/") == [f"{root}endpoints/{network.id}/{kept}"]
    assert member.keys(f"{root}addresses/") == [f"{root}addresses/{network.id}/10.7.0.2"]
    assert json.loads(member.get(f"{root}nodes/n1") or "")["id"] == 1
    with pytest.raises(LeaseLost):
        before.put_endpoint(network.id, gone, endpoint("n1", "10.7.0.3"))


def test_records_of_a_dead_node_go_with_its_lease(make_store: MakeStore, member: EtcdMember, root: str) -> None:
    store = make_store("n1", ttl_s=2)
    network = made(store, "net", NET)
    store.put_endpoint(network.id, endpoint_id(), endpoint("n1", "10.7.0.2"))
    store.close()
    until(lambda: not member.keys(f"{root}endpoints/") and not member.keys(f"{root}nodes/"), within_s=20)
    assert json.loads(member.get(f"{root}networks/{network.id}") or "")["name"] == "net"


def test_node_that_lost_its_lease_is_told_and_writes_all_again(
    make_store: MakeStore, member: EtcdMember, root: str
) -> None:
    is_lost = threading.Event()
    store = make_store("n1", ttl_s=3, on_lease_lost=is_lost.set)
    network = made(store, "net", NET)
    mine, taken_since = endpoint_id(), endpoint_id()
    leases = [line for line in member.run("lease", "list").stdout.split() if len(line) >= 15]
    for lease in leases:
        if f"{root}nodes/n1" in member.run("lease", "timetolive", lease, "--keys").stdout:
            member.run("lease", "revoke", lease)
    assert is_lost.wait(20)
    with pytest.raises(LeaseLost, match="node n1 is not registered"):
        store.put_endpoint(network.id, mine, endpoint("n1", "10.7.0.2"))
    other = make_store("n2", 2)
    other.take_address(network, endpoint_id(), 4, wanted=IPv4Address("10.7.0.3"))
    store.register(node_address(1), "first")
    [displaced] = store.restore(
        {
            (network.id, mine): endpoint("n1", "10.7.0.2"),
            (network.id, taken_since): endpoint("n1", "10.7.0.3"),
        }
    )
    assert displaced.endpoint_id == taken_since
    assert "10.7.0.3 is held by endpoint" in displaced.why
    assert "on node n2" in displaced.why
    assert member.keys(f"{root}endpoints/") == [f"{root}endpoints/{network.id}/{mine}"]


def test_restoring_many_endpoints_and_those_of_a_network_that_is_gone(
    make_store: MakeStore, member: EtcdMember, root: str
) -> None:
    store = make_store("n1")
    network = made(store, "net", IPv4Network("10.8.0.0/16"))
    first = int(IPv4Address("10.8.1.0"))
    all_of_them = {
        (network.id, endpoint_id()): endpoint("n1", str(IPv4Address(first + number))) for number in range(130)
    }
    lost = (network_id(), endpoint_id())
    displaced = store.restore({lost: endpoint("n1", "10.9.0.2"), **all_of_them})
    assert [(each.network_id, each.endpoint_id) for each in displaced] == [lost]
    assert len(member.keys(f"{root}endpoints/")) == len(member.keys(f"{root}addresses/")) == 130
    assert store.restore(all_of_them) == []
    store.leave()
    assert member.keys(f"{root}endpoints/") == member.keys(f"{root}addresses/") == []


def test_nodes_record_can_be_changed(make_store: MakeStore, member: EtcdMember, root: str) -> None:
    store = make_store("n1")
    store.update_node(public_keys=((2, "bmV3"),))
    assert json.loads(member.get(f"{root}nodes/n1") or "")["public_keys"] == [[2, "bmV3"]]
    store.leave()
    with pytest.raises(LeaseLost):
        store.update_node(mtu=9000)


@pytest.mark.parametrize("name", ["", "a/b", "-a", "a b", "x" * 64])
def test_names_that_cannot_be(make_store: MakeStore, name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid node name"):
        make_store(name)


def test_what_was_done_before_the_answer_was_lost_is_found(make_store: MakeStore) -> None:
    store = make_store("n1")
    wanted, name = network_id(), spec("net", NET)
    network = store.create_network(name, wanted)
    assert store.create_network(name, wanted) == network
    mine = endpoint_id()
    for _ in range(2):
        assert store.take_address(network, mine, 4, wanted=IPv4Address("10.7.0.9")) == IPv4Address("10.7.0.9")
    for _ in range(2):
        store.remove_endpoint(network.id, mine, [IPv4Address("10.7.0.9")])
    for _ in range(2):
        store.remove_network(wanted)
