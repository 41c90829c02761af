"""Latencies of real traffic, read by bpftool from the pinned map."""

from __future__ import annotations

import re
import struct
from functools import partial

import pytest

from tests.hosts import Host, wait_for
from tests.leaks import map_dump
from tests.netns.conftest import linkspan_host
from tests.netns.lab import Lab
from tests.traffic import Station, growth, tallies

pytestmark = pytest.mark.xdist_group("latency")

FAST, SLOW = 0, 1
PINGS = 20


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A host on which every packet is timed."""
    config = tmp_path_factory.mktemp("latency") / "linkspan.toml"
    config.write_text("[metrics]\nforwarding-sample = 1\n")
    with linkspan_host("--config", str(config)) as made:
        yield made


@pytest.fixture(scope="module")
def fast(machine: Host) -> Lab:
    return Lab(machine, "fast")


def histogram(station: Station, kind: int) -> tuple[int, int]:
    """(samples, nanoseconds in all) of an endpoint, whose slot is that of its host end."""
    host = station.host
    indexes = {link["ifname"]: link["ifindex"] for link in host.ip("link", "show")}
    by_index = {_number(row["key"]): _number(row["value"][4:8]) for row in map_dump(host, "ep_by_if")}
    slot = by_index[indexes[station.host_ifname]]
    for row in map_dump(host, "latencies"):
        if (_number(row["key"][:4]), _number(row["key"][4:])) == (slot, kind):
            total, *buckets = struct.unpack("=121Q", _raw(row["value"]))
            return sum(buckets), total
    return 0, 0


def _raw(text: list[str]) -> bytes:
    return bytes(int(byte, 16) for byte in text)


def _number(text: list[str]) -> int:
    return struct.unpack("=I", _raw(text))[0]


def count(station: Station, kind: int) -> int:
    return histogram(station, kind)[0]


def test_every_packet_on_the_fast_path_is_timed_for_its_receiver(fast: Lab) -> None:
    """Together they take no longer than the round trips that they are a part of."""
    assert fast.a.pings(fast.b.ip4)
    before = tallies(fast.host, fast.b.name), histogram(fast.b, FAST), histogram(fast.a, FAST)
    said = fast.a.run("ping", "-n", "-c", str(PINGS), "-i0.01", fast.b.ip4).stdout
    after = tallies(fast.host, fast.b.name), histogram(fast.b, FAST), histogram(fast.a, FAST)
    received = growth(before[0], after[0])["packets", "in", "fast"]
    assert received >= PINGS
    assert after[1][0] - before[1][0] == received
    round_trips_ns = sum(float(ms) for ms in re.findall(r"time=([\d.]+) ms", said)) * 1e6
    forwarded_ns = after[1][1] - before[1][1] + after[2][1] - before[2][1]
    assert 0 < forwarded_ns < round_trips_ns


def test_what_the_bridge_brings_is_timed_as_slow(fast: Lab) -> None:
    """Unicast with a VLAN tag, which the programs leave alone."""
    before = count(fast.b, SLOW)
    with fast.a.wire() as wire:
        for number in range(PINGS):
            frame = bytes(fast.frame(b"tagged %d" % number))
            wire.send(frame[:12] + b"\x81\x00\x00\x07" + frame[12:])
    wait_for(lambda: count(fast.b, SLOW) == before + PINGS, lambda: f"{count(fast.b, SLOW)} to be {before + PINGS}")


def test_a_broadcast_is_timed_once(fast: Lab) -> None:
    stations = fast.b, fast.c
    before = sum(count(each, SLOW) for each in stations)
    with fast.a.wire() as wire:
        wire.send(*[fast.frame(b"to all", "ff:ff:ff:ff:ff:ff")] * 5)
    wait_for(partial(_is_sum, stations, before + 5), "five broadcasts to be timed")


def _is_sum(stations: tuple[Station, ...], wanted: int) -> bool:
    return sum(count(each, SLOW) for each in stations) == wanted


def test_an_endpoint_in_the_place_of_another_starts_without(machine: Host) -> None:
    lab = Lab(machine, "again")
    assert lab.a.pings(lab.b.ip4)
    assert count(lab.b, FAST)
    machine.api("DELETE", f"/linkspan/sandboxes/{lab.b.name}?force=1")
    new = lab.join("new")
    assert histogram(new, FAST) == histogram(new, SLOW) == (0, 0)


def test_without_programs_nothing_is_timed(machine: Host) -> None:
    before = {str(row["key"]) for row in map_dump(machine, "latencies")}
    lab = Lab(machine, "off", accel="off")
    assert lab.a.pings(lab.b.ip4)
    assert {str(row["key"]) for row in map_dump(machine, "latencies")} <= before


def test_a_restart_keeps_what_was_timed(machine: Host, fast: Lab) -> None:
    assert fast.a.pings(fast.b.ip4)
    before = count(fast.b, FAST)
    machine.stop()
    machine.start()  # with the default of one packet in 64
    assert count(fast.b, FAST) >= before > 0
