"""Applies again what has gone with a device of the host, once that is back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

from control.deps import Deps
from control.drivers.base import Driver
from control.endpoints import Endpoints
from control.errors import ControlError, DatapathFailed, NotFound
from control.model import Endpoint, EndpointState, Network, NetworkState, Sandbox
from control.networks import Networks
from control.records import Records
from control.remote import RemoteNetworks
from datapath.link_monitor import LinkChange

LOG = logging.getLogger(__name__)


class Mender:
    """Makes networks whole again whose device of the host has changed. Thread-safe.

    `exclusive` holds off other changes of a sandbox. An object that resists stops no other: `failures` says why it
    does, until it does no longer.
    """

    def __init__(
        self,
        deps: Deps,
        records: Records,
        networks: Networks,
        endpoints: Endpoints,
        remote: RemoteNetworks,
        *,
        exclusive: Callable[[Sandbox], AbstractContextManager[Sandbox]],
        failures: dict[str, str],
    ) -> None:
        self._deps = deps
        self._records = records
        self._networks = networks
        self._endpoints = endpoints
        self._remote = remote
        self._exclusive = exclusive
        self._failures = failures
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def links_changed(self, changes: Collection[LinkChange] | None) -> None:
        """Acts on changes of the host's devices, None for any; raises DatapathFailed when these cannot be looked at.

        What is left of endpoints whose device is gone, or on another device than their network, is taken down on all
        networks before anything is made again: networks on one device share the programs there.
        """
        self._moved_in(changes)
        with self._lock:
            concerned = [(driver, network) for driver, network in self._concerned(changes)]
            for _, network in concerned:
                self._failed.discard(network.id)
                with self._noting(network, f"network {network.name}"):
                    self._networks.mend(network.id)
            again = {network.id: self._take_down(driver, network) for driver, network in concerned}
            for driver, network in concerned:
                self._bring_back(driver, network, again[network.id])

    def mend(self, subjects: Collection[str]) -> None:
        """Applies the networks and endpoints with these ids again; what resists is told by `failures`."""
        with self._lock:
            networks = self._records.networks()
            for network in networks:
                if network.id in subjects:
                    with self._noting(network, f"network {network.name}"):
                        self._networks.mend(network.id, always=True)
            for network in networks:
                for endpoint in self._records.on_network(network.id):
                    if endpoint.id in subjects:
                        self._mend(network, endpoint)

    def _mend(self, network: Network, endpoint: Endpoint) -> None:
        driver, what = self._deps.driver_of(network), f"endpoint {endpoint.id[:12]}"
        with self._noting(network, what):
            if endpoint.is_remote:
                self._remote.mend(network.id, endpoint.id)
                return
            with self._held(endpoint) as (_, now):
                if now is None:
                    return
                steps = driver.endpoint_steps(self._endpoints.join_of(now))
                if now.id in driver.intact([network], [now]):
                    self._deps.reapply(steps, f"{what} could not be applied again")
                    return
                self._deps.undo(steps, f"{what} could not be taken down")
                self._deps.apply(steps, f"{what} could not be applied again")

    def _moved_in(self, changes: Collection[LinkChange] | None) -> None:
        """Tells drivers of devices that a container engine has taken away from here."""
        gone = None if changes is None else {change.ifname for change in changes if change.is_gone}
        if gone == set():
            return
        for endpoint in self._records.endpoints():
            if not endpoint.is_remote or endpoint.state is not EndpointState.JOINED:
                continue
            network = self._records.network_by_id(endpoint.network_id)
            if network is not None and (gone is None or endpoint.ifname in gone):
                self._deps.driver_of(network).moved_in(network, endpoint)

    def _concerned(self, changes: Collection[LinkChange] | None) -> Iterator[tuple[Driver, Network]]:
        for driver in self._deps.drivers.values():
            networks = [
                network
                for network in self._records.networks()
                if network.driver == driver.name and network.state is NetworkState.ACTIVE and not network.config_only
            ]
            try:
                found = driver.concerned(networks, changes, self._failed)
            except OSError as error:
                raise DatapathFailed(f"the devices of {driver.name} networks cannot be looked at: {error}") from error
            yield from ((driver, network) for network in found)

    def _take_down(self, driver: Driver, network: Network) -> set[str]:
        """The ids of the endpoints that are to be made again."""
        again: set[str] = set()
        for endpoint in self._records.on_network(network.id):
            if endpoint.is_remote:
                continue
            what = f"endpoint {endpoint.id[:12]}"
            with self._noting(network, what), self._held(endpoint) as (sandbox, now):
                if now is None or now.id in driver.intact([network], [now]):
                    continue
                LOG.warning("%s of sandbox %s is not whole in the kernel: applying it again", what, sandbox.name)
                again.add(now.id)
                self._deps.undo(driver.endpoint_steps(self._endpoints.join_of(now)), f"{what} could not be taken down")
        return again

    def _bring_back(self, driver: Driver, network: Network, again: Collection[str]) -> None:
        """Applies the endpoints in `again`, and what may have changed about the others."""
        for endpoint in self._records.on_network(network.id):
            what = f"endpoint {endpoint.id[:12]}"
            with self._noting(network, what):
                if endpoint.is_remote:
                    self._remote.mend(network.id, endpoint.id)
                    continue
                with self._held(endpoint) as (_, now):
                    if now is None:
                        continue
                    how = self._deps.apply if now.id in again else self._deps.reapply
                    join = self._endpoints.join_of(self._endpoints.with_mac_of_now(now))
                    how(driver.endpoint_steps(join), f"{what} could not be applied again")
                    if now.id in again:
                        self._deps.observers.difference("endpoint", True)

    @contextmanager
    def _held(self, endpoint: Endpoint) -> Iterator[tuple[Sandbox, Endpoint | None]]:
        """The endpoint as it is, if it is joined, while nobody else changes it; raises NotFound."""
        with self._exclusive(self._records.sandbox(endpoint.sandbox_id)) as sandbox:
            now = self._records.endpoint(endpoint.id)
            yield sandbox, now if now is not None and now.state is EndpointState.JOINED else None

    @contextmanager
    def _noting(self, network: Network, what: str) -> Iterator[None]:
        """Takes note of what fails, and goes on; what has gone meanwhile needs no mending."""
        try:
            yield
        except NotFound:
            self._failures.pop(what, None)
        except (ControlError, OSError) as error:
            self._failed.add(network.id)
            self._failures[what] = str(error)
            self._deps.observers.difference(what.partition(" ")[0], False)
            LOG.error("%s: %s", what, error)
        else:
            self._failures.pop(what, None)
