"""Overlay networks over other underlays: nodes that meet by IPv6, and one with a lower MTU than the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agreement_overlay import wait_for_agreement
from tests.hosts import wait_for
from tests.nodes import Cluster, cluster, unbroken
from tests.traffic import Place, is_v6, tcp_pair, udp_echo

pytestmark = pytest.mark.root

LOW_MTU = 1400
OVERHEAD_V6 = 70
"""Outer Ethernet, IPv6, UDP and VXLAN headers; RFC 7348, section 4.3, with RFC 8200's 40 bytes."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2, version=6, mtus={2: LOW_MTU}) as made:
        yield made


def carried(a: Place, b: Place, address: str) -> None:
    """Echo, UDP, and a TCP stream of many segments to `address` at b."""
    assert a.pings(address)
    udp_echo(a, b, address, b"x" * 1200, times=20)
    with tcp_pair(a, b, address) as (client, server):
        blob = bytes(range(256)) * 256
        client.sendall(blob)
        assert server.makefile("rb").read(len(blob)) == blob


@pytest.mark.parametrize("accel", ["on", "off"])
@pytest.mark.parametrize("direct", ["on", "off"])
def test_both_families_get_through_an_underlay_of_ipv6(nodes: Cluster, accel: str, direct: str) -> None:
    mtu = LOW_MTU - OVERHEAD_V6
    options = {
        "linkspan.accel": accel,
        "linkspan.direct": direct,
        "com.docker.network.driver.mtu": str(mtu),
    }
    nodes.create("far", EnableIPv6=True, Options=options)
    a, b = nodes[0].box("a", "far"), nodes[1].box("b", "far")
    for address in (b.ip4, b.ip6):
        carried(a, b, address)
        fits = mtu - (48 if is_v6(address) else 28)
        assert a.pings(address, "-M", "do", "-s", str(fits))
    wait_for_agreement(nodes)
    nodes.clear()


def test_a_node_whose_underlay_cannot_carry_a_network_refuses_it_and_says_both_sizes(nodes: Cluster) -> None:
    """A segment has one MTU: what a larger sender sent would be lost without a word."""
    with unbroken((nodes[0].uplink, nodes[1].advertise)):
        nodes.create("far", EnableIPv6=True, Options={"linkspan.direct": "off"})
        a = nodes[0].box("a", "far")
        mtu = nodes.underlay.mtu - OVERHEAD_V6
        assert a.link()["mtu"] == mtu
        refused = nodes[1].ask("POST", "/linkspan/sandboxes", {"Name": "b", "Networks": [{"Network": "far"}]})
        assert refused.status >= 400
        assert str(mtu) in refused.message
        assert str(LOW_MTU) in refused.message or str(LOW_MTU - OVERHEAD_V6) in refused.message
        wait_for(lambda: not nodes[1].api("GET", "/linkspan/sandboxes?all=1"), "nothing of b to be left")
        wait_for_agreement(nodes)
    nodes.clear()
