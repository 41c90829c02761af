"""`linkspan trace` on an overlay network: what it says of the outer headers is what then stands on the underlay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from tests.nodes import Cluster, Node, cluster

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("trace-overlay")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2) as made:
        yield made


def trace(node: Node, *args: str) -> Any:
    return json.loads(node.linkspan("trace", "--json", *args, check=False).stdout)


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


def test_an_endpoint_of_nobody_is_asked_for_in_vain(nodes: Cluster) -> None:
    here, _ = nodes
    found = trace(here, "oa", "10.91.0.250")
    assert (found["end"]["outcome"], "10.91.0.250" in found["end"]["text"]) == ("lost", True)
