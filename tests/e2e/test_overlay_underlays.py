"""Overlay networks over other underlays: nodes that meet by IPv6, one with a lower MTU than the others, and nodes that
send to each other without VXLAN."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.agreement_overlay import wait_for_agreement
from tests.hosts import wait_for
from tests.nodes import Cluster, Node, cluster, unbroken
from tests.traffic import Place, is_v6, tcp_pair, udp_echo
from tests.underlay import UPLINK

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


def in_vxlan(node: Node, passing: Callable[[], object]) -> list[str]:
    """tcpdump's lines about the VXLAN packets on the node's uplink while `passing` runs."""
    command = node.uplink.command("tcpdump", "-n", "--immediate-mode", "-l", "-i", UPLINK, "udp port 4789")
    dump = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert dump.stderr is not None
    while "listening on" not in (line := dump.stderr.readline()):
        assert line, "tcpdump has ended"
    try:
        passing()
    finally:
        dump.send_signal(signal.SIGINT)
        lines = dump.communicate()[0].splitlines()
    return [line for line in lines if line]


def direct_of(node: Node) -> str:
    return str(node.api("GET", "/networks/far")["Status"]["Linkspan"]["linkspan.direct"])


def test_what_is_between_endpoints_on_one_segment_goes_without_vxlan(nodes: Cluster) -> None:
    options = {"linkspan.direct": "on", "com.docker.network.driver.mtu": str(LOW_MTU - OVERHEAD_V6)}
    nodes.create("far", EnableIPv6=True, Options=options)
    a, b = nodes[0].box("a", "far"), nodes[1].box("b", "far")
    for address in (b.ip4, b.ip6):
        carried(a, b, address)  # in VXLAN as long as the nodes may not know each other's endpoints
    with unbroken((a, b.ip4), (a, b.ip6)) as flows:
        wait_for(
            lambda: not any(" > " + b.ip4 in line for line in in_vxlan(nodes[0], lambda: flows[0].go_on(20))),
            "packets without VXLAN",
        )
    for address in (b.ip4, b.ip6):
        ends = address, a.ip4, a.ip6
        lines = in_vxlan(nodes[0], lambda address=address: carried(a, b, address))  # type: ignore[misc]
        assert not [line for line in lines if any(f"{end}." in line for end in ends)], lines
    for node, other in ((nodes[0], nodes[1]), (nodes[1], nodes[0])):
        assert direct_of(node) == f"{other.advertise}: yes"
    wait_for_agreement(nodes)
    nodes.clear()


def test_direct_and_encrypted_exclude_each_other(nodes: Cluster) -> None:
    body = {"Name": "far", "Driver": "overlay", "Options": {"encrypted": "", "linkspan.direct": "on"}}
    refused = nodes[0].ask("POST", "/networks/create", body)
    assert (refused.status, refused.message) == (
        400,
        "options encrypted and linkspan.direct=on exclude each other: leave one out",
    )


def test_a_node_without_programs_is_reached_in_vxlan(nodes: Cluster) -> None:
    """What it can take is its own word, and `inspect` says what is in the way."""
    one, two = nodes
    config = two.dir / "no-programs.toml"
    config.write_text("[datapath]\naccel = false\n")
    two.stop()
    two.start("--config", str(config))
    nodes.wait_until_synchronized()
    try:
        options = {"linkspan.direct": "on", "com.docker.network.driver.mtu": str(LOW_MTU - OVERHEAD_V6)}
        nodes.create("far", EnableIPv6=True, Options=options)
        a, b = one.box("a", "far"), two.box("b", "far")
        for address in (b.ip4, b.ip6):
            lines = in_vxlan(one, lambda address=address: carried(a, b, address))  # type: ignore[misc]
            assert len(lines) >= 40
        assert direct_of(one) == f"{two.advertise}: no, it does not take them"
        assert direct_of(two).startswith("no: ")
        nodes.clear()
    finally:
        two.stop()
        two.start()
        nodes.wait_until_synchronized()
