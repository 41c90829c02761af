"""Packets without VXLAN: ls_ep_out sends them with the nodes' MACs, and ls_uplink_in takes them from those alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from datapath import abi
from tests.bpf.lab import REDIRECT, SEGMENT, SHOT, UNSPEC, A, B
from tests.bpf.overlay import MTU, NODE4, NODE6, PEER4, PEER6, PEERS, VNI, OverlayLab
from tests.bpf.packets import PAYLOAD, ip4, ip6
from tests.bpf.parents import Seen, counted

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
OUT = {
    "udp4": lambda peer: ip4(peer) / UDP(sport=1, dport=2) / PAYLOAD,
    "tcp4": lambda peer: ip4(peer, tos=0xBB, ttl=3) / TCP(sport=1, dport=2),
    "icmp4": lambda peer: ip4(peer) / ICMP() / PAYLOAD,
    "first fragment4": lambda peer: ip4(peer, flags="MF", id=7) / UDP() / PAYLOAD,
    "last fragment4": lambda peer: ip4(peer, frag=9, proto=17) / PAYLOAD,
    "shortest4": lambda peer: ip4(peer, proto=253),
    "tcp6": lambda peer: ip6(peer, hlim=3) / TCP(sport=1, dport=2),
    "ping6": lambda peer: ip6(peer) / ICMPv6EchoRequest(data=bytes(16)),
    "fragment6": lambda peer: ip6(peer) / IPv6ExtHdrFragment(offset=9, nh=17) / PAYLOAD,
    "shortest6": lambda peer: ip6(peer, nh=59),
}
"""From A to the peer."""


@pytest.fixture
def direct(overlay):
    overlay.put_direct()
    return overlay


def incoming(peer, name="udp4"):
    """What OUT has, from the peer to A."""
    inner = OUT[name](A)
    inner.src, inner.dst = peer.mac, A.mac
    inner[1].src = peer.ip4 if IP in inner else peer.ip6
    return inner


def frame(direct, inner, src):
    """As the peer's node sends it."""
    changed = inner.copy()
    changed.src, changed.dst = src, direct.uplink_mac
    return changed


def is_vxlan(seen):
    return seen.retval == REDIRECT and VXLAN in (IP if seen.packet[14] >> 4 == 4 else IPv6)(seen.packet[14:])


def left_alone(packet):
    return Seen(UNSPEC, bytes(packet), {})


@BOTH
@pytest.mark.parametrize("name", OUT)
def test_what_is_for_a_peer_leaves_as_it_is_with_the_nodes_macs(direct, peer, name):
    """In both families over a node of either."""
    inner = OUT[name](peer)
    for _ in range(2):  # looked up, and remembered
        expected = frame(direct, inner, direct.uplink_mac)
        expected.dst = PEERS[peer].mac
        assert direct.out(inner) == Seen(REDIRECT, bytes(expected), counted(A, "out_fast", inner))


@BOTH
@pytest.mark.parametrize(
    ("name", "field", "address"),
    [
        pytest.param("udp4", "dst", lambda _: "198.51.100.1", id="beyond the peer, IPv4"),
        pytest.param("tcp6", "dst", lambda _: "2001:db8::1", id="beyond the peer, IPv6"),
        pytest.param("tcp6", "src", lambda _: A.ip6_ll, id="from the link-local address"),
        pytest.param("tcp6", "dst", lambda peer: peer.ip6_ll, id="for the link-local address"),
    ],
)
def test_other_addresses_go_in_vxlan(direct, peer, name, field, address):
    """The receiver tells networks by addresses; what a peer passes on, or a link-local one, tells it of none."""
    inner = OUT[name](peer)
    setattr(inner[1], field, address(peer))
    for _ in range(2):
        seen = direct.out(inner)
        assert is_vxlan(seen)
        assert seen.packet.endswith(bytes(inner))
        assert not is_vxlan(direct.out(OUT[name](peer)))  # of the same flow


@BOTH
def test_a_packet_may_be_as_long_as_the_way_takes(direct, peer):
    for length, verdict in ((MTU, REDIRECT), (MTU + 1, UNSPEC)):
        inner = ip4(peer) / UDP(sport=1, dport=2) / Raw(bytes(length - 28))
        assert direct.out(inner).retval == verdict


def test_a_new_endpoint_sends_in_vxlan_until_the_others_know_it(overlay):
    overlay.put_direct(wait_s=60)
    for _ in range(2):
        assert is_vxlan(overlay.out(OUT["udp4"](PEER4)))
    overlay.put_direct()
    assert not is_vxlan(overlay.out(OUT["udp4"](PEER4)))


def test_the_wait_ends_without_anybodys_help(overlay):
    """Nothing tells the programs that the time has come."""
    overlay.put_direct(wait_s=0.2)
    assert is_vxlan(overlay.out(OUT["udp4"](PEER4)))
    for _ in range(10_000):
        if not is_vxlan(overlay.out(OUT["udp4"](PEER4))):
            return
    pytest.fail("still in VXLAN")


def test_an_endpoint_that_takes_no_direct_packets_sends_none(direct):
    for address in direct.peers.direct():
        direct.peers.direct_delete(address)
    direct.peers.forget()
    assert is_vxlan(direct.out(OUT["udp4"](PEER4)))


def test_a_peer_whose_node_takes_no_direct_packets_gets_none(direct):
    direct.peers.peer_put(abi.FdbKey(SEGMENT, PEER4.mac_bytes), abi.PeerEntry(VNI, NODE4.number))
    direct.peers.forget()
    assert is_vxlan(direct.out(OUT["udp4"](PEER4)))
    assert not is_vxlan(direct.out(OUT["udp4"](PEER6)))


def test_a_peer_without_an_address_of_the_family_gets_vxlan(direct):
    entry = abi.PeerEntry(VNI, NODE4.number, abi.PEER_DIRECT)
    direct.peers.peer_put(abi.FdbKey(SEGMENT, PEER4.mac_bytes), entry)
    direct.peers.forget()
    assert is_vxlan(direct.out(OUT["udp4"](PEER4)))
    assert is_vxlan(direct.out(OUT["tcp6"](PEER4)))


@BOTH
@pytest.mark.parametrize("name", OUT)
def test_what_a_peers_node_sends_goes_into_the_sandbox(direct, peer, name):
    inner = incoming(peer, name)
    for _ in range(2):
        seen = direct.into(frame(direct, inner, PEERS[peer].mac))
        assert seen == Seen(REDIRECT, bytes(inner), counted(A, "in_fast", inner))


@pytest.mark.parametrize("src", ["02:00:00:00:00:77", NODE6.mac, PEER4.mac], ids=["nobody", "another node", "the peer"])
@pytest.mark.parametrize("name", ["udp4", "tcp6", "last fragment4"])
def test_a_peers_address_from_another_mac_is_dropped(direct, src, name):
    """Remembered or not what its own node sent before."""
    inner = incoming(PEER4, name)
    for _ in range(2):
        packet = frame(direct, inner, src)
        assert direct.into(packet) == Seen(SHOT, bytes(packet), {(A.slot, "spoofed_peer"): 1})
        assert direct.into(frame(direct, inner, NODE4.mac)).retval == REDIRECT


@pytest.mark.parametrize("name", ["udp4", "tcp6"])
def test_a_node_whose_mac_nobody_knows_is_not_heard(direct, name):
    direct.put_node(NODE4, mac=bytes(6))
    packet = frame(direct, incoming(PEER4, name), "00:00:00:00:00:00")
    assert direct.into(packet) == Seen(SHOT, bytes(packet), {(A.slot, "spoofed_peer"): 1})


def test_an_endpoint_of_this_node_is_nobody_elses(direct):
    inner = incoming(PEER4)
    inner[IP].src = B.ip4
    packet = frame(direct, inner, NODE4.mac)
    assert direct.into(packet).retval in (SHOT, UNSPEC)


OTHERS = {
    "an unknown receiver": lambda o: with_ip(o, dst="10.9.0.99"),
    "an endpoint that takes none": lambda o: with_ip(o, dst=B.ip4),
    "an unknown sender": lambda o: with_ip(o, src="10.9.0.99"),
    "a sender of IPv6 that nobody knows": lambda o: with_ip(o, "tcp6", src="fd09::99"),
    "a group": lambda o: with_ip(o, dst="224.0.0.1"),
    "a link-local receiver": lambda o: with_ip(o, "tcp6", dst=A.ip6_ll),
    "ARP": lambda o: Ether(dst=o.uplink_mac, src=NODE4.mac) / ARP(psrc=PEER4.ip4, pdst=A.ip4),
    "another ethertype": lambda o: Ether(dst=o.uplink_mac, src=NODE4.mac, type=0x88B5) / incoming(PEER4)[IP],
    "another host on the wire": lambda o: Ether(dst=PEER4.mac, src=NODE4.mac) / incoming(PEER4)[IP],
}


def with_ip(direct, name="udp4", **fields):
    inner = incoming(PEER4, name)
    for field, value in fields.items():
        setattr(inner[1], field, value)
    return frame(direct, inner, NODE4.mac)


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_passes_unchanged(direct, name):
    packet = OTHERS[name](direct)
    for _ in range(2):
        assert direct.into(packet) == left_alone(packet)


def test_vxlan_is_taken_beside_it(direct):
    inner = incoming(PEER4)
    for packet in (direct.wrap(inner), frame(direct, inner, NODE4.mac), direct.wrap(inner)):
        assert direct.into(packet) == Seen(REDIRECT, bytes(inner), counted(A, "in_fast", inner))


def test_a_direct_packet_that_carries_vxlan_is_the_endpoints(direct):
    """One endpoint may have a tunnel to another: nothing of it is unwrapped here."""
    inner = incoming(PEER4)
    inner[UDP].dport = 4789
    inner[UDP].remove_payload()
    inner = inner / VXLAN(vni=VNI, flags=8) / incoming(PEER6)
    del inner[IP].len, inner[IP].chksum, inner[UDP].len
    inner[UDP].chksum = 0
    seen = direct.into(frame(direct, inner, NODE4.mac))
    assert (seen.retval, seen.packet) == (REDIRECT, bytes(inner))


def test_the_next_packet_goes_by_what_has_changed(direct):
    packet = frame(direct, incoming(PEER4), NODE4.mac)
    assert direct.into(packet).retval == REDIRECT
    for address in direct.peers.direct():
        direct.peers.direct_delete(address)
    direct.peers.forget()
    assert direct.into(packet) == left_alone(packet)


@pytest.fixture(scope="module")
def module_direct(session_lab):
    session_lab.reset()
    made = OverlayLab(session_lab)
    made.put_direct()
    yield made
    made.close()


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(["udp4", "tcp6"]), at=st.integers(6, 53), value=st.integers(0, 255))
def test_one_changed_byte_brings_nothing_in_but_from_the_peer_to_the_endpoint(module_direct, name, at, value):
    whole = bytearray(bytes(frame(module_direct, incoming(PEER4, name), NODE4.mac)))
    whole[at] = value
    seen = module_direct.into(bytes(whole))
    if seen.retval == REDIRECT:
        assert bytes(whole[6:12]).hex(":") == NODE4.mac
        got = Ether(seen.packet)
        assert (got.src, got.dst) == (PEER4.mac, A.mac)
        assert seen.packet[14:] == bytes(whole[14:])
    elif seen.retval == UNSPEC:
        assert seen == left_alone(whole)
