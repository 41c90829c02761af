"""Who reaches whom: within a network, between networks, and to and from the world outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6ND_RA, ICMPv6ND_RS, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.hosts import Host, wait_for
from tests.leaks import purge
from tests.netns.conftest import linkspan_host, no_bridge_netfilter
from tests.netns.lab import Lab
from tests.netns.outside import HOST4, HOST6, OUTSIDE4, OUTSIDE6, UPLINK, outside
from tests.netns.probes import families, unreachable
from tests.traffic import BROADCAST, Place, Station, Wire, connects, tcp_pair, udp_echo

pytestmark = pytest.mark.xdist_group("isolation")

# What an operator may have on the host: a table of another program, and iptables' FORWARD chain with a policy.
FOREIGN_RULES = """
table ip filter {
    chain FORWARD { type filter hook forward priority filter; policy drop; counter accept; }
}
table inet operator {
    set bridges { type ipv4_addr; elements = { 192.0.2.1 }; }
    chain input { type filter hook input priority 0; policy accept; ip saddr 198.51.100.0/24 drop; }
}
"""


def foreign_rules(host: Host) -> list[Any]:
    """The ruleset but for linkspan's table, and without counts."""
    items = json.loads(host.run("nft", "-j", "-s", "list", "ruleset").stdout)["nftables"]
    return [item for item in items if "linkspan" not in json.dumps(item) and "metainfo" not in item]


def prepare(made: Host) -> None:
    no_bridge_netfilter(made)
    made.run("nft", "-f", "-", input=FOREIGN_RULES)


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Host, Place]]:
    """A host with rules of its own, and the machine it is connected to."""
    with (
        linkspan_host(before=prepare) as made,
        outside(made) as other,
    ):
        yield made, other
        purge(made)


@pytest.fixture(scope="module")
def machine(world: tuple[Host, Place]) -> Host:
    return world[0]


@pytest.fixture(scope="module")
def other(world: tuple[Host, Place]) -> Place:
    return world[1]


@pytest.fixture(scope="module", params=["on", "off"])
def accel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(machine: Host, accel: str) -> Lab:
    return Lab(machine, f"plain-{accel}", accel=accel, EnableIPv6=True)


@pytest.fixture(scope="module")
def aloof(machine: Host, accel: str) -> Lab:
    """Its sandboxes are kept from each other."""
    options = {"com.docker.network.bridge.enable_icc": "false"}
    return Lab(machine, f"aloof-{accel}", accel=accel, EnableIPv6=True, Options=options)


@pytest.fixture(scope="module")
def internal(machine: Host, accel: str) -> Lab:
    return Lab(machine, f"internal-{accel}", accel=accel, EnableIPv6=True, Internal=True)


@pytest.fixture(scope="module")
def routed(machine: Host, accel: str) -> Lab:
    """Not masqueraded."""
    options = {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    return Lab(machine, f"routed-{accel}", accel=accel, EnableIPv6=True, Options=options)


def gateways(station: Station) -> tuple[str, str]:
    return str(station.gateway(4)), str(station.gateway(6))


def peer_of(client: Place, server: Place, address: str) -> str:
    """The address by which a listener sees the client."""
    with tcp_pair(client, server, address) as (here, there):
        there.sendall(b"reply")
        assert here.recv(10) == b"reply"
        return str(there.getpeername()[0])


def ways_in(lab: Lab) -> Iterator[tuple[str, str]]:
    """(subnet, the host's address towards the outside) of a network."""
    for config in lab.host.api("GET", f"/networks/{lab.name}")["IPAM"]["Config"]:
        yield config["Subnet"], HOST6 if ":" in config["Subnet"] else HOST4


def test_sandboxes_of_one_network_reach_each_other_and_the_gateway(plain: Lab) -> None:
    assert not unreachable(plain.a, plain.b)
    for address in (*families(plain.b), *gateways(plain.a)):
        assert plain.a.pings(address), address
    for address in families(plain.b):
        assert connects(plain.a, plain.b, address)


def test_sandboxes_reach_the_outside_under_the_hosts_address(plain: Lab, other: Place) -> None:
    assert plain.a.pings(OUTSIDE4)
    assert plain.a.pings(OUTSIDE6)
    assert peer_of(plain.a, other, OUTSIDE4) == HOST4
    assert peer_of(plain.a, other, OUTSIDE6) == HOST6
    udp_echo(plain.a, other, OUTSIDE4, b"x" * 1400)
    udp_echo(plain.a, other, OUTSIDE6, b"x" * 8000)


def test_sandboxes_reach_the_host_by_its_other_addresses(plain: Lab) -> None:
    assert plain.a.pings(HOST4)
    assert plain.a.pings(HOST6)


def test_without_masquerade_the_outside_sees_the_sandboxs_own_address(routed: Lab, other: Place) -> None:
    for subnet, via in ways_in(routed):
        other.run("ip", "route", "add", subnet, "via", via)
    try:
        assert peer_of(routed.a, other, OUTSIDE4) == routed.a.ip4
        assert peer_of(routed.a, other, OUTSIDE6) == routed.a.ip6
        assert unreachable(other, routed.a)
    finally:
        for subnet, _ in ways_in(routed):
            other.run("ip", "route", "delete", subnet)


def test_nothing_comes_in_unasked(plain: Lab, other: Place) -> None:
    """Although the outside knows the way."""
    for subnet, via in ways_in(plain):
        other.run("ip", "route", "add", subnet, "via", via)
    try:
        assert unreachable(other, plain.a)
    finally:
        for subnet, _ in ways_in(plain):
            other.run("ip", "route", "delete", subnet)


def test_two_networks_do_not_reach_each_other(plain: Lab, routed: Lab, internal: Lab, aloof: Lab) -> None:
    for here, there in permutations((plain, routed, internal, aloof), 2):
        if here.a.gateway():
            assert unreachable(here.a, there.a), (here.name, there.name)


def test_without_icc_sandboxes_reach_the_gateway_and_the_outside_alone(aloof: Lab, other: Place) -> None:
    assert unreachable(aloof.a, aloof.b)
    for address in (*gateways(aloof.a), OUTSIDE4, OUTSIDE6):
        assert aloof.a.pings(address), address
    assert peer_of(aloof.a, other, OUTSIDE4) == HOST4
    assert peer_of(aloof.b, other, OUTSIDE6) == HOST6


def test_without_icc_no_frame_gets_from_one_sandbox_to_another(aloof: Lab) -> None:
    with aloof.a.wire() as out, aloof.b.wire() as b, Wire(f"/proc/{aloof.host.pid}/ns/net", aloof.bridge) as bridge:
        for destination in (aloof.b.mac, BROADCAST, "33:33:00:00:00:01", "01:00:5e:00:00:01"):
            out.send(aloof.frame(b"psst", destination))
        out.send(aloof.frame(b"the end", BROADCAST))
        assert sum(b"psst" in frame for frame in bridge.frames_until(b"the end")) == 3
        # What the bridge sends after it has had all of a's.
        with Wire(f"/proc/{aloof.host.pid}/ns/net", aloof.bridge) as gateway:
            mac = aloof.host.ip("link", "show", "dev", aloof.bridge)[0]["address"]
            gateway.send(Ether(src=mac, dst=BROADCAST, type=0x88B5) / b"from the gateway")
        assert not any(b"psst" in frame for frame in b.frames_until(b"from the gateway"))


def test_without_icc_the_gateway_is_no_way_round(aloof: Lab) -> None:
    """A sandbox may set routes of its own."""
    for address, gateway in zip(families(aloof.b), gateways(aloof.a), strict=True):
        aloof.a.run("ip", "route", "add", address, "via", gateway)
    for address, gateway in zip(families(aloof.a), gateways(aloof.b), strict=True):
        aloof.b.run("ip", "route", "add", address, "via", gateway)
    assert unreachable(aloof.a, aloof.b)


def test_an_internal_network_has_no_default_route_and_no_outside(internal: Lab, other: Place) -> None:
    assert internal.a.gateway(4) is internal.a.gateway(6) is None
    assert not internal.a.pings(OUTSIDE4, wait_s=0.3)
    for address in families(internal.b):
        assert internal.a.pings(address)
        assert internal.host.run("ping", "-n", "-c1", "-W1", address).returncode == 0
    # A route of its own making does not help, from either side.
    for config in internal.host.api("GET", f"/networks/{internal.name}")["IPAM"]["Config"]:
        internal.a.run("ip", "route", "add", "default", "via", config["Gateway"])
    for subnet, via in ways_in(internal):
        other.run("ip", "route", "add", subnet, "via", via)
    try:
        assert not internal.a.pings(OUTSIDE4, wait_s=0.3)
        assert not internal.a.pings(OUTSIDE6, wait_s=0.3)
        assert not connects(internal.a, other, OUTSIDE4, 0.3)
        assert unreachable(other, internal.a)
    finally:
        for subnet, _ in ways_in(internal):
            other.run("ip", "route", "delete", subnet)


def test_the_hosts_other_rules_are_left_alone(machine: Host) -> None:
    before = foreign_rules(machine)
    assert any("FORWARD" in str(item) for item in before)
    brief = Lab(machine, "brief", EnableIPv6=True)
    assert brief.a.pings(str(brief.a.gateway()))
    assert foreign_rules(machine) == before
    machine.api("DELETE", f"/linkspan/sandboxes/{brief.a.name}")
    machine.api("DELETE", "/networks/brief")
    assert foreign_rules(machine) == before


def test_an_interface_that_takes_router_advertisements_goes_on_taking_them(machine: Host, other: Place) -> None:
    """Although the host forwards IPv6 now."""
    machine.api("POST", "/networks/create", {"Name": "six", "EnableIPv6": True})
    assert machine.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").stdout.strip() == "1"
    with other.wire() as wire:
        wire.send(router_advertisement(other, "2001:db8:aaaa::"))
    wait_for(
        lambda: any(
            address["local"].startswith("2001:db8:aaaa:")
            for address in machine.ip("addr", "show", "dev", UPLINK)[0]["addr_info"]
        ),
        "an address by the advertisement",
    )
    assert any(
        route.get("gateway") == other.ip6_ll and route["protocol"] == "ra"
        for route in machine.ip("-6", "route", "show", "default")
    )


def router_advertisement(sender: Place, prefix: str = "2001:db8:bad::") -> Packet:
    return (
        Ether(src=sender.mac, dst="33:33:00:00:00:01")
        / IPv6(src=sender.ip6_ll, dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptSrcLLAddr(lladdr=sender.mac)
        / ICMPv6NDOptPrefixInfo(prefix=prefix, prefixlen=64)
    )


def routes_and_addresses(place: Host | Place) -> str:
    return str(place.ip("-6", "route")) + str(place.ip("-6", "addr"))


def test_neither_host_nor_sandboxes_take_a_sandbox_for_a_router(plain: Lab, internal: Lab, other: Place) -> None:
    for lab in (plain, internal):
        neighbour, end = lab.b, b"the end of the test"
        with lab.a.wire() as out, neighbour.wire() as b, Wire(f"/proc/{lab.host.pid}/ns/net", lab.bridge) as bridge:
            out.send(router_advertisement(lab.a), Ether(src=lab.a.mac, dst=BROADCAST, type=0x88B5) / end)
            for wire in (b, bridge):
                wire.frames_until(end)
        # The kernel acts on an advertisement while it takes it in, so before what came after it was shown.
        for place in (lab.host, neighbour):
            assert "2001:db8:bad" not in routes_and_addresses(place)
            assert lab.a.ip6_ll not in str(place.ip("-6", "route", "show", "default"))


def test_a_new_sandbox_is_left_in_peace(plain: Lab) -> None:
    """The bridge port announces no address of its own, and nobody asks everybody for a router."""
    fresh = plain.join("fresh")
    assert plain.host.ip("addr", "show", "dev", fresh.host_ifname)[0]["addr_info"] == []
    with fresh.wire() as wire:
        frames = [Ether(frame) for frame in wire.until_idle(1.5)]
    assert not [frame for frame in frames if ICMPv6ND_RS in frame or ICMPv6ND_RA in frame or ICMPv6ND_NS in frame]
