"""ls_ep_out on packets that a device really sends: tags beside the packet, headers outside its linear part."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6ExtHdrHopByHop, PadN
from scapy.packet import Raw

from tests.bpf.forged import FORGED
from tests.bpf.lab import OTHER, A, B
from tests.bpf.packets import SAMPLES, arp_request, ether, ip4, ip6

pytestmark = pytest.mark.root

# struct virtio_net_hdr: the kernel keeps hdr_len bytes, here the Ethernet header alone, in the linear part of a
# packet longer than a page.
ETHERNET_ALONE = struct.pack("=BBHHHH", 0, 0, 14, 0, 0, 0)
PAST_A_PAGE = Raw(bytes(5000))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sent_packet_is_judged_like_a_test_run(lab, name):
    """The kernel moves the outer VLAN tag out of a sent packet, and leaves it in one of a test run."""
    sent, tried = lab.transmit(SAMPLES[name]), lab.send(SAMPLES[name])
    assert (sent.verdict, sent.receiver) == (tried.verdict, tried.receiver)


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        pytest.param(reason, packet, id=f"{reason}: {name}")
        for reason, each in FORGED.items()
        for name, packet in each.items()
    ],
)
def test_a_sent_bad_packet_is_dropped_for_its_reason(lab, reason, packet):
    assert lab.transmit(packet).reason == reason


def test_an_ethernet_header_alone_passes_or_is_malformed(lab):
    for name in ("udp4", "udp6", "arp reply"):
        assert lab.transmit(bytes(SAMPLES[name])[:14]).reason == "malformed"
    assert lab.transmit(bytes(SAMPLES["other ethertype"])[:14]).verdict == "kernel"


def test_headers_outside_the_linear_part_are_found(lab):
    good = (
        ip4(B, A) / UDP() / PAST_A_PAGE,
        ip6(B, A) / UDP() / PAST_A_PAGE,
        ip6(B, A) / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / UDP() / PAST_A_PAGE,
    )
    for packet in good:
        # Longer than B's MTU.
        assert lab.transmit(packet, ETHERNET_ALONE).verdict == "kernel"
    lab.call(lab.set_mtu, B, 9000)
    try:
        for packet in good:
            assert lab.transmit(packet, ETHERNET_ALONE).receiver == "b"
    finally:
        lab.call(lab.set_mtu, B, B.mtu)
    assert lab.transmit(bytes(arp_request()) + bytes(5000), ETHERNET_ALONE).receiver == "a"


@pytest.mark.parametrize(("packet", "reason"), [(ip4(B, OTHER), "spoofed_ip4"), (ip6(B, OTHER), "spoofed_ip6")])
def test_forged_headers_outside_the_linear_part_are_found(lab, packet, reason):
    packet = packet.copy()
    packet.src = A.mac
    packet.payload.src = {"spoofed_ip4": "192.0.2.1", "spoofed_ip6": "2001:db8::1"}[reason]
    assert lab.transmit(packet / UDP() / PAST_A_PAGE, ETHERNET_ALONE).reason == reason
    assert lab.transmit(ether(B, B) / packet.payload / PAST_A_PAGE, ETHERNET_ALONE).reason == "spoofed_mac"
