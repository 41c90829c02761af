"""The whole controller with a DHCP server that does as it is told and a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from control.controller import NetworkController
from control.drivers.base import Join
from control.errors import AddressInUse
from control.leases import Clock, Lease
from control.model import Endpoint, EndpointSpec, Network, NetworkSpec, Sandbox, SandboxSpec, from_json
from control.plan import Step
from tests.dhcp_server import Server
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
V4 = IPv4Network("192.168.32.0/24")
FIRST, SECOND = IPv4Address("192.168.32.100"), IPv4Address("192.168.32.101")


class LanDriver(FakeDriver):
    """A driver whose networks have DHCP servers. Joins with an address in `in_use` fail as they do on a real link."""

    def __init__(self) -> None:
        super().__init__()
        self.in_use: set[IPv4Address] = set()

    def dhcp_link(self, network: Network | NetworkSpec) -> str:
        return "eth1"

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        def look() -> None:
            ipv4 = join.endpoint.ipv4
            if ipv4 is not None and ipv4.ip in self.in_use:
                raise AddressInUse(f"{ipv4.ip} is in use", ipv4.ip)

        return [self._step("look", look, lambda: None), *super().endpoint_steps(join)]


class LastingStore(MemoryStore):
    """As a file, which is there for the next linkspand when one has closed it."""

    def close(self) -> None:
        return


class HandClock:
    """Time that goes on by `advance` alone."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def clock(self) -> Clock:
        return Clock(
            now=lambda: START + timedelta(seconds=self.elapsed_s),
            uptime=lambda: self.elapsed_s,
            wait=lambda condition, _: condition.wait(0.01),
        )

    def advance(self, seconds: float) -> None:
        self.elapsed_s += seconds


@dataclass
class World:
    run_dir: Path
    server: Server = field(default_factory=Server)
    driver: LanDriver = field(default_factory=LanDriver)
    store: LastingStore = field(default_factory=LastingStore)
    hand: HandClock = field(default_factory=HandClock)
    controllers: list[NetworkController] = field(default_factory=list)

    @property
    def controller(self) -> NetworkController:
        return self.controllers[-1]

    def start(self) -> NetworkController:
        """A linkspand on the same store and kernel, as after the death of the one before."""
        made = fake_controller(
            self.run_dir, self.driver, self.store, dhcp=self.server.client(), clock=self.hand.clock()
        )
        self.controllers.append(made)
        made.start()
        return made

    def network(self, **changed: Any) -> Network:
        spec = NetworkSpec(**{"name": "pub", "driver": "bridge", "ipam_driver": "dhcp", **changed})
        return self.controller.create_network(spec)[0]

    def sandbox(self, name: str = "web", **changed: Any) -> Sandbox:
        return self.controller.create_sandbox(SandboxSpec(name=name, networks=(("pub", EndpointSpec(**changed)),)))

    def endpoint(self, sandbox: Sandbox) -> Endpoint:
        (endpoint,) = self.controller.sandbox_endpoints(sandbox.id)
        return endpoint

    def leases(self) -> dict[str, Lease]:
        return {id_: from_json(Lease, body) for id_, body in self.store.read("dhcp")}

    def lease(self) -> Lease:
        (lease,) = self.leases().values()
        return lease


@pytest.fixture
def leasing_world(tmp_path: Path) -> Iterator[World]:
    """A world whose controllers end with the test."""
    made = World(tmp_path)
    made.start()
    yield made
    for controller in made.controllers:
        controller.stop()
