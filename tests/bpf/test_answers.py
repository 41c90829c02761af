"""ls_ep_out answers ARP requests and neighbour solicitations for known addresses, as their owners would."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Padding, Raw

from tests.bpf.lab import GATEWAY4, GATEWAY6, GATEWAY_MAC, OTHER, SEGMENT, SLOW, UNKNOWN4, UNKNOWN6, A, B
from tests.bpf.packets import BROADCAST, arp_request, probe6, solicitation

pytestmark = pytest.mark.root


@pytest.mark.parametrize(("address", "mac"), [(B.ip4, B.mac), (SLOW.ip4, SLOW.mac), (GATEWAY4, GATEWAY_MAC)])
@pytest.mark.parametrize("padding", [0, 18])
def test_an_arp_request_is_answered_to_the_byte(lab, address, mac, padding):
    outcome = lab.send(bytes(arp_request(address)) + bytes(padding))
    assert (outcome.verdict, outcome.receiver) == ("fast", "a")
    reply = Ether(dst=A.mac, src=mac) / ARP(op="is-at", hwsrc=mac, psrc=address, hwdst=A.mac, pdst=A.ip4)
    assert outcome.packet == bytes(reply) + bytes(padding)
    answered = Ether(outcome.packet)
    assert answered[ARP].answers(arp_request(address)[ARP])
    assert len(answered[Padding] if padding else b"") == padding


@pytest.mark.parametrize(
    ("target", "mac", "is_router"),
    [(B.ip6, B.mac, 0), (B.ip6_ll, B.mac, 0), (GATEWAY6, GATEWAY_MAC, 1)],
)
@pytest.mark.parametrize("source", [A.ip6, A.ip6_ll])
def test_a_solicitation_is_answered_to_the_byte(lab, target, mac, is_router, source):
    outcome = lab.send(solicitation(target, source))
    assert (outcome.verdict, outcome.receiver) == ("fast", "a")
    # scapy computes the checksum of this one.
    wanted = (
        Ether(dst=A.mac, src=mac)
        / IPv6(src=target, dst=source, hlim=255)
        / ICMPv6ND_NA(R=is_router, S=1, O=1, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=mac)
    )
    assert outcome.packet == bytes(wanted)
    assert Ether(outcome.packet)[ICMPv6ND_NA].answers(solicitation(target, source)[ICMPv6ND_NS])


def test_checksums_are_right_for_many_addresses(lab):
    """Sums that carry twice, and that come out as 0."""
    for last in range(0, 0x10000, 251):
        source = f"fe80::42:aff:fe09:{last:x}"
        host = A.__class__(**(A.__dict__ | {"ip6_ll": source}))
        lab.maps.endpoint_put(lab.ifindex[A.ifname], host.record())
        answer = Ether(lab.send(solicitation(GATEWAY6, source)).packet)
        found = answer[ICMPv6ND_NA].cksum
        del answer[ICMPv6ND_NA].cksum
        assert Ether(bytes(answer))[ICMPv6ND_NA].cksum == found


@pytest.mark.parametrize("address", [UNKNOWN4, A.ip4, "0.0.0.0", "255.255.255.255"])
def test_requests_for_unknown_and_own_addresses_are_the_kernels(lab, address):
    outcome = lab.send(arp_request(address))
    assert outcome.verdict == "kernel"
    assert outcome.packet == bytes(arp_request(address))


@pytest.mark.parametrize("target", [UNKNOWN6, A.ip6, A.ip6_ll, "::"])
def test_solicitations_for_unknown_and_own_addresses_are_the_kernels(lab, target):
    outcome = lab.send(solicitation(target))
    assert outcome.verdict == "kernel"
    assert outcome.packet == bytes(solicitation(target))


def test_a_neighbour_of_another_segment_is_not_answered_for(lab):
    assert lab.send(arp_request(B.ip4, OTHER), OTHER).verdict == "kernel"


def test_a_deleted_neighbour_is_no_longer_answered_for(lab):
    from ipaddress import ip_address

    for address, request in ((GATEWAY4, arp_request(GATEWAY4)), (GATEWAY6, solicitation(GATEWAY6))):
        assert lab.send(request).receiver == "a"
        assert lab.maps.neighbour_delete(SEGMENT, ip_address(address))
        assert lab.send(request).verdict == "kernel"


def test_unicast_probes_reach_the_neighbour_itself(lab):
    """So that a neighbour that is gone is noticed (RFC 1122, 2.3.2.1; RFC 4861, 7.3)."""
    for request in (arp_request(B.ip4, dst=B.mac), solicitation(B.ip6, dst=B.mac)):
        outcome = lab.send(request)
        assert (outcome.receiver, outcome.packet) == ("b", bytes(request))
    assert lab.send(arp_request(GATEWAY4, dst=GATEWAY_MAC)).verdict == "kernel"


@pytest.mark.parametrize("address", [B.ip4, GATEWAY4, A.ip4])
def test_arp_probes_are_for_everyone(lab, address):
    """RFC 5227: an answer would tell the prober that its address is taken."""
    probe = Ether(dst=BROADCAST, src=A.mac) / ARP(hwsrc=A.mac, psrc="0.0.0.0", pdst=address)
    assert lab.send(probe).verdict == "kernel"


@pytest.mark.parametrize("target", [B.ip6, GATEWAY6, A.ip6])
def test_duplicate_address_detection_is_for_everyone(lab, target):
    assert lab.send(probe6(target)).verdict == "kernel"


def _variant(name):
    packet = solicitation(GATEWAY6)
    match name:
        case "hop limit":
            packet[IPv6].hlim = 254
        case "code":
            packet[ICMPv6ND_NS].code = 1
        case "no option":
            del packet[ICMPv6NDOptSrcLLAddr]
        case "two options":
            packet /= ICMPv6NDOptSrcLLAddr(lladdr=A.mac)
        case "other option":
            del packet[ICMPv6NDOptSrcLLAddr]
            packet /= ICMPv6NDOptMTU()
        case "target's option":
            del packet[ICMPv6NDOptSrcLLAddr]
            packet /= ICMPv6NDOptDstLLAddr(lladdr=A.mac)
        case "unicast address":
            packet[IPv6].dst = GATEWAY6
        case "tag":
            packet = Ether(dst=packet.dst, src=A.mac) / Dot1Q(vlan=5) / packet[IPv6]
        case "extension":
            packet = Ether(dst=packet.dst, src=A.mac) / IPv6(src=A.ip6, dst=packet[IPv6].dst, hlim=255, nh=60)
            packet /= Raw(b"\x3a\x00\x01\x04\x00\x00\x00\x00") / solicitation(GATEWAY6)[ICMPv6ND_NS]
    return packet


@pytest.mark.parametrize(
    "name",
    [
        "hop limit",
        "code",
        "no option",
        "two options",
        "other option",
        "target's option",
        "unicast address",
        "tag",
        "extension",
    ],
)
def test_only_plain_solicitations_are_answered(lab, name):
    packet = _variant(name)
    outcome = lab.send(packet)
    assert (outcome.verdict, outcome.packet) == ("kernel", bytes(packet))


def test_a_tagged_arp_request_is_the_kernels(lab):
    tagged = Ether(dst=BROADCAST, src=A.mac) / Dot1Q(vlan=5) / ARP(hwsrc=A.mac, psrc=A.ip4, pdst=GATEWAY4)
    assert lab.send(tagged).verdict == "kernel"


@pytest.mark.parametrize("op", [2, 3, 8])
def test_only_requests_are_answered(lab, op):
    packet = Ether(dst=BROADCAST, src=A.mac) / ARP(op=op, hwsrc=A.mac, psrc=A.ip4, pdst=GATEWAY4)
    assert lab.send(packet).verdict == "kernel"
