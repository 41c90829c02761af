"""What doctor finds on a node of a cluster: programs of the uplink, MTU of the underlay, firewalls in the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.agreement_overlay import wait_for_agreement
from tests.hosts import wait_for
from tests.nodes import ETCD, Cluster, Node, cluster
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


def findings(node: Node, *, notes: bool = False) -> dict[str, Any]:
    """By code, without notes unless they are asked for."""
    found = node.api("GET", "/linkspan/doctor")["findings"]
    return {each["code"]: each for each in found if notes or each["severity"] != "note"}


def only(node: Node) -> tuple[str, str, str]:
    """(code, object, mend) of the one finding."""
    found = findings(node)
    assert len(found) == 1, found
    return next((each["code"], each["where"], each["mend"]) for each in found.values())


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


def test_an_uplink_that_has_become_too_narrow(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node = nodes[0]
    node.run("ip", "link", "set", UPLINK, "mtu", "1400")
    both = {"mtu-underlay", "mtu-uplink"}  # the host's own bridge has the same way out
    wait_for(lambda: set(findings(node)) == both, lambda: f"what the programs hold to follow: {findings(node)}")
    found = findings(node)
    assert found["mtu-underlay"]["where"] == UPLINK
    node.run(*found["mtu-underlay"]["mend"].split())
    wait_for(lambda: findings(node) == {}, "the ways to be looked up again")


def test_a_way_that_takes_less_than_the_uplink(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    """As the kernel knows it from who has told it, or here from a route. Ways are looked up every ten seconds, and what
    the programs hold of them then differs."""
    node, other = nodes
    way = (other.advertise, "dev", UPLINK, "mtu", "1400")
    node.run("ip", "route", "add", *way)
    wait_for(lambda: "mtu-path" in findings(node), "the way to be looked up")
    node.linkspan("doctor", "--cluster", "--mend")
    code, where, mend = only(node)
    assert (code, where) == ("mtu-path", f"node {other.advertise}")
    assert mend.startswith("raise the MTU on the way, or make the network with -o com.docker.network.driver.mtu=1350")
    node.run("ip", "route", "del", *way)
    for mtu in (1490, nodes.underlay.mtu):  # a change of the uplink, for which ways are looked up at once
        node.run("ip", "link", "set", UPLINK, "mtu", str(mtu))
    wait_for(lambda: not findings(node), "the way to be looked up again")


def test_a_strict_reverse_path_where_packets_come_without_vxlan(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node = nodes[0]
    nodes.create("near", Options={"linkspan.direct": "on"})
    node.box("c", "near")
    node.run("sysctl", "-qw", f"net.ipv4.conf.{UPLINK}.rp_filter=1")
    code, where, mend = only(node)
    assert (code, where) == ("rp-filter-strict", UPLINK)
    for command in mend.split("; "):
        node.run(*command.split())
    assert findings(node) == {}
    node.linkspan("rm", "-f", "c")
    nodes.remove("near")


def test_a_node_that_does_not_hear_its_cluster(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node = nodes[0]
    with nodes.underlay.cut(node.name, ETCD):
        wait_for(lambda: "cluster-unknown" in findings(node, notes=True), "the node to miss etcd")
        unknown = findings(node, notes=True)["cluster-unknown"]
        assert (unknown["severity"], unknown["where"], unknown["mend"]) == ("note", "cluster", "linkspan cluster info")
        assert node.linkspan(*unknown["mend"].split()[1:]).stdout
    nodes.wait_until_synchronized()
    assert "cluster-unknown" not in findings(node, notes=True)


def test_a_node_without_the_address_that_others_know(nodes: Cluster, boxes: tuple[Station, Station]) -> None:
    node = nodes[0]
    node.run("ip", "address", "del", f"{node.advertise}/24", "dev", UPLINK)
    code, where, mend = only(node)
    assert (code, where, mend) == ("underlay-gone", node.advertise, f"add {node.advertise} again")
    node.run("ip", "address", "add", f"{node.advertise}/24", "dev", UPLINK)
    nodes.wait_until_synchronized()
    assert findings(node) == {}
