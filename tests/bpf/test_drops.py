"""ls_ep_out: what is forged or malformed is dropped for the reason that its label says."""

from __future__ import annotations

import pytest

from datapath.abi import DropReason
from tests.bpf.forged import FORGED, OTHERS_MAC, SPOOFED_ARP, SPOOFED_IP4
from tests.bpf.lab import BARE, OTHER, A, B
from tests.bpf.packets import SAMPLES, arp_request, ip4

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        pytest.param(reason, packet, id=f"{reason}: {name}")
        for reason, packets in FORGED.items()
        for name, packet in packets.items()
    ],
)
def test_a_bad_packet_is_dropped_for_its_reason(lab, reason, packet):
    outcome = lab.send(packet)
    assert (outcome.verdict, outcome.reason) == ("drop", reason)


def test_every_reason_that_a_packet_alone_can_give_has_one():
    no_packets = {DropReason.NONE, DropReason.STORM, DropReason.SPOOFED_PEER}
    assert set(FORGED) == {reason.label for reason in DropReason if reason not in no_packets}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_protocol_from_a_foreign_mac_is_dropped(lab, name):
    forged = SAMPLES[name].copy()
    forged.src = OTHERS_MAC
    assert lab.send(forged).reason == "spoofed_mac"


def test_what_is_right_for_one_endpoint_is_forged_for_another(lab):
    for name, reason in (("udp4", "spoofed_ip4"), ("udp6", "spoofed_ip6")):
        packet = SAMPLES[name].copy()
        packet.src = BARE.mac
        assert lab.send(packet, BARE).reason == reason
    assert lab.send(ip4(A, OTHER), OTHER).verdict == "kernel"
    assert lab.send(ip4(A, OTHER), A).reason == "spoofed_mac"


def test_drops_are_counted_by_slot_and_reason(lab):
    for _ in range(3):
        lab.send(SPOOFED_ARP["tagged"])
    lab.send(SPOOFED_IP4["tagged"])
    lab.send(arp_request(source=A), B)
    assert lab.maps.drops() == {
        A.slot: {"spoofed_arp": 3, "spoofed_ip4": 1},
        B.slot: {"spoofed_mac": 1},
    }
