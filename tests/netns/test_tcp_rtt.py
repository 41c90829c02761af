"""Round trips of sandboxes' own connections: against `ss` inside, read by Prometheus's parser and by bpftool."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.hosts import Host, host
from tests.leaks import at_cgroups, map_dump, rtt_link
from tests.netns.conftest import linkspan_host
from tests.netns.lab import Lab
from tests.require import require
from tests.traffic import DEADLINE_S, Place, Station, tcp_pair
from tests.underlay import UPLINK, Underlay

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("tcp-rtt")]

MANY: Final = 400
"""Round trips at each end, of which one in 16 is a sample: so many have some 25, and none practically never."""
TCP_RTT: Final = 2
SECOND: Final = 104
SUBNETS: Final = [{"Subnet": "10.71.0.0/24"}, {"Subnet": "fd71::/64"}]
DELAY_S: Final = 0.02


@pytest.fixture(scope="module", autouse=True)
def _needed() -> None:
    require("cgroup2")
    require("tcp_rtt")


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


def locals_(host: Host) -> dict[IPv4Address | IPv6Address, int]:
    """Slots by the addresses that the program knows, as bpftool shows them."""
    found = {}
    for row in map_dump(host, "tcp_locals"):
        address = IPv6Address(_raw(row["key"])[8:])
        found[address.ipv4_mapped or address] = struct.unpack("=I", _raw(row["value"]))[0]
    return found


def _raw(text: list[str]) -> bytes:
    return bytes(int(byte, 16) for byte in text)


def of(station: Place) -> Samples:
    """Those of the endpoint that has the station's address."""
    slot = locals_(station.host)[IPv4Address(station.ip4)]
    return timed(station.host).get(slot, Samples({}, 0.0))


def talk(here: socket.socket, there: socket.socket, times: int = MANY) -> None:
    for _ in range(times):
        here.sendall(b"question")
        assert there.recv(64) == b"question"
        there.sendall(b"answer")
        assert here.recv(64) == b"answer"


def chat(client: Place, server: Place, address: str) -> None:
    with tcp_pair(client, server, address) as pair:
        talk(*pair)


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
        assert MANY / 16 / 4 < grown.count < MANY / 4
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
    """Those of the host, to itself and to a sandbox, and of an endpoint that has the same address on another host."""
    assert of(lab.c).count == 0
    router = Place(lab.host, "host", f"/proc/{lab.host.pid}/ns/net", "lo")
    before, count = timed(lab.host), of(lab.a).count
    chat(router, router, "127.0.0.1")
    assert timed(lab.host) == before
    chat(router, lab.a, lab.a.ip4)
    assert of(lab.a).count > count
    assert (timed(lab.host).keys(), of(lab.c).count) == (before.keys(), 0)


def test_two_linkspands_at_one_hierarchy_know_their_own_alone(lab: Lab) -> None:
    with linkspan_host() as other:
        twin = Lab(other, "net", EnableIPv6=True, IPAM={"Config": SUBNETS})
        pairs = lab.a, lab.b, twin.a, twin.b
        assert (lab.a.ip4, lab.b.ip4) == (twin.a.ip4, twin.b.ip4)
        before = timed(lab.host)
        chat(twin.a, twin.b, twin.b.ip4)
        assert timed(lab.host) == before
        assert all(of(each).count for each in pairs)
        theirs = timed(other)
        chat(lab.a, lab.b, lab.b.ip4)
        assert timed(other) == theirs


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


def test_who_leaves_is_forgotten_and_counts_nowhere(lab: Lab) -> None:
    gone = lab.join("gone")
    known, own = locals_(lab.host), {IPv4Address(gone.ip4), IPv6Address(gone.ip6), IPv6Address(gone.ip6_ll)}
    with tcp_pair(lab.a, gone, gone.ip4) as (here, there):
        talk(here, there)
        assert exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds")[gone.name]
        lab.host.linkspan("network", "disconnect", lab.name, gone.name)
    assert known.keys() - locals_(lab.host).keys() == own
    assert gone.name not in exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds")


@pytest.fixture
def kept(lab: Lab) -> Iterator[Any]:
    """The link at the cgroups, which is there again, or still, at the end."""
    yield rtt_link(lab.host)
    assert rtt_link(lab.host)


def test_timing_goes_on_while_linkspand_does_not_run(lab: Lab, kept: Any) -> None:
    with tcp_pair(lab.a, lab.b, lab.b.ip4) as old:
        talk(*old)
        before = of(lab.a)
        lab.host.stop()
        chat(lab.a, lab.b, lab.b.ip4)
        meanwhile = of(lab.a)
        assert meanwhile.count > before.count
        lab.host.start()
        assert rtt_link(lab.host)["id"] == kept["id"]
        talk(*old)
    after = of(lab.a)
    assert after.count > meanwhile.count
    assert exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds")[lab.a.name] == after.count
    assert mended(lab.host) == 0


def mended(host: Host) -> float:
    """Differences that this linkspand has found and mended."""
    text = host.run("curl", "-sS", "--fail", "http://127.0.0.1:9478/metrics").stdout
    return sum(
        sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if sample.name == "linkspan_reconcile_differences_total"
        and sample.labels == {"what": "tcp-rtt", "outcome": "mended"}
    )


def pinned(host: Host, name: str) -> str:
    return str(host.bpffs / "linkspan/abi-1/maps" / name)


def spoil(lab: Lab) -> None:
    """Takes an endpoint's address out of the map, and puts one in of a slot that nobody has."""
    host, path = lab.host, pinned(lab.host, "tcp_locals")
    (row,) = (row for row in map_dump(host, "tcp_locals") if _raw(row["key"])[20:] == IPv4Address(lab.a.ip4).packed)
    key = list(row["key"])
    host.run("bpftool", "map", "delete", "pinned", path, "key", *key)
    stray = [*key[:-1], "0xfe"]
    host.run("bpftool", "map", "update", "pinned", path, "key", *stray, "value", "0x77", "0x77", "0", "0")


def test_a_start_mends_what_others_did_to_the_map(lab: Lab) -> None:
    before = locals_(lab.host)
    lab.host.stop()
    spoil(lab)
    assert locals_(lab.host) != before
    lab.host.start()
    assert locals_(lab.host) == before
    assert mended(lab.host) == 2


def findings(host: Host) -> list[str]:
    found = host.api("GET", "/linkspan/doctor")["findings"]
    return [each["what"] for each in found if each["code"] == "rtt-differs"]


def test_doctor_finds_and_mends_what_is_amiss(lab: Lab, kept: Any) -> None:
    assert findings(lab.host) == []
    before = locals_(lab.host)
    spoil(lab)
    lab.host.run("bpftool", "link", "detach", "id", str(kept["id"]))
    assert [what.partition(" ")[0] for what in findings(lab.host)] == ["ls_tcp_rtt", "map", "map"]
    lab.host.api("POST", "/linkspan/doctor/mend")
    assert (findings(lab.host), locals_(lab.host)) == ([], before)
    count = of(lab.a).count
    chat(lab.a, lab.b, lab.b.ip4)
    assert of(lab.a).count > count


def test_doctor_lists_the_program_among_those_attached(lab: Lab) -> None:
    rows = lab.host.api("GET", "/linkspan/doctor")["attached"]
    ours = [row for row in rows if row["hook"] == "sock_ops" and row["owner"] == "linkspan"]
    assert [(row["program"], row["by"], row["id"]) for row in ours] == [
        ("ls_tcp_rtt", "cgroup", rtt_link(lab.host)["prog_id"])
    ]


def test_switched_off_it_is_taken_away_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    config, before = tmp_path / "off.toml", locals_(lab.host)
    config.write_text("[metrics]\ntcp-rtt = false\n")
    count = of(lab.a).count
    lab.host.stop()
    lab.host.start("--config", str(config))
    assert (rtt_link(lab.host), at_cgroups(lab.host), locals_(lab.host)) == (None, [], {})
    assert lab.host.api("GET", "/linkspan/status")["fallbacks"] == {}
    chat(lab.a, lab.b, lab.b.ip4)
    late = lab.join("late")
    lab.host.api("DELETE", f"/linkspan/sandboxes/{late.name}?force=1")
    lab.host.stop()
    lab.host.start()
    assert (locals_(lab.host), of(lab.a).count, mended(lab.host)) == (before, count, 0)
    chat(lab.a, lab.b, lab.b.ip4)
    assert of(lab.a).count > count


def without_cgroups(made: Host) -> None:
    made.run("sh", "-c", "umount -a -t cgroup2 -l")


def test_a_host_without_cgroups_has_a_fallback_and_nothing_else_amiss(tmp_path: Path) -> None:
    with linkspan_host(before=without_cgroups) as bare:
        lab = Lab(bare, "net")
        chat(lab.a, lab.b, lab.b.ip4)
        assert (timed(bare), locals_(bare)) == ({}, {})
        fallbacks = bare.api("GET", "/linkspan/status")["fallbacks"]
        assert fallbacks.keys() == {"tcp-rtt"}
        reason = fallbacks["tcp-rtt"]
        assert reason.startswith("no cgroup2 file system is mounted: mount -t cgroup2")
        assert bare.log().count(reason) == 1
        found = bare.api("GET", "/linkspan/doctor")["findings"]
        assert [each["where"] for each in found if each["code"] == "fallback"] == ["tcp-rtt"]
        metrics = bare.run("curl", "-sS", "--fail", "http://127.0.0.1:9478/metrics").stdout
        assert f'linkspan_fallback{{feature="tcp-rtt",reason="{reason}"}} 1.0' in metrics
        assert exposed(bare, "linkspan_endpoint_forwarding_seconds", path="fast")


def test_a_long_way_is_seen_as_long() -> None:
    """A macvlan endpoint and a machine at the end of a slow cable."""
    underlay = Underlay()
    try:
        with host(bpffs=False) as far, linkspan_host(before=lambda made: underlay.plug("near", made)) as made:
            underlay.plug("far", far, "10.78.0.9/24")
            lab = Lab(
                made, "lan", Driver="macvlan", Options={"parent": UPLINK}, IPAM={"Config": [{"Subnet": "10.78.0.0/24"}]}
            )
            there = Place(far, "far", f"/proc/{far.pid}/ns/net", UPLINK)
            assert lab.a.pings(there.ip4)
            with underlay.slow("far", DELAY_S), tcp_pair(lab.a, there, there.ip4) as (here, peer):
                here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                heard = 0
                for _ in range(MANY):
                    here.sendall(b"one segment")
                while heard < MANY * len(b"one segment"):
                    heard += len(peer.recv(1 << 16))
                talk(here, peer, 5)
                kernel_s = least_of_kernel(lab.a, here.getsockname()[1])
                found = of(lab.a)
            made.run("ip", "link", "delete", UPLINK)
    finally:
        underlay.close()
    assert found.count > 0
    assert kernel_s >= 2 * DELAY_S
    assert found.least_s >= 2 * DELAY_S * 2**-0.25
