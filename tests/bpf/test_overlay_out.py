"""ls_ep_out on an overlay network: what leaves for an endpoint of another node, and what is left to the kernel."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from datapath import abi
from tests.bpf.forged import FORGED
from tests.bpf.lab import REDIRECT, SEGMENT, SHOT, UNSPEC, A, B
from tests.bpf.overlay import MTU, NODE4, NODE6, PEER4, PEER6, PEERS, VNI
from tests.bpf.packets import PAYLOAD, SAMPLES, arp_request, ip4, ip6, solicitation
from tests.bpf.parents import Seen, counted

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
INNER = {
    "udp4": lambda peer: ip4(peer) / UDP(sport=1, dport=2) / PAYLOAD,
    "tcp4": lambda peer: ip4(peer) / TCP(sport=1, dport=2),
    "icmp4": lambda peer: ip4(peer) / ICMP() / PAYLOAD,
    "fragment4": lambda peer: ip4(peer, flags="MF", id=7) / UDP() / PAYLOAD,
    "tcp6": lambda peer: ip6(peer) / TCP(sport=1, dport=2),
    "ping6": lambda peer: ip6(peer) / ICMPv6EchoRequest(data=bytes(16)),
}


def outer_of(seen):
    """From the outer IP header on: the Ethernet header is written by the kernel, which knows the next hop's MAC."""
    return (IP if seen.packet[14] >> 4 == 4 else IPv6)(seen.packet[14:])


@BOTH
@pytest.mark.parametrize("name", INNER)
def test_unicast_for_a_peer_leaves_in_vxlan_for_its_node(overlay, peer, name):
    node, inner = PEERS[peer], bytes(INNER[name](peer))
    seen = overlay.out(inner)
    assert (seen.retval, seen.counted) == (REDIRECT, counted(A, "out_fast", inner))
    outer = ip = outer_of(seen)
    assert (ip.src, ip.dst, len(seen.packet)) == (node.local, node.remote, len(inner) + node.overhead)
    assert (outer[UDP].dport, outer[UDP].chksum, outer[UDP].len) == (4789, 0, len(inner) + 16)
    assert 49152 <= outer[UDP].sport <= 65535
    assert bytes(outer[VXLAN]) == bytes(VXLAN(flags=8, vni=VNI)) + inner
    if node is NODE4:
        assert (ip.ttl, ip.proto, ip.len, ip.flags, ip.frag, ip.ihl) == (64, 17, len(inner) + 36, 0, 0, 5)
        again = ip.copy()
        del again.chksum
        assert ip.chksum == IP(bytes(again)).chksum
    else:
        assert (ip.hlim, ip.nh, ip.plen, ip.fl) == (64, 17, len(inner) + 16, 0)


@BOTH
@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0xB8, 0xFF])
@pytest.mark.parametrize("version", [4, 6])
def test_dscp_and_ecn_are_the_inner_packets(overlay, peer, tos, version):
    """RFC 2983, RFC 6040 (normal mode)."""
    inner = (ip4(peer, tos=tos) if version == 4 else ip6(peer, tc=tos)) / UDP() / PAYLOAD
    outer = outer_of(overlay.out(inner))
    assert (outer[IP].tos if PEERS[peer] is NODE4 else outer[IPv6].tc) == tos


def test_flows_have_ports_of_their_own_and_a_flow_keeps_its(overlay):
    def port(sport):
        return outer_of(overlay.out(ip4(PEER4) / UDP(sport=sport, dport=9) / PAYLOAD))[UDP].sport

    ports = [port(sport) for sport in range(1000, 1050)]
    assert ports == [port(sport) for sport in range(1000, 1050)]
    assert len(set(ports)) > 40


def test_packets_of_a_flow_can_be_told_apart_if_they_are_fragmented(overlay):
    """RFC 6864: those that may be fragmented need an id of their own."""
    ids = [outer_of(overlay.out(INNER["udp4"](PEER4))).id for _ in range(20)]
    assert len(set(ids)) == 20


@BOTH
def test_the_kernel_gets_what_does_not_fit_the_way(overlay, peer):
    room = MTU - PEERS[peer].overhead + 14
    for length, verdict in ((room, REDIRECT), (room + 1, UNSPEC)):
        inner = ip4(peer) / UDP(sport=1, dport=2) / Raw(bytes(length - 42))
        seen = overlay.out(inner)
        assert seen.retval == verdict
        assert seen.counted == counted(A, "out_fast" if verdict == REDIRECT else "out_slow", inner)
        if verdict == UNSPEC:
            assert seen.packet == bytes(inner)


@BOTH
def test_what_the_kernel_does_not_wrap_leaves_unchanged_by_the_slow_path(overlay, peer):
    """A test run's GSO packet has no type, and only a TCP or UDP one can be wrapped; its segments are counted."""
    inner = ip4(peer) / TCP() / Raw(bytes(3000))
    seen = overlay.out(inner, gso_size=1000, gso_segs=3)
    assert seen == Seen(UNSPEC, bytes(inner), counted(A, "out_slow", inner, 3))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(arp_request(dst=PEER4.mac), id="arp"),
        pytest.param(Ether(dst=PEER4.mac, src=A.mac, type=0x88B5) / PAYLOAD, id="other ethertype"),
        pytest.param(SAMPLES["tagged4"], id="tagged"),
    ],
)
def test_what_is_not_plain_ip_is_the_kernels(overlay, packet):
    packet = packet.copy()
    packet.dst = PEER4.mac
    seen = overlay.out(packet)
    assert seen == Seen(UNSPEC, bytes(packet), counted(A, "out_slow", packet))


def test_endpoints_of_this_node_are_reached_as_on_a_bridge(overlay):
    seen = overlay.out(SAMPLES["udp4"])
    assert seen.packet == bytes(SAMPLES["udp4"])
    assert seen.counted == counted(A, "out_fast", SAMPLES["udp4"]) | counted(B, "in_fast", SAMPLES["udp4"])


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        pytest.param(reason, packet, id=f"{reason}: {name}")
        for reason, packets in FORGED.items()
        for name, packet in packets.items()
    ],
)
def test_what_is_forged_does_not_leave(overlay, reason, packet):
    forged = packet.copy()
    if forged.dst == B.mac:
        forged.dst = PEER4.mac
    assert overlay.out(forged).retval == SHOT


def test_questions_for_peers_are_answered_here(overlay):
    answer = Ether(overlay.out(arp_request(PEER4.ip4)).packet)
    assert (answer.dst, answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (A.mac, 2, PEER4.mac, PEER4.ip4)
    answer = Ether(overlay.out(solicitation(PEER6.ip6)).packet)
    assert (answer.dst, answer.src, answer[IPv6].src) == (A.mac, PEER6.mac, PEER6.ip6)


def test_only_an_endpoint_on_an_overlay_network_has_peers(overlay):
    overlay.maps.endpoint_put(overlay.lab.ifindex[A.ifname], A.record())
    inner = INNER["udp4"](PEER4)
    assert overlay.out(inner) == Seen(UNSPEC, bytes(inner), counted(A, "out_slow", inner))


def test_a_node_without_a_way_and_a_forgotten_peer_are_the_kernels(overlay):
    inner = INNER["udp4"](PEER4)
    slow = Seen(UNSPEC, bytes(inner), counted(A, "out_slow", inner))
    assert overlay.out(inner).retval == REDIRECT
    overlay.put_node(NODE4, is_known=False)
    assert overlay.out(inner) == slow
    overlay.put_node(NODE4)
    assert overlay.out(inner).retval == REDIRECT
    overlay.peers.peer_delete(abi.FdbKey(SEGMENT, PEER4.mac_bytes))
    overlay.peers.forget()
    assert overlay.out(inner) == slow


def test_a_peer_moves_to_another_node_with_the_next_packet(overlay):
    inner = INNER["udp4"](PEER4)
    overlay.out(inner)
    overlay.peers.peer_put(abi.FdbKey(SEGMENT, PEER4.mac_bytes), abi.PeerEntry(VNI, NODE6.number))
    overlay.peers.forget()
    assert outer_of(overlay.out(inner)).dst == NODE6.remote
