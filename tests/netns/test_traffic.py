"""Real traffic between two sandboxes: all of it arrives, by the fast path where there is one, else by the bridge."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from tests.hosts import Host
from tests.netns.lab import Lab
from tests.traffic import BROADCAST, growth, iperf3, is_v6, tallies, tcp_pair, udp_echo

pytestmark = pytest.mark.xdist_group("traffic")


@pytest.fixture(scope="module", params=["on", "off"])
def lab(request: pytest.FixtureRequest, machine: Host) -> Lab:
    """Sandboxes a, b and c on a network of both families, with and without its programs."""
    return Lab(machine, f"net-{request.param}", accel=request.param, EnableIPv6=True)


@pytest.fixture(scope="module", params=["on", "off"])
def jumbo(request: pytest.FixtureRequest, machine: Host) -> Lab:
    return Lab(
        machine,
        f"jumbo-{request.param}",
        accel=request.param,
        EnableIPv6=True,
        Options={"com.docker.network.driver.mtu": "9000"},
    )


def both_families(lab: Lab) -> tuple[str, str]:
    return lab.b.ip4, lab.b.ip6


def test_ping_gets_an_answer(lab: Lab) -> None:
    for address in (*both_families(lab), f"{lab.b.ip6_ll}%{lab.a.ifname}"):
        assert lab.a.pings(address), address


def test_every_packet_of_a_ping_flood_takes_the_fast_path_if_there_is_one(lab: Lab) -> None:
    for address in both_families(lab):
        lab.a.pings(address)
        before = tallies(lab.host, lab.a.name)
        report = lab.a.run("ping", "-n", "-q", "-c200", "-i0.002", address).stdout
        assert "200 received" in report
        grown = growth(before, tallies(lab.host, lab.a.name))
        path = "fast" if lab.is_fast else "slow"
        # The slow path also has the neighbours' keeping in touch.
        assert grown["packets", "out", path] >= 200
        assert grown["packets", "in", path] >= 200
        if lab.is_fast:
            assert grown["packets", "out", "fast"] == grown["packets", "in", "fast"] == 200


@pytest.mark.parametrize("payload", [0, 1, 1232, 1452, 1472])
def test_udp_of_every_size_that_fits_arrives_unchanged(lab: Lab, payload: int) -> None:
    data = os.urandom(payload)
    for address in both_families(lab):
        udp_echo(lab.a, lab.b, address, data, times=3)


def test_fragmented_udp_arrives_unchanged_by_the_fast_path(lab: Lab) -> None:
    for address in both_families(lab):
        before = tallies(lab.host, lab.a.name)
        udp_echo(lab.a, lab.b, address, os.urandom(8000), times=10)
        grown = growth(before, tallies(lab.host, lab.a.name))
        # 8,008 bytes of UDP in fragments of at most 1,480 (IPv4) or 1,448 (IPv6) bytes: six.
        if lab.is_fast:
            assert grown["packets", "out", "fast"] == grown["packets", "in", "fast"] == 60
        else:
            assert grown["packets", "out", "slow"] >= 60


def test_tcp_with_segmentation_offload_carries_a_stream_whole(lab: Lab) -> None:
    data = os.urandom(4 << 20)
    for address in both_families(lab):
        with tcp_pair(lab.a, lab.b, address) as (here, there):
            here.setblocking(True)
            heard = bytearray()
            sent = 0
            here.settimeout(0)
            while len(heard) < len(data):
                with contextlib.suppress(BlockingIOError):
                    sent += here.send(data[sent:])
                heard += there.recv(1 << 20)
            assert heard == data


def test_iperf3_runs_and_counters_count_wire_packets(lab: Lab) -> None:
    for address in both_families(lab):
        before = tallies(lab.host, lab.a.name)
        report = iperf3(lab.a, lab.b, address, "-n", "64M")
        received = report["end"]["sum_received"]["bytes"]
        assert received > 32 << 20
        grown = growth(before, tallies(lab.host, lab.a.name))
        if lab.is_fast:
            # A GSO packet of 64 KiB is 45 wire packets: segments of at most 1,448 bytes.
            assert grown["packets", "out", "fast"] >= received // 1448
            assert grown["bytes", "out", "fast"] >= received
            assert grown.get(("packets", "out", "slow"), 0) < 50


def test_udp_stream_of_iperf3_loses_nothing_at_a_modest_rate(lab: Lab) -> None:
    for address in both_families(lab):
        report = iperf3(lab.a, lab.b, address, "-u", "-b", "20M", "-t", "1", "-l", "1200")
        assert report["end"]["sum"]["lost_packets"] == 0
        assert report["end"]["sum"]["packets"] > 500


def test_jumbo_network_has_its_mtu_and_carries_frames_of_it(jumbo: Lab) -> None:
    assert jumbo.a.link()["mtu"] == jumbo.b.link()["mtu"] == 9000
    for address in both_families(jumbo):
        head = 48 if is_v6(address) else 28
        assert jumbo.a.pings(address, "-Mdo", f"-s{9000 - head}")
        assert not jumbo.a.pings(address, "-Mdo", f"-s{9001 - head}", wait_s=0.3)
        before = tallies(jumbo.host, jumbo.a.name)
        udp_echo(jumbo.a, jumbo.b, address, os.urandom(9000 - head))
        if jumbo.is_fast:
            assert growth(before, tallies(jumbo.host, jumbo.a.name))["packets", "out", "fast"] == 1
        assert iperf3(jumbo.a, jumbo.b, address, "-n", "32M")["end"]["sum_received"]["bytes"] > 16 << 20


def test_fragments_as_long_as_a_jumbo_mtu_pass(jumbo: Lab) -> None:
    """br_netfilter puts fragments together and cuts them again, to an MTU of its own if the bridge does not tell it."""
    for address in both_families(jumbo):
        udp_echo(jumbo.a, jumbo.b, address, os.urandom(30000), times=3)


def test_frames_longer_than_the_mtu_go_no_further_than_on_a_bridge(lab: Lab) -> None:
    """A bridge forwards up to four bytes (a VLAN tag) more than the MTU; what is longer it drops."""
    lab.a.run("ip", "link", "set", lab.a.ifname, "mtu", "9000")
    lab.b.run("ip", "link", "set", lab.b.ifname, "mtu", "9000")
    try:
        with lab.a.wire() as out, lab.b.wire() as into:
            for length, arrives in ((1500, True), (1501, True), (1504, True), (1505, False), (9000, False)):
                marker = f"length {length}".encode()
                packet = IP(src=lab.a.ip4, dst=lab.b.ip4) / UDP(dport=9) / Raw(marker.ljust(length - 28, b"."))
                end = f"end of {length}".encode()
                with contextlib.suppress(OSError):  # ENOBUFS: the veth pair itself has dropped it
                    out.send(Ether(src=lab.a.mac, dst=lab.b.mac) / packet)
                out.send(lab.frame(end))
                heard = into.frames_until(end)
                assert any(marker in frame for frame in heard) == arrives, length
    finally:
        for station in (lab.a, lab.b):
            station.run("ip", "link", "set", station.ifname, "mtu", "1500")


@pytest.mark.parametrize("tags", [(100,), (100, 200)])
def test_vlan_tagged_frames_pass_unchanged_by_the_slow_path(lab: Lab, tags: tuple[int, ...]) -> None:
    tagging: Any = Ether(src=lab.a.mac, dst=lab.b.mac)
    for tag in tags:
        tagging = tagging / Dot1Q(vlan=tag, prio=3)
    for number, packet in enumerate(
        (
            IP(src=lab.a.ip4, dst=lab.b.ip4) / UDP(dport=9),
            IPv6(src=lab.a.ip6, dst=lab.b.ip6) / UDP(dport=9),
            ARP(hwsrc=lab.a.mac, psrc=lab.a.ip4, pdst=lab.b.ip4),
        )
    ):
        marker = f"tagged {tags} {number}".encode()
        before = tallies(lab.host, lab.a.name)
        with lab.a.wire() as out, lab.b.wire() as into:
            sent = tagging / packet / Raw(marker)
            out.send(sent)
            assert into.frames_until(marker)[-1] == bytes(sent)
        grown = growth(before, tallies(lab.host, lab.a.name))
        assert ("packets", "out", "fast") not in grown
        assert grown["packets", "out", "slow"] >= 1


@pytest.mark.parametrize("destination", [BROADCAST, "01:00:5e:01:02:03", "33:33:00:00:12:34"])
def test_broadcast_and_multicast_reach_everybody(lab: Lab, destination: str) -> None:
    marker = f"to all at {destination}".encode()
    with lab.a.wire() as out, lab.b.wire() as b, lab.c.wire() as c:
        ip = (
            IPv6(src=lab.a.ip6, dst="ff02::1234")
            if destination.startswith("33")
            else IP(src=lab.a.ip4, dst="224.1.2.3")
        )
        sent = Ether(src=lab.a.mac, dst=destination) / ip / UDP(dport=9) / Raw(marker)
        out.send(sent)
        for wire in (b, c):
            assert wire.frames_until(marker)[-1] == bytes(sent)


def test_multicast_sockets_hear_each_other(lab: Lab) -> None:
    with (
        lab.a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        lab.b.socket(socket.AF_INET, socket.SOCK_DGRAM) as b,
        lab.c.socket(socket.AF_INET, socket.SOCK_DGRAM) as c,
    ):
        for listener, station in ((b, lab.b), (c, lab.c)):
            membership = socket.inet_aton("239.7.7.7") + socket.inet_aton(station.ip4)
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            listener.bind(("239.7.7.7", 7777))
        sender.sendto(b"all", ("239.7.7.7", 7777))
        assert b.recv(10) == c.recv(10) == b"all"


def test_unicast_for_one_is_not_shown_to_others(lab: Lab) -> None:
    """Also not unicast for a MAC that nobody has."""
    with lab.a.wire() as out, lab.b.wire() as b, lab.c.wire() as c:
        unknown = "02:42:00:00:de:ad"
        for family in (IP(src=lab.a.ip4, dst=lab.b.ip4), IPv6(src=lab.a.ip6, dst=lab.b.ip6)):
            for destination, marker in ((lab.b.mac, b"secret"), (unknown, b"stray")):
                out.send(Ether(src=lab.a.mac, dst=destination) / family / UDP(dport=9) / Raw(marker))
        out.send(lab.frame(b"the end"), lab.frame(b"the end", BROADCAST))
        assert sum(b"secret" in frame for frame in b.frames_until(b"the end")) == 2
        heard = c.frames_until(b"the end")
        assert not any(b"secret" in frame or b"stray" in frame for frame in heard)


def test_a_frame_for_the_sender_itself_does_not_come_back(lab: Lab) -> None:
    with lab.a.wire() as out, lab.a.wire() as back:
        out.send(lab.frame(b"to myself", lab.a.mac))
        assert lab.a.pings(lab.b.ip4)
        echo = bytes(IP(src=lab.b.ip4, dst=lab.a.ip4))[12:20]
        assert not any(b"to myself" in frame for frame in back.frames_until(echo))


def test_echo_requests_built_by_scapy_are_answered(lab: Lab) -> None:
    """Header options and extension headers go the long way round the checks and arrive."""
    from scapy.layers.inet import IPOption_RR
    from scapy.layers.inet6 import IPv6ExtHdrDestOpt, PadN

    with lab.a.wire() as wire:
        for ip in (
            IP(src=lab.a.ip4, dst=lab.b.ip4, options=[IPOption_RR(routers=["0.0.0.0"] * 3)]) / ICMP(id=7),
            IPv6(src=lab.a.ip6, dst=lab.b.ip6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
            / ICMPv6EchoRequest(id=7),
        ):  # fmt: skip
            wire.send(Ether(src=lab.a.mac, dst=lab.b.mac) / ip / Raw(b"odd but right"))
            wire.frames_until(b"odd but right")
