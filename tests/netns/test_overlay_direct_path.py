"""Traffic between endpoints of two nodes on one layer 2 segment: without VXLAN where both take it so, always whole."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from datapath import fast_peers
from tests.netns.overlay import (
    OFFLOADS,
    SEGMENT,
    UNDERLAY,
    Machine,
    Overlay,
    addresses,
    carried,
    carry,
    took_the_fast_path,
)
from tests.traffic import udp_echo
from tests.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=[4, 6], ids=["over IPv4", "over IPv6"])
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overlay]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with pytest.MonkeyPatch.context() as patch, Overlay(tmp_path_factory.mktemp("direct"), request.param) as made:
        patch.setattr(fast_peers, "HEARD_OF_S", 0)
        made.accelerate()
        for machine in made.machines:
            made.make_direct(machine)
        yield made


@contextmanager
def refusing(overlay: Overlay, *machines: Machine) -> Iterator[None]:
    """These machines take no direct packets meanwhile."""
    for machine in machines:
        overlay.make_direct(machine, takes=False)
    try:
        yield
    finally:
        for machine in machines:
            overlay.make_direct(machine)


@contextmanager
def dumped(machine: Machine, expression: str) -> Iterator[list[str]]:
    """tcpdump's lines about what of this kind passes the machine's uplink meanwhile."""
    command = machine.stack.command("tcpdump", "-nel", "--immediate-mode", "-s128", "-i", UNDERLAY, expression)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    until(lambda: "listening on" in process.stderr.readline())  # type: ignore[union-attr]
    lines: list[str] = []
    try:
        yield lines
    finally:
        process.send_signal(signal.SIGINT)
        lines += filter(None, process.communicate(timeout=10)[0].splitlines())


@pytest.mark.parametrize("inside", [0, 1], ids=["IPv4 inside", "IPv6 inside"])
def test_unicast_is_on_the_underlay_as_it_is_and_on_the_fast_path_at_both_ends(overlay: Overlay, inside: int) -> None:
    target = addresses(overlay.b)[inside]
    assert overlay.a.pings(target)
    with (
        dumped(overlay.one, "udp port 4789") as tunnelled,
        dumped(overlay.one, f"host {target} and (icmp or icmp6)") as direct,
        overlay.growth() as grown,
    ):
        assert overlay.a.run("ping", "-n", "-c20", "-i0.01", "-s1200", target).returncode == 0
        carry(overlay.a, overlay.b, target, os.urandom(4_000_000))
        udp_echo(overlay.a, overlay.b, target, os.urandom(1200), times=5)  # type: ignore[arg-type]
        udp_echo(overlay.a, overlay.b, target, os.urandom(8000), times=3)  # type: ignore[arg-type]
    assert not [line for line in tunnelled if "TCP" in line or target in line], tunnelled[:5]
    assert len(direct) >= 40
    assert {overlay.one.stack.mac, overlay.two.stack.mac} <= set(" ".join(direct).replace(",", "").split())
    took_the_fast_path(overlay, grown)


@pytest.mark.parametrize("who", ["one", "two", "both"])
@pytest.mark.parametrize("inside", [0, 1], ids=["IPv4 inside", "IPv6 inside"])
def test_a_node_that_takes_no_direct_packets_gets_vxlan(overlay: Overlay, who: str, inside: int) -> None:
    """Neither does it send such: the other would have to know all of its endpoints."""
    machines = overlay.machines if who == "both" else (getattr(overlay, who),)
    target = addresses(overlay.b)[inside]
    with refusing(overlay, *machines), dumped(overlay.one, "udp port 4789") as tunnelled, overlay.growth() as grown:
        assert overlay.a.run("ping", "-n", "-c20", "-i0.01", target).returncode == 0
        carry(overlay.a, overlay.b, target, os.urandom(1_000_000))
    assert len([line for line in tunnelled if f"{target}: ICMP" in line or f"> {target}" in line]) >= 20
    assert carried(grown, overlay.a)["out_fast_packets"] > 20


@pytest.mark.parametrize("where", ["underlay", "endpoints"])
def test_streams_are_whole_without_offloads(overlay: Overlay, where: str) -> None:
    stacks = [m.stack for m in overlay.machines] if where == "underlay" else [overlay.a, overlay.b]
    for stack in stacks:
        stack.sh(f"ethtool -K {stack.ifname} {OFFLOADS.format('off')}")
    try:
        for target in addresses(overlay.b):
            carry(overlay.a, overlay.b, target, os.urandom(4_000_000))
            udp_echo(overlay.a, overlay.b, target, os.urandom(1200), times=5)  # type: ignore[arg-type]
    finally:
        for stack in stacks:
            stack.sh(f"ethtool -K {stack.ifname} {OFFLOADS.format('on')}")


def test_datagrams_that_are_sent_and_received_by_segments_arrive(overlay: Overlay) -> None:
    """UDP GSO: nothing of a tunnel stays with the packet, so the fast path takes it in too."""
    for target in addresses(overlay.b):
        family = 10 if ":" in target else 2
        with overlay.growth() as grown, overlay.b.socket(family, 2) as there, overlay.a.socket(family, 2) as here:
            there.bind((target, 0))
            here.setsockopt(17, 103, 1000)  # UDP_SEGMENT
            sent = os.urandom(5000)
            here.sendto(sent, there.getsockname())
            assert b"".join(there.recv(2000) for _ in range(5)) == sent
        assert carried(grown, overlay.b)["in_fast_packets"] >= 5


def test_a_stranger_that_forges_a_peers_address_is_not_heard(overlay: Overlay) -> None:
    """On the wire between the nodes, from another MAC than the peer's node has."""
    forged = IP(src=overlay.a.ip4, dst=overlay.b.ip4) / UDP(sport=9, dport=9) / b"forged"
    honest, stranger = overlay.one.stack.mac, "02:00:00:00:00:66"
    with overlay.one.stack.wire() as wire, overlay.growth() as grown:
        for src in (stranger, stranger, honest):
            wire.send(Ether(src=src, dst=overlay.two.stack.mac) / forged)
        until(lambda: delivered(overlay) > 0)
    assert grown[overlay.b.name, "spoofed_peer"] == 2
    assert grown[overlay.b.name, "in_fast_packets"] == 1


def delivered(overlay: Overlay) -> int:
    """How many packets came to b's device for a port that nobody has."""
    found = re.search(r"^Udp: \d+ (\d+)", overlay.b.run("cat", "/proc/net/snmp").stdout, re.MULTILINE)
    assert found is not None
    return int(found.group(1))


def test_a_tagged_packet_does_not_take_its_tag_to_the_underlay(overlay: Overlay) -> None:
    """With and without: an endpoint is in no VLAN of the underlay."""
    tagged = Ether(src=overlay.a.mac, dst=overlay.b.mac) / Dot1Q(vlan=7)
    tagged = tagged / IP(src=overlay.a.ip4, dst=overlay.b.ip4) / UDP(sport=9, dport=9) / b"tagged"
    for machines in ((), overlay.machines):
        with refusing(overlay, *machines), dumped(overlay.one, "vlan or udp port 4789") as seen:
            with overlay.a.wire() as wire:
                wire.send(tagged)
            assert overlay.a.pings(overlay.b.ip4)
        assert not [line for line in seen if "ethertype 802.1Q" in line.split(" > ")[1]], seen


def test_a_new_linkspand_takes_up_what_is_there_and_no_packet_is_lost(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one go in VXLAN: the endpoints were heard of long ago."""
    monkeypatch.setattr(fast_peers, "HEARD_OF_S", 60)
    assert overlay.a.pings(overlay.b.ip4)
    with dumped(overlay.one, f"udp port 4789 and greater {1000}") as tunnelled:
        command = overlay.a.command("ping", "-n", "-i0.005", "-w20", "-s1200", overlay.b.ip4)
        ping = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        machine = overlay.one
        for _ in range(2):
            machine.load()
            machine.call(machine.accel.start, [each.port() for each in machine.endpoints])
            machine.call(machine.peers.start, [SEGMENT])
            overlay.make_direct(machine)
            assert overlay.synchronize(machine) == []
        ping.send_signal(signal.SIGINT)
        out = ping.communicate()[0]
    assert " 0% packet loss" in out, out
    assert tunnelled == []
