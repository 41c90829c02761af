"""1,500 endpoints on one network, past the 1,023 ports of a Linux bridge: made, reached and removed."""

from __future__ import annotations

import http.client
import json
import os
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, Final

import pytest

from tests.hosts import Host
from tests.leaks import leaks
from tests.netns.conftest import linkspan_host
from tests.netns.lab import Lab
from tests.traffic import Station, all_tallies, growth, socket_in

pytestmark = pytest.mark.xdist_group("scale")

ENDPOINTS: Final = 1500
STAGES: Final = (10, 100, 1000, ENDPOINTS)
CLIENTS: Final = 16
SAMPLE: Final = 10

_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_BATCH: Final = 250


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("linkspan", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Crowd:
    """Sandboxes s0, s1, … on one network, made and removed over the socket by many clients at once.

    Of IPv4 alone: with IPv6 each new sandbox reports the multicast groups that it listens to, and a bridge shows the
    reports to every port. A thousand joins are then millions of packets, more than the CPUs' queues hold
    (net.core.netdev_max_backlog), and tests that run at the same time lose some of theirs.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        subnet = {"Config": [{"Subnet": "10.77.0.0/20"}]}
        self.lab = Lab(host, "crowd", IPAM=subnet)
        self.addresses: list[str] = []

    def _each(self, method: str, numbers: Sequence[int]) -> list[Any]:
        """Requests for all of the sandboxes, from CLIENTS connections; answers in their order."""

        def work(share: Sequence[int]) -> list[tuple[int, Any]]:
            connection = _UnixConnection(str(self.host.socket))
            found = []
            for number in share:
                if method == "POST":
                    body = json.dumps({"Name": f"s{number}", "Networks": [{"Network": "crowd"}]})
                    connection.request(method, "/linkspan/sandboxes", body, {"Content-Type": "application/json"})
                else:
                    connection.request(method, f"/linkspan/sandboxes/s{number}")
                response = connection.getresponse()
                text = response.read()
                assert response.status in (201, 204), text
                found.append((number, json.loads(text) if text.strip() else None))
            connection.close()
            return found

        with ThreadPoolExecutor(CLIENTS) as pool:
            shares = [numbers[client::CLIENTS] for client in range(CLIENTS)]
            answers = dict(pair for share in pool.map(work, shares) for pair in share)
        return [answers[number] for number in numbers]

    def grow_to(self, count: int) -> None:
        made = self._each("POST", range(len(self.addresses), count))
        self.addresses += [answer["Networks"]["crowd"]["IPAddress"] for answer in made]

    def remove(self) -> None:
        self._each("DELETE", range(len(self.addresses)))
        self.addresses.clear()

    def one_more_seconds(self) -> float:
        """The median time to make one sandbox more with all those there are."""
        connection, times = _UnixConnection(str(self.host.socket)), []
        for _ in range(SAMPLE):
            begin = time.monotonic()
            body = json.dumps({"Name": "one-more", "Networks": [{"Network": "crowd"}]})
            connection.request("POST", "/linkspan/sandboxes", body, {"Content-Type": "application/json"})
            assert connection.getresponse().read()
            times.append(time.monotonic() - begin)
            connection.request("DELETE", "/linkspan/sandboxes/one-more")
            connection.getresponse().read()
        connection.close()
        return median(times)

    def station(self, number: int) -> Station:
        return Station(self.host, f"s{number}")


def kernel_bytes() -> int:
    """Memory that the kernel holds for itself, on the whole machine (proc(5), meminfo)."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return sum(int(fields[name].split()[0]) for name in ("Slab", "Percpu", "KernelStack", "PageTables")) * 1024


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def echo(kind: int, identifier: int) -> bytes:
    """An ICMP echo request or reply (RFC 792)."""

    def packed(checksum: int) -> bytes:
        return struct.pack("!BBHHH", kind, 0, checksum, identifier, 1)

    total = sum(struct.unpack("!4H", packed(0)))
    return packed(~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)


def silent(netns: str, targets: Sequence[str], deadline_s: float = 30.0) -> set[str]:
    """Those of the targets that do not answer echo requests from a namespace."""
    left = set(targets)
    request = echo(_ECHO_REQUEST, os.getpid() & 0xFFFF)
    with (
        socket_in(netns, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as probe,
        selectors.DefaultSelector() as ready,
    ):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        ready.register(probe, selectors.EVENT_READ)
        end = time.monotonic() + deadline_s
        while left and time.monotonic() < end:
            for target in sorted(left)[:_BATCH]:
                probe.sendto(request, (target, 0))
            while ready.select(0.2):
                packet, (sender, _) = probe.recvfrom(2048)
                if packet[(packet[0] & 15) * 4] == _ECHO_REPLY:
                    left.discard(sender)
    return left


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    with linkspan_host() as host:
        yield Crowd(host)


def test_fifteen_hundred_endpoints_join_one_network(crowd: Crowd, record_property: Any) -> None:
    idle_kernel, idle_daemon = kernel_bytes(), resident_bytes(crowd.host.daemon_pid)
    for stage in STAGES:
        begin = time.monotonic()
        before = len(crowd.addresses)
        crowd.grow_to(stage)
        seconds = time.monotonic() - begin
        figures = {
            "endpoints": stage,
            "parallel joins a second": round((stage - before) / seconds, 1),
            "one more, p50 ms": round(crowd.one_more_seconds() * 1000, 2),
            "kernel KiB an endpoint": round((kernel_bytes() - idle_kernel) / stage / 1024, 1),
            "daemon KiB an endpoint": round((resident_bytes(crowd.host.daemon_pid) - idle_daemon) / stage / 1024, 1),
            "daemon MiB": round(resident_bytes(crowd.host.daemon_pid) / 2**20, 1),
        }
        record_property(f"at {stage}", figures)
        print(figures)
    assert len(set(crowd.addresses)) == ENDPOINTS
    ports = Counter(link["master"] for link in crowd.host.ip("link") if link["ifname"].startswith("ls"))
    assert sum(ports.values()) == ENDPOINTS
    assert len(ports) == 2
    assert max(ports.values()) <= 1023


def test_the_gateway_reaches_every_one_of_them(crowd: Crowd) -> None:
    assert silent(f"/proc/{crowd.host.pid}/ns/net", crowd.addresses) == set()


def test_one_of_them_reaches_all_others(crowd: Crowd) -> None:
    """With one packet each, which their counters show, and echo to some.

    Not with echo to all, for which the namespaces would have to learn 3,000 neighbours: Linux lets all of them together
    have 1,024 (Documentation/networking/ip-sysctl.rst, gc_thresh3). Nobody answers an echo reply.
    """
    first = crowd.station(0)
    before = all_tallies(crowd.host)
    with first.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as out:
        for start in range(1, ENDPOINTS, _BATCH):
            for address in crowd.addresses[start : start + _BATCH]:
                out.sendto(echo(_ECHO_REPLY, 1), (address, 0))
            first.run("ip", "neigh", "flush", "dev", first.ifname)
    after = all_tallies(crowd.host)
    received = {name: growth(before[name], after[name]).get(("packets", "in", "fast"), 0) for name in before}
    assert [name for name, packets in received.items() if name != "s0" and packets != 1] == []
    assert silent(first.path, crowd.addresses[1::10]) == set()


@pytest.mark.parametrize(("here", "there"), [(1, 1499), (1499, 1), (700, 1200), (1200, 1300), (999, 1000), (5, 6)])
def test_pairs_on_all_bridges_reach_each_other_and_the_gateway(crowd: Crowd, here: int, there: int) -> None:
    sender, receiver = crowd.station(here), crowd.station(there)
    for address in (receiver.ip4, sender.gateway()):
        assert sender.pings(str(address)), address


def test_all_are_removed_and_nothing_is_left(crowd: Crowd) -> None:
    crowd.remove()
    crowd.host.api("DELETE", "/networks/crowd")
    assert leaks(crowd.host) == []
