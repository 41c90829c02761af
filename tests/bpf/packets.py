"""Packets that the endpoint A may send, built by scapy: the samples that suites cut, forge and vary."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any, Final

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.bpf.lab import GATEWAY4, GATEWAY6, SLOW, A, B, Host

BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
PAYLOAD: Final = Raw(bytes(range(64)))


def ether(destination: Host | str = B, source: Host | str = A) -> Packet:
    to = destination if isinstance(destination, str) else destination.mac
    return Ether(dst=to, src=source if isinstance(source, str) else source.mac)


def ip4(destination: Host = B, source: Host = A, **fields: Any) -> Packet:
    return ether(destination, source) / IP(src=source.ip4, dst=destination.ip4, **fields)


def ip6(destination: Host = B, source: Host = A, **fields: Any) -> Packet:
    return ether(destination, source) / IPv6(src=source.ip6, dst=destination.ip6, **fields)


def arp_request(target: str = B.ip4, source: Host = A, dst: str = BROADCAST, address: str | None = None) -> Packet:
    return ether(dst, source) / ARP(op="who-has", hwsrc=source.mac, psrc=address or source.ip4, pdst=target)


def solicitation(target: str = B.ip6, source: str = A.ip6, mac: str = A.mac, dst: str | None = None) -> Packet:
    """Multicast, as for an address that is not in the neighbour table yet."""
    last = IPv6Address(target).packed[-3:]
    return (
        Ether(dst=dst or f"33:33:ff:{last.hex(':')}", src=A.mac)
        / IPv6(src=source, dst=f"ff02::1:ff{last[0]:02x}:{last[1]:02x}{last[2]:02x}", hlim=255)
        / ICMPv6ND_NS(tgt=target)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac)
    )


def advertisement(target: str = A.ip6, source: str = A.ip6, mac: str = A.mac) -> Packet:
    return ether(B) / IPv6(src=source, dst=B.ip6, hlim=255) / ICMPv6ND_NA(tgt=target) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def probe6(target: str = A.ip6) -> Packet:
    """Duplicate address detection (RFC 4862)."""
    packet = solicitation(target, source="::")
    del packet[ICMPv6NDOptSrcLLAddr]
    return Ether(bytes(packet))


# Everything that may be on the wire, by name; each passes, fast or slow.
SAMPLES: Final[dict[str, Packet]] = {
    "udp4": ip4() / UDP(sport=1, dport=2) / PAYLOAD,
    "tcp4": ip4() / TCP(sport=1, dport=2, options=[("Timestamp", (1, 2))]),
    "icmp4": ip4() / ICMP() / PAYLOAD,
    "options4": ip4(options=[IPOption_RR(pointer=4, routers=["0.0.0.0"] * 3)]) / UDP() / PAYLOAD,
    "first fragment4": ip4(flags="MF", id=7) / UDP() / PAYLOAD,
    "last fragment4": ip4(frag=9, id=7, proto=17) / PAYLOAD,
    "dhcp4": ether(BROADCAST) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / PAYLOAD,
    "udp6": ip6() / UDP(sport=1, dport=2) / PAYLOAD,
    "tcp6": ip6() / TCP(sport=1, dport=2),
    "ping6": ip6() / ICMPv6EchoRequest(data=bytes(16)),
    "link-local6": ether() / IPv6(src=A.ip6_ll, dst=B.ip6_ll) / UDP() / PAYLOAD,
    "given link-local4": ether() / IP(src=A.ll4, dst=B.ll4) / UDP() / PAYLOAD,
    "given link-local6": ether() / IPv6(src=A.ll6, dst=B.ll6) / UDP() / PAYLOAD,
    "extensions6": ip6()
    / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    / IPv6ExtHdrRouting(addresses=["fd09::7"])
    / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])
    / UDP()
    / PAYLOAD,
    "first fragment6": ip6() / IPv6ExtHdrFragment(m=1, id=7) / UDP() / PAYLOAD,
    "last fragment6": ip6() / IPv6ExtHdrFragment(m=0, offset=9, id=7, nh=17) / PAYLOAD,
    "listener report6": Ether(dst="33:33:00:00:00:16", src=A.mac)
    / IPv6(src="::", dst="ff02::16", hlim=1)
    / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    / ICMPv6MLReport2(records=[]),
    "router solicitation": Ether(dst="33:33:00:00:00:02", src=A.mac)
    / IPv6(src=A.ip6_ll, dst="ff02::2", hlim=255)
    / ICMPv6ND_RS()
    / ICMPv6NDOptSrcLLAddr(lladdr=A.mac),
    "router advertisement": Ether(dst="33:33:00:00:00:01", src=A.mac)
    / IPv6(src=A.ip6_ll, dst="ff02::1", hlim=255)
    / ICMPv6ND_RA()
    / ICMPv6NDOptPrefixInfo(prefix="fd0a::")
    / ICMPv6NDOptSrcLLAddr(lladdr=A.mac),
    "solicitation, answered": solicitation(GATEWAY6),
    "solicitation from a given link-local, answered": solicitation(B.ll6, source=A.ll6),
    "solicitation, not answered for": solicitation(SLOW.ll6, source=A.ll6),
    "solicitation of a given link-local of its own": solicitation(A.ll6),
    "solicitation, unknown": solicitation("fd09::99"),
    "solicitation, unicast": solicitation(dst=B.mac),
    "duplicate address detection": probe6(),
    "advertisement": advertisement(),
    "advertisement of a given link-local": advertisement(target=A.ll6),
    "arp request, answered": arp_request(GATEWAY4),
    "arp request from a given link-local, answered": arp_request(B.ll4, address=A.ll4),
    "arp request, not answered for": arp_request(SLOW.ll4, address=A.ll4),
    "arp request for a given link-local of its own": arp_request(A.ll4),
    "arp request, unknown": arp_request("10.9.0.99"),
    "arp request, unicast": arp_request(dst=B.mac),
    "arp reply": ether() / ARP(op="is-at", hwsrc=A.mac, psrc=A.ip4, hwdst=B.mac, pdst=B.ip4),
    "arp reply from a given link-local": ether() / ARP(op="is-at", hwsrc=A.mac, psrc=A.ll4, hwdst=B.mac, pdst=B.ip4),
    "arp probe": ether(BROADCAST) / ARP(op="who-has", hwsrc=A.mac, psrc="0.0.0.0", pdst=A.ip4),
    "gratuitous arp": ether(BROADCAST) / ARP(op="who-has", hwsrc=A.mac, psrc=A.ip4, pdst=A.ip4),
    "rarp": ether(BROADCAST) / ARP(op=3, hwsrc=A.mac, hwdst=A.mac),
    "tagged4": ether() / Dot1Q(vlan=5) / IP(src=A.ip4, dst=B.ip4) / UDP() / PAYLOAD,
    "tagged arp": ether(BROADCAST) / Dot1Q(vlan=5) / ARP(op="who-has", hwsrc=A.mac, psrc=A.ip4, pdst=B.ip4),
    "tagged6": ether() / Dot1Q(vlan=5) / IPv6(src=A.ip6, dst=B.ip6) / UDP() / PAYLOAD,
    "double-tagged4": ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(src=A.ip4, dst=B.ip4) / UDP() / PAYLOAD,
    "other ethertype": Ether(dst=B.mac, src=A.mac, type=0x88B5) / PAYLOAD,
    "length field": Ether(dst="01:80:c2:00:00:00", src=A.mac, type=38) / Raw(bytes(38)),
}
SAMPLES["rarp"].type = 0x8035
