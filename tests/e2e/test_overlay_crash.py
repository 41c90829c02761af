"""Killed at any step on a node of a cluster, linkspand has endpoints whole or not at all after its next start, and so
have etcd and the other nodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.agreement_overlay import wait_for_agreement
from tests.api_server import Reply
from tests.e2e.fragile import FragileHost
from tests.hosts import wait_for
from tests.nodes import Cluster, Node, cluster
from tests.traffic import Station

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

FAR = {"Name": "far", "Driver": "overlay", "EnableIPv6": True}
"""A peer is on it, on the other node."""
NEXT = {"Name": "next", "Driver": "overlay"}


class FragileNode(Node, FragileHost):
    """A node whose linkspand dies when it is told to."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2, kind=FragileNode) as made:
        made.create("far", EnableIPv6=True)
        made[1].sandbox("peer", "far")
        fragile(made).stop()
        fragile(made).start_fragile()
        yield made


def fragile(nodes: Cluster) -> FragileNode:
    node = nodes[0]
    assert isinstance(node, FragileNode)
    return node


def ensure(node: Node, *, network: bool = False, box: bool = False, joined: bool = False) -> None:
    """Brings about exactly this, without being killed."""
    if not box:
        assert node.ask("DELETE", "/linkspan/sandboxes/box?force=1").status in (204, 404)
    if network:
        assert node.ask("POST", "/networks/create", NEXT).status in (201, 409)
    else:
        assert node.ask("DELETE", "/networks/next").status in (204, 404)
    if box and node.ask("GET", "/linkspan/sandboxes/box").status == 404:
        assert create_box(node).status == 201
    if joined and "next" not in node.ask("GET", "/linkspan/sandboxes/box").json["Networks"]:
        assert connect(node).status == 200


def create_box(node: Node) -> Reply:
    return node.ask("POST", "/linkspan/sandboxes", {"Name": "box", "Networks": [{"Network": "far"}]})


def connect(node: Node) -> Reply:
    return node.ask("POST", "/networks/next/connect", {"Container": "box"})


def disconnect(node: Node) -> Reply:
    return node.ask("POST", "/networks/next/disconnect", {"Container": "box"})


def remove_box(node: Node) -> Reply:
    return node.ask("DELETE", "/linkspan/sandboxes/box")


CASES: dict[str, tuple[str, dict[str, bool], Callable[[Node], Reply]]] = {
    "sandbox create": ("apply", {}, create_box),
    "connect": ("apply", {"network": True, "box": True}, connect),
    "disconnect": ("revert", {"network": True, "box": True, "joined": True}, disconnect),
    "sandbox rm": ("revert", {"box": True}, remove_box),
}
"""Networks are made and removed in etcd alone, by one transaction, so there is no step to be killed at."""


def assert_whole(nodes: Cluster) -> None:
    """Fails unless etcd, the API and the kernels of both nodes hold the same, and packets pass."""
    node = nodes[0]
    wait_for(lambda: node.cluster_state() == "synchronized", "the node to be back")
    wait_for_agreement(nodes)
    sandboxes = {each["Name"]: each for each in node.ask("GET", "/linkspan/sandboxes?all=1").json}
    if "far" in sandboxes.get("box", {}).get("Networks", {}):
        peer = Station(nodes[1], "peer", "far")
        for address in (peer.ip4, peer.ip6):
            assert Station(node, "box", "far").pings(address)


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_step_the_next_start_has_it_whole_or_gone(nodes: Cluster, name: str) -> None:
    phase, before, change = CASES[name]
    node = fragile(nodes)
    for number in count(1):
        ensure(node)
        ensure(node, **before)
        is_through = node.gets_through(change, phase, number, "after")
        assert_whole(nodes)
        if is_through:
            assert number > 3, "there are at least three steps"
            return
