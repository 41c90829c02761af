"""Packets between a host, its macvlan stations and the outside, with the parent's programs attached."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from datapath import bpf
from tests.hosts import wait_for
from tests.isolated import run
from tests.netns.uplinks import PARENT, Lab, Node, World
from tests.traffic import BROADCAST, Wire

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("uplink traffic")]

END = b"the last frame of a test"
FORGED = b"forged by the test"
PORT = 4242
KINDS = ("ip4", "ip6", "ip6_ll")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with World(tmp_path_factory.mktemp("uplinks")) as made:
        yield made


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def lab(request: pytest.FixtureRequest, base: World) -> Iterator[Lab]:
    with base.beside() as world:
        yield Lab(world, attachment=request.param)


def node(lab: Lab, name: str) -> Node:
    return {"host": lab.host, "a": lab.a, "b": lab.b, "outside": lab.outside}[name]


PAIRS = [(x, y) for x in ("host", "a", "b", "outside") for y in ("host", "a", "b", "outside") if x != y]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_everyone_reaches_everyone(lab: Lab, source: str, target: str, kind: str) -> None:
    one, other = node(lab, source), node(lab, target)
    for each in (one, other):
        each.forget_neighbours()
    assert one.pings(getattr(other, kind))


def exchange(client: Node, server: Node, address: str, kind: int, payload: bytes) -> bytes:
    """What the server gets of a payload; over TCP all of it, over UDP one datagram."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server.socket(family, kind) as there, client.socket(family, kind) as here:
        there.bind((address, 0))
        if kind == socket.SOCK_DGRAM:
            here.sendto(payload, there.getsockname())
            return bytes(there.recv(65536))
        there.listen()
        here.connect(there.getsockname())
        accepted, _ = there.accept()
        with accepted:
            sender = Thread(target=lambda: (here.sendall(payload), here.shutdown(socket.SHUT_WR)))
            sender.start()
            received = bytearray()
            while chunk := accepted.recv(1 << 20):
                received += chunk
            sender.join()
            return bytes(received)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize("version", ["ip4", "ip6"])
@pytest.mark.parametrize(("client", "server"), [("host", "a"), ("a", "host"), ("a", "b"), ("a", "outside")])
def test_tcp_and_udp_arrive_whole(lab: Lab, client: str, server: str, version: str, kind: int) -> None:
    payload = os.urandom(1200)
    there = node(lab, server)
    assert exchange(node(lab, client), there, getattr(there, version), kind, payload) == payload


@pytest.mark.parametrize("version", ["ip4", "ip6"])
@pytest.mark.parametrize(("client", "server"), [("host", "a"), ("a", "host"), ("a", "b"), ("outside", "a")])
def test_large_streams_go_through_in_packets_longer_than_the_wires(
    lab: Lab, client: str, server: str, version: str
) -> None:
    payload = os.urandom(1 << 16) * 128
    there = node(lab, server)
    with lab.growth() as grown:
        received = exchange(node(lab, client), there, getattr(there, version), socket.SOCK_STREAM, payload)
    assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()
    path = "fast" if "host" in (client, server) else "slow"
    name, way = (server, "in") if client in ("host", "outside") else (client, "out")
    packets, size = (grown[name, f"{way}_{path}_{unit}"] for unit in ("packets", "bytes"))
    assert size > len(payload)
    # Wire packets are counted, but the headers of what the kernel handles as one packet once.
    assert packets >= len(payload) / 1500
    assert size < len(payload) * 1.04


def test_the_hosts_questions_for_stations_do_not_go_out(lab: Lab) -> None:
    lab.host.forget_neighbours()
    with lab.outside.wire() as outside:
        for target in (lab.a.ip4, lab.a.ip6, lab.b.ip6_ll):
            assert lab.host.pings(target)
        with lab.host.wire() as wire:
            wire.send(Ether(src=lab.host.mac, dst=BROADCAST, type=0x88B5) / END)
        heard = [Ether(frame) for frame in outside.frames_until(END)]
    assert [frame.summary() for frame in heard[:-1] if frame.src == lab.host.mac] == []
    found = lab.host.neighbours()
    assert {found[address] for address in (lab.a.ip4, lab.a.ip6)} == {lab.a.mac}
    assert found[lab.b.ip6_ll] == lab.b.mac


def test_a_stations_question_for_the_host_is_answered_by_the_host_for_all_its_addresses(lab: Lab) -> None:
    """Also for one that it has had for a moment, on another device."""
    lab.host.sh("ip addr add 192.168.32.200/32 dev lo; ip -6 addr add fd32::200/128 dev eth1 nodad")
    try:
        assert lab.a.pings("192.168.32.200")
        assert lab.a.pings("fd32::200")
        assert {lab.a.neighbours()[address] for address in ("192.168.32.200", "fd32::200")} == {lab.host.mac}
    finally:
        lab.host.sh("ip addr del 192.168.32.200/32 dev lo; ip -6 addr del fd32::200/128 dev eth1")


def listener(stack: ExitStack, who: Node, family: int, group: str = "") -> Any:
    there = stack.enter_context(who.socket(family, socket.SOCK_DGRAM))
    there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if group and family == socket.AF_INET6:
        index = struct.pack("=I", int(who.run("cat", f"/sys/class/net/{who.ifname}/ifindex", check=False).stdout or 0))
        there.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(family, group) + index)
    elif group:
        there.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(who.ip4)
        )
    there.bind(("", PORT))
    return there


def heard(sockets: dict[str, Any], last: bytes) -> dict[str, int]:
    """How many datagrams each got before the last."""
    counts = {}
    for name, each in sockets.items():
        counts[name] = 0
        while each.recv(2048) != last:
            counts[name] += 1
    return counts


@pytest.mark.parametrize("source", ["a", "host", "outside"])
@pytest.mark.parametrize("group", ["255.255.255.255", "192.168.32.255", "239.1.2.3"])
def test_a_datagram_for_all_arrives_once_with_all_others(lab: Lab, source: str, group: str) -> None:
    sender = node(lab, source)
    others = [each for each in (lab.host, lab.a, lab.b, lab.outside) if each is not sender]
    with ExitStack() as stack:
        is_multicast = group.startswith("239")
        sockets = {each.name: listener(stack, each, socket.AF_INET, group if is_multicast else "") for each in others}
        here = stack.enter_context(sender.socket(socket.AF_INET, socket.SOCK_DGRAM))
        here.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        here.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sender.ip4))
        here.bind((sender.ip4, 0))
        for _ in range(3):
            here.sendto(b"to all", (group, PORT))
        # In order: by the same way, and for the sockets themselves.
        here.sendto(END, (group, PORT))
        assert heard(sockets, END) == {each.name: 3 for each in others}


def test_the_host_does_not_hear_its_own_multicast_from_the_wire(lab: Lab) -> None:
    """A program with IP_MULTICAST_LOOP hears itself once, as without stations; one without it not at all."""
    with ExitStack() as stack:
        there = listener(stack, lab.host, socket.AF_INET, "224.0.0.251")
        station = listener(stack, lab.a, socket.AF_INET, "224.0.0.251")
        here = stack.enter_context(lab.host.socket(socket.AF_INET, socket.SOCK_DGRAM))
        here.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(lab.host.ip4))
        for loop in (1, 0):
            here.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, loop)
            here.sendto(b"loop %d" % loop, ("224.0.0.251", PORT))
        here.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        here.sendto(END, ("224.0.0.251", PORT))
        assert [there.recv(99) for _ in range(2)] == [b"loop 1", END]
        assert [station.recv(99) for _ in range(3)] == [b"loop 1", b"loop 0", END]


def dad_of(lab: Lab, address: str) -> bool:
    """Whether the host's duplicate address detection finds that it alone has an address."""
    lab.host.sh(f"ip -6 addr add {address}/64 dev eth1")

    def settled() -> list[str]:
        infos = json.loads(lab.host.sh("ip -json -6 addr show dev eth1"))[0]["addr_info"]
        info = next(each for each in infos if each["local"] == address)
        return ["failed"] if info.get("dadfailed") else [] if info.get("tentative") else ["unique"]

    try:
        return bool(wait_for(settled, "duplicate address detection") == ["unique"])
    finally:
        lab.host.sh(f"ip -6 addr del {address}/64 dev eth1")


@pytest.mark.parametrize("has_nonce", [0, 1])
def test_duplicate_address_detection_of_the_host_finds_stations_and_not_itself(lab: Lab, has_nonce: int) -> None:
    switches = (f"net.ipv6.conf.{where}.enhanced_dad={has_nonce}" for where in ("all", "default", PARENT))
    lab.host.run("sysctl", "-qw", *switches, f"net.ipv6.conf.{PARENT}.accept_dad=1", "net.ipv6.conf.all.accept_dad=1")
    try:
        assert dad_of(lab, f"fd32::5{has_nonce}")
        assert not dad_of(lab, lab.a.ip6)
    finally:
        lab.host.run("sysctl", "-qw", f"net.ipv6.conf.{PARENT}.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")


def frames(lab: Lab, watchers: dict[str, Wire], marker: bytes) -> dict[str, list[bytes]]:
    """Frames with the marker that came in, by watcher, up to an end mark; everybody gets one of two."""
    for sender in (lab.outside, lab.host):
        with sender.wire() as wire:
            wire.send(Ether(src=sender.mac, dst=BROADCAST, type=0x88B5) / END)
    return {name: [f for f in wire.frames_until(END) if marker in f] for name, wire in watchers.items()}


def test_vlan_tagged_frames_go_where_they_would_go_without_programs(lab: Lab) -> None:
    tagged = Dot1Q(vlan=7) / IP(src=lab.a.ip4, dst=lab.host.ip4) / UDP() / b"tagged"
    of_host = Dot1Q(vlan=7) / IP(src=lab.host.ip4, dst=lab.a.ip4) / UDP() / b"tagged"
    with ExitStack() as stack:
        outside = stack.enter_context(lab.outside.wire())
        a, host = (stack.enter_context(each.wire()) for each in (lab.a, lab.host))
        a.send(Ether(src=lab.a.mac, dst=lab.host.mac) / tagged)
        host.send(Ether(src=lab.host.mac, dst=lab.a.mac) / of_host, Ether(src=lab.host.mac, dst=BROADCAST) / of_host)
        seen = frames(lab, {"outside": outside, "a": a, "host": host}, b"tagged")
    assert [(f[:6].hex(":"), f[12:16]) for f in seen["outside"]] == [
        (lab.host.mac, b"\x81\x00\x00\x07"),
        (lab.a.mac, b"\x81\x00\x00\x07"),
        (BROADCAST, b"\x81\x00\x00\x07"),
    ]
    assert (seen["a"], seen["host"]) == ([], [])


def test_frames_for_the_other_end_of_the_wire_are_not_copied(lab: Lab) -> None:
    for sender, watched in ((lab.a, lab.host), (lab.host, lab.a)):
        with sender.wire() as wire, watched.wire() as other, lab.outside.wire() as outside:
            wire.send(Ether(src=sender.mac, dst="01:80:c2:00:00:0e", type=0x88CC) / b"for the neighbour alone")
            seen = frames(lab, {"other": other, "outside": outside}, b"for the neighbour alone")
        assert {name: len(each) for name, each in seen.items()} == {"other": 0, "outside": 1}


def send_forged(wire: Wire, *packets: Packet) -> None:
    """A packet socket is told when its packet was dropped on the way out (ENOBUFS)."""
    for packet in packets:
        with suppress(OSError):
            wire.send(packet)


def forgeries(lab: Lab, destination: str) -> Iterator[tuple[str, Packet]]:
    a, b = lab.a, lab.b
    frame = Ether(src=a.mac, dst=destination)
    yield "spoofed_ip4", frame / IP(src=b.ip4, dst=lab.host.ip4) / UDP() / Raw(FORGED)
    yield "spoofed_ip4", frame / Dot1Q(vlan=5) / IP(src=b.ip4, dst=lab.host.ip4) / TCP() / Raw(FORGED)
    yield "spoofed_ip6", frame / IPv6(src=b.ip6, dst=lab.host.ip6) / UDP() / Raw(FORGED)
    yield "spoofed_arp", frame / ARP(op=2, hwsrc=a.mac, psrc=b.ip4, pdst=lab.host.ip4) / Raw(FORGED)
    yield "spoofed_arp", frame / ARP(op=1, hwsrc=b.mac, psrc=a.ip4, pdst=lab.host.ip4) / Raw(FORGED)
    advert = ICMPv6ND_NA(tgt=b.ip6) / ICMPv6NDOptDstLLAddr(lladdr=a.mac)
    yield "spoofed_nd", frame / IPv6(src=a.ip6, dst=lab.host.ip6, hlim=255) / advert / Raw(FORGED)
    yield "malformed", frame / IP(src=a.ip4, dst=lab.host.ip4, version=5) / UDP() / Raw(FORGED)
    yield "too_deep", frame / Dot1Q() / Dot1Q() / Dot1Q() / IP(src=a.ip4, dst=lab.host.ip4) / Raw(FORGED)


@pytest.mark.parametrize("target", ["host", "b", "outside"])
def test_what_a_station_forges_does_not_arrive_and_is_counted(lab: Lab, target: str) -> None:
    with ExitStack() as stack:
        out = stack.enter_context(lab.a.wire())
        # A packet socket on the parent sees what one station sends another before any program does.
        watching = (lab.b, lab.outside) if target == "b" else (lab.host, lab.b, lab.outside)
        watchers = {each.name: stack.enter_context(each.wire()) for each in watching}
        wanted: dict[tuple[str, str], int] = {}
        with lab.growth() as grown:
            for reason, packet in forgeries(lab, node(lab, target).mac):
                send_forged(out, packet, packet)
                wanted["a", reason] = wanted.get(("a", reason), 0) + 2
            seen = frames(lab, watchers, FORGED)
        assert {name: len(each) for name, each in seen.items()} == dict.fromkeys(watchers, 0)
        drops = {key: n for key, n in grown.items() if not key[1].endswith(("_packets", "_bytes"))}
        assert drops == wanted


NOTES = (0x4C51, 0x4C52, 0x4C53)  # enum ls_note, bpf/lib/parent.h
_TC_INDEX = 44  # offset in struct __sk_buff


@contextmanager
def noting(lab: Lab, note: int) -> Iterator[None]:
    """A sandbox that has CAP_NET_ADMIN writes a note of the programs into all that it sends."""
    # *(u32 *)(r1 + tc_index) = note; r0 = -1; exit
    insns = ((0x62, 1, _TC_INDEX, note), (0xB7, 0, 0, -1), (0x95, 0, 0, 0))
    pin = lab.world.bpffs / f"note-{note}"

    def add() -> None:
        fd = bpf.prog_load(b"".join(struct.pack("=BBhi", *each) for each in insns), bpf.ProgType.SCHED_CLS)
        bpf.obj_pin(fd, pin)
        os.close(fd)
        enter = f"nsenter --net={lab.a.netns} tc"
        run(f"{enter} qdisc add dev eth0 clsact && {enter} filter add dev eth0 egress bpf da pinned {pin}")

    lab.world.call(add)
    try:
        yield
    finally:
        lab.a.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
        lab.world.call(pin.unlink)


@pytest.mark.parametrize("target", ["host", "b", "outside"])
@pytest.mark.parametrize("note", NOTES)
def test_a_station_cannot_pass_its_packets_off_as_ones_that_were_checked(lab: Lab, target: str, note: int) -> None:
    other = node(lab, target)
    frame = Ether(src=lab.a.mac, dst=other.mac)
    with noting(lab, note), lab.a.wire() as out, other.wire() as there, lab.growth() as grown:
        send_forged(out, *[packet for _, packet in forgeries(lab, other.mac)])
        out.send(frame / IP(src=lab.a.ip4, dst=other.ip4) / UDP(dport=9) / END)
        assert [f for f in there.frames_until(END) if FORGED in f] == []
    drops = sum(n for (_, name), n in grown.items() if not name.endswith(("_packets", "_bytes")))
    assert drops == len(list(forgeries(lab, other.mac)))
    assert grown["a", "out_fast_packets" if target == "host" else "out_slow_packets"] >= 1


def test_what_a_station_forges_for_all_reaches_neither_host_nor_outside(lab: Lab) -> None:
    """The other stations have had it from macvlan by then."""
    with ExitStack() as stack:
        out = stack.enter_context(lab.a.wire())
        watchers = {each.name: stack.enter_context(each.wire()) for each in (lab.host, lab.outside)}
        with lab.growth() as grown:
            sent = list(forgeries(lab, BROADCAST))
            send_forged(out, *[packet for _, packet in sent])
            assert frames(lab, watchers, FORGED) == {"host": [], "outside": []}
        assert sum(n for (_, name), n in grown.items() if not name.endswith(("_packets", "_bytes"))) == len(sent)


@pytest.mark.parametrize(
    ("source", "target", "wanted"),
    [
        ("a", "host", {("a", "out_fast")}),
        ("host", "a", {("a", "in_fast")}),
        ("a", "b", {("a", "out_slow"), ("b", "in_slow")}),
        ("a", "outside", {("a", "out_slow")}),
        ("outside", "a", {("a", "in_slow")}),
        ("outside", "host", set()),
        ("host", "outside", set()),
    ],
)
def test_counters_are_what_was_sent(lab: Lab, source: str, target: str, wanted: set[tuple[str, str]]) -> None:
    one, other = node(lab, source), node(lab, target)
    frame = Ether(src=one.mac, dst=other.mac) / IP(src=one.ip4, dst=other.ip4) / UDP(dport=PORT) / Raw(bytes(500))
    with other.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker, one.wire() as out, lab.growth() as grown:
        taker.bind((other.ip4, PORT))  # so that nothing comes back
        out.send(*[frame] * 20)
        for _ in range(20):
            assert taker.recv(2048) == bytes(500)
    assert grown == {
        (name, f"{way}_{unit}"): n for name, way in wanted for unit, n in (("packets", 20), ("bytes", 20 * len(frame)))
    }


def test_marks_do_not_cross_between_host_and_station(lab: Lab) -> None:
    """A socket's mark means something in its own namespace alone."""
    rules = "table inet t { chain c { type filter hook input priority 0; meta mark 0x77 counter name marked; }; }"
    for receiver, sender in ((lab.host, lab.a), (lab.a, lab.host)):
        receiver.run("nft", f"table inet t {{ counter marked {{ }}; }}; {rules}")
        try:
            assert sender.pings(receiver.ip4, "-m", str(0x77))
            assert sender.pings("255.255.255.255", "-b", "-m", str(0x77), wait_s=0.1) in (True, False)
            listing = receiver.json("nft", "-j", "list", "counters", "table", "inet", "t")
            assert [e["counter"]["packets"] for e in listing["nftables"] if "counter" in e] == [0]
        finally:
            receiver.run("nft", "delete", "table", "inet", "t")


def test_a_broadcast_of_a_station_is_one_to_the_hosts_firewall(lab: Lab) -> None:
    lab.host.run(
        "nft",
        "table inet t { counter seen { }; chain c { type filter hook input priority 0; "
        "meta pkttype broadcast udp dport 4243 counter name seen; }; }",
    )
    try:
        with lab.a.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            here.sendto(b"x", ("192.168.32.255", 4243))

        def packets() -> bool:
            listing = lab.host.json("nft", "-j", "list", "counters", "table", "inet", "t")
            return [e["counter"]["packets"] for e in listing["nftables"] if "counter" in e] == [1]

        wait_for(packets, "the broadcast", 5)
    finally:
        lab.host.run("nft", "delete", "table", "inet", "t")


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
def test_without_host_access_stations_are_policed_and_counted_and_no_more(base: World, mode: str) -> None:
    with base.beside() as world:
        node, station = world.macvlan("a", mode)
        up = world.uplinks()
        world.call(up.start, {PARENT: [station]}, {PARENT: False})
        assert up.problem is None
        before, dropped = world.call(up.counters)  # by other stations that had the slot
        assert node.pings(world.outside.ip4)
        assert node.pings(world.outside.ip6)
        assert not node.pings(world.host.ip4, wait_s=0.3)
        assert not world.host.pings(node.ip4, wait_s=0.3)
        with node.wire() as out, world.outside.wire() as outside:
            frame = Ether(src=node.mac, dst=world.outside.mac)
            send_forged(out, frame / IP(src="192.168.32.99", dst=world.outside.ip4) / FORGED)
            out.send(frame / IP(src=node.ip4) / END)
            assert [f for f in outside.frames_until(END) if FORGED in f] == []
        counters, drops = world.call(up.counters)
        slot = station.slot
        assert counters[slot].out_slow_packets >= before[slot].out_slow_packets + 4
        assert counters[slot].in_slow_packets >= before[slot].in_slow_packets + 2
        assert counters[slot].in_fast_packets == before[slot].in_fast_packets
        assert counters[slot].out_fast_packets == before[slot].out_fast_packets
        assert drops[slot]["spoofed_ip4"] == dropped.get(slot, {}).get("spoofed_ip4", 0) + 1
