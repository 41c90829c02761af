"""Encrypted overlay networks through linkspand: what leaves a node is WireGuard, and a node that has none refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether

from datapath.features import Answer, check
from tests.agreement_overlay import UDP_PORT
from tests.hosts import wait_for
from tests.nodes import Cluster, cluster, unbroken
from tests.require import require

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PORTS = {51880, 51881}
MARKER = b"for nobody on the underlay"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2) as made:
        yield made


@pytest.fixture(autouse=True)
def cleared(nodes: Cluster) -> Iterator[None]:
    yield
    nodes.clear()


def test_a_node_that_cannot_encrypt_refuses_and_says_why(nodes: Cluster) -> None:
    if check("wireguard").answer is Answer.YES:
        pytest.skip("this kernel has WireGuard")
    nodes.create("secret", Options={"encrypted": ""})
    nodes.create("open")
    before = nodes[0].box("before", "open")
    refused = nodes[0].ask("POST", "/linkspan/sandboxes", {"Name": "a", "Networks": [{"Network": "secret"}]})
    assert refused.status == 403
    assert "network secret is encrypted, and this host cannot encrypt" in refused.message
    id_ = nodes[0].networks()["secret"]["Id"][:12]
    assert not [link["ifname"] for link in nodes[0].ip("link") if id_ in link["ifname"]]
    after = nodes[1].box("after", "open")
    wait_for(lambda: before.pings(after.ip4), "an answer on the network that is not encrypted")


def test_what_goes_between_nodes_is_wireguard_alone(nodes: Cluster) -> None:
    require("wireguard")
    nodes.create("secret", EnableIPv6=True, Options={"encrypted": ""})
    a, b = nodes[0].box("a", "secret"), nodes[1].box("b", "secret")
    with nodes[0].uplink.wire() as wire:
        for address in (b.ip4, b.ip6):
            wait_for(lambda: a.pings(address, "-p", MARKER.hex()[:32]), "an answer by the tunnel")  # noqa: B023
        frames = wire.until_idle()
    ports = {packet[UDP].dport for packet in map(Ether, frames) if UDP in packet}
    assert ports & PORTS
    assert UDP_PORT not in ports
    assert not [frame for frame in frames if MARKER[:16] in frame]
    assert a.link()["mtu"] == nodes.underlay.mtu - 110


def test_restarts_and_leaving_cost_no_packet_and_leave_no_tunnel(nodes: Cluster) -> None:
    require("wireguard")
    nodes.create("secret", Options={"encrypted": ""})
    a, b = nodes[0].box("a", "secret"), nodes[1].box("b", "secret")
    wait_for(lambda: a.pings(b.ip4), "an answer by the tunnel")
    with unbroken((a, b.ip4)):
        nodes[0].stop()
        nodes[0].start()
        nodes.wait_until_synchronized()
    nodes[0].linkspan("rm", "-f", "a")
    assert not (nodes[0].run_dir / "tunnels" / "wireguard").exists()
    assert b.pings(b.ip4)
