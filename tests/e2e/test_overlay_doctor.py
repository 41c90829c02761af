"""What doctor finds on a node of a cluster: programs of the uplink, MTU of the underlay, firewalls in the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.agreement_overlay import wait_for_agreement
from tests.nodes import Cluster, Node, cluster
from tests.traffic import Station
from tests.underlay import UPLINK

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2) as made:
        yield made
        made.clear()


@pytest.fixture(scope="module")
def boxes(nodes: Cluster) -> tuple[Station, Station]:
    nodes.create("far")
    made = nodes[0].box("a", "far"), nodes[1].box("b", "far")
    wait_for_agreement(nodes)
    return made


def findings(node: Node) -> dict[str, Any]:
    """All but notes, by code."""
    found = node.api("GET", "/linkspan/doctor")["findings"]
    return {each["code"]: each for each in found if each["severity"] != "note"}


def test_nothing_is_wrong_on_a_healthy_node(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    assert findings(nodes[0]) == {}


def test_the_uplinks_program_comes_back(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node = nodes[0]
    pins = node.run("find", str(node.bpffs / "linkspan/uplinks"), "-name", "*-in").stdout.split()
    if pins:
        for pin in pins:
            node.run("bpftool", "link", "detach", "pinned", pin)
    else:
        node.run("tc", "filter", "del", "dev", UPLINK, "ingress")
    assert findings(node)["program-missing"]["where"] == UPLINK
    node.api("POST", "/linkspan/doctor/mend")
    assert findings(node) == {}
    assert boxes[0].pings(boxes[1].ip4)


def test_a_peers_entry_that_was_removed_is_told_of(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node, (_, other) = nodes[0], boxes
    bridge = next(link["ifname"] for link in node.ip("link") if link["ifname"].startswith("lo-"))
    node.run("ip", "neigh", "del", other.ip4, "dev", bridge)
    assert findings(node)["peer-differs"]["mend"] == "linkspan doctor --cluster --mend"
    node.linkspan("doctor", "--cluster", "--mend")
    assert findings(node) == {}


def test_large_packets_that_vanish_on_the_way(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node, other = nodes
    rules = "add table inet hers\nadd chain inet hers c {{ type filter hook prerouting priority -400; }}\n"
    other.run("nft", "-f", "-", input=f"{rules.format()}add rule inet hers c meta length > 1400 drop")
    assert findings(node)["mtu-blackhole"]["where"] == f"node {other.advertise}"
    other.run("nft", "delete", "table", "inet", "hers")
    assert findings(node) == {}


def test_a_rule_that_drops_vxlan(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node = nodes[0]
    rules = "add table inet hers\nadd chain inet hers c { type filter hook input priority 0; }\n"
    node.run("nft", "-f", "-", input=f"{rules}add rule inet hers c udp dport 4789 drop")
    assert findings(node)["vxlan-port"]["severity"] == "error"
    node.run("nft", "delete", "table", "inet", "hers")
    assert findings(node) == {}
