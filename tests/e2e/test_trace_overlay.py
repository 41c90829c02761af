"""`linkspan trace` on an overlay network: what it says of the outer headers is what then stands on the underlay."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from tests.documented import examples, is_still_printed
from tests.hosts import ROOT, wait_for
from tests.nodes import Cluster, Node, cluster
from tests.traffic import Station
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


def test_an_endpoint_of_nobody_is_asked_for_in_vain(nodes: Cluster) -> None:
    here, _ = nodes
    found = trace(here, "oa", "10.91.0.250")
    assert (found["end"]["outcome"], "10.91.0.250" in found["end"]["text"]) == ("lost", True)
