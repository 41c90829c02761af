"""ls_uplink_in: what other nodes send in VXLAN goes into sandboxes, is dropped, or is left to the kernel unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from datapath import abi
from tests.bpf.lab import GONE_MAC, OTHER_SEGMENT, REDIRECT, SEGMENT, SHOT, UNSPEC, A, B
from tests.bpf.overlay import NODE4, NODE6, PEER4, PEER6, PEERS, VNI, Node, OverlayLab
from tests.bpf.packets import BROADCAST, PAYLOAD, SAMPLES, ip4, ip6
from tests.bpf.parents import Seen, counted

pytestmark = pytest.mark.root

INNER = {
    "udp4": lambda peer: ip4(A, peer) / UDP(sport=1, dport=2) / PAYLOAD,
    "tcp4": lambda peer: ip4(A, peer) / TCP(sport=1, dport=2),
    "icmp4": lambda peer: ip4(A, peer) / ICMP() / PAYLOAD,
    "fragment4": lambda peer: ip4(A, peer, frag=9, proto=17) / PAYLOAD,
    "tcp6": lambda peer: ip6(A, peer) / TCP(sport=1, dport=2),
    "ping6": lambda peer: ip6(A, peer) / ICMPv6EchoRequest(data=bytes(16)),
}
UDP4 = INNER["udp4"](PEER4)


def left_alone(packet):
    return Seen(UNSPEC, bytes(packet), {})


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("name", INNER)
def test_what_a_peer_sends_goes_into_the_sandbox(overlay, peer, name):
    inner = INNER[name](peer)
    for _ in range(2):  # looked up, and remembered
        seen = overlay.into(overlay.wrap(inner, PEERS[peer]))
        assert seen == Seen(REDIRECT, bytes(inner), counted(A, "in_fast", inner))


@pytest.mark.parametrize("node", [NODE4, NODE6], ids=["node4", "node6"])
def test_the_class_of_the_outer_header_does_not_matter_but_for_congestion(overlay, node):
    """RFC 6040: the kernel marks the inner packet, or drops one that cannot be marked."""
    peer = {each: peer for peer, each in PEERS.items()}[node]
    inner = INNER["udp4"](peer)
    name = "tos" if node is NODE4 else "tc"
    for value in (1, 2, 0xB8, 0xFE):
        assert overlay.into(overlay.wrap(inner, node, **{name: value})).retval == REDIRECT
    for value in (3, 0xFF):
        packet = overlay.wrap(inner, node, **{name: value})
        assert overlay.into(packet) == left_alone(packet)


@pytest.mark.parametrize("source", [PEER6.mac, B.mac, A.mac], ids=["another node's", "this node's", "the receiver's"])
@pytest.mark.parametrize("name", ["udp4", "ping6"])
def test_a_node_that_sends_as_an_endpoint_that_it_has_not_is_not_heard(overlay, source, name):
    inner = INNER[name](PEER4)
    inner.src = source
    for _ in range(2):
        packet = overlay.wrap(inner)
        assert overlay.into(packet) == Seen(SHOT, bytes(packet), {(A.slot, "spoofed_peer"): 1})


def changed(packet, layer, **fields):
    again = packet.copy()
    for name, value in fields.items():
        setattr(again[layer], name, value)
    return again


def sent_to(inner, **fields):
    return changed(inner, Ether, **fields)


OTHERS = {
    "an unknown VNI": lambda o: o.wrap(UDP4, vni=VNI + 1),
    "an unknown node": lambda o: o.wrap(UDP4, Node(0, NODE4.local, "192.0.2.77", NODE4.mac)),
    "an address that is not this node's": lambda o: o.wrap(UDP4, Node(0, "192.0.2.3", NODE4.remote, NODE4.mac)),
    "an endpoint that nobody knows": lambda o: o.wrap(sent_to(UDP4, dst=GONE_MAC)),
    "a sender that nobody knows": lambda o: o.wrap(sent_to(UDP4, src=GONE_MAC)),
    "everybody": lambda o: o.wrap(sent_to(UDP4, dst=BROADCAST)),
    "a group": lambda o: o.wrap(sent_to(UDP4, dst="33:33:00:00:00:01")),
    "ARP": lambda o: o.wrap(Ether(dst=A.mac, src=PEER4.mac) / ARP(psrc=PEER4.ip4, pdst=A.ip4)),
    "a tag inside": lambda o: o.wrap(Ether(dst=A.mac, src=PEER4.mac) / Dot1Q(vlan=5) / UDP4[IP]),
    "a tag outside": lambda o: Ether(bytes(o.wrap(UDP4))[:12] + b"\x81\x00\x00\x05" + bytes(o.wrap(UDP4))[12:]),
    "another port": lambda o: changed(o.wrap(UDP4), UDP, dport=4790),
    "a UDP checksum": lambda o: changed(o.wrap(UDP4), UDP, chksum=1),
    "no VNI": lambda o: changed(o.wrap(UDP4), VXLAN, flags=0),
    "flags of an extension": lambda o: changed(o.wrap(UDP4), VXLAN, flags=0x88),
    "reserved bits": lambda o: changed(o.wrap(UDP4), VXLAN, reserved2=1),
    "a first fragment": lambda o: o.wrap(UDP4, flags="MF"),
    "a last fragment": lambda o: o.wrap(UDP4, frag=3),
    "a fragment, IPv6": lambda o: (
        Ether(dst=o.uplink_mac)
        / IPv6(src=NODE6.remote, dst=NODE6.local)
        / IPv6ExtHdrFragment(m=1)
        / o.wrap(INNER["udp4"](PEER6), NODE6)[UDP]
    ),
    "IP options": lambda o: changed(o.wrap(UDP4, options=b"\x01" * 4), IP, ihl=6),
    "another host on the wire": lambda o: sent_to(o.wrap(UDP4), dst=GONE_MAC),
    "TCP": lambda o: changed(o.wrap(UDP4), IP, proto=6),
    "no VXLAN at all": lambda o: sent_to(SAMPLES["udp4"], dst=o.uplink_mac),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_passes_unchanged(overlay, name):
    packet = OTHERS[name](overlay)
    for _ in range(2):
        assert overlay.into(packet) == left_alone(packet)


@pytest.mark.parametrize("name", SAMPLES)
def test_packets_of_the_host_pass_unchanged(overlay, name):
    packet = sent_to(SAMPLES[name], dst=overlay.uplink_mac)
    assert overlay.into(packet) == left_alone(packet)


def test_what_the_kernel_does_not_unwrap_is_left_to_it_unchanged(overlay):
    """A test run's GSO packet has no type."""
    packet = overlay.wrap(INNER["tcp4"](PEER4) / Raw(bytes(3000)))
    assert overlay.into(packet, gso_size=1000, gso_segs=3) == left_alone(packet)


def test_what_is_longer_than_the_endpoints_mtu_is_the_kernels(overlay):
    for length, verdict in ((1500, REDIRECT), (1501, UNSPEC)):
        inner = ip4(B, PEER4) / UDP() / Raw(bytes(length - 28))
        assert overlay.into(overlay.wrap(inner)).retval == verdict


def test_the_next_packet_goes_by_what_has_changed(overlay):
    packet = overlay.wrap(UDP4)
    assert overlay.into(packet).retval == REDIRECT
    overlay.peers.peer_put(abi.FdbKey(SEGMENT, PEER4.mac_bytes), abi.PeerEntry(VNI, NODE6.number))
    overlay.peers.forget()
    assert overlay.into(packet).retval == SHOT
    overlay.peers.peer_delete(abi.FdbKey(SEGMENT, PEER4.mac_bytes))
    overlay.peers.forget()
    assert overlay.into(packet) == left_alone(packet)


def test_a_vni_reaches_its_own_segment_alone(overlay):
    overlay.peers.vni_put(VNI + 1, OTHER_SEGMENT)
    overlay.peers.forget()
    packet = overlay.wrap(UDP4, vni=VNI + 1)
    assert overlay.into(packet) == left_alone(packet)
    overlay.peers.vni_delete(VNI + 1)


def test_headers_cut_short_pass_unchanged(overlay):
    whole = bytes(overlay.wrap(UDP4))
    for length in range(54, len(whole) - len(PAYLOAD)):
        cut = whole[:length]
        seen = overlay.into(cut)
        assert seen.retval == UNSPEC or length >= 14 + 50 + 20
        assert seen.retval != SHOT


@pytest.fixture(scope="module")
def module_overlay(session_lab):
    session_lab.reset()
    made = OverlayLab(session_lab)
    yield made
    made.close()


@settings(max_examples=300, deadline=None)
@given(at=st.integers(12, 81), value=st.integers(0, 255))
def test_one_changed_byte_never_sends_a_packet_where_it_is_not_for(module_overlay, at, value):
    whole = bytearray(bytes(module_overlay.wrap(UDP4)))
    whole[at] = value
    seen = module_overlay.into(bytes(whole))
    if seen.retval == REDIRECT:
        assert Ether(seen.packet).dst == A.mac
        assert Ether(seen.packet).src == PEER4.mac
    elif seen.retval == UNSPEC:
        assert seen == left_alone(whole)
