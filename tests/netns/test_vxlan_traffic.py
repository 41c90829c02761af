"""Traffic over VXLAN without programs: between nodes, and with a VTEP of the kernel's that we did not set up."""

from __future__ import annotations

import json
import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from subprocess import PIPE
from threading import Thread

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from tests.hosts import wait_for
from tests.netns.underlay import BRIDGE, VNI, Sandbox, Segment, Underlay, peer, sandbox_addresses, sandbox_mac, world
from tests.traffic import BROADCAST, Place, is_v6, tcp_pair

pytestmark = pytest.mark.xdist_group("vxlan")
MARK = b"a broadcast of the test"


class Pair:
    """Nodes a and b with a sandbox each, which know each other; c is a node that is on the network without any."""

    def __init__(self, made: Underlay, version: int) -> None:
        self.world, self.version = made, version
        self.a, self.b, self.c = (made.segment(version) for _ in range(3))
        self.one, self.two = self.a.sandbox(1), self.b.sandbox(2)
        tell(self.a, self.two, self.b)
        tell(self.b, self.one, self.a)

    def sent(self, *command: str) -> list[Packet]:
        """What node a sends over the underlay while a command runs in its sandbox."""
        with self.a.node.sent.wire() as wire:
            self.one.run(*command)
            return [Ether(frame) for frame in wire.until_idle()]


def tell(segment: Segment, sandbox: Sandbox, where: Segment) -> None:
    segment.change([sandbox.peer(where.vtep.local)])


@pytest.fixture(scope="module", params=[4, 6], ids=["underlay4", "underlay6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with world() as made:
        yield Pair(made, request.param)


def inner(frames: Sequence[Packet]) -> list[Packet]:
    """The frames within VXLAN."""
    return [frame[VXLAN].payload for frame in frames if VXLAN in frame]


def targets(number: int, *, link_local: bool = False) -> list[str]:
    return [str(address) for address in sandbox_addresses(number)[: 3 if link_local else 2]]


def echoes(frames: Sequence[Packet]) -> list[Packet]:
    """Those with an echo request within VXLAN: a ping's, and not what a kernel now and then says by itself."""
    return [each for each in frames if VXLAN in each and (ICMP in each or ICMPv6EchoRequest in each)]


def outer(frame: Packet) -> Packet:
    return frame[IP] if frame.type == 0x0800 else frame[IPv6]


def test_sandboxes_reach_each_other_and_ask_the_underlay_for_nobody(pair: Pair) -> None:
    for sandbox in (pair.one, pair.two):
        sandbox.run("ip", "neigh", "flush", "all")
    for target in targets(2, link_local=True):
        at = f"{target}%eth0" if target.startswith("fe80") else target
        frames = pair.sent("ping", "-n", "-c1", "-W5", at)
        assert len(echoes(frames)) == 1, target
        assert not [each for each in inner(frames) if ARP in each or ICMPv6ND_NS in each]
        assert {(each[VXLAN].vni, each[UDP].dport) for each in frames if VXLAN in each} == {(VNI, 4789)}


def test_outer_headers_are_those_of_the_node(pair: Pair) -> None:
    """The source is the advertised address also where the routes prefer another (moby issue 53004)."""
    node, is_v4 = pair.a.node, pair.version == 4
    other = "10.99.0.77/24" if is_v4 else "fd99::77/64"
    route = f"{pair.b.vtep.local} dev eth0 src {other.partition('/')[0]}"
    node.run(f"ip addr add {other} dev eth0" + ("" if is_v4 else " nodad"))
    node.run(f"ip route add {route}")
    said = node.shown(f"ip -json route get {pair.b.vtep.local}")[0]
    assert said["prefsrc"] == other.partition("/")[0]
    try:
        for target in targets(2):
            (frame,) = echoes(pair.sent("ping", "-n", "-c1", "-W5", "-t", "3", target))
            assert (outer(frame).src, outer(frame).dst) == (str(pair.a.vtep.local), str(pair.b.vtep.local))
            # The segment is one hop: TTL is not carried out, nor is it used up.
            assert (outer(frame).ttl if is_v4 else outer(frame).hlim) == 64
            within = frame[VXLAN].payload
            assert (within[IPv6].hlim if is_v6(target) else within[IP].ttl) == 3
            assert (frame[UDP].chksum == 0) == is_v4
            if is_v4:  # what is inside may not be fragmented (IPv6 never), and so nor is what is around it
                assert frame[IP].flags.DF
    finally:
        node.run(f"ip route del {route}")
        node.run(f"ip addr del {other} dev eth0")


def test_dscp_and_ecn_are_carried(pair: Pair) -> None:
    """RFC 2983, RFC 6040: of the inner header on the outer one; the inner one arrives as it was."""
    tos = 0xBA  # DSCP 46, expedited forwarding; ECN 2, ECT(0)
    for target in targets(2):
        with pair.two.wire() as arrived:
            (frame,) = echoes(pair.sent("ping", "-n", "-c1", "-W5", f"-Q{tos}", target))
            assert (outer(frame).tos if pair.version == 4 else outer(frame).tc) == tos
            heard = [Ether(each) for each in arrived.until_idle()]
        within = [each for each in heard if ICMP in each or ICMPv6EchoRequest in each]
        assert [each[IPv6].tc if is_v6(target) else each[IP].tos for each in within] == [tos]


def test_broadcast_and_multicast_go_to_nodes_with_endpoints_and_to_no_others(pair: Pair) -> None:
    group = "33:33:00:00:01:23"
    for destination in (BROADCAST, group, "01:00:5e:01:02:03"):
        frame = Ether(src=pair.one.mac, dst=destination, type=0x88B5) / MARK
        with pair.two.wire() as there, pair.c.node.uplink.wire() as elsewhere, pair.b.node.uplink.wire() as here:
            with pair.one.wire() as out:
                out.send(frame)
            assert bytes(frame) in there.frames_until(MARK)
            copies = [each for each in here.until_idle() if MARK in each]
            assert [bytes(each) for each in inner([Ether(each) for each in copies])] == [bytes(frame)]
            assert not [each for each in elsewhere.until_idle() if MARK in each]


def test_unknown_destinations_are_sent_to_nobody(pair: Pair) -> None:
    with pair.a.node.sent.wire() as wire, pair.one.wire() as out:
        out.send(Ether(src=pair.one.mac, dst="02:00:00:00:00:77", type=0x88B5) / MARK)
        assert not [each for each in wire.until_idle() if MARK in each]


def test_a_multicast_group_is_joined_across_nodes(pair: Pair) -> None:
    group, port = "239.1.2.3", 5007
    with (
        pair.two.socket(socket.AF_INET, socket.SOCK_DGRAM) as member,
        pair.one.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        member.bind(("", port))
        here = sandbox_addresses(2)[0].packed
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + here)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, sandbox_addresses(1)[0].packed)
        sender.sendto(MARK, (group, port))
        assert member.recv(100) == MARK


def stream(client: Place, server: Place, target: str) -> int:
    """The bytes that iperf3 has received of 32 MiB when its client is done sending."""
    listener = subprocess.Popen(server.command("iperf3", "-s", "-1"), stdout=PIPE, stderr=PIPE)
    try:
        wait_for(lambda: server.run("ss", "-Htln", "sport", "=", "5201").stdout, "iperf3 to listen", 10)
        done = json.loads(client.run("iperf3", "-J", "-n32M", "-c", target).stdout)
        listener.communicate(timeout=10)
    finally:
        listener.kill()
    return int(done["end"]["sum_received"]["bytes"])


def test_streams_are_carried(pair: Pair) -> None:
    for target in targets(2):
        assert stream(pair.one, pair.two, target) > 10 << 20


def test_segments_are_as_large_as_the_underlay_lets_them_and_arrive_whole(pair: Pair) -> None:
    with tcp_pair(pair.one, pair.two, targets(2)[0]) as (here, there):
        payload = random.Random(1).randbytes(4 << 20)
        sender = Thread(target=here.sendall, args=(payload,))
        sender.start()
        assert read(there, len(payload)) == payload
        sender.join()
        mss = here.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        assert mss + 20 + 12 + 20 == pair.a.vtep.mtu == 1500 - (50 if pair.version == 4 else 70)


def read(end: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        received += end.recv(1 << 20)
    return bytes(received)


def test_an_endpoint_that_moves_misses_no_ping(pair: Pair) -> None:
    """It is at both nodes meanwhile, as one that moves live is; what changes is where it is sent to."""
    twin = pair.c.sandbox(3)
    home = pair.b.sandbox(3)
    try:
        for segment in (pair.b, pair.c):
            tell(segment, pair.one, pair.a)
        tell(pair.a, home, pair.b)
        ping = subprocess.Popen(
            pair.one.command("ping", "-n", "-i0.002", "-c300", "-W2", targets(3)[0]), stdout=PIPE, text=True
        )
        moves = 0
        while ping.poll() is None:
            moves += 1
            tell(pair.a, twin, pair.c if moves % 2 else pair.b)
        assert ping.stdout is not None
        assert "300 received, 0% packet loss" in ping.communicate()[0]
        assert moves > 10
        for place in (home, twin):
            assert place.link()["stats64"]["rx"]["packets"] > 10
    finally:
        for segment in (pair.a, pair.c):
            segment.change([], [home.peer(pair.b.vtep.local), pair.one.peer(pair.a.vtep.local)])


def test_whoever_waits_for_a_peer_hears_of_it_at_once(pair: Pair) -> None:
    """Its first question got to no node with the peer, and its next one would come in a minute."""
    four = pair.c.sandbox(4)
    pair.one.run("sh", "-c", "for v in 4 6; do echo 60000 >/proc/sys/net/ipv$v/neigh/eth0/retrans_time_ms; done")
    for target in targets(4):
        kind = socket.AF_INET6 if is_v6(target) else socket.AF_INET
        with pair.one.socket(kind, socket.SOCK_DGRAM) as here, four.socket(kind, socket.SOCK_DGRAM) as there:
            there.bind((target, 0))
            here.sendto(MARK, there.getsockname()[:2])
            assert pair.one.ip("neigh", "show", target)[0]["state"] == ["INCOMPLETE"]
            tell(pair.a, four, pair.c)
            assert there.recv(100) == MARK
        pair.a.change([], [four.peer(pair.c.vtep.local)])


def test_announcements_are_right_and_stay_on_the_node(pair: Pair) -> None:
    five, mac = pair.b.sandbox(5), sandbox_mac(5).hex(":")
    with pair.one.wire() as heard, pair.a.node.sent.wire() as sent:
        tell(pair.a, five, pair.b)
        frames = [Ether(each) for each in heard.until_idle()]
        on_underlay = inner([Ether(each) for each in sent.until_idle()])
    arp = [each for each in frames if ARP in each]
    assert [(e.src, e.dst, e[ARP].op, e[ARP].hwsrc, e[ARP].psrc, e[ARP].pdst) for e in arp] == [
        (mac, BROADCAST, 2, mac, targets(5)[0], targets(5)[0])
    ]
    adverts = [each for each in frames if ICMPv6ND_NA in each]
    assert {each[ICMPv6ND_NA].tgt for each in adverts} == set(targets(5, link_local=True)[1:])
    for each in adverts:
        message = each[ICMPv6ND_NA]
        assert (each.src, each.dst, each[IPv6].dst, each[IPv6].hlim) == (mac, "33:33:00:00:00:01", "ff02::1", 255)
        assert (message.R, message.S, message.O, message[ICMPv6NDOptDstLLAddr].lladdr) == (0, 0, 1, mac)
        was = message.cksum
        del message.cksum
        assert Ether(bytes(each))[ICMPv6ND_NA].cksum == was
    assert [each for each in on_underlay if ARP in each or ICMPv6ND_NA in each] == []
    pair.a.change([], [five.peer(pair.b.vtep.local)])


def test_a_vtep_that_was_set_up_by_hand_interoperates(pair: Pair) -> None:
    """It learns, as RFC 7348 has it by default, and knows one remote node; we know it as any other."""
    node, far = pair.world.node(), sandbox_mac(6).hex(":")
    for command in (
        f"ip link add vx type vxlan id {VNI} dstport 4789 local {node.address(pair.version)} "
        f"remote {pair.a.vtep.local} learning" + (" udp6zerocsumtx" if pair.version == 6 else ""),
        f"ip link set vx address {far} mtu {pair.a.vtep.mtu} addrgenmode none up",
        f"ip addr add {sandbox_addresses(6)[0]}/16 dev vx",
        f"ip addr add {sandbox_addresses(6)[1]}/64 dev vx nodad",
    ):
        node.run(command)
    theirs = peer(6, node.address(pair.version))
    pair.a.change([theirs])
    there = Place(node.host, "theirs", f"/proc/{node.host.pid}/ns/net", "vx")
    for target in targets(6):
        assert pair.one.pings(target)
    for target in targets(1):
        assert there.pings(target)  # it asks for the address by ARP or ND, and learns from the answer
        assert stream(there, pair.one, target) > 1 << 20
    learned = json.loads(node.run("bridge -json fdb show dev vx"))
    assert {each["dst"] for each in learned if each["mac"] == pair.one.mac} == {str(pair.a.vtep.local)}
    pair.a.change([], [theirs])


def test_a_node_behind_a_lower_mtu_is_found_out_and_the_sender_told(pair: Pair) -> None:
    """The kernel learns it from the underlay with the first packet, and answers the second as a router would."""
    far = pair.world.segment(pair.version, mtu=1400, is_far=True)
    seven = far.sandbox(7)
    tell(pair.a, seven, far)
    tell(far, pair.one, pair.a)
    for target in targets(7):
        assert pair.one.pings(target)

        def is_told(target: str = target) -> bool:
            done = pair.one.run("ping", "-n", "-c1", "-W1", "-Mdo", "-s1380", target, check=False)
            return f"mtu = {far.vtep.mtu}" in done.stdout or f"mtu={far.vtep.mtu}" in done.stdout

        wait_for(is_told, f"ICMP for {target}", 10)
        assert pair.one.pings(target, "-Mdo", f"-s{far.vtep.mtu - (48 if is_v6(target) else 28)}")
        assert pair.one.pings(target, "-Mdont", "-s1380")
    with tcp_pair(pair.one, seven, targets(7)[0]) as (here, there):
        here.sendall(MARK * 5000)
        assert read(there, len(MARK) * 5000) == MARK * 5000


def test_what_the_host_routes_into_the_network_is_told_its_mtu(pair: Pair) -> None:
    outside, inside = pair.world.node(), pair.a.node
    inside.run(f"ip addr add 10.8.255.254/16 dev {BRIDGE}")
    inside.run("sysctl -qw net.ipv4.ip_forward=1")
    pair.two.run("ip", "route", "replace", "default", "via", "10.8.255.254")
    gateway_mac = inside.shown(f"ip -json link show dev {BRIDGE}")[0]["address"]
    pair.two.run("ip", "neigh", "replace", "10.8.255.254", "lladdr", gateway_mac, "dev", "eth0")
    outside.run(f"ip route add 10.8.0.0/16 via {inside.ip4}")
    said = outside.run(f"ping -n -c1 -W2 -Mdo -s1472 {targets(2)[0]}", check=False)
    assert f"From {inside.ip4} icmp_seq=1 Frag needed and DF set (mtu = {pair.a.vtep.mtu})" in said
