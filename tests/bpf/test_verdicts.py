"""ls_ep_out: which packets take the fast path, which are the kernel's, and that neither is changed."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptMTU, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from datapath import abi
from tests.bpf.lab import BARE, GONE_MAC, OTHER, SEGMENT, SLOW, STRANGER, UNSPEC, A, B
from tests.bpf.packets import BROADCAST, PAYLOAD, SAMPLES, ether, ip4, ip6

pytestmark = pytest.mark.root

FAST = (
    "udp4",
    "tcp4",
    "icmp4",
    "options4",
    "first fragment4",
    "last fragment4",
    "udp6",
    "tcp6",
    "ping6",
    "link-local6",
    "given link-local4",
    "given link-local6",
    "extensions6",
    "first fragment6",
    "last fragment6",
    "solicitation, unicast",
    "advertisement",
    "advertisement of a given link-local",
    "arp request, unicast",
    "arp reply",
    "arp reply from a given link-local",
)
ANSWERED = tuple(name for name in SAMPLES if name.endswith(", answered"))


@pytest.mark.parametrize("name", FAST)
def test_unicast_for_a_local_endpoint_goes_straight_into_its_sandbox(lab, name):
    outcome = lab.send(SAMPLES[name])
    assert (outcome.verdict, outcome.receiver) == ("fast", "b")
    assert outcome.packet == bytes(SAMPLES[name])


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in FAST + ANSWERED])
def test_everything_else_is_left_to_the_kernel_unchanged(lab, name):
    outcome = lab.send(SAMPLES[name])
    assert outcome.verdict == "kernel"
    assert outcome.packet == bytes(SAMPLES[name])


@pytest.mark.parametrize("destination", [GONE_MAC, BROADCAST, "01:00:5e:00:00:fb", "33:33:00:00:00:01", A.mac])
def test_unknown_group_and_own_destinations_are_the_kernels(lab, destination):
    for packet in (IP(src=A.ip4, dst=B.ip4), IPv6(src=A.ip6, dst=B.ip6)):
        assert lab.send(ether(destination) / packet / UDP() / PAYLOAD).verdict == "kernel"


def test_a_device_without_an_endpoint_is_left_alone(lab):
    forged = ether(B, BROADCAST) / IP(src="192.0.2.1", dst=B.ip4)
    before = lab.maps.counters(), lab.maps.drops()
    for program in ("ls_ep_out", "ls_ep_in"):
        result = lab.run(program, forged, STRANGER)
        assert (result.retval, result.data_out) == (UNSPEC, bytes(forged))
    assert (lab.maps.counters(), lab.maps.drops()) == before


def test_both_ends_must_be_for_the_fast_path(lab):
    assert lab.send(ip4(SLOW, A) / UDP()).verdict == "kernel"
    assert lab.send(ip4(A, SLOW) / UDP(), SLOW).verdict == "kernel"
    assert lab.send(ip4(A, B) / UDP(), B).receiver == "a"


def test_segments_do_not_see_each_other(lab):
    assert lab.send(ip4(OTHER, A) / UDP()).verdict == "kernel"
    assert lab.send(ip4(B, OTHER) / UDP(), OTHER).verdict == "kernel"
    lab.maps.fdb_put(OTHER.segment, B.mac_bytes, abi.FdbEntry(lab.ifindex[BARE.ifname], BARE.slot))
    assert lab.send(ip4(B, OTHER) / UDP(), OTHER).receiver == "bare"
    assert lab.send(ip4(B, A) / UDP(), A).receiver == "b"


def test_a_deleted_destination_falls_back_to_the_kernel(lab):
    assert lab.send(SAMPLES["udp4"]).verdict == "fast"
    assert lab.maps.fdb_delete(SEGMENT, B.mac_bytes)
    assert lab.send(SAMPLES["udp4"]).verdict == "kernel"


def test_an_endpoint_without_addresses_may_only_ask_for_them(lab):
    dhcp = ether(BROADCAST, BARE) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    assert lab.send(dhcp, BARE).verdict == "kernel"
    for packet, reason in (
        (ether(B, BARE) / IP(src="10.9.0.77", dst=B.ip4) / UDP(), "spoofed_ip4"),
        (ether(B, BARE) / IPv6(src="fd09::77", dst=B.ip6) / UDP(), "spoofed_ip6"),
    ):
        assert lab.send(packet, BARE).reason == reason


@pytest.mark.parametrize("packet", [IP(src="0.0.0.0", dst=B.ip4), IPv6(src="::", dst=B.ip6)])
@pytest.mark.parametrize("source", [A, BARE])
def test_the_unspecified_source_never_takes_the_fast_path(lab, packet, source):
    assert lab.send(ether(B, source) / packet / UDP() / PAYLOAD, source).verdict == "kernel"


@pytest.mark.parametrize("packet", [ip4() / TCP() / Raw(bytes(3000)), ip6() / TCP() / Raw(bytes(3000))])
def test_a_gso_packet_counts_its_segments_and_takes_the_fast_path(lab, packet):
    # The lab compares packets with gso_segs, bytes with the packet's length.
    outcome = lab.send(packet, gso_segs=3, gso_size=1000)
    assert (outcome.verdict, outcome.receiver) == ("fast", "b")


@pytest.mark.parametrize(("length", "verdict"), [(1500, "fast"), (1501, "kernel"), (3400, "kernel")])
def test_what_is_longer_than_the_receivers_mtu_is_left_for_the_kernel_to_refuse(lab, length, verdict):
    packet = ip4(B, A) / UDP() / Raw(bytes(length - 28))
    assert len(packet[IP]) == length
    assert lab.send(packet).verdict == verdict


@pytest.mark.parametrize("length", [1501, 3400])
def test_jumbo_packets_take_the_fast_path_to_a_device_that_carries_them(lab, length):
    for packet in (ip4(A, B) / UDP() / Raw(bytes(length - 28)), ip6(A, B) / UDP() / Raw(bytes(length - 48))):
        assert lab.send(packet, B).receiver == "a"


def test_short_packets_take_the_fast_path(lab):
    assert lab.send(ip4()).receiver == "b"
    assert lab.send(ip6()).receiver == "b"


@pytest.mark.parametrize(
    "tags",
    [Dot1Q(vlan=0), Dot1Q(vlan=5, prio=7), Dot1AD(vlan=5), Dot1AD(vlan=5) / Dot1Q(vlan=6), Dot1Q() / Dot1Q(vlan=1)],
    ids=["priority", "802.1Q", "802.1ad", "QinQ", "Q in Q"],
)
def test_tagged_packets_are_the_kernels(lab, tags):
    for packet in (IP(src=A.ip4, dst=B.ip4) / UDP(), IPv6(src=A.ip6, dst=B.ip6) / UDP()):
        tagged = Ether(dst=B.mac, src=A.mac) / tags / packet
        assert lab.send(tagged).verdict == "kernel"


def test_as_many_headers_as_are_looked_through_pass(lab):
    extensions = (b"\x3c" + bytes(7)) * 7 + b"\x11" + bytes(7)
    assert lab.send(ip6(nh=0) / Raw(extensions) / UDP()).receiver == "b"
    options = ether("33:33:00:00:00:01") / IPv6(src=A.ip6_ll, dst="ff02::1", hlim=255) / ICMPv6ND_RA()
    assert lab.send(options / Raw(bytes(ICMPv6NDOptMTU()) * 16)).verdict == "kernel"


def test_programs_see_the_upper_layer_of_the_first_fragment_only(lab):
    # What looks like a forged advertisement is the middle of a datagram.
    forged = bytes(SAMPLES["advertisement"])[54:].replace(A.mac_bytes, B.mac_bytes)
    fragment = ip6() / IPv6ExtHdrFragment(offset=100, m=1, nh=58) / Raw(forged)
    assert lab.send(fragment).verdict == "fast"


def test_the_inward_program_counts_what_the_kernel_delivers(lab):
    for packet, segments in ((SAMPLES["udp4"], 1), (ip4() / TCP() / Raw(bytes(3000)), 3), (SAMPLES["arp probe"], 1)):
        before = lab.maps.counters()[B.slot]
        context = {"gso_segs": segments, "gso_size": 1000} if segments > 1 else {}
        result = lab.run("ls_ep_in", packet, B.ifname, **context)
        after = lab.maps.counters()[B.slot]
        assert (result.retval, result.data_out) == (UNSPEC, bytes(packet))
        assert after.in_slow_packets - before.in_slow_packets == segments
        assert after.in_slow_bytes - before.in_slow_bytes == len(packet)
    assert lab.maps.drops() == {}
