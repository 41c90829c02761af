"""What the control plane's parts work with, and the few things that all of them do with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control.cluster_spec import ClusterSpec, ClusterTimes
from control.counted import Slots
from control.drivers.base import Driver
from control.drivers.peering import Peering
from control.errors import ControlError, DatapathFailed, NotFound
from control.ipam.base import Ipam
from control.model import Address, Network, Subnet
from control.observing import Observers
from control.plan import IDLE, Observer, Step, Timer, execute, reapply, undo
from control.ports import PortHolder
from control.sandboxes import SandboxFiles
from control.store.base import Store
from datapath import ping
from datapath.dhcp import DhcpClient

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deps:
    """What a controller works with.

    `dhcp` asks the servers of existing networks; `answers` tells whether another node is there, `reaches` whether
    packets of so many bytes get to it, `routed_networks` where the host has routes to; `observe` sees every step before
    it is taken, `observers` hear of it afterwards. `slots` are what the programs count in; `map_fill` returns (entries,
    most entries) of their maps by name. `peering` is what the drivers know of the cluster, `cluster` the one that the
    configuration names. What is neither a record nor a sandbox's is in `run_dir` as long as the host is up, and in
    `state_dir` for good.
    """

    store: Store
    ipam: Ipam
    drivers: Mapping[str, Driver]
    files: SandboxFiles
    ports: PortHolder
    dhcp: DhcpClient = field(default_factory=DhcpClient)
    answers: Callable[[Address], bool] = ping.answers
    reaches: Callable[[Address, int], bool] = ping.reaches
    routed_networks: Callable[[], Sequence[Subnet]] = tuple
    observe: Observer = IDLE
    observers: Observers = field(default_factory=Observers)
    slots: Slots = field(default_factory=Slots)
    map_fill: Callable[[], Mapping[str, tuple[int, int]]] = dict
    predefined_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    peering: Peering = field(default_factory=Peering)
    cluster: ClusterSpec | None = None
    cluster_times: ClusterTimes = field(default_factory=ClusterTimes)
    run_dir: Path = Path("/run/linkspan")
    state_dir: Path = Path("/var/lib/linkspan")

    def driver(self, name: str) -> Driver:
        """Raises NotFound in Docker's words, naming the drivers that there are."""
        driver = self.drivers.get(name)
        if driver is None:
            raise NotFound(
                f'could not find plugin "{name}": plugin "{name}" not found; drivers here are '
                + ", ".join(sorted(self.drivers))
            )
        return driver

    def driver_of(self, network: Network) -> Driver:
        return self.driver(network.driver)

    def apply(self, steps: Sequence[Step], failure: str) -> None:
        """Executes the steps; what the kernel refuses is raised as DatapathFailed, introduced by `failure`."""
        self._apply(execute, steps, failure)

    def reapply(self, steps: Sequence[Step], failure: str) -> None:
        """As `apply`, for what works already: a failing step leaves it as it is."""
        self._apply(reapply, steps, failure)

    def _apply(
        self, how: Callable[[Sequence[Step], Observer, Timer], None], steps: Sequence[Step], failure: str
    ) -> None:
        try:
            how(steps, self.observe, self.observers.step)
        except ControlError:
            raise
        except Exception as error:
            LOG.exception("%s", failure)
            raise DatapathFailed(f"{failure}: {error}") from error

    def undo(self, steps: Sequence[Step], failure: str) -> None:
        """Reverts all steps; what could not be reverted is raised as one DatapathFailed, introduced by `failure`."""
        try:
            undo(steps, self.observe, self.observers.step)
        except ExceptionGroup as group:
            LOG.exception("%s", failure)
            raise DatapathFailed(f"{failure} ({'; '.join(str(error) for error in group.exceptions)})") from group
