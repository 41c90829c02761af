"""Link-local addresses: an endpoint's own, of which the maps know, and those that an engine may have given it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP
from scapy.packet import Packet

from datapath import abi
from tests.bpf.lab import ENGINES, OTHER_SEGMENT, SEGMENT, SLOW, UNSPEC, A, B, Host
from tests.bpf.model import judge
from tests.bpf.packets import BROADCAST, advertisement, arp_request, ether, solicitation
from tests.bpf.parents import ParentLab
from tests.bpf.test_any_packet import damaged

pytestmark = pytest.mark.root

GIVEN = ("169.254.9.9", "fe80::9:9")
EDGES = ("169.254.0.0", "169.254.255.255", "fe80::", "febf:ffff::1")
NEAR = ("169.253.255.255", "169.255.0.0", "fe7f:ffff::1", "fec0::1")


def from_(address: str, source: Host = ENGINES, to: Host = B) -> Packet:
    """A UDP packet."""
    ip = IPv6(src=address, dst=to.ip6) if ":" in address else IP(src=address, dst=to.ip4)
    return ether(to, source) / ip / UDP()


def reason(address: str) -> str:
    return "spoofed_ip6" if ":" in address else "spoofed_ip4"


@pytest.mark.parametrize("address", [*GIVEN, *EDGES])
def test_link_locals_that_nobody_has_are_left_to_the_kernel_from_an_engines_endpoint_alone(lab, address):
    assert lab.send(from_(address), ENGINES).verdict == "kernel"
    assert lab.send(from_(address, A)).reason == reason(address)


@pytest.mark.parametrize("address", [A.ll4, A.ll6, A.ip6_ll, SLOW.ll4, SLOW.ll6, SLOW.ip6_ll, *NEAR])
def test_an_engines_endpoint_sends_from_no_address_that_is_anothers_or_of_wider_scope(lab, address):
    assert lab.send(from_(address), ENGINES).reason == reason(address)


def test_an_address_belongs_to_a_segment(lab):
    lab.maps.neighbour_put(OTHER_SEGMENT, IPv4Address("169.254.7.99"), abi.Neighbour(A.mac_bytes, 0))
    assert lab.send(from_("169.254.7.99", A)).reason == "spoofed_ip4"
    lab.maps.neighbour_put(SEGMENT, IPv4Address("169.254.7.99"), abi.Neighbour(A.mac_bytes, abi.NEIGH_SILENT))
    assert lab.send(from_("169.254.7.99", A)).receiver == "b"
    lab.maps.neighbour_delete(OTHER_SEGMENT, IPv4Address("169.254.7.99"))


@pytest.mark.parametrize(
    "packet",
    [
        ether(BROADCAST, ENGINES) / ARP(hwsrc=ENGINES.mac, psrc=GIVEN[0], pdst=B.ll4),
        ether(B, ENGINES) / ARP(op="is-at", hwsrc=ENGINES.mac, psrc=GIVEN[0], pdst=B.ll4),
        ether(BROADCAST, ENGINES) / ARP(hwsrc=ENGINES.mac, psrc=GIVEN[0], pdst=GIVEN[0]),
    ],
    ids=["question", "answer", "announcement"],
)
def test_arp_of_an_engines_link_local_is_the_kernels(lab, packet):
    outcome = lab.send(packet, ENGINES)
    assert (outcome.verdict, outcome.packet) == ("kernel", bytes(packet))
    packet = packet.copy()
    packet[ARP].psrc = A.ll4
    assert lab.send(packet, ENGINES).reason == "spoofed_arp"


@pytest.mark.parametrize(
    "build",
    [
        lambda ip: solicitation(B.ll6, source=ip, mac=ENGINES.mac),
        lambda ip: advertisement(target=ip, source=ip, mac=ENGINES.mac),
        lambda ip: advertisement(target=ip, source=ENGINES.ip6_ll, mac=ENGINES.mac),
    ],
    ids=["question", "answer", "answer from another address"],
)
def test_neighbour_discovery_of_an_engines_link_local_is_the_kernels(lab, build):
    def built(address: str) -> Packet:
        packet = build(address)
        packet.src = ENGINES.mac
        return packet

    outcome = lab.send(built(GIVEN[1]), ENGINES)
    assert (outcome.verdict, outcome.packet) == ("kernel", bytes(built(GIVEN[1])))
    assert lab.send(built(A.ll6), ENGINES).reason == "spoofed_nd"
    assert lab.send(built("fd09::9:9"), ENGINES).reason == "spoofed_nd"


def as_engines(frame: bytes) -> bytes:
    """The frame as the engine's endpoint would send it, by everything in it that is A's."""
    for mine, theirs in ((A.ip4, ENGINES.ip4), (A.ip6, ENGINES.ip6), (A.ip6_ll, ENGINES.ip6_ll)):
        kind = IPv6Address if ":" in mine else IPv4Address
        frame = frame.replace(kind(mine).packed, kind(theirs).packed)
    return frame.replace(A.mac_bytes, ENGINES.mac_bytes)


@settings(max_examples=600, deadline=None)
@given(frame=damaged())
def test_every_packet_of_an_engines_endpoint_gets_the_models_verdict(session_lab, frame):
    frame = as_engines(frame)
    assert session_lab.judge(frame, ENGINES) == judge(frame, ENGINES)


# -- on a macvlan parent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [SLOW.ll4, SLOW.ll6])
def test_a_station_that_the_host_cannot_reach_sends_from_its_link_locals(parent: ParentLab, address):
    own = parent.out(from_(address, SLOW))
    assert (own.retval, own.counted[SLOW.slot, "out_slow_packets"]) == (UNSPEC, 1)
    assert parent.into(from_(address, SLOW)).counted[SLOW.slot, "out_slow_packets"] == 1
    assert parent.out(from_(address, A)).counted == {(A.slot, reason(address)): 1}
    assert parent.into(from_(address, A)).counted == {(A.slot, reason(address)): 1}


@pytest.mark.parametrize("question", [arp_request(SLOW.ll4), solicitation(SLOW.ll6)], ids=["arp", "nd"])
def test_the_host_is_not_answered_for_what_it_cannot_reach(parent: ParentLab, question):
    question = question.copy()
    question.src = parent.host_mac
    assert parent.out(question).packet == bytes(question)


def test_an_engines_station_sends_from_link_locals_that_nobody_has(parent: ParentLab):
    parent.add(ENGINES)
    for address in GIVEN:
        seen = parent.out(from_(address))
        assert (seen.retval, seen.counted[ENGINES.slot, "out_slow_packets"]) == (UNSPEC, 1)
    for address in (A.ll4, A.ll6, *NEAR):
        assert parent.out(from_(address)).counted == {(ENGINES.slot, reason(address)): 1}
