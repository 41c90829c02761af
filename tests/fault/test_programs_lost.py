"""Programs that come and go: networks carry all traffic without them, and take them up again when they are there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.agreement import assert_agreement
from tests.hosts import Host, host

pytestmark = pytest.mark.root

A, B = "10.8.0.10", "10.8.0.11"


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with host() as machine:
        machine.start()
        body = {"Name": "net", "IPAM": {"Config": [{"Subnet": "10.8.0.0/24"}]}}
        assert machine.ask("POST", "/networks/create", body).status == 201
        make(machine, "a", A)
        make(machine, "b", B)
        yield machine


def make(machine: Host, name: str, address: str) -> None:
    network = {"Network": "net", "IPAMConfig": {"IPv4Address": address}}
    reply = machine.ask("POST", "/linkspan/sandboxes", {"Name": name, "Networks": [network]})
    assert reply.status == 201, reply.body


def pings(machine: Host, name: str, address: str) -> bool:
    netns = machine.ask("GET", f"/linkspan/sandboxes/{name}").json["NetnsPath"]
    command = ["nsenter", f"--net={netns}", "ping", "-q", "-c3", "-i0.01", "-W2", address]
    return " 0% packet loss" in machine.run(*command, check=False).stdout


def programs(machine: Host) -> list[Any]:
    """What tc shows on the shared blocks."""
    found = []
    for block in ("0x4c530001", "0x4c530002"):
        shown = machine.run("tc", "-json", "filter", "show", "block", str(int(block, 16)), check=False).stdout
        found += [entry for entry in json.loads(shown or "[]") if "options" in entry]
    return found


def fast_packets(machine: Host, name: str) -> int:
    text = machine.run("curl", "-sS", "http://127.0.0.1:9478/metrics").stdout
    lines = [line for line in text.splitlines() if line.startswith("linkspan_endpoint_packets_total{")]
    return sum(int(float(line.split()[-1])) for line in lines if f'sandbox="{name}"' in line and 'path="fast"' in line)


def test_programs_that_can_no_longer_be_kept_up_to_date_are_taken_off_and_come_back(machine: Host) -> None:
    assert len(programs(machine)) == 2
    assert pings(machine, "a", B)
    assert fast_packets(machine, "a") > 0
    machine.stop()
    machine.run("umount", str(machine.bpffs))
    machine.start()
    reason = machine.ask("GET", "/linkspan/status").json["fallbacks"]["ebpf"]
    assert f"mount -t bpf bpf {machine.bpffs}" in reason
    assert programs(machine) == []
    assert pings(machine, "a", B)
    # The address, and so the MAC, in another place: programs with old maps would send its packets nowhere.
    assert machine.ask("DELETE", "/linkspan/sandboxes/b").status == 204
    make(machine, "b", B)
    assert pings(machine, "a", B)
    assert_agreement(machine)

    machine.stop()
    machine.run("mount", "-t", "bpf", "bpf", str(machine.bpffs))
    machine.start()
    assert machine.ask("GET", "/linkspan/status").json["fallbacks"] == {}
    assert len(programs(machine)) == 2
    before = fast_packets(machine, "a")
    assert pings(machine, "a", B)
    assert pings(machine, "b", A)
    assert fast_packets(machine, "a") >= before + 6
    assert_agreement(machine)


def test_counters_of_an_endpoint_go_on_when_its_sandbox_leaves_another_network(machine: Host) -> None:
    assert machine.ask("POST", "/networks/create", {"Name": "second"}).status == 201
    assert machine.ask("POST", "/networks/second/connect", {"Container": "a"}).status == 200
    assert pings(machine, "a", B)
    before = fast_packets(machine, "a")
    assert machine.ask("POST", "/networks/second/disconnect", {"Container": "a"}).status == 200
    assert fast_packets(machine, "a") >= before > 0
    assert machine.ask("DELETE", "/networks/second").status == 204


def test_a_new_state_file_starts_anew_without_what_the_old_one_knew(machine: Host) -> None:
    """What linkspand itself advises for a damaged file."""
    machine.stop()
    for file in machine.state_dir.glob("linkspan.db*"):
        file.unlink()
    machine.start()
    assert [network["Name"] for network in machine.ask("GET", "/networks").json] == ["bridge", "host", "none"]
    assert machine.ask("GET", "/linkspan/sandboxes?all=1").json == []
    assert_agreement(machine)
