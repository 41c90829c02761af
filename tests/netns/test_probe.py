"""Round trips between sockets of one process, in namespaces that nothing but the process holds."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from datapath import netns, probe
from datapath.probe import Stack
from tests.isolated import isolated, run

pytestmark = pytest.mark.root


@isolated
@pytest.mark.parametrize("proto", probe.PROTOS)
def test_messages_go_to_the_other_end_and_back(proto: probe.Proto) -> None:
    with probe.veth_pair() as (a, b):

        def received() -> int:
            return int(netns.call(b.netns_path, lambda: run("cat /proc/thread-self/net/dev | grep eth0")).split()[2])

        ends = probe.connected(proto, a, b)
        before = received()
        trips = ends.round_trips(500)
        assert len(trips) == 500
        assert all(0 < nanoseconds < 1e9 for nanoseconds in trips)
        assert received() - before >= 500, "packets that the kernel has counted at the other end"
        ends.close()


@isolated
def test_a_long_message_of_tcp_is_one_packet_once_the_path_is_known() -> None:
    with probe.veth_pair() as (a, b):
        ends = probe.connected("tcp", a, b)
        ends.round_trips(50, probe.BULK_BYTES)  # until the congestion window has opened

        def received() -> tuple[int, int]:
            words = netns.call(b.netns_path, lambda: run("cat /proc/thread-self/net/dev | grep eth0")).split()
            return int(words[1]), int(words[2])

        before = received()
        assert len(ends.round_trips(100, probe.BULK_BYTES)) == 100
        sent_bytes, packets = (after - was for after, was in zip(received(), before, strict=True))
        assert sent_bytes >= 100 * probe.BULK_BYTES
        assert packets <= 100 * 2, "a packet and an acknowledgement a trip"
        before = received()
        assert len(ends.messages(100, probe.BULK_BYTES)) == 100
        sent_bytes, packets = (after - was for after, was in zip(received(), before, strict=True))
        assert sent_bytes >= 100 * probe.BULK_BYTES
        assert packets <= 100 * 2
        with pytest.raises(OSError, match="Invalid argument"):
            ends.round_trips(1, 65_537)
        ends.close()


@isolated
def test_both_families_over_loopback() -> None:
    for address in ("127.0.0.1", "::1"):
        own = Stack(None, ip_address(address))
        for proto in probe.PROTOS:
            ends = probe.connected(proto, own, own)
            assert len(ends.round_trips(3)) == 3
            ends.close()


@isolated
def test_namespaces_end_with_the_block() -> None:
    with probe.veth_pair() as (a, _b):
        inode = netns.call(a.netns_path, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
        assert inode != os.stat("/proc/thread-self/ns/net").st_ino
    with pytest.raises(OSError, match="No such file"):
        netns.inode(a.netns_path or "")


@isolated
def test_an_end_that_nobody_reaches_is_a_timeout() -> None:
    with probe.veth_pair() as (a, b):
        ends = {proto: probe.connected(proto, a, b) for proto in probe.PROTOS}
        netns.call(b.netns_path, lambda: run("ip link set eth0 down"))
        for each in ends.values():
            with pytest.raises(OSError, match=r"no answer within 1 s|unreachable"):
                each.round_trips(1)
            each.close()
        with pytest.raises(TimeoutError, match="no answer within 1 s"):
            probe.connected("tcp", a, b)
