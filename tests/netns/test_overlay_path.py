"""Traffic between endpoints of two nodes: on the fast path where both have it, and whole wherever one has not."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.netns.overlay import (
    OFFLOADS,
    SEGMENT,
    VNI,
    Machine,
    Overlay,
    addresses,
    carried,
    carry,
    took_the_fast_path,
)
from tests.traffic import udp_echo

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=[4, 6], ids=["over IPv4", "over IPv6"])
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overlay]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Overlay(tmp_path_factory.mktemp("overlay"), request.param) as made:
        made.accelerate()
        yield made


@contextmanager
def slow(overlay: Overlay, *machines: Machine) -> Iterator[None]:
    """These machines' programs know no peers meanwhile."""
    for machine in machines:
        machine.call(machine.peers.close, SEGMENT)
    try:
        yield
    finally:
        for machine in machines:
            overlay.synchronize(machine)


@pytest.mark.parametrize("inside", [0, 1], ids=["IPv4 inside", "IPv6 inside"])
def test_the_fast_path_carries_all_but_what_finds_neighbours(overlay: Overlay, inside: int) -> None:
    target = addresses(overlay.b)[inside]
    assert overlay.a.pings(target)
    with overlay.growth() as grown:
        assert overlay.a.run("ping", "-n", "-c20", "-i0.01", "-s1200", target).returncode == 0
        carry(overlay.a, overlay.b, target, os.urandom(8_000_000))
    took_the_fast_path(overlay, grown)


@pytest.mark.parametrize("who", ["one", "two", "both"])
@pytest.mark.parametrize("inside", [0, 1], ids=["IPv4 inside", "IPv6 inside"])
def test_a_node_without_the_fast_path_is_reached_all_the_same(overlay: Overlay, who: str, inside: int) -> None:
    machines = overlay.machines if who == "both" else (getattr(overlay, who),)
    target = addresses(overlay.b)[inside]
    with slow(overlay, *machines), overlay.growth() as grown:
        assert overlay.a.pings(target)
        carry(overlay.a, overlay.b, target, os.urandom(2_000_000))
    for machine, endpoint in ((overlay.one, overlay.a), (overlay.two, overlay.b)):
        packets = carried(grown, endpoint)
        assert (packets.get("out_fast_packets", 0) > 20) is (machine not in machines)
        assert (packets.get("out_slow_packets", 0) > 20) is (machine in machines)


@pytest.mark.parametrize("where", ["underlay", "endpoints"])
@pytest.mark.parametrize("who", ["neither", "one", "two"])
def test_streams_are_whole_without_offloads(overlay: Overlay, where: str, who: str) -> None:
    """Checksums that a device is to fill in, and segments that it is to cut, at either end of either path."""
    stacks = [m.stack for m in overlay.machines] if where == "underlay" else [overlay.a, overlay.b]
    machines = () if who == "neither" else (getattr(overlay, who),)
    for stack in stacks:
        stack.sh(f"ethtool -K {stack.ifname} {OFFLOADS.format('off')}")
    try:
        with slow(overlay, *machines):
            for target in addresses(overlay.b):
                carry(overlay.a, overlay.b, target, os.urandom(2_000_000))
                udp_echo(overlay.a, overlay.b, target, os.urandom(1200), times=5)  # type: ignore[arg-type]
    finally:
        for stack in stacks:
            stack.sh(f"ethtool -K {stack.ifname} {OFFLOADS.format('on')}")


def test_datagrams_that_are_sent_and_received_by_segments_arrive(overlay: Overlay) -> None:
    """UDP GSO, which the receiving end leaves to the kernel, and fragments."""
    for target in addresses(overlay.b):
        udp_echo(overlay.a, overlay.b, target, os.urandom(8000), times=3)  # type: ignore[arg-type]
        with (
            overlay.b.socket(_family(target), 2) as there,
            overlay.a.socket(_family(target), 2) as here,
        ):
            there.bind((target, 0))
            here.setsockopt(17, 103, 1000)  # UDP_SEGMENT
            sent = os.urandom(5000)
            here.sendto(sent, there.getsockname())
            assert b"".join(there.recv(2000) for _ in range(5)) == sent


def test_a_packet_that_is_too_big_is_answered_by_the_kernel(overlay: Overlay) -> None:
    machine = overlay.one
    way = overlay.way(machine)
    other = overlay.b.peer(overlay.address(overlay.two))
    narrow = way.__class__(**{**vars(way), "mtu": 1300})
    machine.call(machine.peers.synchronize, SEGMENT, VNI, [other], {way.remote: narrow})
    try:
        with overlay.growth() as grown:
            assert overlay.a.run("ping", "-n", "-c3", "-i0.01", "-s1350", overlay.b.ip4).returncode == 0
        assert carried(grown, overlay.a)["out_slow_packets"] == 3
        # Segments of 1,398 bytes do not fit either; acknowledgements do.
        with overlay.growth() as grown:
            for target in addresses(overlay.b):
                carry(overlay.a, overlay.b, target, os.urandom(4_000_000))
        assert carried(grown, overlay.a)["out_slow_packets"] > 8_000_000 // 1500
    finally:
        overlay.synchronize(machine)


def test_a_new_linkspand_takes_up_what_is_there_and_no_packet_is_lost(overlay: Overlay) -> None:
    ping = subprocess.Popen(
        overlay.a.command("ping", "-n", "-i0.005", "-w20", overlay.b.ip4), stdout=subprocess.PIPE, text=True
    )
    with overlay.growth() as grown:
        for _ in range(3):
            machine = overlay.one
            machine.load()
            machine.call(machine.accel.start, [each.port() for each in machine.endpoints])
            machine.call(machine.peers.start, [SEGMENT])
            assert overlay.synchronize(machine) == []
        ping.send_signal(signal.SIGINT)
        out = ping.communicate()[0]
    assert " 0% packet loss" in out, out
    assert carried(grown, overlay.a).get("out_slow_packets", 0) == 0


def test_differences_are_found_in_the_maps_themselves_and_mended(overlay: Overlay) -> None:
    machine = overlay.one
    way = overlay.way(machine)
    wanted: tuple[Any, ...] = (SEGMENT, VNI, [overlay.b.peer(overlay.address(overlay.two))], {way.remote: way})
    assert machine.call(machine.peers.differences, *wanted) == []
    assert machine.call(machine.peers.synchronize, *wanted) == []
    both = [endpoint.peer(overlay.address(overlay.two)) for endpoint in (overlay.a, overlay.b)]
    machine.call(machine.peers.synchronize, SEGMENT, VNI, both, {way.remote: way})
    assert machine.call(machine.peers.differences, *wanted) == [f"peer {overlay.a.mac} should not be there"]
    machine.call(machine.peers.synchronize, *wanted)
    assert machine.call(machine.peers.differences, *wanted) == []


def _family(address: str) -> int:
    return 10 if ":" in address else 2
