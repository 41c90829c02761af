"""Overlay networks over three nodes: known everywhere, built where needed, one segment for all that are on them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from subprocess import DEVNULL, Popen

import pytest

from tests.agreement_overlay import differences, stored, wait_for_agreement
from tests.hosts import wait_for
from tests.netns.test_tcp_rtt import chat, of
from tests.nodes import Cluster, Node, cluster, unbroken
from tests.traffic import Station, is_v6, tallies, tcp_pair, udp_echo

pytestmark = pytest.mark.root

BOTH = {"EnableIPv6": True}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(3) as made:
        yield made


@pytest.fixture(autouse=True)
def cleared(nodes: Cluster) -> Iterator[None]:
    yield
    nodes.clear()
    wait_for_agreement(nodes)


def listed(node: Node) -> dict[str, tuple[str, str]]:
    """(driver, scope) of every network by name, as `network ls` prints them."""
    rows = [line.split() for line in node.linkspan("network", "ls").stdout.splitlines()[1:]]
    return {name: (driver, scope) for _, name, driver, scope in rows}


def built(node: Node) -> set[str]:
    """The devices of overlay networks on the node."""
    return {link["ifname"] for link in node.ip("link") if re.match("l[ox]-", link["ifname"])}


def reached(boxes: list[Station], version: int) -> set[tuple[str, str]]:
    """Who answers whom; all ask at once."""
    asked: dict[tuple[str, str], Popen[bytes]] = {}
    for one, other in permutations(boxes, 2):
        target = other.ip4 if version == 4 else other.ip6
        asked[one.name, other.name] = Popen(one.command("ping", "-n", "-c1", "-W3", target), stdout=DEVNULL)
    return {pair for pair, ping in asked.items() if ping.wait() == 0}


def test_a_network_is_known_on_every_node_at_once_and_exists_on_none(nodes: Cluster) -> None:
    nodes.create("far", on=1)
    for node in nodes:
        shown = listed(node)
        assert shown["far"] == shown["ingress"] == ("overlay", "global")
        assert shown["bridge"] == ("bridge", "local")
        assert built(node) == set()
    nodes.remove("far", on=2)
    assert all("far" not in listed(node) for node in nodes)


def test_a_node_builds_a_network_with_its_first_endpoint_and_drops_it_with_its_last(nodes: Cluster) -> None:
    id_ = nodes.create("far")
    devices = {f"lo-{id_[:12]}", f"lx-{id_[:12]}"}
    one, other, third = nodes
    first = one.box("first", "far")
    assert (built(one), built(other)) == (devices, set())
    second = other.box("second", "far")
    other.box("more", "far")
    assert first.pings(second.ip4)
    wait_for_agreement(nodes)
    assert built(third) == set()

    other.linkspan("rm", "-f", "second")
    assert built(other) == devices
    other.linkspan("rm", "-f", "more")
    assert built(other) == set()
    wait_for_agreement(nodes)
    assert built(one) == devices
    assert not first.pings(second.ip4, wait_s=0.3)


@pytest.mark.parametrize("accel", ["on", "off"])
@pytest.mark.parametrize("direct", ["on", "off"])
def test_everybody_reaches_everybody_in_both_families(nodes: Cluster, accel: str, direct: str) -> None:
    nodes.create("far", **BOTH, Options={"linkspan.accel": accel, "linkspan.direct": direct})
    boxes = [node.box(f"{node.name}-{letter}", "far") for node in nodes for letter in "ab"]
    everybody = set(permutations((box.name for box in boxes), 2))
    assert reached(boxes, 4) == everybody
    assert reached(boxes, 6) == everybody
    wait_for_agreement(nodes)
    here, _, there, *_ = boxes
    before = tallies(here.host, here.name)
    for address in (there.ip4, there.ip6):
        udp_echo(here, there, address, b"to and fro", times=50)
        with tcp_pair(here, there, address) as (client, server):
            client.sendall(b"to and fro")
            assert server.recv(64) == b"to and fro"
    fast = ("packets", "out", "fast")
    assert (tallies(here.host, here.name).get(fast, 0) - before.get(fast, 0) >= 100) == (accel == "on")


def test_names_resolve_across_nodes_and_follow_who_comes_and_goes(nodes: Cluster) -> None:
    nodes.create("far")
    one, other, _ = nodes
    one.linkspan("run", "-d", "--net", "far", "--name", "asks", "--", "sleep", "600")
    there = other.box("answers", "far", Aliases=["alias"])

    def hosts() -> str:
        return one.linkspan("exec", "asks", "cat", "/etc/hosts").stdout

    wait_for(lambda: f"{there.ip4}\tanswers alias\n" in hosts(), "the name to be known on the other node")
    for name in ("answers", "alias"):
        assert f"({there.ip4})" in one.linkspan("exec", "asks", "ping", "-c1", "-W3", name).stdout
    other.linkspan("rm", "-f", "answers")
    wait_for(lambda: "answers" not in hosts(), "the name to be forgotten")


def test_nodes_that_ask_at_once_never_get_the_same_address(nodes: Cluster) -> None:
    id_ = nodes.create("far", IPAM={"Config": [{"Subnet": "10.44.0.0/26"}]})
    names = [f"box{number}" for number in range(12)]
    with ThreadPoolExecutor(len(names) * 3) as pool:
        pending = [
            pool.submit(node.ask, "POST", "/linkspan/sandboxes", {"Name": name, "Networks": [{"Network": "far"}]})
            for name in names
            for node in nodes
        ]
    replies = [each.result() for each in pending]
    assert {reply.status for reply in replies} == {201}
    addresses = [reply.json["Networks"]["far"]["IPAddress"] for reply in replies]
    assert len(set(addresses)) == len(names) * 3
    wait_for_agreement(nodes)
    assert {address for network_id, address, _ in stored(nodes.etcd[0]).taken if network_id == id_} >= set(addresses)


def test_an_address_that_is_had_on_another_node_is_refused(nodes: Cluster) -> None:
    nodes.create("far", IPAM={"Config": [{"Subnet": "10.44.0.0/24"}]})
    one, other, _ = nodes
    wanted = {"IPAMConfig": {"IPv4Address": "10.44.0.44"}}
    one.box("first", "far", **wanted)
    refused = other.ask("POST", "/linkspan/sandboxes", {"Name": "second", "Networks": [{"Network": "far", **wanted}]})
    assert refused.status in (403, 409)
    assert "10.44.0.44" in refused.message
    one.linkspan("rm", "-f", "first")
    assert other.box("second", "far", **wanted).ip4 == "10.44.0.44"


def test_of_two_nodes_that_make_the_same_at_once_one_does(nodes: Cluster) -> None:
    bodies = (
        [{"Name": "same", "Driver": "overlay"}] * 3,
        [
            {"Name": f"subnet{number}", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.55.0.0/16"}]}}
            for number in range(3)
        ],
        [{"Name": f"vni{number}", "Driver": "overlay", "Options": {"linkspan.vni": "5555"}} for number in range(3)],
    )
    with ThreadPoolExecutor(3) as pool:
        for each in bodies:
            replies = list(pool.map(lambda node, body: node.ask("POST", "/networks/create", body), nodes, each))
            statuses = sorted(reply.status for reply in replies)
            assert statuses[0] == 201
            assert set(statuses[1:]) <= {403, 409}
            assert all(reply.message for reply in replies if reply.status != 201)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"Name": "first"}, "first"),
        ({"Name": "other", "IPAM": {"Config": [{"Subnet": "10.66.128.0/24"}]}}, "10.66.0.0/16"),
        ({"Name": "other", "Options": {"linkspan.vni": "6666"}}, "6666"),
    ],
)
def test_what_another_node_has_made_is_in_use_here(nodes: Cluster, body: dict[str, object], named: str) -> None:
    nodes.create("first", IPAM={"Config": [{"Subnet": "10.66.0.0/16"}]}, Options={"linkspan.vni": "6666"})
    refused = nodes[1].ask("POST", "/networks/create", {"Driver": "overlay", **body})
    assert refused.status in (403, 409)
    assert named in refused.message
    assert set(nodes[1].networks()) == {"first"}


def test_a_network_is_not_removed_while_another_node_has_endpoints_there(nodes: Cluster) -> None:
    nodes.create("far")
    nodes[1].box("there", "far")
    wait_for_agreement(nodes)
    refused = nodes[0].linkspan("network", "rm", "far", check=False)
    assert refused.returncode == 1
    assert "far" in refused.stderr
    assert "n2" in refused.stderr
    nodes[1].linkspan("rm", "-f", "there")
    nodes.remove("far")


def test_the_devices_fit_the_underlay(nodes: Cluster) -> None:
    nodes.create("far", **BOTH, Options={"linkspan.direct": "off"})
    a, b = nodes[0].box("a", "far"), nodes[1].box("b", "far")
    mtu = nodes.underlay.mtu - 50  # outer Ethernet, IPv4, UDP, VXLAN; RFC 7348, section 4.3
    assert a.link()["mtu"] == mtu
    for address in (b.ip4, b.ip6):
        fits = mtu - (48 if is_v6(address) else 28)
        assert a.pings(address, "-M", "do", "-s", str(fits))
        assert not a.pings(address, "-M", "do", "-s", str(fits + 1), wait_s=0.3)


def test_what_is_for_everybody_goes_to_the_nodes_that_have_endpoints(nodes: Cluster) -> None:
    nodes.create("far", Options={"linkspan.direct": "off"})
    a, b = nodes[0].box("a", "far"), nodes[1].box("b", "far")
    mark, end = b"for everybody here", b"and nothing after"
    with nodes[2].uplink.wire() as elsewhere, b.wire() as there, nodes[0].uplink.wire() as own:
        with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(mark, ("255.255.255.255", 9))
        assert len([frame for frame in there.frames_until(mark) if mark in frame]) == 1
        with nodes[1].uplink.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for node in (nodes[0], nodes[2]):
                sender.sendto(end, (node.advertise, 9))
        assert not any(mark in frame for frame in elsewhere.frames_until(end))
        assert not any(mark in frame for frame in own.frames_until(end))  # nor does it come back


def test_local_networks_know_nothing_of_it(nodes: Cluster) -> None:
    one = nodes[0]
    for node in nodes:
        node.linkspan("network", "create", "--subnet", "10.9.0.0/24", "near")
    near = [one.box(name, "near") for name in ("x", "y")]
    with unbroken((near[0], near[1].ip4)):
        nodes.create("far")
        for node in nodes:
            node.box("far-box", "far")
        assert not near[0].pings(Station(one, "far-box").ip4, wait_s=0.3)
        wait_for_agreement(nodes)


def test_what_somebody_has_broken_is_said_and_mended(nodes: Cluster) -> None:
    id_ = nodes.create("far")
    a, b = nodes[0].box("a", "far"), nodes[1].box("b", "far")
    wait_for_agreement(nodes)
    assert nodes[0].api("GET", "/linkspan/cluster/check") == []
    device, bridge = f"lx-{id_[:12]}", f"lo-{id_[:12]}"
    nodes[0].run("bridge", "fdb", "del", b.mac, "dev", device, "dst", nodes[1].advertise)
    nodes[0].run("ip", "neigh", "del", b.ip4, "dev", bridge)
    assert len(differences(nodes)) == 2
    found = nodes[0].linkspan("doctor", "--cluster", check=False)
    assert found.returncode == 1
    assert b.mac in found.stdout
    nodes[0].linkspan("doctor", "--cluster", "--mend", check=False)
    assert differences(nodes) == []
    assert a.pings(b.ip4)


@pytest.mark.parametrize("version", [4, 6])
def test_connections_between_nodes_have_their_round_trips_timed_at_both_ends(nodes: Cluster, version: int) -> None:
    nodes.create("far", **BOTH)
    a, b, other = nodes[0].box("a", "far"), nodes[1].box("b", "far"), nodes[1].box("other", "far")
    chat(a, b, b.ip4 if version == 4 else b.ip6)
    for station in (a, b):
        assert of(station).count > 0
        assert 1e-6 < of(station).mean_s < 1
    assert of(other).count == 0
