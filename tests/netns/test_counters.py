"""Counters in /metrics agree to the packet and the byte with what the kernel's own counters say."""

from __future__ import annotations

import json
import os
import signal
import socket
from functools import partial
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.hosts import Host, wait_for
from tests.netns.lab import Lab
from tests.traffic import Station, Tallies, growth, settled, tallies, tcp_pair, udp_echo

pytestmark = pytest.mark.xdist_group("counters")


@pytest.fixture(scope="module", params=["on", "off"])
def lab(request: pytest.FixtureRequest, machine: Host) -> Lab:
    return Lab(machine, f"count-{request.param}", accel=request.param, EnableIPv6=True)


@pytest.fixture(scope="module")
def fast(machine: Host) -> Lab:
    return Lab(machine, "fast", EnableIPv6=True)


def sums(found: Tallies) -> tuple[int, int, int, int]:
    """(packets out, bytes out, packets in, bytes in) of both paths together."""
    return tuple(  # type: ignore[return-value]
        sum(found[what, direction, path] for path in ("fast", "slow"))
        for direction in ("out", "in")
        for what in ("packets", "bytes")
    )


def device(station: Station) -> tuple[int, int, int, int]:
    stats = station.link()["stats64"]
    return stats["tx"]["packets"], stats["tx"]["bytes"], stats["rx"]["packets"], stats["rx"]["bytes"]


def agree(lab: Lab, station: Station) -> bool:
    return sums(tallies(lab.host, station.name)) == device(station)


def send_some(lab: Lab) -> None:
    for address in (lab.b.ip4, lab.b.ip6):
        lab.a.run("ping", "-n", "-q", "-c20", "-i0.002", address)
        udp_echo(lab.a, lab.b, address, os.urandom(1400), times=10)
        udp_echo(lab.a, lab.b, address, os.urandom(8000))
    with lab.a.wire() as wire:
        wire.send(*[lab.frame(b"to all", "ff:ff:ff:ff:ff:ff")] * 5)


def test_counters_are_those_of_the_sandboxs_device(lab: Lab) -> None:
    """Since the join: both sides see the namespace's own chatter, and the answers of the programs."""
    send_some(lab)
    for station in (lab.a, lab.b, lab.c):
        wait_for(partial(agree, lab, station), f"{sums(tallies(lab.host, station.name))} to be {device(station)}")


def test_bytes_of_a_datagram_are_its_frames(fast: Lab) -> None:
    assert fast.a.pings(fast.b.ip4)
    assert fast.b.pings(fast.a.ip4)
    before = tallies(fast.host, fast.a.name), tallies(fast.host, fast.b.name)
    with fast.a.wire() as out, fast.b.wire() as into:
        for length in (60, 61, 1000, 1514):
            frame = fast.frame(b"x" * (length - 42))
            assert len(frame) == length
            out.send(frame)
        out.send(fast.frame(b"end"))
        into.frames_until(b"end")
    sent, received = (
        growth(before[0], tallies(fast.host, fast.a.name)),
        growth(before[1], tallies(fast.host, fast.b.name)),
    )
    total = 60 + 61 + 1000 + 1514 + 45
    assert (sent["packets", "out", "fast"], sent["bytes", "out", "fast"]) == (5, total)
    assert (received["packets", "in", "fast"], received["bytes", "in", "fast"]) == (5, total)


def nft_counter(station: Station) -> tuple[int, int]:
    listing = json.loads(station.run("nft", "-j", "list", "table", "netdev", "seen").stdout)
    rule = next(item["rule"] for item in listing["nftables"] if "rule" in item)
    counter: Any = next(part["counter"] for part in rule["expr"] if "counter" in part)
    return counter["packets"], counter["bytes"]


def test_receivers_counter_is_that_of_nft_at_its_device(fast: Lab) -> None:
    """nft counts from the network header on."""
    rules = (
        "add table netdev seen\n"
        f"add chain netdev seen ingress {{ type filter hook ingress device {fast.b.ifname} priority 0; }}\n"
        f"add rule netdev seen ingress ip saddr {fast.a.ip4} udp dport 9 counter\n"
    )
    fast.b.run("sh", "-c", f"printf '{rules}' | nft -f -")
    assert fast.b.pings(fast.a.ip4)  # so that it need not ask for a's MAC while we count
    before = tallies(fast.host, fast.b.name)
    with fast.a.wire() as out, fast.b.wire() as into:
        for _ in range(50):
            out.send(fast.frame(b"x" * 500))
        for _ in range(50):
            into.frames_until(b"x" * 500)
    grown = growth(before, tallies(fast.host, fast.b.name))
    packets, octets = nft_counter(fast.b)
    assert (packets, octets + 14 * packets) == (grown["packets", "in", "fast"], grown["bytes", "in", "fast"])
    assert packets == 50


def tcp_segments(station: Station) -> int:
    """Segments that TCP has sent; a GSO packet counts as those it is cut into."""
    return int(json.loads(station.run("nstat", "-az", "-j", "-s", "TcpOutSegs").stdout)["kernel"]["TcpOutSegs"])


def test_gso_packets_count_as_the_segments_that_tcp_counts(fast: Lab) -> None:
    for address in (fast.b.ip4, fast.b.ip6):
        assert fast.a.pings(address)
        before, segments = tallies(fast.host, fast.a.name), tcp_segments(fast.a)
        with tcp_pair(fast.a, fast.b, address) as (here, there):
            here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            here.sendall(b"x" * 400_000)
            left = 400_000
            while left:
                left -= len(there.recv(1 << 20))
        grown = growth(before, tallies(fast.host, fast.a.name))
        assert grown["packets", "out", "fast"] == tcp_segments(fast.a) - segments
        assert grown["packets", "out", "fast"] > 400_000 / 1460


def test_counters_go_on_when_another_network_is_left(fast: Lab, machine: Host) -> None:
    send_some(fast)
    other = Lab(machine, "brief")
    before = settled(lambda: tallies(machine, fast.a.name, "fast"), "the chatter to end")
    machine.api("POST", "/networks/brief/connect", {"Container": fast.a.name})
    machine.api("POST", "/networks/brief/disconnect", {"Container": fast.a.name})
    after = tallies(machine, fast.a.name, "fast")
    machine.api("DELETE", f"/networks/{other.id}")
    assert all(after[key] >= value for key, value in before.items())


def test_a_new_endpoint_starts_from_zero(fast: Lab, machine: Host) -> None:
    """Although it gets the slot of the one that went."""
    first = fast.join("first")
    with first.wire() as wire:
        wire.send(*[Ether(src="02:00:00:00:00:01", dst=fast.a.mac) / Raw(b"forged")] * 1000)
        wire.send(*[Ether(src=first.mac, dst=fast.a.mac) / IP(src=first.ip4, dst=fast.a.ip4) / UDP(dport=9)] * 1000)
    assert tallies(machine, first.name)["packets", "out", "fast"] >= 1000
    assert tallies(machine, first.name)["drops", "spoofed_mac"] == 1000
    machine.api("DELETE", f"/linkspan/sandboxes/{first.name}")
    second = fast.join("second")
    counted = tallies(machine, second.name)
    assert ("drops", "spoofed_mac") not in counted
    assert all(count < 50 for (what, *_), count in counted.items() if what == "packets"), counted
    assert counted["packets", "out", "fast"] < 10


def network_sums(machine: Host, network: str) -> dict[str, float]:
    """All counters of a network, by name and labels as they stand in the text."""
    text = machine.run("curl", "-sS", "--fail", "http://127.0.0.1:9478/metrics").stdout
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("linkspan_network_")]
    return {
        series: float(value) for series, _, value in lines if f'network="{network}"' in series and "_total{" in series
    }


@pytest.mark.parametrize("accel", ["on", "off"])
def test_sums_of_a_network_never_go_back(machine: Host, accel: str) -> None:
    """With traffic, while an endpoint leaves and linkspand is stopped and killed."""
    lab = Lab(machine, f"sums-{accel}", accel=accel)
    forged = Ether(src="02:00:00:00:00:01", dst=lab.a.mac) / Raw(b"forged")
    assert lab.a.pings(lab.b.ip4)
    before = network_sums(machine, lab.name)
    with lab.c.wire() as wire:
        wire.send(*[forged] * 10, *[Ether(src=lab.c.mac, dst=lab.a.mac) / Raw(b"x" * 100)] * 10)
    traffic = machine.popen(*machine.inside(lab.a.netns, "ping", "-q", "-i0.01", "-c100000", lab.b.ip4))
    try:
        for change in (
            lambda: machine.api("DELETE", f"/linkspan/sandboxes/{lab.c.name}"),
            lambda: (machine.stop(), machine.start()),
            lambda: (machine.stop(signal.SIGKILL), machine.start()),
            lambda: machine.api("DELETE", f"/linkspan/sandboxes/{lab.b.name}"),
            lambda: (machine.stop(signal.SIGKILL), machine.start()),
        ):
            change()
            after = network_sums(machine, lab.name)
            assert all(after[series] >= value for series, value in before.items()), (before, after)
            before = after
    finally:
        traffic.kill()
        traffic.wait()
    if accel == "on":
        (dropped,) = [value for series, value in before.items() if 'reason="spoofed_mac"' in series]
        assert dropped == 10
    outgoing = sum(value for series, value in before.items() if "packets" in series and 'direction="out"' in series)
    assert outgoing >= 20
