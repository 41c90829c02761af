"""Records and kernel through every failure of the store: before the kernel is touched, after it, and while undoing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, ip_address
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from control.controller import NetworkController
from control.errors import Exhausted
from control.model import EndpointSpec, NetworkSpec, PoolSpec, SandboxSpec
from control.store.base import Change
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore

NET = NetworkSpec(name="net", pools=(PoolSpec(subnet=IPv4Network("10.1.0.0/29")),))
JOIN = EndpointSpec(ipv4=ip_address("10.1.0.5"))  # type: ignore[arg-type]
FULL = Exhausted("cannot write state file: no space left")


class TrickyStore(MemoryStore):
    """Lets `good` writes through and refuses the `bad` ones after them."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.bad = 0, 0

    def write(self, changes: Iterable[Change]) -> None:
        batch = list(changes)
        if self.good:
            self.good -= 1
        elif self.bad:
            self.bad -= 1
            raise FULL
        super().write(batch)


class World:
    """A controller on a tricky store, with a network `net`, a network `other` and a sandbox `box` on `other`."""

    def __init__(self, run_dir: Path) -> None:
        self.store, self.driver, self.run_dir = TrickyStore(), FakeDriver(), run_dir
        self.controller = self.start()
        self.controller.create_network(NetworkSpec(name="other"))
        self.controller.create_sandbox(SandboxSpec(name="box", networks=(("other", EndpointSpec()),)))

    def start(self) -> NetworkController:
        self.controller = fake_controller(self.run_dir, self.driver, self.store)
        self.controller.start()
        return self.controller

    def restart(self) -> None:
        self.controller._endpoints.stop()
        self.start()

    def state(self) -> Any:
        """What users see of the controller, and what the kernel holds."""
        controller = self.controller
        networks = {network.name: (network.state, controller.pool_usage(network)) for network in controller.networks()}
        sandboxes = {
            sandbox.name: (sandbox.state, [e.state for e in controller.sandbox_endpoints(sandbox.id)])
            for sandbox in controller.sandboxes()
        }
        return networks, sandboxes, self.driver.networks.copy(), set(self.driver.endpoints)

    def leases(self) -> set[str]:
        return {id_ for id_, _ in self.store.read("lease")}


MakeWorld = Callable[[], World]
Act = Callable[[NetworkController], object]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    worlds: list[World] = []

    def make() -> World:
        worlds.append(World(tmp_path / str(len(worlds))))
        return worlds[-1]

    yield make
    for world in worlds:
        world.controller.stop()


CHANGES: dict[str, tuple[Act, Act]] = {
    # what must be there before, and the change
    "network create": (lambda c: None, lambda c: c.create_network(NET)),
    "network rm": (lambda c: c.create_network(NET), lambda c: c.remove_network("net")),
    "connect": (lambda c: c.create_network(NET), lambda c: c.connect("net", "box", JOIN)),
    "disconnect": (
        lambda c: (c.create_network(NET), c.connect("net", "box", JOIN)),
        lambda c: c.disconnect("net", "box"),
    ),
    "sandbox create": (
        lambda c: c.create_network(NET),
        lambda c: c.create_sandbox(SandboxSpec(name="new", networks=(("net", JOIN), ("other", EndpointSpec())))),
    ),
    "sandbox rm": (
        lambda c: (c.create_network(NET), c.connect("net", "box", JOIN)),
        lambda c: c.remove_sandbox("box"),
    ),
}
each_change = pytest.mark.parametrize(("prepare", "change"), CHANGES.values(), ids=CHANGES.keys())


@each_change
@pytest.mark.parametrize("bad", [1, 2, 99])
def test_a_disk_full_at_any_write_is_told_and_the_change_can_be_made_when_there_is_space(
    make_world: MakeWorld, prepare: Act, change: Act, bad: int
) -> None:
    for good in count():
        world = make_world()
        prepare(world.controller)
        before = world.state()
        world.store.good, world.store.bad = good, bad
        try:
            change(world.controller)
        except Exhausted:
            pass
        else:
            assert good > 1, "the change writes twice at least"
            return
        finally:
            world.store.good = world.store.bad = 0
        if good == 0:
            assert world.state() == before
        repeat(world, change)


def repeat(world: World, change: Act) -> None:
    """Cleans up with what users have for it, makes the change again, and finds the same after a restart."""
    controller = world.controller
    if any(sandbox.name == "new" for sandbox in controller.sandboxes()):
        controller.remove_sandbox("new")
    created = [network for network in controller.networks() if network.name == "net" and network.state == "creating"]
    for network in created:
        controller.remove_network(network.name)
    for endpoint in controller.endpoints():
        if endpoint.state == "joining":
            controller.disconnect(endpoint.network_id, endpoint.sandbox_id)
    change(controller)
    state, leases = world.state(), world.leases()
    world.restart()
    assert world.state() == state
    assert world.leases() == leases


@each_change
def test_a_disk_full_for_good_leaves_what_a_restart_settles(make_world: MakeWorld, prepare: Act, change: Act) -> None:
    for good in count():
        world = make_world()
        prepare(world.controller)
        world.store.good, world.store.bad = good, 99
        try:
            change(world.controller)
        except Exhausted:
            world.store.good = world.store.bad = 0
            world.restart()
        else:
            return
        networks, sandboxes, kernel_networks, kernel_endpoints = world.state()
        assert {state for state, _ in networks.values()} == {"active"}
        assert {state for state, _ in sandboxes.values()} <= {"created"}
        assert {state for _, states in sandboxes.values() for state in states} <= {"joined"}
        assert kernel_networks == {n.id for n in world.controller.networks() if n.driver == "bridge"}
        assert kernel_endpoints == {endpoint.id for endpoint in world.controller.endpoints()}
