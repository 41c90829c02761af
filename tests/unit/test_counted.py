"""Counters of networks: never backwards, whoever leaves, whenever linkspand dies, until the host does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from control.controller import NetworkController
from control.counted import KIND, Counts
from control.drivers.base import EndpointCounters
from control.errors import DatapathFailed
from control.model import Endpoint, EndpointSpec, NetworkSpec, SandboxSpec
from control.plan import Step
from datapath.latency import Histogram, Kind
from tests.fakes import FakeDriver, FakeSlots, fake_controller
from tests.memory_store import MemoryStore


class Machine:
    """A host on which one linkspand after the other runs. `has_programs` is whether slots count, or only devices do."""

    def __init__(self, directory: Path, *, has_programs: bool = True) -> None:
        self.driver, self.store = FakeDriver(), MemoryStore()
        self.slots = FakeSlots() if has_programs else None
        self._directory = directory
        self.controller = self.start()

    def start(self) -> NetworkController:
        """The next linkspand; nobody has stopped the one before."""
        self.controller = fake_controller(self._directory, self.driver, self.store, slots=self.slots)
        self.controller.start()
        return self.controller

    def join(self, name: str) -> Endpoint:
        sandbox = self.controller.create_sandbox(SandboxSpec(name=name))
        return self.controller.sandbox_endpoints(sandbox.id)[0]

    def send(self, endpoint: Endpoint, packets: int, **drops: int) -> None:
        counted = EndpointCounters(out_fast_packets=packets, out_fast_bytes=100 * packets, drops=drops)
        if self.slots is not None:
            self.slots.held[endpoint.slot] = counted
        else:
            self.driver.tallies[endpoint.id] = counted

    @property
    def sent(self) -> int:
        """By all endpoints of the network, those that have gone included."""
        return self.total.out_fast_packets

    @property
    def total(self) -> EndpointCounters:
        return next(total for network, total in self.controller.counted().networks if network.name == "bridge")


@pytest.fixture(params=[True, False], ids=["programs", "devices"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, has_programs=request.param)


def test_what_an_endpoint_had_counted_stays_with_its_network(machine: Machine) -> None:
    web, db = machine.join("web"), machine.join("db")
    machine.send(web, 5, spoofed_mac=2)
    machine.send(db, 7, spoofed_mac=1, malformed=3)
    assert machine.sent == 12
    machine.controller.remove_sandbox("web")
    assert machine.total == EndpointCounters(
        out_fast_packets=12, out_fast_bytes=1200, drops={"spoofed_mac": 3, "malformed": 3}
    )
    assert [name for *_, name, _ in machine.controller.counted().endpoints] == ["db"]
    machine.start()
    assert machine.sent == 12


def test_latencies_stay_with_the_network_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.slots is not None
    web, db = machine.join("web"), machine.join("db")
    machine.slots.timed[web.slot] = {Kind.FAST: Histogram({-60: 3, -59: 1}, 0.5)}
    machine.slots.timed[db.slot] = {Kind.FAST: Histogram({-59: 2}, 0.25), Kind.TCP_RTT: Histogram({-40: 1}, 1.0)}
    both = {Kind.FAST: Histogram({-60: 3, -59: 3}, 0.75), Kind.TCP_RTT: Histogram({-40: 1}, 1.0)}
    counts = machine.controller.counted()
    assert counts.endpoint_latencies(web.id) == machine.slots.timed[web.slot]
    assert of_networks(counts) == {"bridge": both}
    machine.controller.remove_sandbox("db")
    machine.start()
    counts = machine.controller.counted()
    assert of_networks(counts) == {"bridge": both}
    assert [id_ for id_ in counts.slots if counts.endpoint_latencies(id_)] == [web.id]
    assert machine.join("next").slot == db.slot
    assert of_networks(machine.controller.counted()) == {"bridge": both}


def of_networks(counts: Counts) -> dict[str, dict[Kind, Histogram]]:
    return {counts.networks[place][0].name: found for place, found in counts.network_latencies.items()}


def test_a_sum_is_modulo_64_bits_as_counters_are(machine: Machine) -> None:
    for name in ("web", "db"):
        machine.send(machine.join(name), 2**57)
    assert machine.total.out_fast_packets == 2**58
    assert machine.total.out_fast_bytes == 200 * 2**57 % 2**64


def test_a_slot_that_is_used_again_counts_from_zero(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    web = machine.join("web")
    machine.send(web, 5)
    machine.controller.remove_sandbox("web")
    db = machine.join("db")
    assert db.slot == web.slot
    assert machine.sent == 5
    assert [counted for *_, counted in machine.controller.counted().endpoints] == [EndpointCounters()]
    machine.send(db, 1)
    assert machine.sent == 6


def test_a_crash_at_any_write_loses_no_count_and_counts_nothing_twice(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    is_whole = False
    for surviving in range(20):
        machine.send(machine.join(f"s{surviving}"), 10)
        write = machine.store.write
        machine.store.write = _dying_after(write, surviving)  # type: ignore[method-assign]
        try:
            machine.controller.remove_sandbox(f"s{surviving}")
            is_whole = True
        except _Crash:
            assert machine.sent == 10 * (surviving + 1)
        finally:
            machine.store.write = write  # type: ignore[method-assign]
        machine.start()
        assert machine.sent == 10 * (surviving + 1)
        for endpoint in machine.controller.endpoints():  # it died before anything was done
            machine.controller.remove_sandbox(endpoint.sandbox_id)
        if is_whole:
            break
    assert surviving >= 3, "removing a sandbox takes some writes"


class _Crash(BaseException):
    pass


def _dying_after(write: Callable[..., None], surviving: int) -> Callable[..., None]:
    left = surviving

    def dying(changes: object) -> None:
        nonlocal left
        if left == 0:
            raise _Crash
        left -= 1
        write(changes)

    return dying


def test_a_reboot_starts_all_at_zero(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.slots is not None
    machine.send(machine.join("web"), 5)
    machine.controller.remove_sandbox("web")
    assert machine.sent == 5
    machine.slots.reboot()
    machine.start()
    assert machine.sent == 0
    assert KIND not in machine.store.dump()


def test_a_network_that_is_removed_takes_its_counts_along(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.controller.create_network(NetworkSpec(name="blue"))
    sandbox = machine.controller.create_sandbox(SandboxSpec(name="web", networks=(("blue", EndpointSpec()),)))
    machine.send(machine.controller.sandbox_endpoints(sandbox.id)[0], 5)
    machine.controller.remove_sandbox("web")
    assert machine.store.dump()[KIND]
    machine.controller.remove_network("blue")
    assert not machine.store.dump().get(KIND)
    assert [network.name for network, _ in machine.controller.counted().networks] == ["bridge", "host", "none"]


def test_a_device_that_is_gone_for_now_takes_nothing_from_its_network(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    web = machine.join("web")
    machine.send(web, 5)
    join = machine.driver.endpoints.pop(web.id)
    assert machine.controller.counted().endpoints == []
    assert machine.sent == 5
    machine.driver.endpoints[web.id] = join
    assert machine.sent == 5


def test_who_leaves_or_joins_while_the_maps_are_read_is_counted_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    web = machine.join("web")
    machine.send(web, 5)
    counters = machine.driver.counters

    def in_between(endpoints: list[Endpoint]) -> dict[str, EndpointCounters]:
        read = counters(endpoints)
        machine.driver.counters = counters  # type: ignore[method-assign]
        machine.controller.remove_sandbox("web")
        successor = machine.join("db")
        assert successor.slot == web.slot
        machine.send(successor, 1)
        return read

    machine.driver.counters = in_between  # type: ignore[method-assign, assignment]
    seen = machine.controller.counted()
    assert [name for *_, name, _ in seen.endpoints] == []
    assert next(total.out_fast_packets for network, total in seen.networks if network.name == "bridge") == 5
    assert machine.sent == 6


def test_counters_of_a_device_that_is_about_to_go_stand_still(tmp_path: Path) -> None:
    machine = Machine(tmp_path, has_programs=False)
    web = machine.join("web")
    machine.send(web, 5)
    steps = machine.driver.endpoint_steps
    machine.driver.endpoint_steps = lambda join: [Step("stay", _pass, _refuse)]  # type: ignore[method-assign]
    with pytest.raises(DatapathFailed):
        machine.controller.disconnect("bridge", "web")
    machine.driver.tallies[web.id] = structs.replace(machine.driver.tallies[web.id], out_fast_packets=6)
    assert machine.sent == 5
    machine.driver.endpoint_steps = steps  # type: ignore[method-assign]
    machine.controller.disconnect("bridge", "web")
    assert machine.sent == 6


def _pass() -> None:
    pass


def _refuse() -> None:
    raise OSError("busy")
