"""What a sandbox sends in another's name never leaves it, and is counted by reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.hosts import Host
from tests.netns.lab import Lab
from tests.traffic import BROADCAST, Wire, growth, tallies

pytestmark = pytest.mark.xdist_group("spoofing")

END = b"the last frame of a test"
FORGED = b"forged by the test"


@dataclass(frozen=True)
class Names:
    """Who is who: the sender, the one it pretends to be, and the gateway."""

    mac: str
    ip4: str
    ip6: str
    ip6_ll: str
    other_mac: str
    other_ip4: str
    other_ip6: str
    gateway4: str


def frame(n: Names, payload: Packet, *, src: str | None = None, dst: str | None = None) -> Packet:
    return Ether(src=src or n.mac, dst=dst or n.other_mac) / payload


FORGERIES: dict[str, tuple[str, Callable[[Names], Packet]]] = {
    "another's MAC": ("spoofed_mac", lambda n: frame(n, IP(src=n.ip4, dst=n.other_ip4) / UDP(), src=n.other_mac)),
    "nobody's MAC": (
        "spoofed_mac",
        lambda n: frame(n, IP(src=n.ip4, dst=n.other_ip4) / UDP(), src="02:00:00:00:00:09"),
    ),
    "another's MAC to all": (
        "spoofed_mac",
        lambda n: frame(n, IP(src=n.ip4, dst="255.255.255.255") / UDP(), src=n.other_mac, dst=BROADCAST),
    ),
    "unknown protocol with another's MAC": (
        "spoofed_mac",
        lambda n: Ether(src=n.other_mac, dst=BROADCAST, type=0x88B5),
    ),
    "another's IPv4": ("spoofed_ip4", lambda n: frame(n, IP(src=n.other_ip4, dst=n.other_ip4) / ICMP())),
    "an outsider's IPv4": ("spoofed_ip4", lambda n: frame(n, IP(src="8.8.8.8", dst=n.other_ip4) / UDP(sport=53))),
    "the gateway's IPv4": ("spoofed_ip4", lambda n: frame(n, IP(src=n.gateway4, dst=n.other_ip4) / TCP(flags="R"))),
    "broadcast IPv4 source": ("spoofed_ip4", lambda n: frame(n, IP(src="255.255.255.255", dst=n.other_ip4) / UDP())),
    "another's IPv4 in a fragment": (
        "spoofed_ip4",
        lambda n: frame(n, IP(src=n.other_ip4, dst=n.other_ip4, frag=100, proto=17)),
    ),
    "another's IPv4 behind a VLAN tag": (
        "spoofed_ip4",
        lambda n: Ether(src=n.mac, dst=n.other_mac) / Dot1Q(vlan=5) / IP(src=n.other_ip4, dst=n.other_ip4) / UDP(),
    ),
    "another's IPv4 behind two VLAN tags": (
        "spoofed_ip4",
        lambda n: (
            Ether(src=n.mac, dst=BROADCAST)
            / Dot1Q(vlan=5)
            / Dot1Q(vlan=6)
            / IP(src=n.other_ip4, dst="224.0.0.1")
            / UDP()
        ),
    ),
    "three VLAN tags": (
        "too_deep",
        lambda n: (
            Ether(src=n.mac, dst=BROADCAST) / Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / IP(src=n.ip4) / UDP()
        ),
    ),
    "another's IPv6": ("spoofed_ip6", lambda n: frame(n, IPv6(src=n.other_ip6, dst=n.other_ip6) / UDP())),
    "an outsider's IPv6": (
        "spoofed_ip6",
        lambda n: frame(n, IPv6(src="2001:db8::1", dst=n.other_ip6) / ICMPv6EchoRequest()),
    ),
    "another's IPv6 behind extension headers": (
        "spoofed_ip6",
        lambda n: frame(n, IPv6(src=n.other_ip6, dst=n.other_ip6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP()),
    ),
    "a link-local IPv6 of one's own making": (
        "spoofed_ip6",
        lambda n: frame(n, IPv6(src="fe80::1", dst=n.other_ip6) / UDP()),
    ),
    "ARP answer with another's IPv4": (
        "spoofed_arp",
        lambda n: frame(n, ARP(op=2, hwsrc=n.mac, psrc=n.gateway4, hwdst=n.other_mac, pdst=n.other_ip4)),
    ),
    "ARP announcement of another's IPv4": (
        "spoofed_arp",
        lambda n: frame(n, ARP(op=1, hwsrc=n.mac, psrc=n.other_ip4, pdst=n.other_ip4), dst=BROADCAST),
    ),
    "ARP with another's MAC in it": (
        "spoofed_arp",
        lambda n: frame(n, ARP(op=1, hwsrc=n.other_mac, psrc=n.ip4, pdst=n.gateway4), dst=BROADCAST),
    ),
    "ARP probe with another's MAC in it": (
        "spoofed_arp",
        lambda n: frame(n, ARP(op=1, hwsrc=n.other_mac, psrc="0.0.0.0", pdst=n.ip4), dst=BROADCAST),
    ),
    "advertisement of another's IPv6": (
        "spoofed_nd",
        lambda n: frame(
            n,
            IPv6(src=n.ip6, dst=n.other_ip6, hlim=255)
            / ICMPv6ND_NA(tgt=n.other_ip6, R=0, O=1)
            / ICMPv6NDOptDstLLAddr(lladdr=n.mac),
        ),
    ),
    "solicitation from another's IPv6": (
        "spoofed_nd",
        lambda n: frame(
            n,
            IPv6(src=n.other_ip6, dst="ff02::1:ff00:1", hlim=255)
            / ICMPv6ND_NS(tgt=n.ip6)
            / ICMPv6NDOptSrcLLAddr(lladdr=n.mac),
            dst="33:33:ff:00:00:01",
        ),
    ),
    "solicitation with another's MAC in it": (
        "spoofed_nd",
        lambda n: frame(
            n,
            IPv6(src=n.ip6, dst="ff02::1:ff00:1", hlim=255)
            / ICMPv6ND_NS(tgt=n.other_ip6)
            / ICMPv6NDOptSrcLLAddr(lladdr=n.other_mac),
            dst="33:33:ff:00:00:01",
        ),
    ),
    "router advertisement from another's IPv6": (
        "spoofed_nd",
        lambda n: frame(n, IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(), dst="33:33:00:00:00:01"),
    ),
    "IPv4 header that is cut off": (
        "malformed",
        lambda n: Ether(src=n.mac, dst=n.other_mac, type=0x0800) / bytes(IP(src=n.ip4, dst=n.other_ip4))[:19],
    ),
    "IPv6 header that is cut off": (
        "malformed",
        lambda n: Ether(src=n.mac, dst=n.other_mac, type=0x86DD) / bytes(IPv6(src=n.ip6, dst=n.other_ip6))[:39],
    ),
    "ARP that is cut off": (
        "malformed",
        lambda n: Ether(src=n.mac, dst=BROADCAST, type=0x0806) / bytes(ARP(hwsrc=n.mac, psrc=n.ip4))[:27],
    ),
}


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    return Lab(machine, "forgers", EnableIPv6=True)


@pytest.fixture(scope="module")
def names(lab: Lab) -> Names:
    gateway = lab.a.gateway()
    assert gateway
    return Names(lab.a.mac, lab.a.ip4, lab.a.ip6, lab.a.ip6_ll, lab.b.mac, lab.b.ip4, lab.b.ip6, gateway)


@pytest.fixture
def watchers(lab: Lab) -> Iterator[list[Wire]]:
    """Everybody who could be shown a forged frame: two sandboxes and the host."""
    with ExitStack() as stack:
        wires = [lab.b.wire(), lab.c.wire(), Wire(f"/proc/{lab.host.pid}/ns/net", lab.bridge)]
        yield [stack.enter_context(wire) for wire in wires]


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_and_malformed_frames_never_arrive_and_are_counted(
    lab: Lab, names: Names, watchers: list[Wire], forgery: str
) -> None:
    reason, build = FORGERIES[forgery]
    before = tallies(lab.host, lab.a.name)
    forged = build(names) if reason == "malformed" else build(names) / Raw(FORGED)
    with lab.a.wire() as out:
        out.send(*[forged] * 3)
        out.send(lab.frame(END), Ether(src=names.mac, dst=BROADCAST, type=0x88B5) / END)
    sent = bytes(forged)
    for wire in watchers:
        assert [frame for frame in wire.frames_until(END) if FORGED in frame or frame[: len(sent)] == sent] == []
    grown = growth(before, tallies(lab.host, lab.a.name))
    assert {key: value for key, value in grown.items() if key[0] == "drops"} == {("drops", reason): 3}


def test_honest_frames_of_every_kind_are_not_dropped(lab: Lab, names: Names, watchers: list[Wire]) -> None:
    """The same protocols as above, without the lie."""
    n = names
    honest = [
        frame(n, IP(src=n.ip4, dst="255.255.255.255") / UDP(), dst=BROADCAST),
        frame(n, IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67), dst=BROADCAST),
        frame(n, ARP(op=1, hwsrc=n.mac, psrc=n.ip4, pdst=n.ip4), dst=BROADCAST),
        frame(n, ARP(op=1, hwsrc=n.mac, psrc="0.0.0.0", pdst=n.ip4), dst=BROADCAST),
        frame(n, IPv6(src=n.ip6_ll, dst="ff02::1", hlim=255) / ICMPv6EchoRequest(), dst="33:33:00:00:00:01"),
        frame(
            n,
            IPv6(src=n.ip6, dst="ff02::1", hlim=255)
            / ICMPv6ND_NA(tgt=n.ip6, R=0, S=0, O=1)
            / ICMPv6NDOptDstLLAddr(lladdr=n.mac),
            dst="33:33:00:00:00:01",
        ),
        frame(n, IPv6(src="::", dst="ff02::1:ff00:9", hlim=255) / ICMPv6ND_NS(tgt=n.ip6), dst="33:33:ff:00:00:09"),
        Ether(src=n.mac, dst=BROADCAST, type=0x88B5),
    ]
    before = tallies(lab.host, lab.a.name)
    with lab.a.wire() as out:
        # Also an option of neighbour discovery: type 253, for experiments (RFC 4727), and one unit of 8 bytes long.
        out.send(*(packet / Raw(b"\xfd\x01honest") for packet in honest))
        out.send(Ether(src=n.mac, dst=BROADCAST, type=0x88B5) / END)
    for wire in watchers:
        assert sum(b"honest" in frame for frame in wire.frames_until(END)) == len(honest)
    assert not [key for key in growth(before, tallies(lab.host, lab.a.name)) if key[0] == "drops"]
