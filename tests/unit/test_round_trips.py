"""Whose connections are timed: who joins and leaves, and that nothing fails because of it."""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from control.controller import NetworkController
from control.model import Endpoint, EndpointSpec, NetworkSpec, SandboxSpec
from datapath.tcp_rtt import End, TcpRtt
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore


class FakeRtt(TcpRtt):
    """Remembers ends instead of telling the kernel; refuses all of them with `error`."""

    def __init__(self) -> None:
        self.ends: dict[int, End] = {}
        self.renewed: set[int] = set()
        self.differing: list[tuple[int, str]] = []
        self.error: OSError | None = None
        self.problem, self.fallbacks = None, {}

    def start(self, ends: Sequence[End], renewed: Collection[int] = ()) -> int:
        wanted = {end.slot: end for end in ends}
        count = len(wanted.items() ^ self.ends.items())
        self.ends, self.renewed = wanted, set(renewed)
        return count

    def add(self, end: End) -> None:
        if self.error is not None:
            raise self.error
        self.ends[end.slot] = end

    def remove(self, end: End) -> None:
        if self.error is not None:
            raise self.error
        assert self.ends.pop(end.slot) == end

    def differences(self, ends: Sequence[End], leave: Collection[int]) -> list[tuple[int, str]]:
        return self.differing


class Machine:
    """A host on which one linkspand after the other runs."""

    def __init__(self, directory: Path) -> None:
        self.rtt, self.driver, self.store = FakeRtt(), FakeDriver(), MemoryStore()
        self.directory = directory
        self.start()

    def start(self) -> NetworkController:
        self.controller = fake_controller(self.directory, self.driver, self.store, tcp_rtt=self.rtt)
        self.differences: list[str] = []
        self.controller.observers.difference = lambda what, is_mended: self.differences.append(what)
        self.controller.start()
        return self.controller

    def join(self, name: str, network: str = "bridge", spec: EndpointSpec | None = None) -> Endpoint:
        sandbox = self.controller.create_sandbox(SandboxSpec(name=name, networks=((network, spec or EndpointSpec()),)))
        return self.controller.sandbox_endpoints(sandbox.id)[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_endpoint_has_all_its_addresses_timed_while_it_is_joined(machine: Machine) -> None:
    machine.controller.create_network(NetworkSpec(name="six", enable_ipv6=True))
    spec = EndpointSpec(mac="02:00:00:00:00:07", link_local_ips=(ip_address("169.254.7.7"),))
    endpoint = machine.join("web", "six", spec)
    assert endpoint.ipv4 is not None
    assert endpoint.ipv6 is not None
    (end,) = machine.rtt.ends.values()
    assert end.slot == endpoint.slot
    assert end.netns_path == str(machine.directory / "netns" / endpoint.sandbox_id)
    assert set(end.addresses) == {
        endpoint.ipv4.ip, endpoint.ipv6.ip, ip_address("fe80::ff:fe00:7"), ip_address("169.254.7.7"),
    }  # fmt: skip
    machine.controller.remove_sandbox("web")
    assert machine.rtt.ends == {}


@pytest.mark.parametrize("network", ["host", "none"])
def test_endpoints_without_addresses_have_nothing_to_time(machine: Machine, network: str) -> None:
    machine.join("web", network)
    assert machine.rtt.ends == {}


def test_a_join_that_fails_leaves_nothing(machine: Machine) -> None:
    machine.driver.failing["endpoint"] = OSError(errno.EIO, "broken")
    with pytest.raises(Exception, match="broken"):
        machine.join("web")
    assert machine.rtt.ends == {}


def test_what_is_refused_is_logged_and_hurts_nobody(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.rtt.error = OSError(errno.E2BIG, "map tcp_locals is full")
    endpoint = machine.join("web")
    assert f"time the connections of endpoint {endpoint.id[:12]}" in caplog.text
    assert "map tcp_locals is full" in caplog.text
    machine.controller.remove_sandbox("web")
    assert machine.controller.endpoints() == []


def test_a_start_brings_all_in_line_and_counts_what_was_not(machine: Machine) -> None:
    kept, lost = machine.join("kept"), machine.join("lost")
    before = dict(machine.rtt.ends)
    machine.start()
    assert (machine.rtt.ends, machine.differences.count("tcp-rtt")) == (before, 0)
    del machine.rtt.ends[lost.slot]
    machine.start()
    assert (machine.rtt.ends, machine.differences.count("tcp-rtt")) == (before, 1)
    assert machine.rtt.renewed == set()
    (machine.directory / "sandboxes" / kept.sandbox_id / "hosts").unlink()
    machine.start()
    assert machine.rtt.renewed == {kept.slot}


def test_fallbacks_are_told_with_those_of_drivers(machine: Machine) -> None:
    machine.driver.fallbacks = {"tcx": "none"}
    machine.rtt.fallbacks["tcp-rtt"] = "no cgroup2"
    assert machine.controller.status()["fallbacks"] == {"tcx": "none", "tcp-rtt": "no cgroup2"}
