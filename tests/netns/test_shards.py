"""A network larger than one Linux bridge: its endpoints lie on several, and nobody notices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import permutations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.hosts import Host
from tests.netns.conftest import linkspan_host, no_bridge_netfilter
from tests.netns.lab import Lab
from tests.netns.probes import unreachable
from tests.traffic import BROADCAST, Station, growth, tallies, udp_echo

pytestmark = pytest.mark.xdist_group("shards")

# linkspand with room for two endpoints on a bridge.
SMALL_BRIDGES = """
import sys
from control.drivers import bridge
bridge.SHARD_CAPACITY = 2
from control.daemon import main
sys.exit(main())
"""
NAMES = ("a", "b", "c", "d", "e")
SHARDS = (0, 0, 1, 1, 2)


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with linkspan_host(before=no_bridge_netfilter, program=[sys.executable, "-c", SMALL_BRIDGES]) as made:
        yield made


class Sharded(Lab):
    """Five sandboxes, on three bridges."""

    def __init__(self, host: Host, name: str, accel: str, *, ipv6: bool = True, icc: bool = True) -> None:
        options = {"com.docker.network.bridge.enable_icc": str(icc).lower()}
        super().__init__(host, name, accel=accel, EnableIPv6=ipv6, Options=options)
        self.stations: list[Station] = [self.join(name) for name in NAMES]

    def bridge_of(self, station: Station) -> str:
        return str(self.host.ip("link", "show", "dev", station.host_ifname)[0]["master"])

    def shard(self, number: int) -> str:
        return f"s{number:02d}{self.id[:12]}" if number else self.bridge


@pytest.fixture(scope="module", params=["on", "off"])
def lab(request: pytest.FixtureRequest, machine: Host) -> Sharded:
    return Sharded(machine, f"wide-{request.param}", request.param)


@pytest.fixture(scope="module", params=["on", "off"])
def ipv4(request: pytest.FixtureRequest, machine: Host) -> Sharded:
    return Sharded(machine, f"four-{request.param}", request.param, ipv6=False)


@pytest.fixture(scope="module", params=["on", "off"])
def aloof(request: pytest.FixtureRequest, machine: Host) -> Sharded:
    return Sharded(machine, f"apart-{request.param}", request.param, icc=False)


def test_endpoints_lie_on_bridges_that_are_joined_to_the_first(lab: Sharded) -> None:
    assert [lab.bridge_of(station) for station in lab.stations] == [lab.shard(number) for number in SHARDS]
    ends = {link["ifname"]: link for link in lab.host.ip("link") if lab.id[:12] in link["ifname"]}
    for number in (1, 2):
        up, down = ends[f"t{number:02d}{lab.id[:12]}"], ends[f"u{number:02d}{lab.id[:12]}"]
        assert (up["master"], down["master"]) == (lab.bridge, lab.shard(number))
        assert up["link"] == down["ifname"]
        assert up["operstate"] == down["operstate"] == "UP"


def test_everybody_reaches_everybody_and_the_gateway(lab: Sharded) -> None:
    for here, there in permutations(lab.stations, 2):
        for address in (there.ip4, there.ip6):
            before = tallies(lab.host, here.name)
            assert here.pings(address), (here.name, there.name)
            udp_echo(here, there, address, b"x" * 8000)
            if lab.is_fast:
                assert growth(before, tallies(lab.host, here.name))["packets", "out", "fast"] >= 7
    for station in lab.stations:
        for gateway in (station.gateway(4), station.gateway(6)):
            assert station.pings(str(gateway))
        for address in (station.ip4, station.ip6):
            assert lab.host.run("ping", "-n", "-c1", "-W5", address).returncode == 0


def test_broadcast_reaches_all_once_and_unicast_nobody_else(lab: Sharded) -> None:
    sender, *others = lab.stations
    wires = [station.wire() for station in others]
    last = others[-1]
    with sender.wire() as out:
        packet = IP(src=sender.ip4, dst=last.ip4) / UDP(dport=9)
        out.send(Ether(src=sender.mac, dst=last.mac) / packet / Raw(b"for the last"))
        out.send(Ether(src=sender.mac, dst=BROADCAST) / packet / Raw(b"for all"))
        out.send(Ether(src=sender.mac, dst=BROADCAST) / packet / Raw(b"end"))
    for station, wire in zip(others, wires, strict=True):
        frames = wire.frames_until(b"end")
        wire.__exit__()
        assert sum(b"for all" in frame for frame in frames) == 1
        assert sum(b"for the last" in frame for frame in frames) == (station is last)


def test_frames_from_the_gateway_go_to_their_receivers_bridge_alone(lab: Sharded) -> None:
    """tcpdump on the trunk of another shard sees none."""
    _, _, c, _, e = lab.stations
    for station in (c, e):
        assert lab.host.run("ping", "-n", "-c1", "-W5", station.ip4).returncode == 0
    trunk = f"t02{lab.id[:12]}"
    before = lab.host.ip("-s", "link", "show", "dev", trunk)[0]["stats64"]["tx"]["packets"]
    assert "10 received" in lab.host.run("ping", "-n", "-q", "-c10", "-i0.002", c.ip4).stdout
    assert lab.host.ip("-s", "link", "show", "dev", trunk)[0]["stats64"]["tx"]["packets"] - before < 10


def test_a_sandbox_that_moves_to_another_bridge_is_reached_at_once(ipv4: Sharded) -> None:
    """With the same address, hence the same MAC, which the first bridge has seen elsewhere.

    IPv6 would hide a mistake: it sends multicast reports at once, from which the bridges learn.
    """
    host, a, e = ipv4.host, ipv4.stations[0], ipv4.stations[4]
    mover = ipv4.join("mover")
    settings = {"IPAMConfig": {"IPv4Address": mover.ip4}}
    assert ipv4.bridge_of(mover) == ipv4.shard(2)
    assert mover.pings(str(mover.gateway()))
    for number, leaver in ((1, ipv4.stations[2]), (0, ipv4.stations[1])):
        for name in (leaver.name, mover.name):
            host.api("POST", f"/networks/{ipv4.name}/disconnect", {"Container": name})
        host.api("POST", f"/networks/{ipv4.name}/connect", {"Container": mover.name, "EndpointConfig": settings})
        moved = Station(host, mover.name)
        assert (ipv4.bridge_of(moved), moved.ip4, moved.mac) == (ipv4.shard(number), mover.ip4, mover.mac)
        assert host.run("ping", "-n", "-c1", "-W1", moved.ip4, check=False).returncode == 0, "from the gateway"
        for station in (a, e):
            assert station.pings(moved.ip4, wait_s=1)
        host.api("POST", f"/networks/{ipv4.name}/connect", {"Container": leaver.name})


def test_without_icc_nobody_reaches_anybody_on_any_bridge(aloof: Sharded) -> None:
    a, b, c, d, e = aloof.stations
    for here, there in ((a, b), (a, c), (c, a), (c, d), (c, e), (e, c), (e, b)):
        assert unreachable(here, there), (here.name, there.name)
    for station in aloof.stations:
        for gateway in (station.gateway(4), station.gateway(6)):
            assert station.pings(str(gateway))


def test_without_icc_no_broadcast_gets_from_bridge_to_bridge(aloof: Sharded) -> None:
    c, *others = aloof.stations[2], aloof.stations[0], aloof.stations[3], aloof.stations[4]
    wires = [station.wire() for station in others]
    with c.wire() as out:
        out.send(Ether(src=c.mac, dst=BROADCAST) / IP(src=c.ip4, dst="255.255.255.255") / UDP() / Raw(b"psst"))
        assert c.pings(str(c.gateway()))
    aloof.host.run(
        "ping", "-n", "-b", "-c1", "-W0.2", "-p", "656e64", "255.255.255.255", "-I", aloof.bridge, check=False
    )
    for wire in wires:
        assert not any(b"psst" in frame for frame in wire.frames_until(b"endend"))
        wire.__exit__()
