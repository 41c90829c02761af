"""A host without a kernel: drivers and sandboxes whose state lives in memory, for the real controller to run on."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import ClassVar

import msgspec

from control.cluster_spec import Cluster
from control.controller import NetworkController
from control.counted import Slots
from control.deps import Deps
from control.drivers.base import Capabilities, Driver, DriverStatus, EndpointCounters, Join, ParentState
from control.errors import InvalidArgument
from control.ipam.pools import PoolIpam
from control.leases import Clock
from control.model import Endpoint, Network, NetworkSpec, Sandbox
from control.plan import Step
from control.sandboxes import SandboxFiles
from control.store.base import Store
from datapath.dhcp import DhcpClient
from datapath.latency import Histogram, Histograms, Kind
from tests.fake_cluster import FakeCluster
from tests.memory_store import MemoryStore


class FakeDriver(Driver):
    """Holds the ids of the networks and endpoints that exist, as the kernel would.

    Knows the option `fake.option`. A step whose name is in `failing` raises what is stored there; `gate`, when set, is
    waited for by every step. `tallies` are the counters it reports, by endpoint id, which are in `slots` as those of
    programs are, or else go with the device; `parents` the devices that its networks are on, by name.
    """

    name: ClassVar[str] = "bridge"
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self) -> None:
        self.networks: set[str] = set()
        self.endpoints: dict[str, Join] = {}
        self.published: set[str] = set()
        self.failing: dict[str, Exception] = {}
        self.gate: threading.Event | None = None
        self.tallies: dict[str, EndpointCounters] = {}
        self.slots: FakeSlots | None = None
        self.fallbacks: dict[str, str] = {}
        self.parents: dict[str, ParentState] = {}

    def validate(self, spec: NetworkSpec, others: Sequence[Network]) -> None:
        for option in spec.options:
            if option != "fake.option":
                raise InvalidArgument(f"unknown option {option!r}: the driver {self.name} knows fake.option")

    def network_steps(self, network: Network) -> Sequence[Step]:
        return [
            self._step("network", lambda: self.networks.add(network.id), lambda: self.networks.discard(network.id)),
        ]

    def settle_endpoint(self, network: Network, endpoint: Endpoint, siblings: Sequence[Endpoint]) -> Endpoint:
        return msgspec.structs.replace(endpoint, host_ifname=f"ls{endpoint.id[:12]}")

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        key = join.endpoint.id
        return [
            self._step(
                "endpoint",
                lambda: self.endpoints.__setitem__(key, join),
                lambda: self.endpoints.pop(key, None) and None,
            )
        ]

    def publish_steps(self, network: Network, endpoint: Endpoint) -> Sequence[Step]:
        """As one element a port in `published`."""
        elements = {f"{port}" for port in endpoint.ports}

        def take_back() -> None:
            self.published -= elements

        return [self._step("publish", lambda: self.published.update(elements), take_back)]

    def remains(self, endpoint: Endpoint) -> bool:
        return endpoint.id in self.endpoints

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> set[str]:
        return self.networks | self.endpoints.keys()

    def parent(self, network: Network) -> ParentState | None:
        return self.parents.get(network.name)

    def info(self, network: Network) -> dict[str, str]:
        return {"device": f"fake-{network.id[:12]}"}

    def counters(self, endpoints: Sequence[Endpoint]) -> dict[str, EndpointCounters]:
        if self.slots is not None:
            return self.slots.counters([e for e in endpoints if e.id in self.endpoints])
        return {e.id: self.tallies.get(e.id, EndpointCounters()) for e in endpoints}

    def last_counters(self, endpoint: Endpoint) -> EndpointCounters | None:
        return None if self.slots is not None else self.tallies.get(endpoint.id)

    def status(self) -> DriverStatus:
        return DriverStatus(facts={"path": "memory"}, fallbacks=self.fallbacks)

    def _step(self, name: str, apply: Callable[[], None], revert: Callable[[], None]) -> Step:
        def guarded(change: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                if self.gate is not None:
                    assert self.gate.wait(30), "nobody opened the gate"
                if name in self.failing:
                    raise self.failing[name]
                change()

            return run

        return Step(f"fake {name}", guarded(apply), revert)


def histograms(of: Mapping[int, Mapping[Kind, Histogram]]) -> Histograms:
    """Those, held as what is read from the programs' map."""
    held = Histograms(max(of, default=-1) + 1)
    for owner, by_kind in of.items():
        held.hold_sum(owner, Histograms(), (), by_kind)
    return held


class FakeSlots:
    """The programs' map of counters, which outlives every controller, until `reboot`."""

    def __init__(self) -> None:
        self.held: dict[int, EndpointCounters] = {}
        self.timed: dict[int, dict[Kind, Histogram]] = {}
        self.boots = 0

    def reboot(self) -> None:
        self.held.clear()
        self.timed.clear()
        self.boots += 1

    def counters(self, endpoints: Sequence[Endpoint]) -> dict[str, EndpointCounters]:
        return {e.id: self.held.get(e.slot, EndpointCounters()) for e in endpoints}

    def _clear(self, slot: int) -> None:
        self.held.pop(slot, None)
        self.timed.pop(slot, None)

    def as_slots(self) -> Slots:
        return Slots(
            read=lambda slots: {slot: self.held.get(slot, EndpointCounters()) for slot in slots},
            clear=self._clear,
            since=lambda: f"boot {self.boots}",
            latencies=lambda _: histograms(self.timed),
        )


class FakePorts:
    """The host's ports: those in `taken`, (protocol, number), belong to somebody else; `held` are held."""

    def __init__(self) -> None:
        self.taken: set[tuple[str, int]] = set()
        self.held: set[tuple[str, str, int]] = set()

    def hold(
        self,
        protocol: str,
        host_ip: IPv4Address | IPv6Address | None,
        first: int,
        count: int = 1,
        *,
        v4: bool = True,
        v6: bool = True,
    ) -> None:
        wanted = {(protocol, str(host_ip), number) for number in range(first, first + count)}
        for _, _, number in wanted:
            if (protocol, number) in self.taken:
                raise OSError(errno.EADDRINUSE, f"port {number}/{protocol} is in use by nginx (process 7)")
        self.held |= wanted

    def release(self, protocol: str, host_ip: IPv4Address | IPv6Address | None, first: int, count: int = 1) -> None:
        self.held -= {(protocol, str(host_ip), number) for number in range(first, first + count)}

    def ephemeral_ports(self) -> range:
        return range(40000, 40004)

    def close(self) -> None:
        self.held.clear()


class FakeHost(FakeDriver):
    """The driver `host`, without addresses or a namespace of its own."""

    name: ClassVar[str] = "host"
    capabilities: ClassVar[Capabilities] = Capabilities(
        addresses=False, own_netns=False, exclusive=True, singleton=True
    )


class FakeNone(FakeDriver):
    """The driver `null`."""

    name: ClassVar[str] = "null"
    capabilities: ClassVar[Capabilities] = Capabilities(addresses=False, exclusive=True, singleton=True)


class FakeFiles(SandboxFiles):
    """Sandboxes with their files, under `run_dir`, and without network namespaces."""

    def start(self, known: Sequence[str]) -> None:  # type: ignore[override]
        self._files_dir.mkdir(parents=True, exist_ok=True)

    def steps(self, sandbox: Sandbox) -> Sequence[Step]:
        return super().steps(msgspec.structs.replace(sandbox, owns_netns=False))

    def is_intact(self, sandbox: Sandbox) -> bool:
        return Path(self.paths(sandbox).hosts).exists()


def fake_controller(
    run_dir: Path,
    driver: FakeDriver | None = None,
    store: Store | None = None,
    ports: FakePorts | None = None,
    dhcp: DhcpClient | None = None,
    clock: Clock | None = None,
    cluster: Cluster | None = None,
    answers: Callable[[IPv4Address | IPv6Address], bool] = lambda _: True,
    slots: FakeSlots | None = None,
) -> NetworkController:
    """Returns a controller that is not started, with fake drivers and cluster, the real IPAM and a store in memory."""
    drivers: list[FakeDriver] = [driver or FakeDriver(), FakeHost(), FakeNone()]
    drivers[0].slots = slots
    controller = NetworkController(
        Deps(
            store=store or MemoryStore(),
            ipam=PoolIpam(),
            drivers={each.name: each for each in drivers},
            files=FakeFiles(run_dir),
            ports=ports or FakePorts(),
            dhcp=dhcp or DhcpClient(),
            answers=answers,
            slots=Slots() if slots is None else slots.as_slots(),
        ),
        clock,
    )
    controller.cluster = cluster or FakeCluster()
    return controller
