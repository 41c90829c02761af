"""Published ports with packets: from outside, from the host, from the network itself and from others."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any, Literal

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from datapath import netns, nft
from datapath.host_ports import HostPorts
from datapath.nft import Publication
from tests.hosts import Host, wait_for
from tests.leaks import purge
from tests.netns.conftest import linkspan_host, no_bridge_netfilter
from tests.netns.lab import Lab
from tests.netns.outside import HOST4, HOST6, OUTSIDE4, OUTSIDE6, outside
from tests.netns.test_shards import SMALL_BRIDGES
from tests.traffic import Place, Station, Wire, family

pytestmark = pytest.mark.xdist_group("publish")

Protocol = Literal["tcp", "udp"]
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")
HOST = {4: HOST4, 6: HOST6}
WAYS = [(protocol, version) for protocol in PROTOCOLS for version in (4, 6)]
each_way = pytest.mark.parametrize(("protocol", "version"), WAYS)
NO_ICC = {"com.docker.network.bridge.enable_icc": "false"}
NO_MASQUERADE = {"com.docker.network.bridge.enable_ip_masquerade": "false"}


SEEN, UNSEEN = "frames are seen", "frames are not seen"
either_way = pytest.mark.parametrize("world", [SEEN, UNSEEN], indirect=True)
with_br_netfilter = pytest.mark.parametrize("world", [SEEN], indirect=True)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[tuple[Host, Place]]:
    """A host with or without br_netfilter, two endpoints to a Linux bridge, and the machine it is connected to."""
    before = no_bridge_netfilter if request.param == UNSEEN else None
    with (
        linkspan_host(before=before, program=[sys.executable, "-c", SMALL_BRIDGES]) as made,
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


@pytest.fixture(scope="module")
def is_bridged(machine: Host) -> bool:
    """Whether the bridge itself sends on what a published port's address is changed of."""
    return machine.run("cat", "/proc/sys/net/bridge/bridge-nf-call-iptables", check=False).stdout.strip() == "1"


@pytest.fixture(scope="module")
def here(machine: Host) -> Place:
    """The host itself."""
    return Place(machine, "host", f"/proc/{machine.pid}/ns/net", "lo")


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    """Its sandbox c is on another Linux bridge than a and b."""
    made = Lab(machine, "front", EnableIPv6=True)
    assert [station.host_ifname for station in (made.a, made.b, made.c)]
    on(machine, partial(nft.allow_loopback, made.bridge))
    on(machine, partial(nft.allow_hairpin, made.a.host_ifname))
    return made


@pytest.fixture(scope="module")
def second(machine: Host) -> Lab:
    return Lab(machine, "second", EnableIPv6=True)


@pytest.fixture(scope="module")
def aloof(machine: Host) -> Lab:
    return Lab(machine, "aloof", EnableIPv6=True, Options=NO_ICC)


@pytest.fixture(scope="module")
def routed(machine: Host) -> Lab:
    """Not masqueraded."""
    made = Lab(machine, "routed", EnableIPv6=True, Options=NO_MASQUERADE)
    on(machine, partial(nft.allow_loopback, made.bridge))
    on(machine, partial(nft.allow_hairpin, made.a.host_ifname))
    return made


@pytest.fixture(scope="module")
def internal(machine: Host) -> Lab:
    return Lab(machine, "closed", EnableIPv6=True, Internal=True)


def on(host: Host, call: Callable[[], Any]) -> Any:
    return netns.call(f"/proc/{host.pid}/ns/net", call)


def address_of(place: Place, version: int) -> str:
    return place.ip6 if version == 6 else place.ip4


@contextmanager
def published(host: Host, *publications: Publication) -> Iterator[None]:
    on(host, partial(nft.publish, publications))
    try:
        yield
    finally:
        on(host, partial(nft.unpublish, publications))


def port_of(
    station: Station, protocol: Protocol, version: int, host_port: int, port: int = 80, **more: Any
) -> Publication:
    return Publication(
        protocol=protocol,
        address=ip_address(address_of(station, version)),
        port=port,
        host_ip=more.pop("host_ip", None),
        host_port=host_port,
        **more,
    )


def server_at(place: Place, protocol: Protocol, address: str, port: int) -> socket.socket:
    made = place.socket(family(address), socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    if protocol == "tcp":
        made.listen()
    return made


def reach(
    client: Place,
    target: tuple[str, int],
    server: Place,
    at: tuple[str, int],
    protocol: Protocol,
    *,
    wait_s: float = 5,
) -> str | None:
    """Calls `target`, has a server at `at` answer, and returns the address it sees the client by; None without a call.

    For answers that should not come, take a short time.
    """
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with server_at(server, protocol, *at) as listener, client.socket(family(target[0]), kind) as caller:
        caller.settimeout(wait_s)
        listener.settimeout(wait_s)
        try:
            caller.connect(target)
            caller.sendall(b"who am I?")
            if protocol == "tcp":
                there, seen = listener.accept()
                with there:
                    there.sendall(seen[0].encode())
            else:
                _, seen = listener.recvfrom(100)
                listener.sendto(seen[0].encode(), seen)
        except OSError:
            return None
        assert caller.recv(100).decode() == seen[0]
        return str(seen[0])


@either_way
@each_way
def test_a_machine_outside_reaches_a_published_port_under_its_own_address(
    lab: Lab, other: Place, protocol: Protocol, version: int
) -> None:
    """On every Linux bridge of the network."""
    own = OUTSIDE6 if version == 6 else OUTSIDE4
    for port, station in ((8001, lab.a), (8002, lab.c)):
        address = address_of(station, version)
        with published(lab.host, port_of(station, protocol, version, port)):
            assert reach(other, (HOST[version], port), station, (address, 80), protocol) == own
        assert reach(other, (HOST[version], port), station, (address, 80), protocol, wait_s=0.1) is None


@either_way
@each_way
def test_the_host_reaches_it_by_each_of_its_addresses(lab: Lab, here: Place, protocol: Protocol, version: int) -> None:
    """127.0.0.1 among them, not ::1: that is refused at once."""
    gateway = str(lab.a.gateway(version))
    with published(lab.host, port_of(lab.c, protocol, version, 8010)):
        for target in (HOST[version], gateway, *(["127.0.0.1", "127.3.2.1"] if version == 4 else [])):
            assert reach(here, (target, 8010), lab.c, (address_of(lab.c, version), 80), protocol), target
        with here.socket(socket.AF_INET6, socket.SOCK_STREAM) as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(("::1", 8010))


@with_br_netfilter
@each_way
def test_a_port_that_is_held_is_reached_all_the_same(
    lab: Lab, other: Place, here: Place, protocol: Protocol, version: int
) -> None:
    """The socket that keeps others from the port gets nothing."""
    at = (address_of(lab.a, version), 80)
    with closing(HostPorts()) as ports:
        on(lab.host, partial(ports.hold, protocol, None, 8015))
        with published(lab.host, port_of(lab.a, protocol, version, 8015)):
            for client in (other, here, lab.b):
                assert reach(client, (HOST[version], 8015), lab.a, at, protocol), client.name
        with here.socket(socket.AF_INET6, socket.SOCK_STREAM) as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(("::1", 8015))


@either_way
@each_way
def test_a_network_reaches_its_own_published_ports(lab: Lab, protocol: Protocol, version: int) -> None:
    """The neighbour, on the same Linux bridge and on another."""
    gateway = str(lab.a.gateway(version))
    with published(lab.host, port_of(lab.a, protocol, version, 8020)):
        at = (address_of(lab.a, version), 80)
        for client in (lab.b, lab.c):
            for target in (HOST[version], gateway):
                assert reach(client, (target, 8020), lab.a, at, protocol) == gateway, (client.name, target)


@either_way
@each_way
def test_an_endpoint_reaches_itself_by_its_published_port(
    lab: Lab, is_bridged: bool, protocol: Protocol, version: int
) -> None:
    """On a shard only where the host routes: the frame would have to go back through the trunk."""
    for port, station in ((8025, lab.a), (8026, lab.c)):
        if station is lab.c and is_bridged:
            continue
        with published(lab.host, port_of(station, protocol, version, port)):
            at = (address_of(station, version), 80)
            assert reach(station, (HOST[version], port), station, at, protocol) == station.gateway(version)


@either_way
@each_way
def test_endpoints_kept_from_each_other_meet_at_published_ports_where_the_host_routes(
    aloof: Lab, is_bridged: bool, protocol: Protocol, version: int
) -> None:
    at = (address_of(aloof.a, version), 80)
    with published(aloof.host, port_of(aloof.a, protocol, version, 8030)):
        met = reach(aloof.b, (HOST[version], 8030), aloof.a, at, protocol, wait_s=0.1 if is_bridged else 5)
        assert (met is None) == is_bridged
        assert reach(aloof.b, at, aloof.a, at, protocol, wait_s=0.1) is None


@either_way
@each_way
def test_other_networks_reach_it_through_the_hosts_address_alone(
    lab: Lab, second: Lab, protocol: Protocol, version: int
) -> None:
    for client, server in ((second.a, lab.a), (lab.c, second.a)):
        at = (address_of(server, version), 80)
        with published(lab.host, port_of(server, protocol, version, 8040)):
            assert reach(client, (HOST[version], 8040), server, at, protocol)
            assert reach(client, at, server, at, protocol, wait_s=0.1) is None


@with_br_netfilter
@each_way
def test_internal_networks_neither_reach_out_nor_are_reached(
    lab: Lab, internal: Lab, other: Place, protocol: Protocol, version: int
) -> None:
    """Although an endpoint has made itself a route."""
    gateway = next(
        config["Gateway"]
        for config in lab.host.api("GET", f"/networks/{internal.name}")["IPAM"]["Config"]
        if (":" in config["Gateway"]) == (version == 6)
    )
    internal.a.run("ip", "route", "replace", "default", "via", gateway)
    publications = (port_of(lab.a, protocol, version, 8050), port_of(internal.a, protocol, version, 8051))
    with published(lab.host, *publications):
        for client, server, port in ((internal.a, lab.a, 8050), (lab.a, internal.a, 8051), (other, internal.a, 8051)):
            at = (address_of(server, version), 80)
            target = gateway if client is internal.a else HOST[version]
            assert reach(client, (target, port), server, at, protocol, wait_s=0.1) is None


@either_way
@each_way
def test_ports_are_reached_without_masquerade_too(
    routed: Lab, lab: Lab, other: Place, here: Place, protocol: Protocol, version: int
) -> None:
    at, own = (address_of(routed.a, version), 80), OUTSIDE6 if version == 6 else OUTSIDE4
    with published(lab.host, port_of(routed.a, protocol, version, 8060), port_of(lab.a, protocol, version, 8061)):
        assert reach(other, (HOST[version], 8060), routed.a, at, protocol) == own
        for client in (here, routed.a, routed.b, lab.a):
            assert reach(client, (HOST[version], 8060), routed.a, at, protocol), client.name
        assert version == 6 or reach(here, ("127.0.0.1", 8060), routed.a, at, protocol)
        lab_at = (address_of(lab.a, version), 80)
        assert reach(routed.b, (HOST[version], 8061), lab.a, lab_at, protocol) == address_of(routed.b, version)


@with_br_netfilter
@each_way
def test_a_range_keeps_or_moves_its_ports_one_by_one(lab: Lab, other: Place, protocol: Protocol, version: int) -> None:
    address = address_of(lab.a, version)
    kept = port_of(lab.a, protocol, version, 8100, 8100, count=10)
    moved = port_of(lab.b, protocol, version, 8110, 9000, count=10)
    with published(lab.host, kept, moved):
        for offset in (0, 4, 9):
            assert reach(other, (HOST[version], 8100 + offset), lab.a, (address, 8100 + offset), protocol)
            at = (address_of(lab.b, version), 9000 + offset)
            assert reach(other, (HOST[version], 8110 + offset), lab.b, at, protocol)
        for port in (8099, 8120):
            assert reach(other, (HOST[version], port), lab.a, (address, port), protocol, wait_s=0.1) is None


@with_br_netfilter
@each_way
def test_a_port_of_one_address_is_none_of_the_others(
    lab: Lab, other: Place, here: Place, protocol: Protocol, version: int
) -> None:
    gateway = str(lab.a.gateway(version))
    only_host = port_of(lab.a, protocol, version, 8130, host_ip=ip_address(HOST[version]))
    only_gateway = port_of(lab.b, protocol, version, 8130, host_ip=ip_address(gateway))
    at_a, at_b = (address_of(lab.a, version), 80), (address_of(lab.b, version), 80)
    with published(lab.host, only_host, only_gateway):
        assert reach(other, (HOST[version], 8130), lab.a, at_a, protocol)
        assert reach(here, (gateway, 8130), lab.b, at_b, protocol)
        if version == 4:
            assert reach(here, ("127.0.0.1", 8130), lab.a, at_a, protocol, wait_s=0.1) is None


@with_br_netfilter
def test_a_port_of_the_loopback_address_is_the_hosts_alone(lab: Lab, other: Place, here: Place) -> None:
    with published(lab.host, port_of(lab.a, "tcp", 4, 8140, host_ip=ip_address("127.0.0.1"))):
        assert reach(here, ("127.0.0.1", 8140), lab.a, (lab.a.ip4, 80), "tcp") == lab.a.gateway()
        for client in (other, here, lab.b):
            assert reach(client, (HOST4, 8140), lab.a, (lab.a.ip4, 80), "tcp", wait_s=0.1) is None


@with_br_netfilter
@pytest.mark.parametrize("version", [4, 6])
def test_unpublishing_ends_no_connection_and_lets_none_begin(lab: Lab, other: Place, version: int) -> None:
    address = address_of(lab.a, version)
    with server_at(lab.a, "tcp", address, 80) as listener, other.socket(family(address), socket.SOCK_STREAM) as caller:
        with published(lab.host, port_of(lab.a, "tcp", version, 8150)):
            caller.connect((HOST[version], 8150))
        there, _ = listener.accept()
        with there:
            caller.sendall(b"still there?")
            assert there.recv(100) == b"still there?"
            there.sendall(b"yes")
            assert caller.recv(100) == b"yes"
    assert reach(other, (HOST[version], 8150), lab.a, (address, 80), "tcp", wait_s=0.1) is None


@with_br_netfilter
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("port", "count"), [(80, 1), (8160, 3)])
def test_a_udp_client_that_never_stops_is_handed_over(
    lab: Lab, other: Place, version: int, port: int, count: int
) -> None:
    """From nobody to a, and from a to b, by the same socket, so without a new flow."""
    with (
        other.socket(family(HOST[version]), socket.SOCK_DGRAM) as caller,
        server_at(lab.a, "udp", address_of(lab.a, version), port) as a,
        server_at(lab.b, "udp", address_of(lab.b, version), port) as b,
        server_at(Place(lab.host, "host", f"/proc/{lab.host.pid}/ns/net", "lo"), "udp", HOST[version], 8160) as held,
    ):
        caller.sendto(b"to nobody", (HOST[version], 8160))
        assert held.recv(100) == b"to nobody"
        for station, server in ((lab.a, a), (lab.b, b)):
            with published(lab.host, port_of(station, "udp", version, 8160, port, count=count)):
                caller.sendto(b"hello", (HOST[version], 8160))
                question, seen = server.recvfrom(100)
                server.sendto(question, seen)
                assert caller.recvfrom(100)[0] == b"hello"
        caller.sendto(b"to nobody", (HOST[version], 8160))
        assert held.recv(100) == b"to nobody"
        # A port that was taken away without a word, as by somebody who empties the map.
        with published(lab.host, port_of(lab.a, "udp", version, 8160, port, count=count)):
            caller.sendto(b"once more", (HOST[version], 8160))
            assert a.recv(100) == b"once more"
            lab.host.run("nft", "flush", "map", "inet", "linkspan", f"published{version}")
            lab.host.run("nft", "flush", "map", "inet", "linkspan", f"translated{version}")
            with published(lab.host, port_of(lab.b, "udp", version, 8160, port, count=count)):
                caller.sendto(b"not to a", (HOST[version], 8160))
                assert b.recv(100) == b"not to a"


@with_br_netfilter
def test_publishing_leaves_flows_that_only_pass_through_the_host_alone(lab: Lab, other: Place) -> None:
    """As an endpoint's question to a name server, when the host's port 53 is published."""
    with (
        lab.a.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller,
        server_at(other, "udp", OUTSIDE4, 53) as server,
    ):
        caller.sendto(b"question", (OUTSIDE4, 53))
        _, seen = server.recvfrom(100)
        with published(lab.host, port_of(lab.b, "udp", 4, 53, 53)):
            server.sendto(b"answer", seen)
            assert caller.recv(100) == b"answer"
        server.sendto(b"one more", seen)
        assert caller.recv(100) == b"one more"


@either_way
def test_plain_traffic_of_a_network_keeps_its_addresses(lab: Lab, machine: Host) -> None:
    """By the fast path and by Linux bridges alone, while ports are published."""
    slow = Lab(machine, "slow", accel="off", EnableIPv6=True)
    for network in (lab, slow):
        for protocol, version in WAYS:
            with published(machine, port_of(network.a, protocol, version, 8170)):
                for client in (network.b, network.c):
                    at = (address_of(network.a, version), 80)
                    assert reach(client, at, network.a, at, protocol) == address_of(client, version), client.name


@either_way
@each_way
def test_endpoints_on_every_bridge_go_out_under_the_hosts_address(
    lab: Lab, other: Place, protocol: Protocol, version: int
) -> None:
    at = (OUTSIDE6 if version == 6 else OUTSIDE4, 90)
    for client in (lab.a, lab.c):
        assert reach(client, at, other, at, protocol) == HOST[version], client.name


@either_way
def test_endpoints_cannot_reach_or_pretend_to_be_the_hosts_loopback(machine: Host, here: Place) -> None:
    """CVE-2020-8558: with route_localnet the kernel itself would let them."""
    lab = Lab(machine, "curious", accel="off")
    on(machine, partial(nft.allow_loopback, lab.bridge))
    gateway, bridge_mac = str(lab.a.gateway()), machine.ip("link", "show", "dev", lab.bridge)[0]["address"]

    def frame(source: str, destination: str, payload: bytes) -> bytes:
        ether = Ether(src=lab.a.mac, dst=bridge_mac)
        return bytes(ether / IP(src=source, dst=destination) / UDP(sport=9, dport=7) / Raw(payload))

    with here.socket(socket.AF_INET, socket.SOCK_DGRAM) as service, lab.a.wire() as wire:
        service.bind(("0.0.0.0", 7))
        wire.send(
            frame(lab.a.ip4, "127.0.0.1", b"to the loopback"),
            frame("127.0.0.1", gateway, b"as the loopback"),
            frame(lab.a.ip4, gateway, b"as itself"),
        )
        assert service.recv(100) == b"as itself"
    counters = machine.run("nft", "list", "chain", "inet", "linkspan", "guard").stdout
    assert counters.count("counter packets 1 ") == 2


@either_way
def test_a_shard_is_no_way_round_the_isolation(machine: Host, other: Place) -> None:
    """Its Linux bridge has a MAC too, and the host would route what is sent there."""
    lone = Lab(machine, "lone", accel="off", Internal=True)
    assert [lone.a.name, lone.b.name, lone.c.name]  # in this order, so c is on the shard
    mac = machine.ip("link", "show", "dev", f"s01{lone.id[:12]}")[0]["address"]
    with lone.c.wire() as wire, Wire(other.path, "eth0") as cable:
        packet = Ether(src=lone.c.mac, dst=mac) / IP(src=lone.c.ip4, dst=OUTSIDE4) / UDP(dport=9) / Raw(b"sneaked out")
        wire.send(packet)
        wait_for(lambda: "counter packets 0 " not in shard_rule(machine), "the packet to be dropped")
        assert not any(b"sneaked out" in frame for frame in cable.until_idle())


def shard_rule(machine: Host) -> str:
    lines = machine.run("nft", "list", "chain", "inet", "linkspan", "forward").stdout.splitlines()
    return next(line for line in lines if "shards only bridge" in line)


@with_br_netfilter
def test_ports_are_elements_and_no_rules(lab: Lab) -> None:
    """One for a port, and one for a range that keeps its ports."""

    def listing() -> tuple[int, dict[str, int]]:
        items = json.loads(lab.host.run("nft", "-j", "list", "table", "inet", "linkspan").stdout)["nftables"]
        elements = {item["map"]["name"]: len(item["map"].get("elem", ())) for item in items if "map" in item}
        return sum("rule" in item for item in items), elements

    rules, before = listing()
    assert set(before.values()) == {0}
    single = port_of(lab.a, "tcp", 4, 8200)
    kept = port_of(lab.a, "udp", 4, 10000, 10000, count=5000)
    moved = port_of(lab.b, "tcp", 6, 8300, 80, count=3)
    with published(lab.host, single, kept, moved):
        assert listing() == (rules, {"published4": 1, "translated4": 1, "published6": 0, "translated6": 3})
    assert listing() == (rules, before)
