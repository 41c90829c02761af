"""Packets that the endpoint A must not send, by the reason for which they are dropped."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.bpf.lab import SLOW, A, B
from tests.bpf.packets import BROADCAST, PAYLOAD, advertisement, ether, ip6, solicitation

OTHERS_MAC, OTHERS_IP4, OTHERS_IP6 = B.mac, B.ip4, B.ip6
MULTICAST6 = "33:33:00:00:00:01"


def arp(**fields: Any) -> Packet:
    defaults = {"op": "is-at", "hwsrc": A.mac, "psrc": A.ip4, "hwdst": B.mac, "pdst": B.ip4}
    return ether() / ARP(**(defaults | fields))


def arp_with(at: int, *values: int) -> Packet:
    """A good reply but for some bytes; its length stays."""
    raw = bytearray(bytes(arp().payload))
    raw[at : at + len(values)] = values
    return Ether(dst=B.mac, src=A.mac, type=0x0806) / Raw(bytes(raw))


def nd(message: Packet, source: str = A.ip6_ll, extension: Packet | None = None) -> Packet:
    packet = IPv6(src=source, dst="ff02::1", hlim=255)
    return ether(MULTICAST6) / (packet / extension if extension else packet) / message


def hop_by_hop() -> Packet:
    return IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])


SPOOFED_MAC = {
    "unicast4": ether(B, OTHERS_MAC) / IP(src=A.ip4, dst=B.ip4) / UDP(),
    "unicast6": ether(B, OTHERS_MAC) / IPv6(src=A.ip6, dst=B.ip6) / UDP(),
    "last byte": ether(B, A.mac[:-2] + "ff") / IP(src=A.ip4, dst=B.ip4) / UDP(),
    "first byte": ether(B, "06" + A.mac[2:]) / IP(src=A.ip4, dst=B.ip4) / UDP(),
    "group": ether(B, "03" + A.mac[2:]) / IP(src=A.ip4, dst=B.ip4) / UDP(),
    "broadcast": ether(B, BROADCAST) / IP(src=A.ip4, dst=B.ip4) / UDP(),
    "arp": ether(BROADCAST, OTHERS_MAC) / ARP(hwsrc=A.mac, psrc=A.ip4, pdst=B.ip4),
    "tagged": ether(B, OTHERS_MAC) / Dot1Q(vlan=5) / IP(src=A.ip4, dst=B.ip4) / UDP(),
    "other ethertype": Ether(dst=B.mac, src=OTHERS_MAC, type=0x88B5) / PAYLOAD,
}
SPOOFED_IP4 = {
    "neighbour's": ether() / IP(src=OTHERS_IP4, dst=B.ip4) / UDP(),
    "off segment": ether() / IP(src="192.0.2.1", dst=B.ip4) / UDP(),
    "one bit": ether() / IP(src="10.9.0.0", dst=B.ip4) / UDP(),
    "neighbour's link-local": ether() / IP(src=B.ll4, dst=B.ll4) / UDP(),
    "link-local of one not answered for": ether() / IP(src=SLOW.ll4, dst=B.ll4) / UDP(),
    "link-local that nobody has": ether() / IP(src="169.254.7.99", dst=B.ll4) / UDP(),
    "loopback": ether() / IP(src="127.0.0.1", dst=B.ip4) / UDP(),
    "to the kernel": ether(BROADCAST) / IP(src=OTHERS_IP4, dst="255.255.255.255") / UDP(),
    "with options": ether() / IP(src=OTHERS_IP4, dst=B.ip4, options=[b"\x01\x01\x01\x00"]) / UDP(),
    "fragment": ether() / IP(src=OTHERS_IP4, dst=B.ip4, frag=9) / PAYLOAD,
    "tagged": ether() / Dot1Q(vlan=5) / IP(src=OTHERS_IP4, dst=B.ip4) / UDP(),
    "802.1ad": ether() / Dot1AD(vlan=5) / IP(src=OTHERS_IP4, dst=B.ip4) / UDP(),
    "QinQ": ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(src=OTHERS_IP4, dst=B.ip4) / UDP(),
}
SPOOFED_IP6 = {
    "neighbour's": ether() / IPv6(src=OTHERS_IP6, dst=B.ip6) / UDP(),
    "neighbour's link-local": ether() / IPv6(src=B.ip6_ll, dst=B.ip6_ll) / UDP(),
    "neighbour's given link-local": ether() / IPv6(src=B.ll6, dst=B.ll6) / UDP(),
    "link-local of one not answered for, IPv6": ether() / IPv6(src=SLOW.ll6, dst=B.ll6) / UDP(),
    "link-local that nobody has, IPv6": ether() / IPv6(src="fe80::7:99", dst=B.ll6) / UDP(),
    "off segment": ether() / IPv6(src="2001:db8::1", dst=B.ip6) / UDP(),
    "first half own": ether() / IPv6(src="fd09::1:0:0:1", dst=B.ip6) / UDP(),
    "second half own": ether() / IPv6(src="fd0a::1", dst=B.ip6) / UDP(),
    "ping": ether() / IPv6(src=OTHERS_IP6, dst=B.ip6, nh=58) / Raw(b"\x80" + bytes(7)),
    "behind extensions": ether() / IPv6(src=OTHERS_IP6, dst=B.ip6) / hop_by_hop() / UDP(),
    "fragment": ether() / IPv6(src=OTHERS_IP6, dst=B.ip6) / IPv6ExtHdrFragment(offset=9, nh=17) / PAYLOAD,
    "to the kernel": ether(MULTICAST6) / IPv6(src=OTHERS_IP6, dst="ff02::1") / UDP(),
    "tagged": ether() / Dot1Q(vlan=5) / IPv6(src=OTHERS_IP6, dst=B.ip6) / UDP(),
    "QinQ": ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IPv6(src=OTHERS_IP6, dst=B.ip6) / UDP(),
}
SPOOFED_ARP = {
    "reply with another's address": arp(psrc=OTHERS_IP4),
    "reply with another's link-local": arp(psrc=B.ll4),
    "reply with a link-local that nobody has": arp(psrc="169.254.7.99"),
    "reply with another's MAC": arp(hwsrc=OTHERS_MAC),
    "request with another's address": ether(BROADCAST) / ARP(hwsrc=A.mac, psrc=OTHERS_IP4, pdst=B.ip4),
    "request with another's MAC": ether(BROADCAST) / ARP(hwsrc=OTHERS_MAC, psrc=A.ip4, pdst=B.ip4),
    "probe with another's MAC": ether(BROADCAST) / ARP(hwsrc=OTHERS_MAC, psrc="0.0.0.0", pdst=A.ip4),
    "gratuitous for another": ether(BROADCAST) / ARP(hwsrc=A.mac, psrc=OTHERS_IP4, pdst=OTHERS_IP4),
    "broadcast reply for another": ether(BROADCAST) / ARP(op="is-at", hwsrc=A.mac, psrc=OTHERS_IP4, pdst=OTHERS_IP4),
    "tagged": ether(BROADCAST) / Dot1Q(vlan=5) / ARP(hwsrc=A.mac, psrc=OTHERS_IP4, pdst=B.ip4),
    "QinQ": ether(BROADCAST) / Dot1AD(vlan=5) / Dot1Q(vlan=6) / ARP(hwsrc=OTHERS_MAC, psrc=A.ip4, pdst=B.ip4),
}
SPOOFED_ND = {
    "solicitation from another's address": solicitation(source=OTHERS_IP6),
    "solicitation with another's MAC": solicitation(mac=OTHERS_MAC),
    "unicast solicitation with another's MAC": solicitation(mac=OTHERS_MAC, dst=B.mac),
    "probe with another's MAC": nd(ICMPv6ND_NS(tgt=B.ip6) / ICMPv6NDOptSrcLLAddr(lladdr=OTHERS_MAC), source="::"),
    "advertisement for another": advertisement(target=OTHERS_IP6),
    "advertisement of another's link-local": advertisement(target=B.ll6),
    "advertisement of a link-local that nobody has": advertisement(target="fe80::7:99"),
    "solicitation from a link-local that nobody has": solicitation(source="fe80::7:99"),
    "advertisement of ::": advertisement(target="::"),
    "advertisement with another's MAC": advertisement(mac=OTHERS_MAC),
    "advertisement from another's address": advertisement(source=OTHERS_IP6),
    "advertisement without option for another": nd(ICMPv6ND_NA(tgt=OTHERS_IP6)),
    "router solicitation with another's MAC": nd(ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=OTHERS_MAC)),
    "router solicitation from another": nd(ICMPv6ND_RS(), source=B.ip6_ll),
    "router advertisement with another's MAC": nd(ICMPv6ND_RA() / ICMPv6NDOptSrcLLAddr(lladdr=OTHERS_MAC)),
    "second option": nd(
        ICMPv6ND_NS(tgt=B.ip6) / ICMPv6NDOptSrcLLAddr(lladdr=A.mac) / ICMPv6NDOptSrcLLAddr(lladdr=OTHERS_MAC)
    ),
    "behind an unknown option": nd(
        ICMPv6ND_NA(tgt=A.ip6) / Raw(b"\xfd\x02" + bytes(14)) / ICMPv6NDOptDstLLAddr(lladdr=OTHERS_MAC)
    ),
    "behind extensions": nd(
        ICMPv6ND_NA(tgt=OTHERS_IP6), extension=hop_by_hop() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    ),
    "behind AH": nd(ICMPv6ND_NA(tgt=OTHERS_IP6), extension=AH(nh=58, payloadlen=4, icv=bytes(12))),
    "behind an atomic fragment header": nd(ICMPv6ND_NA(tgt=OTHERS_IP6), extension=IPv6ExtHdrFragment()),
    "tagged": ether(MULTICAST6) / Dot1Q(vlan=5) / IPv6(src=A.ip6_ll, dst="ff02::1") / ICMPv6ND_NA(tgt=OTHERS_IP6),
}
MALFORMED = {
    "ip4 with version 5": ether() / IP(src=A.ip4, dst=B.ip4, version=5) / UDP(),
    "ip4 with a header of 16 bytes": ether() / IP(src=A.ip4, dst=B.ip4, ihl=4) / UDP(),
    "ip4 with options that are not there": ether() / IP(src=A.ip4, dst=B.ip4, ihl=15) / Raw(bytes(39)),
    "ip6 with version 4": ether() / IPv6(src=A.ip6, dst=B.ip6, version=4) / UDP(),
    "ip6 extension past the end": ip6() / Raw(b"\x11\xff" + bytes(30)),
    "arp of another hardware": arp_with(0, 0, 6),
    "arp of another protocol": arp_with(2, 0x86, 0xDD),
    "arp with long hardware addresses": arp_with(4, 8),
    "arp with short protocol addresses": arp_with(5, 2),
    "nd option of length 0": nd(ICMPv6ND_NS(tgt=B.ip6) / Raw(bytes(8))),
    "nd option past the end": nd(ICMPv6ND_NS(tgt=B.ip6) / Raw(b"\x01\x02" + bytes(6))),
    "nd with half an option": nd(ICMPv6ND_NS(tgt=B.ip6) / Raw(b"\x01\x01\x02\x42")),
    "nd longer than the packet": ether() / IPv6(src=A.ip6, dst=B.ip6, plen=200) / ICMPv6ND_NA(tgt=A.ip6),
    "nd of no length": ether() / IPv6(src=A.ip6, dst=B.ip6, plen=0) / ICMPv6ND_NA(tgt=A.ip6),
    "nd in fragments": nd(ICMPv6ND_NA(tgt=A.ip6), extension=IPv6ExtHdrFragment(m=1)),
    "first fragment without the upper header": ip6() / IPv6ExtHdrFragment(m=1, nh=60) / Raw(b"\x3a\x01" + bytes(6)),
    "icmp6 of two bytes": ip6(nh=58) / Raw(b"\x88\x00"),
}
MALFORMED["ip6 extension past the end"][IPv6].nh = 60
TOO_DEEP = {
    "three tags": ether() / Dot1AD() / Dot1Q() / Dot1Q() / IP(src=A.ip4, dst=B.ip4),
    "four tags": ether() / Dot1Q() / Dot1Q() / Dot1Q() / Dot1Q() / IP(src=A.ip4, dst=B.ip4),
    "nine extension headers": ip6(nh=0) / Raw((b"\x3c" + bytes(7)) * 8 + b"\x11" + bytes(7)) / UDP(),
    "seventeen options": nd(ICMPv6ND_RA() / Raw(bytes(ICMPv6NDOptMTU()) * 17)),
}

FORGED = {
    "malformed": MALFORMED,
    "spoofed_mac": SPOOFED_MAC,
    "spoofed_ip4": SPOOFED_IP4,
    "spoofed_ip6": SPOOFED_IP6,
    "spoofed_arp": SPOOFED_ARP,
    "spoofed_nd": SPOOFED_ND,
    "too_deep": TOO_DEEP,
}
