"""Nodes that die and return, clocks that differ, endpoints that move all the time: afterwards all agree with etcd."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.agreement_overlay import stored, wait_for_agreement
from tests.hosts import wait_for
from tests.nodes import Cluster, Node, cluster, unbroken
from tests.traffic import Station

pytestmark = pytest.mark.root

MOVES = int(os.environ.get("LINKSPAN_TESTS_MOVES", "40"))
"""The issue's are 1000."""
MOVES_PER_MINUTE = 200
HOUR_S = 3600


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """The second node's clock is an hour ahead, the third's an hour behind: leases are etcd's to time."""
    with cluster(3, clocks={2: HOUR_S, 3: -HOUR_S}) as made:
        yield made


@pytest.fixture(autouse=True)
def cleared(nodes: Cluster) -> Iterator[None]:
    yield
    nodes.wait_until_synchronized()
    nodes.clear()
    wait_for_agreement(nodes)


def endpoints_by_node(nodes: Cluster) -> dict[str, int]:
    found = [each.node for each in stored(nodes.etcd[0]).endpoints]
    return {node.name: found.count(node.name) for node in nodes}


def test_nodes_with_clocks_two_hours_apart_agree(nodes: Cluster) -> None:
    nodes.create("far", on=1)
    boxes = [node.box(f"box-{node.name}", "far") for node in nodes]
    with unbroken(*((a, b.ip4) for a in boxes for b in boxes if a is not b)) as flows:
        for flow in flows:
            flow.go_on(100)
    wait_for_agreement(nodes)
    assert all(set(node.nodes().values()) == {"ready"} for node in nodes)


def test_of_a_node_that_dies_nothing_is_left_and_it_returns_with_its_name(nodes: Cluster) -> None:
    nodes.create("far")
    boxes = [node.box(f"box-{node.name}", "far") for node in nodes]
    first, _, last = boxes
    wait_for_agreement(nodes)
    dead = nodes[1]
    others = [nodes[0], nodes[2]]
    with unbroken((first, last.ip4), (last, first.ip4)):
        dead.power_off()
        wait_for(lambda: endpoints_by_node(nodes)[dead.name] == 0, "its records to expire with its lease")
        wait_for_agreement(nodes, others)
        assert all(node.nodes().get(dead.name) != "ready" for node in others)
        dead.power_on()
        dead.start()
        nodes.wait_until_synchronized()
        wait_for(lambda: endpoints_by_node(nodes)[dead.name] == 1, "the sandbox without a process to be back")
        wait_for_agreement(nodes)
    back = Station(dead, "box-n2")
    assert back.ip4 == boxes[1].ip4
    assert first.pings(back.ip4)


def test_killed_and_started_again_linkspand_costs_no_packet(nodes: Cluster) -> None:
    """It is back before its lease ends, and goes on with that."""
    nodes.create("far")
    boxes = [node.box(f"box-{node.name}", "far") for node in nodes]
    with unbroken(*((a, b.ip4) for a in boxes for b in boxes if a is not b)) as flows:
        for node in nodes:
            node.stop(9)
            node.start()
            flows[0].go_on(50)
        nodes.wait_until_synchronized()
        wait_for_agreement(nodes)


def test_a_node_that_leaves_takes_everything_with_it_and_can_come_again(nodes: Cluster) -> None:
    nodes.create("far")
    nodes[0].box("stays", "far")
    leaving = nodes[2]
    leaving.box("goes", "far")
    refused = leaving.linkspan("cluster", "leave", check=False)
    assert refused.returncode == 1
    assert "far" in refused.stderr
    leaving.linkspan("rm", "-f", "goes")
    leaving.linkspan("cluster", "leave")
    assert leaving.cluster_state() == "not joined"
    assert leaving.networks() == {}
    wait_for(lambda: leaving.name not in nodes[0].nodes(), "the others to forget it")
    leaving.join(nodes.urls)
    nodes.wait_until_synchronized()
    assert set(leaving.networks()) == {"far"}


def test_endpoints_that_move_all_the_time_leave_nothing_behind(nodes: Cluster) -> None:
    """Each move takes an endpoint, with its address, from one node to another; those that stay lose no packet."""
    nodes.create("far", IPAM={"Config": [{"Subnet": "10.70.0.0/24"}]})
    stays = [node.box(f"stays-{node.name}", "far") for node in nodes]
    movers = {f"mover{number}": nodes[number % 3] for number in range(6)}
    addresses = {name: f"10.70.0.{100 + number}" for number, name in enumerate(movers)}
    for name, node in movers.items():
        move(node, name, addresses[name])
    choices = random.Random(1)
    with unbroken((stays[0], stays[1].ip4), (stays[1], stays[2].ip4)):
        begin = time.monotonic()
        for number in range(MOVES):
            name = choices.choice(sorted(movers))
            movers[name].api("DELETE", f"/linkspan/sandboxes/{name}?force=1")
            movers[name] = choices.choice([node for node in nodes if node is not movers[name]])
            move(movers[name], name, addresses[name])
            behind_s = begin + (number + 1) * 60 / MOVES_PER_MINUTE - time.monotonic()
            time.sleep(max(0.0, behind_s))
        wait_for_agreement(nodes)
    for name, node in movers.items():
        assert Station(node, name).ip4 == addresses[name]
        assert all(each.pings(addresses[name]) for each in stays)


def move(node: Node, name: str, address: str) -> None:
    node.box(name, "far", IPAMConfig={"IPv4Address": address})
