"""The tests' own underlay does what tests of clusters take for granted: it joins, cuts, loses and delays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import permutations

import pytest

from tests.hosts import Host, host
from tests.nodes import Flow
from tests.traffic import Place, tcp_pair
from tests.underlay import UPLINK, Underlay

pytestmark = pytest.mark.root

NAMES = ("a", "b", "c")


class Lan:
    def __init__(self, underlay: Underlay, hosts: list[Host]) -> None:
        self.underlay = underlay
        self.places = [
            Place(machine, name, f"/proc/{machine.pid}/ns/net", UPLINK)
            for name, machine in zip(NAMES, hosts, strict=True)
        ]

    def reached(self, version: int = 4) -> set[str]:
        """Who answers whom, as "ab" for b answering a; all ask at once."""
        asked = {
            one.name + other.name: one.host.popen("ping", "-n", "-c1", "-W0.5", target, stdout=subprocess.DEVNULL)
            for one, other in permutations(self.places, 2)
            for target in [other.ip4 if version == 4 else other.ip6]
        }
        return {pair for pair, ping in asked.items() if ping.wait() == 0}


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with ExitStack() as stack:
        underlay = Underlay()
        stack.callback(underlay.close)
        hosts = [stack.enter_context(host(bpffs=False)) for _ in NAMES]
        for number, (name, machine) in enumerate(zip(NAMES, hosts, strict=True), start=1):
            underlay.plug(name, machine, f"10.77.0.{number}/24", f"fd77::{number}/64")
        yield Lan(underlay, hosts)


EVERYBODY = {"ab", "ac", "ba", "bc", "ca", "cb"}


@pytest.mark.parametrize("version", [4, 6])
def test_who_is_cut_off_reaches_nobody_but_the_others(lan: Lan, version: int) -> None:
    assert lan.reached(version) == EVERYBODY
    with lan.underlay.cut("a", "b"):
        assert lan.reached(version) == EVERYBODY - {"ab", "ba"}
        with lan.underlay.cut("a", "b", "c"):
            assert lan.reached(version) == set()
        assert lan.reached(version) == EVERYBODY - {"ab", "ba"}
    assert lan.reached(version) == EVERYBODY


def test_a_lossy_underlay_loses_about_as_much_as_it_is_told_to(lan: Lan) -> None:
    a, b, _ = lan.places
    with lan.underlay.lossy(20):
        said = a.run("ping", "-q", "-n", "-i0.002", "-c500", "-W0.5", b.ip4, check=False).stdout
    found = re.search(r"([\d.]+)% packet loss", said)
    assert found is not None
    assert 26 < float(found[1]) < 46  # both ways: 36 % are expected, of 500
    assert "0% packet loss" in a.run("ping", "-q", "-n", "-i0.002", "-c100", b.ip4).stdout


def test_a_slow_cable_adds_its_time_both_ways_and_carries_whatever_a_fast_one_does(lan: Lan) -> None:
    a, b, c = lan.places
    with lan.underlay.slow("a", 0.04):
        begin = time.monotonic()
        assert a.pings(b.ip6)
        assert time.monotonic() - begin >= 0.08
        with tcp_pair(b, a, a.ip4) as (here, there), ThreadPoolExecutor(1) as pool:
            blob = os.urandom(3 << 20)  # goes in segments of 64 KiB, checksums left for later
            sending = pool.submit(here.sendall, blob)
            assert there.makefile("rb").read(len(blob)) == blob
            sending.result()
        with lan.underlay.cut("a", "c"):
            assert lan.reached() == EVERYBODY - {"ac", "ca"}
        with tcp_pair(b, c, c.ip4) as (here, there):
            here.sendall(b"as fast as ever")
            assert there.recv(64) == b"as fast as ever"
    assert lan.reached() == EVERYBODY


def test_a_host_that_was_powered_off_comes_back_with_its_disk_and_nothing_else(lan: Lan) -> None:
    a, b, _ = lan.places
    machine = b.host
    (machine.state_dir / "kept").write_text("on disk")
    (machine.run_dir / "lost").write_text("in memory")
    machine.power_off()
    assert not a.pings("10.77.0.2", wait_s=0.3)
    machine.power_on()
    lan.underlay.plug("b", machine, "10.77.0.2/24", "fd77::2/64")
    assert a.pings("10.77.0.2")
    assert [path.name for path in machine.run_dir.iterdir()] == []
    assert (machine.state_dir / "kept").read_text() == "on disk"
    assert [link["ifname"] for link in json.loads(machine.run("ip", "-json", "link").stdout)] == ["lo", UPLINK]


def test_a_flow_names_the_requests_that_were_lost(lan: Lan) -> None:
    a, b, _ = lan.places
    with Flow(a, b.ip4) as flow:
        flow.go_on(20)
        assert flow.lost == []
        with lan.underlay.cut("a", "b"):
            assert not a.pings(b.ip4, wait_s=0.2)
        flow.go_on(20)
        assert len(flow.lost) >= 10  # one each 10 ms
        assert flow.lost == list(range(flow.lost[0], flow.lost[-1] + 1))
