"""ls_parent_in: what arrives at a macvlan parent, from the wire or from one station for another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.bpf.forged import FORGED
from tests.bpf.lab import SHOT, STRANGER, UNSPEC, A, B
from tests.bpf.packets import PAYLOAD, SAMPLES, ip4
from tests.bpf.parents import FOREIGN, Seen, counted
from tests.bpf.test_any_packet import SHORTEST, damaged, invented

pytestmark = pytest.mark.root

FORGERIES = [
    pytest.param(reason, packet, id=f"{reason}: {name}")
    for reason, packets in FORGED.items()
    if reason != "spoofed_mac"
    for name, packet in packets.items()
]


def between(packet, source=A.mac, destination=B.mac):
    changed = packet.copy()
    changed.src, changed.dst = source, destination
    return changed


def both(packet):
    return counted(A, "out_slow", packet) | counted(B, "in_slow", packet)


@pytest.mark.parametrize("name", SAMPLES)
def test_what_one_station_sends_another_passes_unchanged_and_is_counted_for_both(parent, name):
    packet = between(SAMPLES[name])
    assert parent.into(packet) == Seen(UNSPEC, bytes(packet), both(packet))


@pytest.mark.parametrize(("reason", "packet"), FORGERIES)
def test_what_one_station_forges_for_another_is_dropped(parent, reason, packet):
    forged = between(packet)
    assert parent.into(forged) == Seen(SHOT, bytes(forged), {(A.slot, reason): 1})


@pytest.mark.parametrize("name", SAMPLES)
def test_unicast_from_the_wire_passes_unchanged_and_is_counted(parent, name):
    packet = between(SAMPLES[name], FOREIGN)
    assert parent.into(packet) == Seen(UNSPEC, bytes(packet), counted(B, "in_slow", packet))


@pytest.mark.parametrize("name", SAMPLES)
def test_packets_for_groups_for_the_host_and_for_others_are_left_alone(parent, name):
    for destination in ("ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "01:80:c2:00:00:00", parent.host_mac, FOREIGN):
        for source in (A.mac, FOREIGN, parent.host_mac):
            packet = between(SAMPLES[name], source, destination)
            assert parent.into(packet) == Seen(UNSPEC, bytes(packet), {})


@pytest.mark.parametrize("bridged", [(A,), (B,), ()], ids=["receiver not bridged", "sender not bridged", "neither"])
def test_what_a_switch_sends_back_is_delivered_and_not_judged(parent, bridged):
    """With VEPA on either side, the packet has been out on the wire: it was judged and counted on its way there."""
    for host in (A, B):
        parent.add(host, bridged=host in bridged)
    for packet in (SAMPLES["udp4"], between(FORGED["spoofed_ip4"]["neighbour's"])):
        assert parent.into(packet) == Seen(UNSPEC, bytes(packet), counted(B, "in_slow", packet))


def test_a_device_that_is_no_parent_is_left_alone(parent):
    for packet in SAMPLES.values():
        result = parent.lab.run("ls_parent_in", packet, STRANGER)
        assert (result.retval, result.data_out) == (UNSPEC, bytes(packet))


def test_a_gso_packet_counts_its_segments(parent):
    packet = ip4() / TCP() / Raw(bytes(3000))
    grown = parent.into(packet, gso_segs=3, gso_size=1000).counted
    assert grown == counted(A, "out_slow", packet, 3) | counted(B, "in_slow", packet, 3)


def test_a_change_of_the_maps_is_seen_by_the_next_packet(parent):
    packet = Ether(dst=B.mac, src=A.mac) / IP(src=A.ip4, dst=B.ip4) / UDP() / PAYLOAD
    assert parent.into(packet).counted == both(packet)
    parent.maps.station_delete(parent.index, A.mac_bytes)
    assert parent.into(packet).counted == counted(B, "in_slow", packet)
    parent.maps.station_delete(parent.index, B.mac_bytes)
    assert parent.into(packet) == Seen(UNSPEC, bytes(packet), {})


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_at_any_byte_a_packet_passes_or_is_malformed(parent, name):
    whole = bytes(between(SAMPLES[name]))
    for length in range(SHORTEST, len(whole) + 1):
        parent.check("ls_parent_in", whole[:length])


@settings(max_examples=300, deadline=None)
@given(frame=damaged())
def test_every_damaged_packet_between_stations_gets_the_models_verdict(module_parent, frame):
    module_parent.reset()
    module_parent.check("ls_parent_in", B.mac_bytes + A.mac_bytes + frame[12:])


@settings(max_examples=300, deadline=None)
@given(frame=invented())
def test_every_invented_packet_between_stations_gets_the_models_verdict(module_parent, frame):
    module_parent.reset()
    module_parent.check("ls_parent_in", B.mac_bytes + frame[6:])
