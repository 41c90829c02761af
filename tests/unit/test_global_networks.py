"""Networks of a cluster on one node of it: records that follow, addresses that are given, endpoints that are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from control.cluster.etcd_errors import EtcdUnavailable
from control.drivers.base import Capabilities
from control.errors import Conflict, DatapathFailed, Forbidden, InvalidArgument, NotImplementedByDriver
from control.events import Event
from control.model import (
    Address,
    EndpointId,
    EndpointSpec,
    Network,
    NetworkId,
    NetworkSpec,
    PoolSpec,
    Sandbox,
    SandboxSpec,
)
from control.store.sqlite import SqliteStore
from tests.fake_session import SUBNET, FakeSession, global_network, node, remote
from tests.fakes import FakeDriver, fake_controller
from tests.waiting import until

NET = global_network("net")


class FakeOverlay(FakeDriver):
    """`told` are the networks of which peers were said to have changed; `is_direct` whether it takes direct packets."""

    name: ClassVar[str] = "overlay"
    capabilities: ClassVar[Capabilities] = Capabilities(scope="global")

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.is_direct = False

    def takes_direct(self, network: Network) -> bool:
        return self.is_direct

    def network_steps(self, network: Network) -> Sequence[object]:  # type: ignore[override]
        return ()

    def wanted_vni(self, spec: NetworkSpec) -> int:
        return 77

    def peers_changed(self, network: Network, *, anew: bool = False) -> None:
        self.told.append(network.name)


class World:
    """Node a of a cluster; `there` are the addresses that answer pings."""

    def __init__(self, run_dir: Path) -> None:
        self.driver, self.state = FakeOverlay(), run_dir / "linkspan.db"
        self.run_dir = run_dir
        self.there: set[Address] = set()
        self.session = FakeSession()
        self.events: list[Event] = []
        self.start()

    def start(self) -> None:
        store = SqliteStore(self.state)
        self.controller = fake_controller(self.run_dir, self.driver, store, answers=lambda asked: asked in self.there)
        self.controller.start()
        self.controller.subscribe(self.events.append)
        self.globals = self.controller.global_networks
        self.globals.enter(self.session)

    def names(self) -> set[str]:
        return {network.name for network in self.controller.networks() if network.is_global}

    def have_network(self) -> Network:
        """One that another node made."""
        self.session.there[NET.id] = NET
        self.globals.follow({NET.id})
        return self.controller.network("net")

    def box(self, name: str = "web", **endpoint: object) -> Sandbox:
        spec = EndpointSpec(**endpoint)  # type: ignore[arg-type]
        return self.controller.create_sandbox(SandboxSpec(name=name, networks=(("net", spec),)))

    def hosts(self, sandbox: Sandbox) -> str:
        return Path(self.controller.paths(sandbox).hosts).read_text()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("control.lost_nodes.ASK_EVERY_S", 0.01)
    made = World(tmp_path)
    yield made
    made.globals.lost.stop()
    made.controller.stop()


def test_without_a_cluster_there_is_no_global_network_and_the_error_says_how_to_join(world: World) -> None:
    world.globals.exit()
    with pytest.raises(Forbidden, match="linkspan cluster join --etcd URL --advertise ADDR --name NODE"):
        world.controller.create_network(NetworkSpec(name="net", driver="overlay"))
    assert world.names() == set()


def test_a_network_that_is_made_here_is_the_cluster_s(world: World) -> None:
    made, _ = world.controller.create_network(NetworkSpec(name="net", driver="overlay"))
    assert world.session.there.keys() == {made.id}
    assert world.session.vnis == [77]
    assert (made.scope, made.vni) == ("global", 4096)
    assert made.segment > 0
    assert [(each.action, each.id) for each in world.events] == [("create", made.id)]


def test_networks_of_others_come_and_go_with_events(world: World) -> None:
    network = world.have_network()
    assert network.segment > 0
    del world.session.there[NET.id]
    world.globals.follow({NET.id})
    assert world.names() == set()
    assert [each.action for each in world.events] == ["create", "destroy"]


def test_what_was_not_read_yet_is_not_followed(world: World) -> None:
    world.have_network()
    world.session.there.clear()
    world.session.is_read = False
    world.globals.follow(None)
    assert world.names() == {"net"}


def test_networks_stay_known_over_a_restart_without_etcd(world: World) -> None:
    network = world.have_network()
    world.controller.stop()
    world.session.is_read = False
    world.start()
    assert world.controller.network("net") == network


def test_a_name_that_this_host_has_is_refused_and_had_when_it_is_free(world: World) -> None:
    world.controller.create_network(NetworkSpec(name="net", driver="null", config_only=True))
    world.session.there[NET.id] = NET
    world.globals.follow(None)
    assert world.names() == set()
    (why,) = world.globals.problems().values()
    assert "a network of this host has its name" in why
    world.controller.remove_network("net")
    world.globals.follow(None)
    assert world.names() == {"net"}
    assert world.globals.problems() == {}


def test_removal_asks_the_cluster_first(world: World) -> None:
    world.have_network()
    world.session.known[NET.id] = {EndpointId("e1"): remote("b", 9)}
    with pytest.raises(Forbidden, match="endpoints on node b"):
        world.controller.remove_network("net")
    assert world.names() == {"net"}
    world.session.known.clear()
    world.controller.remove_network("net")
    assert world.names() == set()
    assert world.session.there == {}


def test_a_join_takes_an_address_and_tells_the_cluster_a_leave_takes_both_back(world: World) -> None:
    world.have_network()
    world.box()
    (endpoint,) = world.controller.network_endpoints(NET.id)
    assert endpoint.ipv4 is not None
    assert world.session.taken == {endpoint.ipv4.ip: endpoint.id}
    assert endpoint.ipv4.network == SUBNET
    told = world.session.known[NET.id][endpoint.id]
    assert (told.node, told.mac, told.ipv4, told.names) == ("a", endpoint.mac, endpoint.ipv4.ip, ("web",))
    world.controller.remove_sandbox("web", force=True)
    assert world.session.taken == {}
    assert world.session.known == {NET.id: {}}


def test_the_cluster_is_told_again_when_direct_packets_are_taken_no_longer(world: World) -> None:
    world.have_network()
    world.driver.is_direct = True
    world.box()
    (endpoint,) = world.controller.network_endpoints(NET.id)
    told = world.session.known[NET.id]
    assert told[endpoint.id].direct
    world.driver.is_direct = False
    assert world.globals.unknown(NET) == [f"endpoint {endpoint.id[:12]} is another in the cluster"]
    world.globals.tell_again()
    assert not told[endpoint.id].direct
    assert world.globals.unknown(NET) == []
    world.session.failure = EtcdUnavailable("nobody is asked when nothing has changed")
    world.globals.tell_again()


def test_peers_take_direct_packets_as_long_as_their_node_is_alive(world: World) -> None:
    network = world.have_network()
    world.session.members["b"] = msgspec.structs.replace(node("b", 2), mac="02:00:00:00:00:0b")
    world.session.known[NET.id] = {EndpointId("e1"): msgspec.structs.replace(remote("b", 9), direct=True)}
    world.box()
    world.globals.follow(None)
    (peer,) = world.globals.peers(network.id) or ()
    assert (peer.node_mac.hex(":"), peer.is_direct) == ("02:00:00:00:00:0b", True)
    world.there.add(IPv4Address("10.0.0.2"))
    del world.session.members["b"]
    world.session.known[NET.id] = {id_: each for id_, each in world.session.known[NET.id].items() if each.node == "a"}
    world.globals.follow(None)
    (peer,) = world.globals.peers(network.id) or ()
    assert (peer.node_mac.hex(":"), peer.is_direct) == ("02:00:00:00:00:0b", False)


def test_a_join_that_fails_gives_its_address_back(world: World) -> None:
    world.have_network()
    world.driver.failing["endpoint"] = OSError("no")
    with pytest.raises(DatapathFailed):
        world.box()
    assert world.session.taken == {}
    assert world.session.known.get(NET.id, {}) == {}
    assert world.controller.network_endpoints(NET.id) == []


def test_without_etcd_joins_are_refused_and_leaves_go_on(world: World) -> None:
    world.have_network()
    world.box()
    world.session.failure = EtcdUnavailable("nobody answers at http://10.0.0.9:2379: no answer in time")
    with pytest.raises(EtcdUnavailable, match="no answer in time"):
        world.box("late")
    world.controller.remove_sandbox("web", force=True)
    assert world.controller.network_endpoints(NET.id) == []
    assert world.session.taken != {}  # until the node restores its records
    assert world.globals.own() == {}


def test_addresses_that_are_asked_for_are_checked_here(world: World) -> None:
    world.have_network()
    with pytest.raises(InvalidArgument, match="no configured subnet contains it"):
        world.box(ipv4=IPv4Address("10.9.9.9"))
    assert world.session.taken == {}


def test_a_mac_of_another_node_s_endpoint_is_taken(world: World) -> None:
    world.have_network()
    world.session.known[NET.id] = {EndpointId("e1"): remote("b", 9)}
    with pytest.raises(Conflict, match="in use on network net by node b"):
        world.box(mac=remote("b", 9).mac)


def test_sandboxes_of_other_nodes_are_known_by_name(world: World) -> None:
    world.have_network()
    web = world.box()
    world.session.known[NET.id][EndpointId("e1")] = remote("b", 9, "db", "store")
    world.globals.follow({NET.id})
    until(lambda: "10.128.0.9\tdb store\n" in world.hosts(web))
    del world.session.known[NET.id][EndpointId("e1")]
    world.globals.follow({NET.id})
    until(lambda: "db store" not in world.hosts(web))


def test_peers_are_the_endpoints_of_other_nodes(world: World) -> None:
    world.have_network()
    world.box()
    world.session.known[NET.id][EndpointId("e1")] = remote("b", 9)
    (peer,) = world.globals.peers(NET.id) or ()
    assert (peer.node, peer.addresses) == (IPv4Address("10.0.0.2"), (SUBNET[9],))
    world.session.is_read = False
    assert world.globals.peers(NET.id) is None


def test_peers_of_a_lost_node_stay_while_it_answers(world: World) -> None:
    world.have_network()
    world.box()
    world.session.known[NET.id][EndpointId("e1")] = remote("b", 9)
    world.globals.follow({NET.id})
    world.there.add(IPv4Address("10.0.0.2"))
    del world.session.known[NET.id][EndpointId("e1")], world.session.members["b"]
    world.globals.follow({NET.id})
    assert [peer.node for peer in world.globals.peers(NET.id) or ()] == [IPv4Address("10.0.0.2")]
    assert world.box("next").name == "next"
    assert SUBNET[9] not in world.session.taken
    world.there.clear()
    until(lambda: world.globals.peers(NET.id) == [])
    assert world.driver.told[-1] == "net"


def lose_lease(world: World) -> None:
    """etcd has dropped all records of this node, and the node reads that before it has registered again."""
    del world.session.members["a"]
    world.session.known[NET.id].clear()
    world.session.taken.clear()
    world.there.add(IPv4Address("10.0.0.1"))
    world.globals.follow(None)


def test_this_node_s_own_endpoints_are_no_peers_after_its_lease_was_lost(world: World) -> None:
    world.have_network()
    world.box()
    world.globals.follow({NET.id})
    lose_lease(world)
    assert world.globals.peers(NET.id) == []
    assert world.globals.lost.nodes() == {}


def test_addresses_of_this_node_s_endpoints_are_not_given_twice_after_its_lease_was_lost(world: World) -> None:
    network = world.have_network()
    world.box()
    (own,) = world.controller.network_endpoints(NET.id)
    address = own.addresses[0]
    world.globals.follow({NET.id})
    lose_lease(world)
    with pytest.raises(Forbidden, match=f"{address} of network net is held by endpoint {own.id[:12]} on this node"):
        world.box("asks", ipv4=address)
    assert address not in world.session.taken
    assert world.globals.take(network, EndpointId("e2"), EndpointSpec()).ipv4 == SUBNET[3]


def test_a_peer_that_left_is_gone_although_its_node_answers(world: World) -> None:
    world.have_network()
    world.box()
    world.session.known[NET.id][EndpointId("e1")] = remote("b", 9)
    world.globals.follow({NET.id})
    world.there.add(IPv4Address("10.0.0.2"))
    del world.session.known[NET.id][EndpointId("e1")]
    world.globals.follow({NET.id})
    assert world.globals.peers(NET.id) == []


def test_a_network_that_was_removed_while_it_has_endpoints_here_waits_for_them(world: World) -> None:
    world.have_network()
    world.box()
    world.session.there.clear()
    world.globals.follow(None)
    assert world.names() == {"net"}
    assert "was removed while this node was away" in next(iter(world.globals.problems().values()))
    world.controller.remove_sandbox("web", force=True)
    world.globals.follow(None)
    assert world.names() == set()


def test_what_left_while_the_cluster_was_told_of_it_is_taken_back(world: World) -> None:
    world.have_network()
    world.box()
    told = world.globals.own()
    world.controller.remove_sandbox("web", force=True)
    ((id_, endpoint),) = told[NET.id].items()
    world.session.publish(NET.id, EndpointId(id_), endpoint)
    world.globals.withdraw_gone(told)
    assert world.session.known[NET.id] == {}


def test_what_the_cluster_has_otherwise_is_named(world: World) -> None:
    network = world.have_network()
    world.box()
    assert world.globals.unknown(network) == []
    (id_,) = world.session.known[NET.id]
    world.session.known[NET.id] = {EndpointId("f" * 64): remote("a", 30)}
    assert world.globals.unknown(network) == [
        f"endpoint {'f' * 12} is in the cluster and not here",
        f"endpoint {id_[:12]} is not in the cluster",
    ]


def test_usage_counts_the_whole_cluster(world: World) -> None:
    network = world.have_network()
    world.box()
    world.session.known[NET.id][EndpointId("e1")] = remote("b", 9)
    assert world.controller.pool_usage(network) == {str(SUBNET): (3, 251)}


def test_a_network_cannot_be_an_engine_s(world: World) -> None:
    with pytest.raises(NotImplementedByDriver, match="not available to a container engine"):
        world.controller.remote.create_network(
            NetworkId("d" * 64), NetworkSpec(name="net", driver="overlay", pools=(PoolSpec(subnet=SUBNET),))
        )


def test_nodes_that_are_not_known_have_no_peers(world: World) -> None:
    world.have_network()
    world.box()
    world.session.known[NET.id][EndpointId("e1")] = remote("z", 9)
    assert world.globals.peers(NET.id) == []
    world.session.members["z"] = node("z", 26)
    assert [peer.node for peer in world.globals.peers(NET.id) or ()] == [IPv4Address("10.0.0.26")]
