"""ls_parent_out: what stations and the host send by a macvlan parent."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from tests.bpf.forged import FORGED
from tests.bpf.lab import REDIRECT, SHOT, SLOW, STRANGER, UNSPEC, A, B
from tests.bpf.packets import BROADCAST, PAYLOAD, SAMPLES, advertisement, ether, probe6, solicitation
from tests.bpf.parents import FOREIGN, Seen, counted
from tests.bpf.test_any_packet import SHORTEST, damaged, invented

pytestmark = pytest.mark.root

HOST4, HOST6 = "10.9.0.77", "fd09::77"
FORGERIES = [
    pytest.param(reason, packet, id=f"{reason}: {name}")
    for reason, packets in FORGED.items()
    if reason != "spoofed_mac"
    for name, packet in packets.items()
]


def to(mac, packet):
    changed = packet.copy()
    changed.dst = mac
    return changed


def is_group(packet):
    return bool(int(packet.dst[:2], 16) & 1)


UNICAST = [name for name, packet in SAMPLES.items() if not is_group(packet)]
TAGGED = [name for name, packet in SAMPLES.items() if packet.haslayer(Dot1Q) or packet.haslayer(Dot1AD)]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_a_station_sends_to_others_goes_on_unchanged_and_is_counted(parent, name):
    packet = SAMPLES[name]
    assert parent.out(packet) == Seen(UNSPEC, bytes(packet), counted(A, "out_slow", packet))


@pytest.mark.parametrize("name", [name for name in UNICAST if name not in TAGGED])
def test_unicast_for_the_host_turns_back_unchanged(parent, name):
    packet = to(parent.host_mac, SAMPLES[name])
    assert parent.out(packet) == Seen(REDIRECT, bytes(packet), counted(A, "out_fast", packet))


@pytest.mark.parametrize("name", [name for name in UNICAST if name in TAGGED])
def test_tagged_packets_go_out(parent, name):
    packet = to(parent.host_mac, SAMPLES[name])
    assert parent.out(packet) == Seen(UNSPEC, bytes(packet), counted(A, "out_slow", packet))
    packet.src, packet.dst = parent.host_mac, A.mac
    assert parent.out(packet) == Seen(UNSPEC, bytes(packet), {})


def test_without_host_access_nothing_turns_back(parent):
    packet = to(parent.host_mac, SAMPLES["udp4"])
    answer = Ether(dst=A.mac, src=parent.host_mac) / IP(src=HOST4, dst=A.ip4) / UDP() / PAYLOAD
    question = Ether(dst=BROADCAST, src=parent.host_mac) / ARP(hwsrc=parent.host_mac, psrc=HOST4, pdst=A.ip4)
    parent.set_parent(host_access=False)
    assert parent.out(packet) == Seen(UNSPEC, bytes(packet), counted(A, "out_slow", packet))
    for each in (answer, question):
        assert parent.out(each) == Seen(UNSPEC, bytes(each), {})


def test_a_station_without_host_access_keeps_it_from_no_other(parent):
    mine, others = (
        Ether(dst=parent.host_mac, src=each.mac) / IP(src=each.ip4, dst=HOST4) / UDP() / PAYLOAD for each in (SLOW, A)
    )
    assert parent.out(mine) == Seen(UNSPEC, bytes(mine), counted(SLOW, "out_slow", mine))
    assert parent.out(others).retval == REDIRECT
    for each, retval in ((SLOW, UNSPEC), (A, REDIRECT)):
        answer = Ether(dst=each.mac, src=parent.host_mac) / IP(src=HOST4, dst=each.ip4) / UDP()
        assert parent.out(answer).retval == retval
        question = Ether(dst=BROADCAST, src=parent.host_mac) / ARP(hwsrc=parent.host_mac, psrc=HOST4, pdst=each.ip4)
        assert parent.out(question).retval == retval


@pytest.mark.parametrize(("reason", "packet"), FORGERIES)
def test_what_a_station_forges_is_dropped_wherever_it_goes(parent, reason, packet):
    for forged in (packet, to(parent.host_mac, packet), to(BROADCAST, packet), to(FOREIGN, packet)):
        assert parent.out(forged) == Seen(SHOT, bytes(forged), {(A.slot, reason): 1})


def test_police_does_not_ask_for_host_access(parent):
    parent.set_parent(host_access=False)
    for reason, packets in FORGED.items():
        for packet in packets.values() if reason != "spoofed_mac" else ():
            assert parent.out(packet).counted == {(A.slot, reason): 1}


def test_what_is_right_for_one_station_is_forged_for_another(parent):
    packet = SAMPLES["udp4"].copy()
    packet.src = B.mac
    assert parent.out(packet) == Seen(SHOT, bytes(packet), {(B.slot, "spoofed_ip4"): 1})


@pytest.mark.parametrize("name", SAMPLES)
def test_strangers_are_left_alone(parent, name):
    for destination in (A.mac, parent.host_mac, SAMPLES[name].dst):
        packet = to(destination, SAMPLES[name])
        packet.src = FOREIGN
        assert parent.out(packet) == Seen(UNSPEC, bytes(packet), {})


@pytest.mark.parametrize("name", SAMPLES)
def test_a_device_that_is_no_parent_is_left_alone(parent, name):
    parent.maps.parent_delete(parent.index)
    for packet in (SAMPLES[name], to(parent.host_mac, SAMPLES[name])):
        assert parent.out(packet) == Seen(UNSPEC, bytes(packet), {})
        result = parent.lab.run("ls_parent_out", packet, STRANGER)
        assert (result.retval, result.data_out) == (UNSPEC, bytes(packet))


@pytest.mark.parametrize("name", [name for name in UNICAST if name not in TAGGED])
def test_the_hosts_unicast_for_a_station_turns_back_and_is_not_judged(parent, name):
    packet = to(B.mac, SAMPLES[name])
    packet.src = parent.host_mac
    assert parent.out(packet) == Seen(REDIRECT, bytes(packet), counted(B, "in_fast", packet))
    away = to(FOREIGN, packet)
    assert parent.out(away) == Seen(UNSPEC, bytes(away), {})


@pytest.mark.parametrize("padding", [0, 18])
@pytest.mark.parametrize("station", [A, B])
def test_the_hosts_arp_request_for_a_station_is_answered_to_the_byte(parent, station, padding):
    request = Ether(dst=BROADCAST, src=parent.host_mac) / ARP(hwsrc=parent.host_mac, psrc=HOST4, pdst=station.ip4)
    reply = Ether(dst=parent.host_mac, src=station.mac) / ARP(
        op="is-at", hwsrc=station.mac, psrc=station.ip4, hwdst=parent.host_mac, pdst=HOST4
    )
    padded = bytes(request) + bytes(padding)
    assert parent.out(padded) == Seen(REDIRECT, bytes(reply) + bytes(padding), {})
    assert Ether(bytes(reply))[ARP].answers(request[ARP])


def host_solicitation(parent, target, source=HOST6):
    packet = solicitation(target, source, mac=parent.host_mac)
    packet.src = parent.host_mac
    return packet


@pytest.mark.parametrize("target", [A.ip6, A.ip6_ll, B.ip6])
def test_the_hosts_solicitation_for_a_station_is_answered_to_the_byte(parent, target):
    owner = B if target == B.ip6 else A
    advert = (
        Ether(dst=parent.host_mac, src=owner.mac)
        / IPv6(src=target, dst=HOST6, hlim=255)
        / ICMPv6ND_NA(R=0, S=1, O=1, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=owner.mac)
    )
    assert parent.out(host_solicitation(parent, target)) == Seen(REDIRECT, bytes(advert), {})


def others_questions(parent):
    mac = parent.host_mac
    arp = Ether(dst=BROADCAST, src=mac)
    yield "arp for another", arp / ARP(hwsrc=mac, psrc=HOST4, pdst="10.9.0.99")
    yield "arp probe", arp / ARP(hwsrc=mac, psrc="0.0.0.0", pdst=A.ip4)
    yield "arp announcement", arp / ARP(hwsrc=mac, psrc=HOST4, pdst=HOST4)
    yield "arp reply", arp / ARP(op="is-at", hwsrc=mac, psrc=HOST4, pdst=A.ip4)
    yield "arp of another hardware", arp / ARP(hwtype=6, hwsrc=mac, psrc=HOST4, pdst=A.ip4)
    yield "tagged arp", arp / Dot1Q(vlan=5) / ARP(hwsrc=mac, psrc=HOST4, pdst=A.ip4)
    yield "solicitation for another", host_solicitation(parent, "fd09::99")
    duplicate = to("33:33:ff:00:00:01", probe6(A.ip6))
    duplicate.src = mac
    yield "duplicate address detection", duplicate
    far = host_solicitation(parent, A.ip6)
    far[IPv6].hlim = 254
    yield "solicitation from afar", far
    bare = host_solicitation(parent, A.ip6)
    del bare[ICMPv6NDOptSrcLLAddr]
    yield "solicitation without option", bare
    long = host_solicitation(parent, A.ip6) / ICMPv6NDOptSrcLLAddr(lladdr=mac)
    yield "solicitation with two options", long
    advert = to("33:33:00:00:00:01", advertisement(HOST6, HOST6, mac))
    advert.src = mac
    yield "advertisement", advert
    yield "udp to all", Ether(dst=BROADCAST, src=mac) / IP(src=HOST4, dst="255.255.255.255") / UDP() / PAYLOAD
    yield "for the wire alone", Ether(dst="01:80:c2:00:00:0e", src=mac, type=0x88CC) / PAYLOAD


def test_the_hosts_other_group_packets_go_on_unchanged(parent):
    for name, packet in others_questions(parent):
        assert parent.out(packet) == Seen(UNSPEC, bytes(packet), {}), name


@pytest.mark.parametrize("cut", range(14, 86))
def test_cut_questions_of_the_host_go_on_unchanged(parent, cut):
    request = Ether(dst=BROADCAST, src=parent.host_mac) / ARP(hwsrc=parent.host_mac, psrc=HOST4, pdst=A.ip4)
    for packet in (bytes(request), bytes(host_solicitation(parent, A.ip6))):
        if cut < len(packet):
            try:
                assert parent.out(packet[:cut]) == Seen(UNSPEC, packet[:cut], {})
            except OSError:
                assert cut < 54  # the kernel refuses the test run


def test_a_gso_packet_counts_its_segments(parent):
    packet = ether(parent.host_mac) / IP(src=A.ip4, dst=HOST4) / TCP() / Raw(bytes(3000))
    assert parent.out(packet, gso_segs=3, gso_size=1000).counted == counted(A, "out_fast", packet, 3)
    back = Ether(dst=A.mac, src=parent.host_mac) / IP(src=HOST4, dst=A.ip4) / TCP() / Raw(bytes(3000))
    assert parent.out(back, gso_segs=3, gso_size=1000).counted == counted(A, "in_fast", back, 3)


def test_a_change_of_the_maps_is_seen_by_the_next_packet(parent):
    packet = to(parent.host_mac, SAMPLES["udp4"])
    assert parent.out(packet).retval == REDIRECT
    parent.host_mac, before = FOREIGN, parent.host_mac
    parent.set_parent()
    assert parent.out(packet).counted == counted(A, "out_slow", packet)
    parent.host_mac = before
    parent.set_parent()
    assert parent.out(packet).retval == REDIRECT
    parent.maps.station_delete(parent.index, A.mac_bytes)
    assert parent.out(packet) == Seen(UNSPEC, bytes(packet), {})
    parent.add(A)
    parent.maps.neighbour_delete(parent.segment, IPv4Address(A.ip4))
    question = Ether(dst=BROADCAST, src=parent.host_mac) / ARP(hwsrc=parent.host_mac, psrc=HOST4, pdst=A.ip4)
    assert parent.out(question) == Seen(UNSPEC, bytes(question), {})


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_at_any_byte_a_packet_passes_or_is_malformed(parent, name):
    whole = bytes(SAMPLES[name])
    for length in range(SHORTEST, len(whole) + 1):
        parent.check("ls_parent_out", whole[:length])


@settings(max_examples=300, deadline=None)
@given(frame=damaged())
def test_every_damaged_packet_of_a_station_gets_the_models_verdict(module_parent, frame):
    module_parent.reset()
    module_parent.check("ls_parent_out", frame[:6] + A.mac_bytes + frame[12:])


@settings(max_examples=300, deadline=None)
@given(frame=invented())
def test_every_invented_packet_of_a_station_gets_the_models_verdict(module_parent, frame):
    module_parent.reset()
    module_parent.check("ls_parent_out", frame)
