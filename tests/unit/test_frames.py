"""The packets that are traced are those that scapy would build, and what scapy builds is read right."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN

from control.drivers import walk
from datapath import abi, frames

MACS = bytes.fromhex("02420a000001"), bytes.fromhex("02420a000002")
IP4 = ip_address("10.9.0.1"), ip_address("10.9.0.2")
IP6 = ip_address("fd09::1"), ip_address("fd09::2")
LAYERS = {("tcp", 4): TCP, ("tcp", 6): TCP, ("udp", 4): UDP, ("udp", 6): UDP, ("icmp", 4): ICMP,
          ("icmp", 6): ICMPv6EchoRequest}  # fmt: skip


def resummed(packet: Ether) -> bytes:
    """The packet with the lengths and checksums that scapy gives it."""
    bare = packet.copy()
    for layer, fields in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (UDP, ("len", "chksum")), (TCP, ("chksum",)),
                          (ICMP, ("chksum",)), (ICMPv6EchoRequest, ("cksum",)), (ICMPv6ND_NS, ("cksum",))):  # fmt: skip
        if layer in bare:
            for field in fields:
                delattr(bare[layer], field)
    return bytes(bare)


@pytest.mark.parametrize("size", [0, 1, 64])
@pytest.mark.parametrize(("protocol", "version"), LAYERS)
def test_a_packet_is_whole(protocol, version, size):
    addresses = IP4 if version == 4 else IP6
    raw = frames.packet(MACS, addresses, protocol, 443, size)
    seen = Ether(raw)
    assert resummed(seen) == raw
    assert (seen.src, seen.dst) == tuple(mac.hex(":") for mac in MACS)
    assert (seen.payload.src, seen.payload.dst) == tuple(map(str, addresses))
    layer = seen[LAYERS[protocol, version]]
    if protocol == "icmp":
        assert (layer.type, layer.code) == ({4: 8, 6: 128}[version], 0)
    else:
        assert layer.dport == 443
    if protocol == "tcp":
        assert layer.flags == "S"


@pytest.mark.parametrize("addresses", [IP4, IP6], ids=["arp", "nd"])
def test_a_question_is_one_that_its_answer_fits(addresses):
    raw = frames.question(MACS[0], *addresses)
    asked = Ether(raw)
    assert resummed(asked) == raw
    mac = MACS[1].hex(":")
    if addresses is IP4:
        assert (asked[ARP].op, asked[ARP].psrc, asked[ARP].pdst, asked.dst) == (1, *map(str, IP4), "ff:ff:ff:ff:ff:ff")
        reply = Ether() / ARP(op="is-at", hwsrc=mac, psrc=str(IP4[1]))
    else:
        assert (asked[ICMPv6ND_NS].tgt, asked[IPv6].dst) == ("fd09::2", "ff02::1:ff00:2")
        assert (asked.dst, asked[IPv6].hlim) == ("33:33:ff:00:00:02", 255)
        reply = Ether() / IPv6() / ICMPv6ND_NA(tgt=str(IP6[1])) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    assert frames.answer(bytes(reply)) == MACS[1]
    with pytest.raises(ValueError, match="neither"):
        frames.answer(raw)


@pytest.mark.parametrize("ip", [IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")])
def test_outer_headers_are_read_as_scapy_writes_them(ip):
    inner = frames.packet(MACS, IP4, "udp", 53)
    packet = Ether() / ip / UDP(sport=50001, dport=4789) / VXLAN(vni=0x123456, flags=8) / inner
    seen = frames.outer(bytes(packet))
    assert (str(seen.source), str(seen.destination)) == (ip.src, ip.dst)
    assert (seen.source_port, seen.destination_port, seen.vni, seen.inner) == (50001, 4789, 0x123456, inner)
    with pytest.raises(ValueError, match="not a packet in VXLAN"):
        frames.outer(bytes(packet)[:30])


@pytest.mark.parametrize("ip", [IP(id=1, flags="DF", ttl=64), IPv6(hlim=64)])
def test_a_packet_in_vxlan_is_what_scapy_makes_of_it(ip):
    ends, inner = IP6 if isinstance(ip, IPv6) else IP4, frames.packet(MACS, IP4, "udp", 53)
    ip.src, ip.dst = map(str, ends)
    outer = Ether(src=MACS[0].hex(":"), dst=MACS[1].hex(":")) / ip / UDP(sport=49152, dport=4789, chksum=0)
    assert frames.vxlan(MACS, ends, 0x123456, inner) == bytes(outer / VXLAN(vni=0x123456, flags=8) / inner)


def test_groups_have_their_macs():
    assert frames.group_mac(ip_address("239.129.2.3")).hex(":") == "01:00:5e:01:02:03"
    assert frames.group_mac(ip_address("ff02::fb")).hex(":") == "33:33:00:00:00:fb"


def test_there_are_words_for_all_that_programs_tell():
    assert {told.label for told in abi.Told} == {*walk._WORDS, "drop", "fdb"}
    assert {reason.label for reason in abi.DropReason} == set(walk._DROPS)
