"""The programs of switched parents: A and B are stations with host ends, SLOW one that may not reach the host."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from datapath import abi, progrun
from tests.bpf.forged import FORGED
from tests.bpf.lab import REDIRECT, SHOT, SLOW, STRANGER, UNSPEC, A, B, Host
from tests.bpf.model import judge
from tests.bpf.packets import BROADCAST, SAMPLES
from tests.bpf.parents import FOREIGN, ParentLab, Seen, counted
from tests.bpf.test_any_packet import WHOLE_IP_HEADERS, damaged, invented

pytestmark = pytest.mark.root

XDP_PASS, XDP_REDIRECT = 2, 4
LOOPBACK = 1  # a test run of an XDP program without a context is on the loopback
GROUPS = (BROADCAST, "33:33:00:00:00:01", "01:00:5e:00:00:fb", "01:80:c2:00:00:0e")
FORGERIES = [
    pytest.param(reason, packet, id=f"{reason}: {name}")
    for reason, packets in FORGED.items()
    for name, packet in packets.items()
]
TAGGED = [name for name, packet in SAMPLES.items() if packet.haslayer(Dot1Q) or packet.haslayer(Dot1AD)]


class SwitchLab:
    def __init__(self, parent: ParentLab) -> None:
        self.parent, self.lab, self.maps = parent, parent.lab, parent.maps

    def reset(self, flags: int = abi.EP_BRIDGED) -> None:
        self.parent.reset()
        for host in (A, B, SLOW):
            access = 0 if host is SLOW else abi.EP_FAST
            record = replace(host.record(), segment=self.parent.segment, flags=flags | access | abi.EP_SWITCHED)
            index = self.lab.ifindex[host.ifname]
            self.maps.station_put(self.parent.index, record)
            self.maps.endpoint_put(index, record)
            self.maps.fdb_put(self.parent.segment, host.mac_bytes, abi.FdbEntry(index, host.slot))

    def clear(self) -> None:
        for host in (A, B, SLOW):
            self.maps.fdb_delete(self.parent.segment, host.mac_bytes)

    def out(self, packet: Ether | bytes, source: Host = A) -> Seen:
        return self.parent.run("ls_switch_out", packet, source.ifname)

    def into(self, packet: Ether | bytes) -> Seen:
        return self.parent.run("ls_switch_in", packet)


@pytest.fixture
def switch(parent: ParentLab) -> Iterator[SwitchLab]:
    made = SwitchLab(parent)
    made.reset()
    yield made
    made.clear()


def between(packet: Ether, source: str = A.mac, destination: str = B.mac) -> Ether:
    changed = packet.copy()
    changed.src, changed.dst = source, destination
    return changed


@pytest.mark.parametrize("name", SAMPLES)
def test_unicast_goes_straight_to_a_bridged_station(switch: SwitchLab, name: str) -> None:
    packet = between(SAMPLES[name])
    both = counted(A, "out_fast", packet) | counted(B, "in_fast", packet)
    for _ in range(2):  # judged, and remembered
        assert switch.out(packet) == Seen(REDIRECT, bytes(packet), both)


@pytest.mark.parametrize("destination", [FOREIGN, A.mac, "host"])
@pytest.mark.parametrize("name", SAMPLES)
def test_all_other_unicast_leaves_and_is_nobody_elses(switch: SwitchLab, name: str, destination: str) -> None:
    packet = between(SAMPLES[name], destination=switch.parent.host_mac if destination == "host" else destination)
    for _ in range(2):
        assert switch.out(packet) == Seen(REDIRECT, bytes(packet), counted(A, "out_fast", packet))


@pytest.mark.parametrize("flags", [0, abi.EP_VEPA], ids=["private", "vepa"])
def test_stations_that_are_not_bridged_send_each_other_nothing(switch: SwitchLab, flags: int) -> None:
    switch.reset(flags)
    packet = between(SAMPLES["udp4"])
    assert switch.out(packet) == Seen(REDIRECT, bytes(packet), counted(A, "out_fast", packet))


@pytest.mark.parametrize("destination", GROUPS)
@pytest.mark.parametrize("name", SAMPLES)
def test_group_packets_end_here_as_copies(switch: SwitchLab, name: str, destination: str) -> None:
    """The last of them, a redirect, is the host's, which gets none with tags or for the other end of the wire."""
    packet = between(SAMPLES[name], destination=destination)
    is_hosts = name not in TAGGED and not destination.startswith("01:80:c2")
    seen = switch.out(packet)
    assert seen == Seen(REDIRECT if is_hosts else SHOT, bytes(packet), counted(A, "out_fast", packet))
    own = between(packet, SLOW.mac, destination)
    if own.haslayer(IP) and not own.haslayer(Dot1Q):
        own[IP].src = SLOW.ip4
        assert switch.out(own, SLOW).retval == SHOT


@pytest.mark.parametrize(("reason", "packet"), FORGERIES)
def test_what_is_forged_is_dropped(switch: SwitchLab, reason: str, packet: Ether) -> None:
    assert switch.out(packet) == Seen(SHOT, bytes(packet), {(A.slot, reason): 1})


@pytest.fixture(scope="module")
def fuzzed(module_parent: ParentLab) -> Iterator[SwitchLab]:
    """Never set back: what frames leave behind is part of the test."""
    made = SwitchLab(module_parent)
    made.reset()
    yield made
    made.clear()


@given(frame=st.one_of(invented(), damaged()))
@settings(max_examples=1000)
def test_any_frame_is_judged_as_on_a_bridge(fuzzed: SwitchLab, frame: bytes) -> None:
    try:
        seen = fuzzed.out(frame)
    except OSError as error:  # what the kernel takes for no test run: see Lab.judge
        if error.errno != errno.EINVAL or len(frame) >= WHOLE_IP_HEADERS:
            raise
        return
    _, reason = judge(frame)
    assert seen.packet == frame
    if reason:
        assert (seen.retval, seen.counted) == (SHOT, {(A.slot, reason): 1})
    else:
        assert seen.counted[A.slot, "out_fast_packets"] == 1


def test_broadcasts_have_a_limit(switch: SwitchLab) -> None:
    switch.maps.limit_put(A.slot, 2)
    packet, other = between(SAMPLES["arp request, unknown"], destination=BROADCAST), between(SAMPLES["udp4"])
    assert [switch.out(packet).retval for _ in range(2)] == [REDIRECT] * 2
    assert switch.out(packet) == Seen(SHOT, bytes(packet), {(A.slot, "storm"): 1})
    assert switch.out(other).retval == REDIRECT


def test_devices_that_the_maps_do_not_know_are_left_alone_and_without_a_parent_nothing_leaves(
    switch: SwitchLab,
) -> None:
    packet = between(SAMPLES["udp4"])
    assert switch.parent.run("ls_switch_out", packet, STRANGER) == Seen(UNSPEC, bytes(packet), {})
    assert switch.parent.run("ls_switch_to", packet, STRANGER) == Seen(UNSPEC, bytes(packet), {})
    switch.maps.parent_delete(switch.parent.index)
    assert switch.out(packet) == Seen(SHOT, bytes(packet), {})


@pytest.mark.parametrize("name", SAMPLES)
def test_unicast_from_the_wire_goes_straight_to_its_station(switch: SwitchLab, name: str) -> None:
    packet = between(SAMPLES[name], FOREIGN)
    for _ in range(2):
        assert switch.into(packet) == Seen(REDIRECT, bytes(packet), counted(B, "in_fast", packet))
    for destination in (*GROUPS, FOREIGN, switch.parent.host_mac):
        packet = between(SAMPLES[name], FOREIGN, destination)
        assert switch.into(packet) == Seen(UNSPEC, bytes(packet), {}), "this is for the host"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_parents_egress_leaves_what_a_station_has_sent_alone(switch: SwitchLab, name: str) -> None:
    for destination in (FOREIGN, BROADCAST, switch.parent.host_mac):
        packet = between(SAMPLES[name], destination=destination)
        assert switch.parent.out(packet) == Seen(UNSPEC, bytes(packet), {})


def test_a_station_gets_copies_of_group_packets_but_of_its_own(switch: SwitchLab) -> None:
    packet = between(SAMPLES["arp request, unknown"], FOREIGN, BROADCAST)
    assert switch.parent.run("ls_switch_to", packet, A.ifname) == Seen(
        UNSPEC, bytes(packet), counted(A, "in_slow", packet)
    )
    own = between(packet, A.mac, BROADCAST)
    assert switch.parent.run("ls_switch_to", own, A.ifname) == Seen(SHOT, bytes(own), {})


@pytest.mark.parametrize("name", SAMPLES)
def test_xdp_takes_unicast_for_stations_and_nothing_else(switch: SwitchLab, name: str) -> None:
    segment = abi.PARENT_SEGMENT | LOOPBACK
    switch.maps.fdb_put(segment, B.mac_bytes, abi.FdbEntry(switch.lab.ifindex[B.ifname], B.slot))
    try:
        packet = between(SAMPLES[name], FOREIGN)
        before = switch.maps.counters()[B.slot]
        assert xdp(switch, packet) == (XDP_REDIRECT, bytes(packet))
        after = switch.maps.counters()[B.slot]
        assert after == replace(
            before,
            in_fast_packets=before.in_fast_packets + 1,
            in_fast_bytes=before.in_fast_bytes + len(packet),
        )
        for destination in (*GROUPS, FOREIGN):
            packet = between(SAMPLES[name], FOREIGN, destination)
            assert xdp(switch, packet) == (XDP_PASS, bytes(packet))
    finally:
        switch.maps.fdb_delete(segment, B.mac_bytes)


def xdp(switch: SwitchLab, packet: Ether) -> tuple[int, bytes]:
    result = switch.lab.call(progrun.run, switch.lab.programs["ls_switch_xdp"], bytes(packet))
    return result.retval, result.data_out
