"""links.dump against `ip -json`, in namespaces of the test's own."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import threading
from subprocess import PIPE

import pytest

from datapath import links, netns
from tests.isolated import isolated, run

pytestmark = pytest.mark.root

OPERSTATES = ["UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP"]
FLAGS = {"UP": 0x1, "BROADCAST": 0x2, "LOOPBACK": 0x8, "NOARP": 0x80, "PROMISC": 0x100, "MULTICAST": 0x1000}
RTM_GETLINK, NLM_F_REQUEST, NLM_F_ACK = 18, 1, 4


def shown_by_ip():
    return {link["ifindex"]: link for link in json.loads(run("ip -json -details -statistics link show"))}


def add_many(count):
    run("ip -batch -", input="\n".join(f"link add a{number} type veth peer name b{number}" for number in range(count)))


@isolated
def test_every_field_is_what_ip_shows(tmp_path):
    netns.create(tmp_path / "other")
    run(
        """set -e
        ip link add br0 type bridge; ip link set br0 up
        ip link add v0 mtu 9000 address 02:00:00:00:00:01 type veth peer name v1; ip link set v0 up master br0
        ip link set v1 up; ip link set v1 alias 'endpoint ü of web'
        ip link add m0 link v1 type macvlan
        ip link add x0 type vxlan id 7 dstport 4789
        ip link set x0 promisc on
        ip link add here type veth peer name there
        ping -c 2 -i 0.01 -W 1 127.0.0.1
        """
    )
    with subprocess.Popen(["nsenter", f"--net={tmp_path}/other", "cat"], stdin=PIPE, stdout=PIPE) as child:
        child.stdin.write(b"ready\n")
        child.stdin.flush()
        child.stdout.readline()
        run(f"ip link set there netns {child.pid}")
        child.stdin.close()
    dumped = links.dump()
    shown = shown_by_ip()
    assert {link.ifindex for link in dumped} == set(shown)
    by_name = {link["ifname"]: ifindex for ifindex, link in shown.items()}
    for link in dumped:
        ip = shown[link.ifindex]
        assert link.ifname == ip["ifname"]
        assert link.mtu == ip["mtu"]
        assert link.mac.hex(":") == ip["address"]
        assert link.kind == ip.get("linkinfo", {}).get("info_kind", "")
        assert link.alias == ip.get("ifalias", "")
        assert link.master == by_name.get(ip.get("master"), 0)
        assert link.peer == by_name.get(ip.get("link"), ip.get("link_index", 0))
        assert OPERSTATES[link.operstate] == ip["operstate"]
        assert {name for name, bit in FLAGS.items() if link.flags & bit} == set(ip["flags"]) & set(FLAGS)
    lo = next(link for link in dumped if link.ifname == "lo")
    assert lo.rx_packets == lo.tx_packets >= 4
    assert (lo.rx_bytes, lo.tx_bytes) == tuple(shown[1]["stats64"][way]["bytes"] for way in ("rx", "tx"))


@isolated
def test_counters_are_exact_to_the_byte():
    run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    run("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up")
    before = {link.ifname: link for link in links.dump()}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("v0", 0))
        for size in (60, 1514, 333):
            sender.send(bytes(12) + b"\x88\xb5" + bytes(size - 14))
    after = {link.ifname: link for link in links.dump()}
    assert (after["v0"].tx_packets - before["v0"].tx_packets, after["v0"].tx_bytes - before["v0"].tx_bytes) == (3, 1907)
    assert (after["v1"].rx_packets - before["v1"].rx_packets, after["v1"].rx_bytes - before["v1"].rx_bytes) == (3, 1907)


@isolated
def test_the_longest_names_are_whole():
    alias = "é" * 127 + "x"
    run(f"ip link add {'n' * 15} type veth peer name v1; ip link set v1 alias {alias}")
    dumped = {link.ifname: link for link in links.dump()}
    assert set(dumped) == {"lo", "n" * 15, "v1"}
    assert dumped["v1"].alias == alias


@isolated
def test_a_thousand_devices_are_dumped_once_each():
    add_many(500)
    dumped = links.dump()
    assert len(dumped) == 1001
    assert {link.ifname for link in dumped} == {"lo"} | {f"{end}{number}" for end in "ab" for number in range(500)}
    peers = {link.ifindex: link.peer for link in dumped if link.kind == "veth"}
    assert all(peers[peer] == ifindex for ifindex, peer in peers.items())


@isolated
def test_a_socket_shows_the_namespace_it_was_opened_in(tmp_path):
    netns.create(tmp_path / "sb")
    run(f"nsenter --net={tmp_path}/sb ip link add inside type veth peer name other")
    sock = netns.open_socket(tmp_path / "sb", socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    for _ in range(3):
        assert {link.ifname for link in links.dump(sock)} == {"lo", "inside", "other"}
    os.close(sock)
    assert {link.ifname for link in links.dump()} == {"lo"}


@isolated
def test_answers_to_earlier_requests_are_passed_over():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        for name, sequence in (("lo", 0xFFFFFFF0), ("none", 0xFFFFFFF1)):
            body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HH", 5 + len(name), 3) + name.encode() + b"\0"
            body += b"\0" * (-len(body) % 4)
            flags = NLM_F_REQUEST | NLM_F_ACK
            sock.send(struct.pack("=IHHII", 16 + len(body), RTM_GETLINK, flags, sequence, 0) + body)
        assert [link.ifname for link in links.dump(sock.fileno())] == ["lo"]


@isolated
def test_devices_that_stay_are_in_every_dump_while_others_come_and_go():
    add_many(100)
    stay = {link.ifname for link in links.dump()}
    done = threading.Event()

    def churn():
        while not done.is_set():
            run("ip link add c0 type veth peer name c1; ip link del c0")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(100):
            names = [link.ifname for link in links.dump()]
            assert stay <= set(names)
            assert len(names) == len(set(names))
    finally:
        done.set()
        thread.join()


@isolated
def test_a_socket_that_is_none_is_refused():
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        with pytest.raises(OSError, match="RTM_GETLINK") as caught:
            links.dump(udp.fileno())
        fd = udp.fileno()
    assert caught.value.errno in (errno.EINVAL, errno.EAFNOSUPPORT)
    with pytest.raises(OSError, match=r"RTM_GETLINK.*Bad file descriptor"):
        links.dump(fd)


@isolated
def test_no_descriptor_is_left():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        links.dump()
    assert len(os.listdir("/proc/self/fd")) == before
