"""`linkspan trace` on an overlay network: what it says of the outer headers is what then stands on the underlay, and
what it says of an arrival what then is counted where the packet was sent to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from tests.documented import examples, is_still_printed
from tests.hosts import ROOT, wait_for
from tests.nodes import Cluster, Node, cluster
from tests.traffic import Place, Station, growth, settled, tallies
from tests.underlay import UPLINK

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("trace-overlay")]

DOCUMENTED = examples(ROOT / "docs/trace.md")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2) as made:
        yield made


def trace(node: Node, *args: str) -> Any:
    return json.loads(node.linkspan("trace", "--json", *args, check=False).stdout)


def decision(found: Any, name: str) -> str:
    """What the steps say of a decision, "" where there was none of the kind."""
    return next((str(step["text"]) for step in found["steps"] if step["decision"] == name), "")


def test_a_packet_for_another_node_is_told_with_its_outer_headers(nodes: Cluster) -> None:
    nodes.create("over", IPAM={"Config": [{"Subnet": "10.91.0.0/24"}]})
    here, there = nodes
    a, b = here.box("oa", "over"), there.box("ob", "over")
    assert a.pings(b.ip4)
    vni = int(here.networks()["over"]["Options"]["com.docker.network.driver.overlay.vxlanid_list"])
    found = trace(here, "oa", "ob")
    assert (found["end"]["outcome"], found["end"]["path"]) == ("sent", "fast")
    assert f"leaves for n2 ({there.advertise})" in found["end"]["text"]
    [outer] = [step["text"] for step in found["steps"] if step["decision"] == "outer"]
    with there.uplink.wire() as wire:
        assert a.pings(b.ip4)
        frames = [Ether(frame) for frame in wire.until_idle()]
    sent = [frame for frame in frames if VXLAN in frame and IP in frame and frame[IP].src == here.advertise]
    assert {(frame[IP].dst, frame[UDP].dport, frame[VXLAN].vni) for frame in sent} == {(there.advertise, 4789, vni)}
    assert outer.startswith(f"outer headers: UDP from {here.advertise} port ")
    assert outer.endswith(f"to {there.advertise} port 4789, VNI {vni}")


def test_a_packet_without_programs_takes_the_kernel_s_vxlan(nodes: Cluster) -> None:
    nodes.create("slow", IPAM={"Config": [{"Subnet": "10.92.0.0/24"}]}, Options={"linkspan.accel": "off"})
    here, there = nodes
    a, b = here.box("sa", "slow"), there.box("sb", "slow")
    assert a.pings(b.ip4)
    found = trace(here, "sa", b.ip4)
    assert (found["end"]["outcome"], found["end"]["path"]) == ("sent", "slow")
    assert f"leaves for n2 ({there.advertise}) in VXLAN by" in found["end"]["text"]
    assert {"no_program", "fdb", "vxlan", "route"} <= {step["decision"] for step in found["steps"]}


def test_a_direct_packet_is_told_as_such_and_one_in_vxlan_why_it_is_not(nodes: Cluster) -> None:
    here, there = nodes
    nodes.create("near", IPAM={"Config": [{"Subnet": "10.93.0.0/24"}]}, Options={"linkspan.direct": "on"})
    a, b = here.box("na", "near"), there.box("nb", "near")
    assert a.pings(b.ip4)
    first = trace(here, "na", "nb")
    if decision(first, "vxlan"):  # until the other node is sure to know the sender
        assert "may not have heard of the sender yet" in decision(first, "not_direct")
    found = wait_for(lambda: found if decision(found := trace(here, "na", "nb"), "direct") else None, "direct packets")
    assert not decision(found, "vxlan")
    assert f"without VXLAN by {UPLINK}" in found["end"]["text"]
    mac = re.search(r"the node with MAC (\S+) without", found["end"]["text"])
    assert mac is not None
    with there.uplink.wire() as wire:
        assert a.pings(b.ip4)
        frames = [Ether(frame) for frame in wire.until_idle()]
    assert {frame.dst for frame in frames if IP in frame and frame[IP].dst == b.ip4} == {mac[1]}
    forged = trace(here, "na", "nb", "--from-ip", "10.93.0.77")
    assert forged["end"]["outcome"] == "dropped"


# -- arrivals --------------------------------------------------------------------------------------------------------


def pair(nodes: Cluster, network: str, subnet: str, **options: str) -> tuple[Station, Station]:
    """A sandbox on the first node and one on the second, both on a new network."""
    nodes.create(network, IPAM={"Config": [{"Subnet": subnet}]}, Options=options)
    here, there = nodes
    a, b = here.box(f"{network}-a", network), there.box(f"{network}-b", network)
    assert a.pings(b.ip4)
    return a, b


def arrival(a: Station, b: Station, *args: str) -> Any:
    """The trace of a packet from `a` on the node of `b`."""
    assert isinstance(b.host, Node)
    return trace(b.host, a.name, b.name, *args)


def test_a_packet_arrives_by_the_path_that_pings_then_are_counted_on(nodes: Cluster) -> None:
    a, b = pair(nodes, "in", "10.96.0.0/24")
    found = arrival(a, b)
    assert found["packet"] == f"icmp from in-a ({a.ip4}), of another node, to in-b ({b.ip4})"
    assert found["end"] == {"outcome": "delivered", "path": "fast", "text": "arrives at eth0 of in-b (fast path)"}
    by_program = [step["decision"] for step in found["steps"] if step["by"] == "ls_uplink_in"]
    assert by_program == ["segment", "node", "fdb", "from_peer", "redirect_peer"]
    assert trace(nodes[1], a.ip4, b.ip4, "--proto", "tcp")["end"] == found["end"]
    before = settled(lambda: tallies(nodes[1], b.name), "all to be quiet")
    with nodes[1].uplink.wire() as wire:
        assert a.pings(b.ip4, "-c5", "-i0.01")
        frames = [Ether(frame) for frame in wire.until_idle()]
    grown = growth(before, tallies(nodes[1], b.name))
    assert grown["packets", "in", "fast"] >= 5
    assert ("packets", "in", "slow") not in grown
    outer = next(frame for frame in frames if VXLAN in frame and frame[IP].src == nodes[0].advertise)
    ends = f"UDP from {outer[IP].src} port 49152 (for the flow's) to {outer[IP].dst} port {outer[UDP].dport}"
    assert f"{ends}, VNI {outer[VXLAN].vni}" in decision(found, "arrival")
    assert 49152 <= outer[UDP].sport <= 65535


def test_what_is_forged_is_dropped_or_left_to_the_kernel_as_told(nodes: Cluster) -> None:
    """The forger sits on the first node, and writes what he likes into a packet in VXLAN."""
    a, b = pair(nodes, "forged", "10.97.0.0/24")
    here, there = nodes
    vni = int(here.networks()["forged"]["Options"]["com.docker.network.driver.overlay.vxlanid_list"])
    outer = Ether(src=here.uplink.mac, dst=there.uplink.mac) / IP(src=here.advertise, dst=there.advertise)
    for mac, outcome, path, counter in (
        (b.mac, "dropped", "", ("drops", "spoofed_peer")),
        ("02:00:00:00:00:09", "delivered", "slow", ("packets", "in", "slow")),
    ):
        found = arrival(a, b, "--from-mac", mac)
        assert (found["end"]["outcome"], found["end"]["path"]) == (outcome, path)
        inner = Ether(src=mac, dst=b.mac) / IP(src=a.ip4, dst=b.ip4) / ICMP()
        before = settled(lambda: tallies(there, b.name), "all to be quiet")
        with here.uplink.wire() as wire:
            wire.send(outer / UDP(sport=50000, chksum=0) / VXLAN(vni=vni, flags=8) / inner)
        wait_for(
            lambda b=before, c=counter: growth(b, tallies(there, "forged-b")).get(c) == 1,  # type: ignore[misc]
            f"one packet from {mac} to be counted as {counter}",
        )


def test_without_the_program_the_kernel_takes_it_in(nodes: Cluster) -> None:
    a, b = pair(nodes, "bare", "10.98.0.0/24")
    there = nodes[1]
    pins = there.run("find", str(there.bpffs / "linkspan/uplinks"), "-name", "*-in").stdout.split()
    if pins:
        there.run("bpftool", "link", "detach", "pinned", pins[0])
    else:
        there.run("tc", "filter", "del", "dev", UPLINK, "ingress")
    found = arrival(a, b)
    assert decision(found, "not_attached").startswith("ls_uplink_in is not attached to its ingress: the kernel's path")
    assert found["end"] == {"outcome": "delivered", "path": "slow", "text": "arrives at eth0 of bare-b (slow path)"}
    before = settled(lambda: tallies(there, b.name), "all to be quiet")
    assert a.pings(b.ip4, "-c5", "-i0.01")
    grown = growth(before, tallies(there, b.name))
    assert grown["packets", "in", "slow"] >= 5
    assert ("packets", "in", "fast") not in grown
    there.linkspan("doctor", "--mend")
    assert arrival(a, b)["end"]["path"] == "fast"


def test_without_programs_it_comes_by_the_devices_that_are_named(nodes: Cluster) -> None:
    a, b = pair(nodes, "off", "10.99.0.0/24", **{"linkspan.accel": "off"})
    found = arrival(a, b)
    assert (found["end"]["outcome"], found["end"]["path"]) == ("delivered", "slow")
    assert "network off has linkspan.accel=off" in decision(found, "no_program")
    assert decision(found, "fdb") == f"bridge fdb: {b.mac} is behind {b.host_ifname}"
    vxlan = next(step["device"] for step in found["steps"] if step["decision"] == "vxlan")
    with Place(nodes[1], vxlan, nodes[1].uplink.netns, vxlan).wire() as wire:
        assert a.pings(b.ip4)
        frames = [Ether(frame) for frame in wire.until_idle()]
    assert (a.ip4, b.mac) in {(frame[IP].src, frame.dst) for frame in frames if IP in frame}
    nodes[1].run("ip", "link", "set", vxlan, "down")
    lost = arrival(a, b)
    assert (lost["end"]["outcome"], vxlan in lost["end"]["text"]) == ("lost", True)
    assert not a.pings(b.ip4, "-c1", wait_s=0.2)
    nodes[1].linkspan("doctor", "--cluster", "--mend")
    assert a.pings(b.ip4)


def test_a_direct_packet_arrives_as_such(nodes: Cluster) -> None:
    a, b = pair(nodes, "flat", "10.100.0.0/24", **{"linkspan.direct": "on"})
    here, there = nodes
    wait_for(lambda: decision(trace(here, a.name, b.name), "direct"), "direct packets")
    found = arrival(a, b)
    by_program = [step["decision"] for step in found["steps"] if step["by"] == "ls_uplink_in"]
    assert by_program == ["no_tunnel", "taker", "from_peer", "redirect_peer"]
    assert found["end"]["text"] == "arrives at eth0 of flat-b (fast path)"
    before = settled(lambda: tallies(there, b.name), "all to be quiet")
    with there.uplink.wire() as wire:
        assert a.pings(b.ip4)
        frames = [Ether(frame) for frame in wire.until_idle()]
    (mac,) = {frame.src for frame in frames if IP in frame and frame[IP].src == a.ip4}
    assert decision(found, "arrival") == f"comes from n1 ({here.advertise}) without VXLAN, from MAC {mac}"
    assert ("packets", "in", "fast") in growth(before, tallies(there, b.name))
    forged = arrival(a, b, "--from-mac", "02:00:00:00:00:09")
    assert (forged["end"]["outcome"], "spoofed_peer" in forged["end"]["text"]) == ("dropped", True)
    with here.uplink.wire() as wire:
        wire.send(Ether(src="02:00:00:00:00:09", dst=there.uplink.mac) / IP(src=a.ip4, dst=b.ip4) / ICMP())
    wait_for(
        lambda: growth(before, tallies(there, b.name)).get(("drops", "spoofed_peer")) == 1, "one packet to be dropped"
    )


def test_who_sends_nothing_here_is_refused(nodes: Cluster) -> None:
    here, there = nodes
    a = here.box("lone", "over")
    nodes.create("other", IPAM={"Config": [{"Subnet": "10.101.0.0/24"}]})
    there.box("apart", "other")
    cases = {
        ("lone", "apart"): "apart is on no network with lone, which is on another node",
        (a.ip4, "apart"): f"{a.ip4} is on a network of this host, by lo-",
        ("10.101.0.250", "apart"): "no endpoint of another node is known that has 10.101.0.250 on network other",
        ("lone", "nobody"): "no sandbox or endpoint nobody",
        ("lone", "10.91.0.250"): "no endpoint of this host has 10.91.0.250",
        ("nobody", "ob"): "no sandbox or endpoint nobody",
    }
    for args, words in cases.items():
        done = there.linkspan("trace", *args, check=False)
        assert done.returncode != 0
        assert words in done.stderr


def test_who_is_outside_of_the_cluster_is_routed(nodes: Cluster) -> None:
    there = nodes[1]
    outside = nodes.etcd[0].address
    b = there.box("routed", "over")
    found = trace(there, outside, b.name)
    assert decision(found, "arrival") == f"comes by {UPLINK}: route 10.77.0.0/24 leads to {outside}"
    assert (found["end"]["outcome"], "nothing comes in unasked" in found["end"]["text"]) == ("dropped", True)


# -- docs ------------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_docs_are_what_is_printed(nodes: Cluster) -> None:
    here, there = nodes
    for network, options in {"wide": {}, "plain": {"linkspan.accel": "off"}}.items():
        subnet = "10.94.0.0/24" if options else "10.95.0.0/24"
        nodes.create(network, IPAM={"Config": [{"Subnet": subnet}]}, Options=options)
        here.box(f"web-{network}", network)
        assert there.box(f"db-{network}", network).pings(Station(here, f"web-{network}").ip4)
        command = f"linkspan trace web-{network} db-{network}"
        printed = here.linkspan(*command.split()[1:]).stdout
        assert is_still_printed(DOCUMENTED[command], printed), printed
        command = f"linkspan trace db-{network} web-{network}"  # on the same node
        printed = here.linkspan(*command.split()[1:]).stdout
        assert is_still_printed(DOCUMENTED[command], printed), printed


def test_an_endpoint_of_nobody_is_asked_for_in_vain(nodes: Cluster) -> None:
    here, _ = nodes
    found = trace(here, "oa", "10.91.0.250")
    assert (found["end"]["outcome"], "10.91.0.250" in found["end"]["text"]) == ("lost", True)
