"""What linkspand does at start with records that do not agree with the kernel, or were cut off half-way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from control import ports
from control.counted import Counted
from control.deps import Deps
from control.drivers.base import Driver
from control.endpoints import Endpoints
from control.errors import ControlError
from control.model import Endpoint, EndpointState, Network, NetworkState, PublishedPort, Sandbox, SandboxState, utcnow
from control.plan import Step
from control.records import Records
from control.remote import RemoteNetworks
from control.remote_ipam import RemoteIpam

LOG = logging.getLogger(__name__)

_ON_ITS_WAY: Final = timedelta(minutes=1)
"""How long an engine may take from making an endpoint to joining it, repeated calls included."""


class Reconciler:
    """Brings records and kernel together, once. An object that resists stops no other: `failures` says why it does."""

    def __init__(
        self,
        deps: Deps,
        records: Records,
        counted: Counted,
        endpoints: Endpoints,
        remote: RemoteNetworks,
        remote_ipam: RemoteIpam,
        *,
        discard_network: Callable[[Network], None],
        discard_sandbox: Callable[[Sandbox], None],
    ) -> None:
        self.failures: dict[str, str] = {}
        self._deps = deps
        self._records = records
        self._counted = counted
        self._endpoints = endpoints
        self._remote = remote
        self._remote_ipam = remote_ipam
        self._discard_network = discard_network
        self._discard_sandbox = discard_sandbox

    def run(self) -> None:
        """Finishes what was cut off, starts the drivers, and applies again whatever is not whole in the kernel."""
        self._finish_cut_off()
        rebuilt = set()
        for sandbox in self._records.sandboxes():
            if not self._deps.files.is_intact(sandbox):
                self._apply(f"sandbox {sandbox.name}", self._deps.files.steps(sandbox))
                rebuilt.add(sandbox.id)
        for driver in self._deps.drivers.values():
            driver.start(*self._of(driver))
        self._counted.settle()
        for driver in self._deps.drivers.values():
            networks, endpoints = self._of(driver)
            intact = driver.intact(networks, endpoints)
            # What is whole may belong to the namespace that the sandbox had before.
            intact -= {endpoint.id for endpoint in endpoints if endpoint.sandbox_id in rebuilt}
            self._repair(driver, networks, endpoints, intact)
        for endpoint in self._records.endpoints():
            for port in endpoint.ports:
                self._hold(endpoint, port)

    def _of(self, driver: Driver) -> tuple[list[Network], list[Endpoint]]:
        networks = [network for network in self._records.networks() if network.driver == driver.name]
        return networks, [endpoint for network in networks for endpoint in self._records.on_network(network.id)]

    def _finish_cut_off(self) -> None:
        """Undoes what was being made and finishes what was being removed when the last linkspand ended."""
        sandboxes = {sandbox.id: sandbox for sandbox in self._records.sandboxes()}
        networks = {network.id: network for network in self._records.networks()}
        for endpoint in self._records.endpoints():
            sandbox, network = sandboxes.get(endpoint.sandbox_id), networks.get(endpoint.network_id)
            if endpoint.is_remote and network is not None and endpoint.state is not EndpointState.LEAVING:
                if endpoint.state is EndpointState.JOINING:
                    self._reset(endpoint)
                continue
            is_joined = endpoint.state is EndpointState.JOINED
            if sandbox is None or network is None or sandbox.state is SandboxState.EXITED or not is_joined:
                LOG.warning("removing endpoint %s, which was cut off while %s", endpoint.id[:12], endpoint.state)
                self._endpoints.discard(network, sandbox, endpoint, force=True)
                self._mended(f"endpoint {endpoint.id[:12]}")
        for sandbox in sandboxes.values():
            if sandbox.state in (SandboxState.CREATING, SandboxState.REMOVING):
                self._finish(f"sandbox {sandbox.name}", sandbox.state, lambda s=sandbox: self._discard_sandbox(s))  # type: ignore[misc]
        for network in networks.values():
            if network.state is not NetworkState.ACTIVE:
                self._finish(f"network {network.name}", network.state, lambda n=network: self._discard_network(n))  # type: ignore[misc]

    def _finish(self, what: str, state: str, discard: Callable[[], None]) -> None:
        LOG.warning("removing %s, which was cut off while %s", what, state)
        try:
            discard()
        except ControlError as error:
            self._failed(what, error)
        else:
            self._mended(what)

    def _repair(
        self, driver: Driver, networks: Sequence[Network], endpoints: Sequence[Endpoint], intact: set[str]
    ) -> None:
        """Applies again what is not `intact` in the kernel, after a reboot everything."""
        for network in networks:
            if network.id not in intact and network.state is NetworkState.ACTIVE:
                self._apply(f"network {network.name}", driver.network_steps(network))
        for endpoint in endpoints:
            if endpoint.is_remote:
                if endpoint.id not in intact:
                    self._repair_remote(driver, endpoint)
            elif endpoint.id not in intact:
                steps = driver.endpoint_steps(self._endpoints.join_of(endpoint))
                self._apply(f"endpoint {endpoint.id[:12]}", steps, is_broken=True)

    def _repair_remote(self, driver: Driver, endpoint: Endpoint) -> None:
        """A device that is there is in its sandbox and stays. An endpoint without one is its engine's no more, unless
        its sandbox is there and has lost it.

        Engines make an endpoint when they start a container, and join it at once; one that was made just now may be on
        its way there.
        """
        if not driver.remains(endpoint):
            if endpoint.state is EndpointState.JOINED and driver.lost(endpoint):
                self._mend_remote(endpoint)
                return
            is_new = utcnow() - endpoint.created < _ON_ITS_WAY
            if endpoint.state is EndpointState.JOINED or not is_new:
                self._drop(endpoint)
            return
        if endpoint.state is not EndpointState.JOINED:
            return
        what = f"endpoint {endpoint.id[:12]}"
        LOG.warning("%s is not whole in the kernel: applying it again", what)
        try:
            self._deps.reapply(driver.endpoint_steps(self._endpoints.join_of(endpoint)), f"{what} could not be mended")
        except ControlError as error:
            self._failed(what, error)
        else:
            self._mended(what)

    def _mend_remote(self, endpoint: Endpoint) -> None:
        what = f"endpoint {endpoint.id[:12]}"
        try:
            self._remote.mend(endpoint.network_id, endpoint.id)
        except ControlError as error:
            self._failed(what, error)
        else:
            self._mended(what)

    def _drop(self, endpoint: Endpoint) -> None:
        LOG.warning("removing endpoint %s, which has no device: its engine has given it up", endpoint.id[:12])
        try:
            self._remote.discard(endpoint)
            self._remote_ipam.release_lost(endpoint)
        except ControlError as error:
            self._failed(f"endpoint {endpoint.id[:12]}", error)
        else:
            self._mended(f"endpoint {endpoint.id[:12]}")

    def _reset(self, endpoint: Endpoint) -> None:
        LOG.warning(
            "endpoint %s is in no sandbox any more: its engine may delete it, or join it again", endpoint.id[:12]
        )
        try:
            self._remote.reset(endpoint)
        except ControlError as error:
            self._failed(f"endpoint {endpoint.id[:12]}", error)
        else:
            self._mended(f"endpoint {endpoint.id[:12]}")

    def _hold(self, endpoint: Endpoint, port: PublishedPort) -> None:
        """Packets get through without it, as long as nobody else takes the port."""
        try:
            ports.hold(port, endpoint, self._deps.ports)
        except ControlError as error:
            self._failed(f"endpoint {endpoint.id[:12]}", error)

    def _apply(self, what: str, steps: Sequence[Step], *, is_broken: bool = False) -> None:
        """Applies the steps; what `is_broken`, so that parts may be there but wrong, is taken down first."""
        LOG.warning("%s is not whole in the kernel: applying it again", what)
        try:
            if is_broken:
                self._deps.undo(steps, f"{what} could not be taken down")
            self._deps.apply(steps, f"{what} could not be applied again")
        except ControlError as error:
            self._failed(what, error)
        else:
            self._mended(what)

    def _mended(self, what: str) -> None:
        self._deps.observers.difference(what.partition(" ")[0], True)

    def _failed(self, what: str, error: ControlError) -> None:
        self._deps.observers.difference(what.partition(" ")[0], False)
        self.failures[what] = str(error)
        LOG.error("%s: %s", what, error)
