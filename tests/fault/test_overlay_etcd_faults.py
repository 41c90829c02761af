"""etcd's leader dies, all of etcd goes and comes back, a node is cut off from it: flows go on, and new state waits."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.agreement_overlay import differences, wait_for_agreement
from tests.etcd_server import leader
from tests.hosts import wait_for
from tests.nodes import ETCD, Cluster, Node, cluster, unbroken
from tests.traffic import Station

pytestmark = pytest.mark.root

ANSWERS = 200
"""What a flow goes on for, at 100 requests a second, to have lived through something."""
WAITING = "waiting for etcd: "
OUTAGE_S = 60
"""Several times what a lease lives."""


class Segment:
    """A network with a sandbox on each node, and all ways between these."""

    def __init__(self, nodes: Cluster) -> None:
        self.id = nodes.create("far", EnableIPv6=True)
        self.boxes: list[Station] = [node.box(f"box-{node.name}", "far") for node in nodes]
        self.ways = [(a, address) for a in self.boxes for b in self.boxes if a is not b for address in (b.ip4, b.ip6)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2, members=3) as made:
        yield made


@pytest.fixture
def segment(nodes: Cluster) -> Iterator[Segment]:
    made = Segment(nodes)
    wait_for_agreement(nodes)
    yield made
    nodes.wait_until_synchronized()
    nodes.clear()
    wait_for_agreement(nodes)


def is_waiting(node: Node) -> bool:
    return node.cluster_state().startswith(WAITING)


@contextmanager
def flowing(segment: Segment) -> Iterator[None]:
    """Not one request on any way may be lost in the block, nor in a while after it."""
    with unbroken(*segment.ways) as flows:
        for flow in flows:
            flow.go_on(10)
        yield
        for flow in flows:
            flow.go_on(ANSWERS)


def new_state_waits_and_says_so(node: Node) -> None:
    """An overlay network, and an endpoint on one that is there, are refused with a reason; a local one is made."""
    refused = [
        node.ask("POST", "/networks/create", {"Name": "new", "Driver": "overlay"}, timeout=60),
        node.ask("POST", "/linkspan/sandboxes", {"Name": "new", "Networks": [{"Network": "far"}]}, timeout=60),
    ]
    for reply in refused:
        assert reply.status in (503, 504), reply
        assert "etcd" in reply.message
    assert node.ask("POST", "/networks/create", {"Name": "near"}).status == 201
    node.box("local", "near")
    node.linkspan("rm", "-f", "local")
    node.linkspan("network", "rm", "near")


def test_the_leader_is_killed(nodes: Cluster, segment: Segment) -> None:
    with flowing(segment):
        killed = leader(nodes.etcd)
        killed.stop(signal.SIGKILL)
        nodes.create("meanwhile")
        other = nodes[0].box("other", "meanwhile")
        assert other.pings(nodes[1].box("there", "meanwhile").ip4)
        wait_for_agreement(nodes)
        killed.start()
    wait_for_agreement(nodes)


def test_all_of_etcd_is_gone_and_comes_back(nodes: Cluster, segment: Segment) -> None:
    with flowing(segment):
        begin = time.monotonic()
        for member in nodes.etcd:
            member.stop(signal.SIGKILL)
        nodes.wait(is_waiting, "every node to say that it waits for etcd")
        for node in nodes:
            new_state_waits_and_says_so(node)
            assert set(node.networks()) == {"far"}
        time.sleep(max(0.0, begin + OUTAGE_S - time.monotonic()))
        for member in nodes.etcd:
            member.start(wait=False)
        nodes.wait_until_synchronized()
        wait_for_agreement(nodes)
    assert nodes[0].box("after", "far").pings(segment.boxes[1].ip4)


def test_linkspand_starts_without_etcd_and_its_flows_go_on(nodes: Cluster, segment: Segment) -> None:
    one = nodes[0]
    with flowing(segment):
        for member in nodes.etcd:
            member.stop(signal.SIGKILL)
        one.stop(signal.SIGKILL)
        one.start()
        wait_for(lambda: is_waiting(one), "the node to say that it waits for etcd")
        assert "far" in one.networks()
        for member in nodes.etcd:
            member.start(wait=False)
        nodes.wait_until_synchronized()
    wait_for_agreement(nodes)


def test_a_node_is_cut_off_from_etcd_but_not_from_its_peers(nodes: Cluster, segment: Segment) -> None:
    """Its lease ends, but it answers its peers: they keep what they have of it until it is back."""
    cut_off, other = nodes
    with flowing(segment):
        with nodes.underlay.cut(cut_off.name, ETCD):
            wait_for(lambda: is_waiting(cut_off), "the node to say that it waits for etcd")
            new_state_waits_and_says_so(cut_off)
            wait_for(lambda: other.nodes().get(cut_off.name) == "lost", "the other node to take it for lost")
            assert other.ask("POST", "/networks/create", {"Name": "meanwhile", "Driver": "overlay"}).status == 201
            assert set(cut_off.networks()) == {"far"}
        nodes.wait_until_synchronized()
        assert set(cut_off.networks()) == {"far", "meanwhile"}
        wait_for_agreement(nodes)


def test_a_node_is_cut_off_from_its_peers_but_not_from_etcd(nodes: Cluster, segment: Segment) -> None:
    """Nobody takes it for lost: its records are there, and so its peers' entries stay for when the cable is mended."""
    one, other = nodes
    with nodes.underlay.cut(one.name, other.name):
        assert not segment.boxes[0].pings(segment.boxes[1].ip4, wait_s=0.3)
        late = one.box("late", "far")
        wait_for_agreement(nodes)
        assert one.nodes() == {one.name: "ready", other.name: "ready"}
    assert segment.boxes[1].pings(late.ip4)
    with flowing(segment):
        pass
    assert differences(nodes) == []


def test_a_short_cut_from_etcd_loses_nothing(nodes: Cluster, segment: Segment) -> None:
    cut_off, other = nodes
    with flowing(segment), nodes.underlay.cut(cut_off.name, ETCD), ThreadPoolExecutor(1) as pool:
        wait_for(lambda: is_waiting(cut_off), "the node to say that it waits for etcd")
        late = pool.submit(other.box, "late", "far").result()
    nodes.wait_until_synchronized()
    wait_for_agreement(nodes)
    assert segment.boxes[0].pings(late.ip4)
