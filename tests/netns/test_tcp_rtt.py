"""Round trips of sandboxes' own connections: against `ss` inside, read by Prometheus's parser and by bpftool."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from threading import Thread
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.hosts import Host, host
from tests.leaks import map_dump
from tests.netns.conftest import linkspan_host
from tests.netns.lab import Lab
from tests.traffic import DEADLINE_S, Place, Station, tcp_pair
from tests.underlay import UPLINK, Underlay

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("tcp-rtt")]

MANY: Final = 2000
"""Segments with data that each end sends, of which one in 64 is a sample: some 31, and practically never none."""
EVERY: Final = 64
TCP_RTT: Final = 2
SECOND: Final = 104
SUBNETS: Final = [{"Subnet": "10.71.0.0/24"}, {"Subnet": "fd71::/64"}]
DELAY_S: Final = 0.02
SEGMENT: Final = 1400


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    made = Lab(machine, "net", EnableIPv6=True, IPAM={"Config": SUBNETS})
    assert made.a.pings(made.b.ip4)
    return made


@dataclass(frozen=True)
class Samples:
    """`buckets` are those of the map, by number; durations are in seconds."""

    buckets: dict[int, int]
    total_s: float

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    @property
    def mean_s(self) -> float:
        return self.total_s / self.count

    def __sub__(self, before: Samples) -> Samples:
        grown = {at: count - before.buckets.get(at, 0) for at, count in self.buckets.items()}
        return Samples({at: count for at, count in grown.items() if count}, self.total_s - before.total_s)

    @property
    def least_s(self) -> float:
        """No sample was shorter than this: where the first bucket in use begins."""
        return 2.0 ** ((min(self.buckets) - 1 - SECOND) / 4)


def timed(host: Host) -> dict[int, Samples]:
    """The samples by slot, as bpftool shows them."""
    found = {}
    for row in map_dump(host, "latencies"):
        slot, kind = struct.unpack("=II", _raw(row["key"]))
        total_ns, *counts = struct.unpack("=121Q", _raw(row["value"]))
        if kind == TCP_RTT:
            found[slot] = Samples({at: count for at, count in enumerate(counts) if count}, total_ns / 1e9)
    return found


def _slot(station: Place) -> int:
    """That of the endpoint with the station's address, from what the programs know of endpoints; abi.h."""
    for name in ("ep_by_if", "stations"):
        for row in map_dump(station.host, name):
            _, slot, ip4 = struct.unpack_from("=II4s", _raw(row["value"]))
            if ip4 == IPv4Address(station.ip4).packed:
                return slot
    raise AssertionError(f"no endpoint has {station.ip4}")


def _raw(text: list[str]) -> bytes:
    return bytes(int(byte, 16) for byte in text)


def of(station: Place) -> Samples:
    """Those of the endpoint that has the station's address."""
    return timed(station.host).get(_slot(station), Samples({}, 0.0))


def talk(here: socket.socket, there: socket.socket, times: int = MANY) -> None:
    for _ in range(times):
        here.sendall(b"question")
        assert there.recv(64) == b"question"
        there.sendall(b"answer")
        assert here.recv(64) == b"answer"


def chat(client: Place, server: Place, address: str) -> None:
    with tcp_pair(client, server, address) as pair:
        talk(*pair)


def assert_sampled(found: Samples) -> None:
    """About one in 64 of MANY: not each packet twice, nor acknowledgements too."""
    assert MANY / EVERY / 3 < found.count < MANY / EVERY * 1.7


def least_of_kernel(place: Place, port: int) -> float:
    """The shortest round trip of the connection from this port, as the kernel tells it."""
    said = place.run("ss", "-tinH", "state", "established", "sport", "=", f":{port}").stdout
    return float(re.findall(r"minrtt:([\d.]+)", said)[0]) / 1000


def exposed(host: Host, name: str, **labels: str) -> dict[str, float]:
    """Counts of a histogram by sandbox or network, as Prometheus reads them."""
    text = host.run("curl", "-sS", "--fail", "http://127.0.0.1:9478/metrics").stdout
    return {
        sample.labels.get("sandbox", sample.labels["network"]): sample.value
        for metric in text_string_to_metric_families(text)
        if metric.name == name
        for sample in metric.samples
        if sample.name == f"{name}_count" and labels.items() <= sample.labels.items()
    }


@contextmanager
def mapped_pair(client: Place, server: Place) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection over IPv4 between two sockets of IPv6 (RFC 4291, 2.5.5.2)."""
    address = f"::ffff:{server.ip4}"
    with (
        server.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener,
        client.socket(socket.AF_INET6, socket.SOCK_STREAM) as here,
    ):
        listener.bind((address, 0))
        listener.listen()
        here.connect((address, listener.getsockname()[1]))
        there, _ = listener.accept()
        there.settimeout(DEADLINE_S)
        with there:
            yield here, there


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "IPv4 in IPv6 sockets", "link-local"])
def test_a_connection_is_timed_at_both_ends_as_the_kernel_has_it(lab: Lab, family: str) -> None:
    before, begin = (of(lab.a), of(lab.b)), time.monotonic()
    if family == "IPv4 in IPv6 sockets":
        pair = mapped_pair(lab.a, lab.b)
    elif family == "link-local":
        pair = link_local_pair(lab.a, lab.b)
    else:
        pair = tcp_pair(lab.a, lab.b, lab.b.ip4 if family == "IPv4" else lab.b.ip6)
    with pair as (here, there):
        talk(here, there)
        kernels = [least_of_kernel(place, end.getsockname()[1]) for place, end in ((lab.a, here), (lab.b, there))]
    took_s = time.monotonic() - begin
    for station, was, kernel_s in zip((lab.a, lab.b), before, kernels, strict=True):
        grown = of(station) - was
        assert_sampled(grown)
        assert kernel_s * 2**-0.25 <= grown.mean_s < took_s
        assert 2.0 ** ((min(grown.buckets) - SECOND) / 4) >= kernel_s


@contextmanager
def link_local_pair(client: Station, server: Station) -> Iterator[tuple[socket.socket, socket.socket]]:
    scope = client.link()["ifindex"]
    with (
        server.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener,
        client.socket(socket.AF_INET6, socket.SOCK_STREAM) as here,
    ):
        listener.bind(("::", 0))
        listener.listen()
        here.connect((server.ip6_ll, listener.getsockname()[1], 0, scope))
        there, _ = listener.accept()
        there.settimeout(DEADLINE_S)
        with there:
            yield here, there


def test_metrics_have_the_samples_of_endpoints_and_their_sum(lab: Lab) -> None:
    chat(lab.a, lab.b, lab.b.ip4)
    by_sandbox = exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds", network=lab.name)
    for station in (lab.a, lab.b):
        assert by_sandbox[station.name] == of(station).count > 0
    sums = exposed(lab.host, "linkspan_network_tcp_rtt_seconds")
    assert sums[lab.name] == sum(by_sandbox.values())


def test_nobody_else_s_connections_are_timed(lab: Lab) -> None:
    """Those of the host, to itself and to a sandbox."""
    assert of(lab.c).count == 0
    router = Place(lab.host, "host", f"/proc/{lab.host.pid}/ns/net", "lo")
    before, count = timed(lab.host), of(lab.a).count
    chat(router, router, "127.0.0.1")
    assert timed(lab.host) == before
    chat(router, lab.a, lab.a.ip4)
    assert of(lab.a).count > count
    assert (timed(lab.host).keys(), of(lab.c).count) == (before.keys(), 0)


def test_who_only_acknowledges_measures_nothing_and_tells_nothing(lab: Lab) -> None:
    """What TCP knows at that end is as old as the handshake."""
    with tcp_pair(lab.a, lab.b, lab.b.ip4) as (here, there):
        talk(here, there, 1)
        before = of(lab.a), of(lab.b)
        for _ in range(MANY):
            here.sendall(b"statement")
            assert there.recv(64)
        grown = of(lab.a) - before[0], of(lab.b) - before[1]
    assert_sampled(grown[0])
    assert grown[1].count == 0


def test_datagrams_of_a_sandbox_have_none(lab: Lab) -> None:
    before = timed(lab.host)
    with lab.a.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        for _ in range(MANY):
            here.sendto(b"statement", (lab.b.ip4, 9))
    assert timed(lab.host) == before


def test_what_stays_in_the_sandbox_is_no_round_trip_of_the_network(lab: Lab) -> None:
    other = Lab(lab.host, "second")
    lab.host.linkspan("network", "connect", other.name, lab.a.name)
    at_other = Station(lab.host, lab.a.name, other.name)
    before = timed(lab.host)
    for address in ("127.0.0.1", "::1", lab.a.ip4, lab.a.ip6, at_other.ip4):
        chat(lab.a, lab.a, address)
    with lab.a.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((at_other.ip4, 0))
        listener.listen()
        with lab.a.socket(socket.AF_INET, socket.SOCK_STREAM) as here:
            here.bind((lab.a.ip4, 0))
            here.connect(listener.getsockname())
            there, _ = listener.accept()
            with there:
                talk(here, there)
    assert timed(lab.host) == before


def test_each_of_a_sandbox_s_endpoints_has_its_own_connections(lab: Lab) -> None:
    other = Lab(lab.host, "third")
    lab.host.linkspan("network", "connect", other.name, lab.b.name)
    at_other = Station(lab.host, lab.b.name, other.name)
    before = of(lab.b)
    chat(other.a, at_other, at_other.ip4)
    assert (of(at_other).count > 0, of(lab.b)) == (True, before)


def test_who_leaves_is_forgotten(lab: Lab) -> None:
    gone = lab.join("gone")
    with tcp_pair(lab.a, gone, gone.ip4) as (here, there):
        talk(here, there)
        assert exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds")[gone.name]
        lab.host.linkspan("network", "disconnect", lab.name, gone.name)
    assert gone.name not in exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds")


def test_timing_goes_on_while_linkspand_does_not_run(lab: Lab) -> None:
    with tcp_pair(lab.a, lab.b, lab.b.ip4) as old:
        talk(*old)
        before = of(lab.a)
        lab.host.stop()
        chat(lab.a, lab.b, lab.b.ip4)
        meanwhile = of(lab.a)
        assert meanwhile.count > before.count
        lab.host.start()
        talk(*old)
    after = of(lab.a)
    assert after.count > meanwhile.count
    assert exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds")[lab.a.name] == after.count


def test_switched_off_it_counts_none_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "off.toml"
    config.write_text("[metrics]\nforwarding-sample = 0\n")
    lab.host.stop()
    lab.host.start("--config", str(config))
    before = timed(lab.host)
    chat(lab.a, lab.b, lab.b.ip4)
    assert timed(lab.host) == before
    lab.host.stop()
    lab.host.start()
    chat(lab.a, lab.b, lab.b.ip4)
    assert timed(lab.host) != before


MACVLANS: Final = {
    "macvlan device": {},
    "macvlan device, no limit": {"linkspan.broadcast_limit": "0"},
    "macvlan device, private": {"macvlan_mode": "private"},
    "veth": {"linkspan.macvlan_device": "veth"},
    "veth, XDP": {"linkspan.macvlan_device": "veth", "linkspan.parent_hook": "xdp"},
}


@pytest.mark.parametrize("kind", MACVLANS)
def test_connections_on_macvlan_are_timed_once_and_a_long_way_is_seen_as_long(kind: str) -> None:
    """With another endpoint, and with a machine at the end of a slow cable."""
    underlay = Underlay()
    try:
        with host(bpffs=False) as far, linkspan_host(before=lambda made: underlay.plug("near", made)) as made:
            underlay.plug("far", far, "10.78.0.9/24")
            if "XDP" in kind:  # what an XDP program sends on has no checksum left to fill in
                far.run("ethtool", "-K", UPLINK, "tx", "off")
            options = {"parent": UPLINK, **MACVLANS[kind]}
            lab = Lab(made, "lan", Driver="macvlan", Options=options, IPAM={"Config": [{"Subnet": "10.78.0.0/24"}]})
            there = Place(far, "far", f"/proc/{far.pid}/ns/net", UPLINK)
            assert lab.a.pings(there.ip4)
            chat(lab.a, there, there.ip4)
            assert_sampled(of(lab.a))
            if "private" not in kind:
                chat(lab.b, lab.c, lab.c.ip4)
                for station in (lab.b, lab.c):
                    # Nothing of ours is between two devices that have no limit.
                    if "no limit" in kind:
                        assert of(station).count == 0
                    else:
                        assert_sampled(of(station))
            before = of(lab.a)
            with underlay.slow("far", DELAY_S), tcp_pair(lab.a, there, there.ip4) as (here, peer):
                sender = Thread(target=here.sendall, args=(bytes(MANY * SEGMENT),))
                sender.start()
                heard = 0
                while heard < MANY * SEGMENT:
                    heard += len(peer.recv(1 << 16))
                sender.join()
                talk(here, peer, 5)
                kernel_s = least_of_kernel(lab.a, here.getsockname()[1])
            grown = of(lab.a) - before
            made.run("ip", "link", "delete", UPLINK)
    finally:
        underlay.close()
    assert grown.count > 0
    assert kernel_s >= 2 * DELAY_S
    assert grown.least_s >= 2 * DELAY_S * 2**-0.25
