"""`linkspan bench` against a running linkspand: it names the path that packets take, and leaves the host as it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.hosts import BIN, Host, host, wait_for
from tests.leaks import leaks, purge

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with host() as made:
        made.run("ip", "link", "add", "p0", "up", "type", "veth", "peer", "name", "p1")
        made.run("ip", "link", "set", "p1", "up")
        made.start("--metrics-listen", "off")
        made.linkspan("network", "create", "fast")
        made.linkspan("network", "create", "-o", "linkspan.accel=off", "slow")
        parent = ["-d", "macvlan", "-o", "parent=p0"]
        made.linkspan("network", "create", *parent, "--subnet", "192.168.32.0/24", "lan")
        made.linkspan("network", "create", *parent, "--subnet", "192.168.33.0/30", "-o", "macvlan_mode=bridge", "small")
        yield made
        purge(made)
        assert leaks(made, ignore=("p0", "p1")) == []


def devices(machine: Host) -> set[str]:
    return {link["ifname"] for link in machine.ip("link")}


def in_use(machine: Host) -> dict[str, object]:
    """What every network says of its addresses."""
    return {
        one["Name"]: machine.api("GET", f"/networks/{one['Id']}")["Status"]["IPAM"]
        for one in machine.api("GET", "/networks")
    }


def test_the_table_says_which_path_each_network_takes(machine: Host) -> None:
    before = devices(machine), in_use(machine)
    found = json.loads(machine.linkspan("bench", "--seconds", "0.5", "--json").stdout)
    paths = {one["network"]: one for one in found["paths"]}
    assert list(paths)[:3] == ["(bare veth pair)", "(loopback)", "(bridge, accel=off)"]
    assert set(paths) == {*list(paths)[:3], "bridge", "fast", "slow", "lan", "small"}
    words = {name: one.get("path") for name, one in paths.items()}
    assert words | {"fast": "fast", "bridge": "fast", "slow": "kernel", "lan": "kernel"} == words
    assert words["(bridge, accel=off)"] == "kernel"
    assert paths["fast"]["fast_share"] > 0.95
    assert paths["slow"]["fast_share"] == 0
    assert len({len(one["tcp"]["rounds"]) for one in paths.values() if not one["problem"]}) == 1
    assert all(0 < one["udp"]["p50_us"] <= one["udp"]["p99_us"] for one in paths.values() if not one["problem"])
    assert (devices(machine), in_use(machine)) == before
    assert machine.api("GET", "/linkspan/sandboxes?all=1") == []


def test_a_network_that_cannot_be_measured_says_why_and_the_others_are(machine: Host) -> None:
    """A /30 has a gateway and one address more: not enough for two."""
    done = machine.linkspan("bench", "--seconds", "0.2", "small", "fast", check=False)
    assert done.returncode == 1
    assert re.search(r"^Not measured, small: .*address", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^fast +bridge +fast +[\d.]+", done.stdout, re.MULTILINE), done.stdout
    assert machine.api("GET", "/linkspan/sandboxes?all=1") == []


def test_endpoints_that_are_there_lose_nothing(machine: Host) -> None:
    made = [machine.api("POST", "/linkspan/sandboxes", {"Name": n, "Networks": [{"Network": "fast"}]}) for n in "xy"]
    address = made[1]["Networks"]["fast"]["IPAddress"]
    ping = ["nsenter", f"--net={made[0]['NetnsPath']}", "ping", "-i", "0.01", "-W", "1", address]
    with machine.popen(*ping, stdout=subprocess.PIPE) as pings:
        machine.linkspan("bench", "--seconds", "0.5", "fast")
        pings.send_signal(signal.SIGINT)
        assert pings.stdout is not None
        said = pings.stdout.read()
    sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", said).groups())
    assert sent - received <= 1, said  # the last one may be under way
    for each in made:
        machine.api("DELETE", f"/linkspan/sandboxes/{each['Id']}?force=1")


def started(machine: Host) -> subprocess.Popen[str]:
    """A bench that has begun to measure."""
    environment = {**os.environ, "LINKSPAN_HOST": f"unix://{machine.socket}"}
    bench = machine.popen(
        str(BIN / "linkspan"), "bench", "--seconds", "40", "fast", env=environment, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: len(machine.api("GET", "/linkspan/sandboxes?all=1")) == 4, "two networks' sandboxes")
    return bench


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(machine: Host, number: signal.Signals) -> None:
    before = devices(machine), in_use(machine)
    bench = started(machine)
    bench.send_signal(number)
    bench.send_signal(number)
    assert bench.wait(60) == 130
    assert machine.api("GET", "/linkspan/sandboxes?all=1") == []
    assert (devices(machine), in_use(machine)) == before


def test_what_a_killed_run_leaves_the_next_one_removes(machine: Host) -> None:
    before = devices(machine), in_use(machine)
    bench = started(machine)
    bench.kill()
    bench.wait()
    assert len(machine.api("GET", "/linkspan/sandboxes?all=1")) == 4
    machine.linkspan("bench", "--seconds", "0.1", "fast")
    assert machine.api("GET", "/linkspan/sandboxes?all=1") == []
    assert (devices(machine), in_use(machine)) == before
