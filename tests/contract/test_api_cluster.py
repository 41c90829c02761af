"""The cluster's part of the API: membership, nodes, differences, and how networks of a cluster are shown."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from control.cluster_spec import ClusterSpec, Difference
from control.errors import DeadlineExceeded, Exhausted, InvalidArgument
from control.model import Network, NetworkId, NetworkState, PoolConfig, to_json
from control.store.base import Put
from tests.api_server import ApiServer
from tests.fake_cluster import SPEC, FakeCluster, node
from tests.fakes import fake_controller
from tests.memory_store import MemoryStore

BODY: dict[str, Any] = {"Etcd": ["http://10.0.0.7:2379"], "Name": "a", "Advertise": "10.0.0.1"}
STALE = Difference("a", "blue", "FDB entry of 02:00:00:00:00:05 leads to 10.0.0.3", "replace the entry")
FULL = Difference("a", "blue", "no room in the map", "a larger map")


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def server(tmp_path: Path, cluster: FakeCluster) -> Iterator[ApiServer]:
    with ApiServer(fake_controller(tmp_path, cluster=cluster), tmp_path / "api.sock") as running:
        yield running


def test_a_host_is_in_no_cluster_at_first(server: ApiServer) -> None:
    reply = server.ask("GET", "/linkspan/cluster")
    assert (reply.status, reply.json) == (
        200,
        {
            "Joined": False,
            "Cluster": "",
            "Node": "",
            "Advertise": "",
            "Etcd": [],
            "State": "not joined",
            "Revision": 0,
            "Since": None,
        },
    )


def test_a_join_hands_over_what_was_asked_for_and_answers_with_the_membership(
    server: ApiServer, cluster: FakeCluster
) -> None:
    body = {"Etcd": ["http://etcd1", "http://[fd00::7]:2380"], "Name": "a", "Advertise": "fd00::1", "Cluster": "east"}
    reply = server.ask("POST", "/linkspan/cluster/join", body)
    etcd = ["http://etcd1:2379", "http://[fd00::7]:2380"]
    assert reply.status == 200
    assert reply.json == {
        "Joined": True,
        "Cluster": "east",
        "Node": "a",
        "Advertise": "fd00::1",
        "Etcd": etcd,
        "State": "synchronized",
        "Revision": 17,
        "Since": "2026-01-02T03:04:05.6Z",
    }
    assert cluster.spec == ClusterSpec(etcd=tuple(etcd), name="a", advertise=IPv6Address("fd00::1"), cluster="east")
    assert server.ask("GET", "/v1.41/linkspan/cluster").json == reply.json
    again = server.ask("POST", "/linkspan/cluster/join", BODY)
    assert (again.status, again.message) == (409, "this node is in the cluster east already: leave that first")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"Etcd": None}, "--etcd: give at least one URL"),
        ({"Etcd": "http://a"}, "Expected `array | null`, got `str` - at `$.Etcd`"),
        ({"Etcd": ["ftp://a:1"]}, "--etcd: "),
        ({"Etcd": ["http://a:99999"]}, "--etcd: "),
        ({"Name": None}, "--name: the name is empty"),
        ({"Name": "a/b"}, "--name: "),
        ({"Advertise": None}, '--advertise: "" is no address'),
        ({"Advertise": "nowhere"}, '--advertise: "nowhere" is no address'),
        ({"Cluster": "../x"}, "--cluster: "),
        ({"CACert": "/ca.pem"}, "--cacert: certificates are for URLs with https"),
        ({"Etcd": ["https://a"], "Cert": "/c"}, "--key: cert is of no use without it"),
        ({"Etcd": ["https://a"], "CACert": "/no/such"}, "--cacert: linkspand cannot read /no/such: No such file"),
        ({"Etcd": ["https://a"], "CACert": "/proc"}, "--cacert: /proc is not a file"),
        ({"Etcd": ["https://a"], "CACert": "/proc/self/stat"}, "--cacert: /proc/self/stat holds no certificate"),
    ],
)
def test_a_join_that_cannot_be_is_refused_before_the_cluster_is_asked(
    server: ApiServer, cluster: FakeCluster, change: dict[str, Any], says: str
) -> None:
    cluster.failing["join"] = AssertionError("asked")
    reply = server.ask("POST", "/linkspan/cluster/join", BODY | change)
    assert (reply.status, says in reply.message) == (400, True), reply.message


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgument("10.0.0.1 is not an address of this host"), 400),
        (Exhausted("etcd is out of space: compact and defragment it"), 503),
        (DeadlineExceeded("no answer from http://10.0.0.7:2379"), 504),
    ],
)
def test_what_the_cluster_refuses_is_told_with_its_status(
    server: ApiServer, cluster: FakeCluster, error: Exception, status: int
) -> None:
    cluster.failing["join"] = error
    reply = server.ask("POST", "/linkspan/cluster/join", BODY)
    assert (reply.status, reply.message) == (status, str(error))
    assert server.ask("GET", "/linkspan/cluster").json["Joined"] is False
    assert server.ask("GET", "/networks").status == 200


def test_nodes_are_listed_with_this_one_among_them(server: ApiServer, cluster: FakeCluster) -> None:
    cluster.spec = SPEC
    cluster.others = [node("b", "10.0.0.2", "lost")]
    since = "2026-01-02T03:04:05.6Z"
    assert server.ask("GET", "/linkspan/cluster/nodes").json == [
        {"Name": "b", "ID": 9, "Address": "10.0.0.2", "State": "lost", "Since": since, "Self": False, "Networks": 2},
        {"Name": "a", "ID": 1, "Address": "10.0.0.1", "State": "ready", "Since": since, "Self": True, "Networks": 0},
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "nodes"), ("GET", "check"), ("POST", "mend"), ("POST", "leave"), ("POST", "leave?force=1")],
)
def test_without_a_cluster_there_is_nothing_to_list_compare_or_leave(server: ApiServer, method: str, path: str) -> None:
    reply = server.ask(method, f"/linkspan/cluster/{path}")
    assert reply.status == 403
    assert reply.message.startswith("This node is not in a cluster: run `linkspan cluster join --etcd URL")


def test_a_node_in_use_leaves_by_force_alone(server: ApiServer, cluster: FakeCluster) -> None:
    cluster.spec = SPEC
    cluster.is_in_use = True
    for query in ("", "?force=0"):
        reply = server.ask("POST", f"/linkspan/cluster/leave{query}")
        assert (reply.status, "has endpoints on overlay networks" in reply.message) == (403, True)
    reply = server.ask("POST", "/linkspan/cluster/leave?force=1")
    assert (reply.status, reply.body) == (204, b"")
    assert cluster.spec is None


def test_differences_are_told_and_mended(server: ApiServer, cluster: FakeCluster) -> None:
    cluster.spec = SPEC
    assert server.ask("GET", "/linkspan/cluster/check").json == []
    cluster.curable, cluster.incurable = [STALE], [FULL]
    shown = [
        {"Node": "a", "Network": "blue", "What": STALE.what, "Mend": STALE.mend},
        {"Node": "a", "Network": "blue", "What": FULL.what, "Mend": FULL.mend},
    ]
    assert server.ask("GET", "/linkspan/cluster/check").json == shown
    assert server.ask("POST", "/linkspan/cluster/mend").json == shown
    assert server.ask("GET", "/linkspan/cluster/check").json == shown[1:]
    cluster.failing["check"] = DeadlineExceeded("no answer from etcd")
    assert server.ask("GET", "/linkspan/cluster/check").status == 504


# -- networks of a cluster -------------------------------------------------------------------------------------------


def record(name: str, number: int, **fields: Any) -> Network:
    """A network of a cluster; its driver stands in for the overlay's, which needs a kernel."""
    return Network(
        id=NetworkId(f"{number:064x}"),
        name=name,
        driver="bridge",
        state=NetworkState.ACTIVE,
        created=datetime(2026, 1, 2, tzinfo=UTC),
        segment=100 + number,
        scope="global",
        pools=(PoolConfig(subnet=ip_network(f"10.{number}.0.0/24"), gateway=IPv4Address(f"10.{number}.0.1")),),
        **fields,
    )


@pytest.fixture
def clustered(tmp_path: Path, cluster: FakeCluster) -> Iterator[ApiServer]:
    """A server with two networks of a cluster and one of its own."""
    option = {"com.docker.network.driver.overlay.vxlanid_list": "4097", "encrypted": ""}
    networks = [record("blue", 1, options=option, attachable=True), record("ingress", 2, predefined=True)]
    store = MemoryStore()
    store.write([Put("network", network.id, to_json(network)) for network in networks])
    cluster.spec = SPEC
    with ApiServer(fake_controller(tmp_path, store=store, cluster=cluster), tmp_path / "api.sock") as running:
        assert running.ask("POST", "/networks/create", {"Name": "own"}).status == 201
        yield running


def names(server: ApiServer, query: str = "") -> set[str]:
    return {network["Name"] for network in server.ask("GET", f"/networks{query}").json}


def test_networks_of_the_cluster_are_found_by_their_scope(clustered: ApiServer) -> None:
    assert names(clustered, '?filters={"scope":["global"]}') == {"blue", "ingress"}
    assert names(clustered, '?filters={"scope":["local"]}') == {"bridge", "host", "none", "own"}
    assert names(clustered, '?filters={"scope":["global"],"type":["custom"]}') == {"blue"}
    assert clustered.ask("GET", "/networks/blue?scope=global").json["Scope"] == "global"
    assert clustered.ask("GET", "/networks/blue?scope=local").status == 404


def test_inspect_shows_a_network_of_the_cluster_as_docker_does(clustered: ApiServer, cluster: FakeCluster) -> None:
    cluster.on_network[f"{1:064x}"] = [node("a", "10.0.0.1"), node("b", "10.0.0.2")]
    shown = clustered.ask("GET", "/networks/blue").json
    assert shown["Peers"] == [{"Name": "a", "IP": "10.0.0.1"}, {"Name": "b", "IP": "10.0.0.2"}]
    assert shown["Options"] == {"com.docker.network.driver.overlay.vxlanid_list": "4097", "encrypted": ""}
    assert (shown["Attachable"], shown["Ingress"], shown["ConfigOnly"]) == (True, False, False)


def test_only_a_network_of_the_cluster_has_peers(clustered: ApiServer, cluster: FakeCluster) -> None:
    own = clustered.ask("GET", "/networks/own").json
    cluster.on_network[own["Id"]] = [node("b")]
    assert "Peers" not in clustered.ask("GET", "/networks/own").json
    assert "Peers" not in clustered.ask("GET", "/networks/blue").json, "nobody is on it"


def test_the_ingress_network_says_that_it_is_that(clustered: ApiServer) -> None:
    assert clustered.ask("GET", "/networks/ingress").json["Ingress"] is True
    assert {n["Name"]: n["Ingress"] for n in clustered.ask("GET", "/networks").json}["ingress"] is True


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"Scope": "global"}, 400, "networks of the driver bridge are local: leave out the scope global"),
        ({"Scope": "local", "Driver": "overlay"}, 400, "of the driver overlay are global: leave out the scope local"),
        ({"Scope": "swarm", "Driver": "overlay"}, 403, "cannot create a swarm scoped network when swarm is not active"),
        ({"Scope": "galaxy", "Driver": "overlay"}, 400, 'there is no scope "galaxy": networks are local or global'),
        ({"Ingress": True, "Driver": "overlay"}, 403, "every cluster has its one ingress network already"),
    ],
)
def test_a_scope_that_the_driver_does_not_have_is_refused(
    server: ApiServer, body: dict[str, Any], status: int, says: str
) -> None:
    reply = server.ask("POST", "/networks/create", {"Name": "new", **body})
    assert (reply.status, says in reply.message) == (status, True), reply.message
