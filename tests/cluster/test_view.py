"""A node's picture of the cluster: what it is told, and that it stays equal to what is in etcd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.cluster import etcd_messages as api
from control.cluster.etcd import Etcd
from control.cluster.records import Keys, RemoteEndpoint
from control.cluster.store import ClusterStore
from control.cluster.view import NODES, View
from control.model import to_json
from tests.cluster.conftest import MakeStore, endpoint_id, made, node_address
from tests.etcd_server import EtcdMember, etcd_cluster, free_port
from tests.waiting import until

NET = IPv4Network("10.7.0.0/24")


class Told(list[frozenset[str]]):
    """What a view said that changed."""

    @property
    def all(self) -> set[str]:
        return set().union(*self)


@contextmanager
def viewing(etcd: Etcd, cluster: str) -> Iterator[tuple[View, Told]]:
    told = Told()
    view = View(etcd, cluster, told.append)
    view.start()
    try:
        until(lambda: view.why_waiting == "")
        yield view, told
    finally:
        view.close()


def endpoint(node: str, ipv4: str, *names: str) -> RemoteEndpoint:
    return RemoteEndpoint(node=node, mac="02:42:0a:07:00:02", ipv4=IPv4Address(ipv4), names=names)


def stored(member: EtcdMember, root: str, network_id: str) -> dict[str, Any]:
    prefix = f"{root}endpoints/{network_id}/"
    return {key.removeprefix(prefix): json.loads(member.get(key) or "") for key in member.keys(prefix)}


def seen(view: View, network_id: str) -> dict[str, Any]:
    return {key: json.loads(to_json(record)) for key, record in view.endpoints(network_id).items()}


def test_view_has_what_was_there_and_what_comes(
    etcd: Etcd, cluster: str, make_store: MakeStore, member: EtcdMember, root: str
) -> None:
    one = make_store("n1")
    network = made(one, "net", NET)
    first, second = endpoint_id(), endpoint_id()
    one.put_endpoint(network.id, first, endpoint("n1", "10.7.0.2", "web", "www"))
    with viewing(etcd, cluster) as (view, told):
        assert told == [{NODES, network.id}]
        assert list(view.nodes) == ["n1"]
        assert view.network(network.id) == view.networks[network.id] == network
        assert view.endpoint_count(network.id) == 1
        assert view.endpoints(network.id)[first].names == ("web", "www")
        two = make_store("n2", 2)
        until(lambda: set(view.nodes) == {"n1", "n2"})
        assert view.nodes["n2"].address == node_address(2)
        two.put_endpoint(network.id, second, endpoint("n2", "10.7.0.3"))
        until(lambda: second in view.endpoints(network.id))
        assert seen(view, network.id) == stored(member, root, network.id)
        assert set(view.taken(network.id)) == {int(IPv4Address("10.7.0.2")), int(IPv4Address("10.7.0.3"))}
        # An endpoint that moves replaces its record.
        one.put_endpoint(network.id, second, endpoint("n1", "10.7.0.4"))
        until(lambda: view.endpoints(network.id)[second].node == "n1")
        assert set(view.taken(network.id)) == {int(IPv4Address("10.7.0.2")), int(IPv4Address("10.7.0.4"))}
        two.leave()
        until(lambda: set(view.nodes) == {"n1"})
        one.remove_endpoint(network.id, first)
        one.remove_endpoint(network.id, second)
        until(lambda: not view.endpoints(network.id))
        assert len(view.taken(network.id)) == view.endpoint_count(network.id) == 0
        one.remove_network(network.id)
        until(lambda: not view.networks)
        assert view.revision == member.revision


def test_addresses_and_pools_are_nothing_that_a_view_is_told(etcd: Etcd, cluster: str, store: ClusterStore) -> None:
    network = made(store, "net", NET)
    with viewing(etcd, cluster) as (view, told):
        before = view.revision
        told.clear()
        mine = endpoint_id()
        address = store.take_address(network, mine, 4)
        store.put_endpoint(network.id, mine, endpoint("n1", str(address)))
        until(lambda: bool(told))
        assert told == [{network.id}]
        assert view.revision == before + 2


def test_forgotten_network_is_decoded_again_when_asked_for(etcd: Etcd, cluster: str, store: ClusterStore) -> None:
    network = made(store, "net", NET)
    mine, later = endpoint_id(), endpoint_id()
    store.put_endpoint(network.id, mine, endpoint("n1", "10.7.0.2"))
    with viewing(etcd, cluster) as (view, _):
        assert set(view.endpoints(network.id)) == {mine}
        view.forget(network.id)
        view.forget(network.id)
        store.put_endpoint(network.id, later, endpoint("n1", "10.7.0.3"))
        until(lambda: view.endpoint_count(network.id) == 2)
        assert set(view.endpoints(network.id)) == {mine, later}


def test_damaged_records_are_left_out_and_named(
    etcd: Etcd, cluster: str, store: ClusterStore, member: EtcdMember, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = made(store, "net", NET)
    member.put(f"{root}networks/bad", "{}")
    with viewing(etcd, cluster) as (view, _):
        member.put(f"{root}endpoints/{network.id}/bad", "[]")
        member.put(f"{root}nodes/bad", "no json")
        good = endpoint_id()
        store.put_endpoint(network.id, good, endpoint("n1", "10.7.0.2"))
        until(lambda: good in view.endpoints(network.id))
        assert set(view.endpoints(network.id)) == {good}
        assert (list(view.networks), list(view.nodes)) == ([network.id], ["n1"])
    for name in ("networks/bad", "nodes/bad", f"endpoints/{network.id}/bad"):
        assert f"{name} is damaged" in caplog.text


def test_view_outlives_etcd_and_compares_after_a_compaction(tmp_path: Any) -> None:
    with etcd_cluster(tmp_path) as (member,), Etcd([member.url]) as client, Etcd([member.url]) as writer:
        store = ClusterStore(writer, "c", "n1", ttl_s=60)
        store.register(node_address(1), "first")
        same, changed, gone = (made(store, name) for name in ("same", "changed", "gone"))
        for network in (same, changed):
            store.put_endpoint(network.id, endpoint_id(), endpoint("n1", "10.7.0.2"))
        with viewing(client, "c") as (view, told):
            view.endpoints(changed.id)
            port = member.client_port
            member.stop()
            until(lambda: "connection refused" in view.why_waiting)
            assert set(view.networks) == {same.id, changed.id, gone.id}
            told.clear()
            member.client_port = free_port()  # for a while, where the view does not find it
            member.start()
            keys, new = Keys("c"), endpoint_id()
            with Etcd([member.url]) as elsewhere:
                record = to_json(endpoint("n1", "10.7.0.3"))
                elsewhere.txn([], [api.put(keys.endpoint(changed.id, new), record), api.delete(keys.network(gone.id))])
            member.compact()
            member.stop()
            member.client_port = port
            member.start()
            until(lambda: view.why_waiting == "")
            assert told.all == {changed.id, gone.id}
            assert set(view.networks) == {same.id, changed.id}
            assert seen(view, changed.id) == stored(member, "/linkspan/c/", changed.id)
            assert new in view.endpoints(changed.id)
        store.close()


class Kv:
    def __init__(self, key: str, value: bytes) -> None:
        self.key, self.value = key.encode(), value


class Changed:
    def __init__(self, type_: int, kv: Kv) -> None:
        self.type, self.kv = type_, kv


class Snapshot(list[Kv]):
    revision = 1


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "reread", "ask", "forget"]),
        st.sampled_from(["net1", "net2"]),
        st.sampled_from(["e1", "e2", "e3"]),
        st.integers(1, 4),
    ),
    max_size=30,
)


@given(MOVES)
def test_view_equals_the_keys_whatever_happens_in_which_order(moves: list[tuple[str, str, str, int]]) -> None:
    keys, truth = Keys("c"), dict[str, RemoteEndpoint]()
    told: list[frozenset[str]] = []
    view = View(None, "c", told.append)  # type: ignore[arg-type]
    for move, network, name, number in moves:
        key, record = keys.endpoint(network, name), endpoint(f"n{number}", f"10.7.0.{number}")
        if move == "put":
            truth[key] = record
            view.change([Changed(0, Kv(key, to_json(record)))], 1)  # type: ignore[list-item]
        elif move == "delete" and truth.pop(key, None):
            view.change([Changed(api.DELETED, Kv(key, b""))], 1)  # type: ignore[list-item]
        elif move == "reread":
            told.clear()
            truth[key] = record
            before = {each: view.endpoints(each) for each in ("net1", "net2")}
            view.read(Snapshot(Kv(each, to_json(value)) for each, value in truth.items()))
            after = {each: view.endpoints(each) for each in ("net1", "net2")}
            assert set().union(*told) == {each for each in before if before[each] != after[each]}
        elif move == "ask":
            view.endpoints(network)
        elif move == "forget":
            view.forget(network)
    for network in ("net1", "net2"):
        prefix = keys.endpoints_of(network)
        expected = {key.removeprefix(prefix): record for key, record in truth.items() if key.startswith(prefix)}
        assert view.endpoint_count(network) == len(expected)
        assert view.endpoints(network) == expected
        assert set(view.taken(network)) == {int(record.addresses[0]) for record in expected.values()}


@pytest.mark.parametrize("odd", ["endpoints/net", "endpoints/net1/", "endpoints/", "endpoints/net1", "odd", "nodes/"])
def test_a_key_that_nobody_of_us_wrote_takes_no_other_with_it(odd: str) -> None:
    keys, record = Keys("c"), endpoint("n1", "10.7.0.1")
    view = View(None, "c")  # type: ignore[arg-type]
    ours = [keys.endpoint(network, name) for network in ("net1", "net12") for name in ("e1", "e2")]
    view.read(Snapshot(Kv(each, to_json(record)) for each in sorted([*ours, f"{keys.root}{odd}"])))
    for network in ("net1", "net12"):
        assert {"e1", "e2"} <= view.endpoints(network).keys()
    assert view.endpoint_count("net12") == 2
