"""The controller: turns requests into records and steps, and is the only writer of both.

Order of every change: check, store the record in a state that says what is being done, change the kernel without
holding the records' lock, store the settled state. A crash at any point leaves a record that `start` can act on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from control.cluster_spec import Cluster
from control.counted import Counted, Counts
from control.deps import Deps
from control.doctor.doctor import Doctor
from control.drivers.base import ParentState
from control.endpoints import Endpoints
from control.errors import Conflict, DatapathFailed, Forbidden, InvalidArgument
from control.events import Event, EventBus, Listener
from control.global_networks import GlobalNetworks
from control.lease_keeper import LeaseKeeper
from control.leases import Clock, Leases
from control.locks import KeyedLocks
from control.membership import Membership
from control.mending import Mender
from control.model import (
    Endpoint,
    EndpointSpec,
    Network,
    NetworkId,
    NetworkSpec,
    Sandbox,
    SandboxId,
    SandboxSpec,
    SandboxState,
    advance,
    utcnow,
)
from control.networks import Networks, check_name
from control.observing import Observers
from control.reconcile import Reconciler
from control.records import Records
from control.remote import RemoteNetworks
from control.remote_ipam import RemoteIpam
from control.sandboxes import (
    SandboxPaths,
    is_running,
    kill_processes,
    process_start,
)
from control.tracing import Tracing
from datapath.link_monitor import LinkChange

LOG = logging.getLogger(__name__)


class NetworkController:
    """Networks, endpoints and sandboxes of one host. Synchronous; every public method may be called from any thread."""

    cluster: Cluster

    def __init__(self, deps: Deps, clock: Clock | None = None) -> None:
        self._deps = deps
        self._records = Records(deps.store)
        self._bus = EventBus()
        self._leases = Leases(deps, self._records, clock)
        self._counted = Counted(deps.store, deps.slots, deps.drivers, self._records)
        self.global_networks = GlobalNetworks(deps, self._records, self._counted, self._bus)
        parts = deps, self._records, self._counted, self._leases, self.global_networks, self._bus
        self._endpoints = Endpoints(*parts)
        self._networks = Networks(*parts)
        self.cluster = Membership(deps, self._records, self.global_networks, self._force_off)
        self.remote = RemoteNetworks(deps, self._records, self._bus, self._networks, self._endpoints)
        self.remote_ipam = RemoteIpam(deps, self._records)
        self._reconciler = Reconciler(
            deps,
            self._records,
            self._counted,
            self._endpoints,
            self.remote,
            self.remote_ipam,
            discard_network=self._networks.discard,
            discard_sandbox=self._discard_sandbox,
        )
        self.tracing = Tracing(deps, self._records, self.global_networks.node_addresses, self.global_networks.elsewhere)
        self._sandbox_locks = KeyedLocks()
        self._mender = Mender(
            deps,
            self._records,
            self._networks,
            self._endpoints,
            self.remote,
            exclusive=self._exclusive,
            failures=self._reconciler.failures,
        )
        self.doctor = Doctor(
            deps,
            self._records,
            self.cluster,
            join_of=self._endpoints.join_of,
            status=self.status,
            mend_subjects=self._mender.mend,
        )
        self._keeper = LeaseKeeper(self._leases, self._records, self._endpoints, self._exclusive)

    # -- start and stop ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Reads the store, finishes what was cut off, and repairs what the kernel lacks.

        Packets keep flowing meanwhile. Raises StoreError; objects that cannot be repaired are in `status` instead.
        """
        begin = time.monotonic()
        with self._deps.observers.operation("start"):
            self._records.load()
            self._counted.load()
            self._leases.load()
            self.cluster.load()
            self._deps.ipam.load(self._deps.store)
            self.remote_ipam.start()
            self._deps.files.start(sandbox.id for sandbox in self._records.sandboxes())
            self._reconciler.run()
            self._networks.create_predefined()
            self._endpoints.start()
            self._keeper.start()
            self.cluster.start()
        LOG.info("started in %.3f s: %s", time.monotonic() - begin, self.counts())

    def stop(self) -> None:
        """Stops working; networks and sandboxes go on. Idempotent."""
        self._keeper.stop()
        self.cluster.stop()
        self._endpoints.stop()
        self.remote.stop()
        self._deps.ports.close()
        self._deps.store.close()

    # -- looking -------------------------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """All networks that are there or coming."""
        return self._records.networks()

    def network(self, ref: str) -> Network:
        """By full id, name or unique id prefix; raises NotFound, or InvalidArgument when a prefix is ambiguous."""
        return self._records.network(ref)

    def endpoints(self) -> list[Endpoint]:
        return self._records.endpoints()

    def network_endpoints(self, network_id: NetworkId) -> list[Endpoint]:
        return self._records.on_network(network_id)

    def sandbox_endpoints(self, sandbox_id: SandboxId) -> list[Endpoint]:
        """Oldest first, which is also the order of its interfaces."""
        return self._records.in_sandbox(sandbox_id)

    def sandboxes(self) -> list[Sandbox]:
        return self._records.sandboxes()

    def sandbox(self, ref: str) -> Sandbox:
        """As `network`, for sandboxes."""
        return self._records.sandbox(ref)

    def paths(self, sandbox: Sandbox) -> SandboxPaths:
        return self._deps.files.paths(sandbox)

    def network_info(self, network: Network) -> dict[str, str]:
        """What the driver says of the network: devices, the path packets take, fallbacks; its leases and ports."""
        info = self._deps.driver_of(network).info(network)
        if leases := self._leases.describe(network):
            info = {**info, "linkspan.leases": leases}
        ports = [f"{port} ({e.id[:12]})" for e in self._records.on_network(network.id) for port in e.ports]
        return {**info, "linkspan.ports": ", ".join(ports)} if ports else info

    def pool_usage(self, network: Network) -> dict[str, tuple[int, int]]:
        """Addresses in use, and still to be had, by subnet."""
        if network.is_global:
            return self.global_networks.usage(network)
        return {str(pool.subnet): self._deps.ipam.usage(pool.pool_id) for pool in network.pools if pool.pool_id}

    def lease_states(self) -> list[tuple[Network, str]]:
        """For every lease of a DHCP server its network, and whether it is "kept" or "lost"."""
        return self._leases.states()

    def counted(self) -> Counts:
        """What is counted of endpoints, and by network also of those that have gone. May take some milliseconds."""
        return self._counted.read()

    def map_fill(self) -> Mapping[str, tuple[int, int]]:
        """(entries, most entries) of the programs' maps that can be full, by name."""
        return self._deps.map_fill()

    def driver_names(self) -> list[str]:
        """The drivers of which networks can be made."""
        return sorted(name for name, driver in self._deps.drivers.items() if not driver.capabilities.singleton)

    def counts(self) -> dict[str, int]:
        return {
            "networks": len(self._records.networks()),
            "endpoints": len(self._records.endpoints()),
            "sandboxes": len(self._records.sandboxes()),
        }

    def status(self) -> dict[str, Any]:
        """Facts and fallbacks of every driver, what could not be repaired, the devices of the host that networks are
        on, and how much there is of all."""
        drivers = {name: driver.status() for name, driver in self._deps.drivers.items()}
        failures = {**self._reconciler.failures, **self.cluster.problems()}
        known = self._names() if failures else ()
        return {
            "drivers": {name: dict(status.facts) for name, status in drivers.items()},
            "fallbacks": {
                feature: reason for status in drivers.values() for feature, reason in status.fallbacks.items()
            },
            "broken": {what: why for what, why in failures.items() if what in known},
            "parents": [
                {"network": network.name, "parent": parent.ifname, "state": parent.state, "up": parent.is_up}
                for network, parent in self.parents()
            ],
            **self.counts(),
        }

    def _names(self) -> set[str]:
        """What messages call the objects that there are."""
        return {
            *(f"network {network.name}" for network in self._records.networks()),
            *(f"sandbox {sandbox.name}" for sandbox in self._records.sandboxes()),
            *(f"endpoint {endpoint.id[:12]}" for endpoint in self._records.endpoints()),
        }

    def parents(self) -> list[tuple[Network, ParentState]]:
        """The devices of the host that networks are on, by network."""
        return [
            (network, parent)
            for network in self._records.networks()
            if not network.config_only and (parent := self._deps.driver_of(network).parent(network)) is not None
        ]

    def restore_firewall(self) -> None:
        """Puts back what others took out of the host's firewall; raises DatapathFailed."""
        with self._records.lock:
            networks, endpoints = self._records.networks(), self._records.endpoints()
        for name, driver in self._deps.drivers.items():
            own = [network for network in networks if network.driver == name and not network.config_only]
            ids = {network.id for network in own}
            try:
                driver.restore_firewall(own, [endpoint for endpoint in endpoints if endpoint.network_id in ids])
            except OSError as error:
                self._deps.observers.difference("firewall", False)
                raise DatapathFailed(f"the firewall of {name} networks is not whole: {error}") from error
        self._deps.observers.difference("firewall", True)

    def links_changed(self, changes: Collection[LinkChange] | None) -> None:
        """Has the networks follow the host's devices after these changes, None for any.

        Raises DatapathFailed when the devices cannot be looked at; what cannot be mended is in `status`.
        """
        self._mender.links_changed(changes)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with every Event, in whatever thread; returns what ends the subscription."""
        return self._bus.subscribe(listener)

    @property
    def observers(self) -> Observers:
        """Who is told of what is done: to be set by who wants to know."""
        return self._deps.observers

    # -- networks ------------------------------------------------------------------------------------------------

    def create_network(self, spec: NetworkSpec) -> tuple[Network, list[str]]:
        """Makes a network; returns it with warnings.

        Raises InvalidArgument, Conflict, Forbidden, Exhausted, NotFound (driver).
        """
        return self._networks.create(spec)

    def remove_network(self, ref: str, force: bool = False) -> None:
        """Removes a network without endpoints; raises NotFound, Forbidden, Conflict. May be repeated when it failed.

        One that a container engine owns goes only with `force`, which is for when the engine is gone.
        """
        network = self._records.network(ref)
        if force and network.owner:
            self.remote.delete_network(network.id)
        else:
            self._networks.remove(network.id)

    def prune_networks(self, keep: Callable[[Network], bool]) -> list[str]:
        """Removes the networks that are neither predefined, an engine's, in use, nor kept; returns their names."""
        return self._networks.prune(keep)

    # -- endpoints -----------------------------------------------------------------------------------------------

    def connect(self, network_ref: str, sandbox_ref: str, spec: EndpointSpec | None = None) -> Endpoint:
        """Joins a sandbox to a network; raises NotFound, InvalidArgument, Forbidden, Conflict, Exhausted."""
        with self._exclusive(self._records.sandbox(sandbox_ref)) as sandbox:
            if sandbox.state not in (SandboxState.CREATED, SandboxState.RUNNING):
                raise Forbidden(f"container {sandbox.name} is not running: it is {sandbox.state}")
            return self._endpoints.join(network_ref, sandbox, spec or EndpointSpec())

    def disconnect(self, network_ref: str, sandbox_ref: str, force: bool = False) -> None:
        """Takes a sandbox off a network.

        With `force` what fails on the way is logged and the endpoint is gone all the same.
        """
        network = self._records.network(network_ref)
        with self._exclusive(self._records.sandbox(sandbox_ref)) as sandbox:
            endpoint = self._endpoints.at(network, sandbox)
            if endpoint is None:
                raise Forbidden(f"container {sandbox.name} is not connected to network {network.name}")
            if not self._deps.driver_of(network).capabilities.own_netns:
                raise Forbidden(f"container {sandbox.name} cannot be disconnected from host network {network.name}")
            self._endpoints.leave(network, sandbox, endpoint, force=force)
            self._endpoints.hand_over_default_route(sandbox)

    def _force_off(self, endpoint: Endpoint) -> None:
        """Takes an endpoint off its network, whatever is in the way."""
        self.disconnect(endpoint.network_id, endpoint.sandbox_id, force=True)

    # -- sandboxes -----------------------------------------------------------------------------------------------

    def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """Makes a sandbox and joins it to its networks in order, or makes nothing.

        Raises as `connect` does, and Conflict.
        """
        with self._deps.observers.operation("sandbox_create", f"sandbox {spec.name}"):
            return self._create_sandbox(spec)

    def _create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        sandbox_id = SandboxId(secrets.token_hex(32))
        name = spec.name or f"sandbox-{sandbox_id[:8]}"
        check_name("sandbox", name)
        networks = spec.networks or (("bridge", EndpointSpec()),)
        first = self._deps.driver_of(self._records.network(networks[0][0]))
        sandbox = Sandbox(
            id=sandbox_id,
            name=name,
            state=SandboxState.CREATING,
            created=utcnow(),
            owns_netns=first.capabilities.own_netns,
            command=spec.command,
            labels=spec.labels,
        )
        with self._records.lock:
            if self._records.has_sandbox_named(name):
                holder = self._records.sandbox(name)
                raise Conflict(
                    f'Conflict. The name "{name}" is already in use by sandbox {holder.id[:12]}: '
                    "remove that sandbox or use another name"
                )
            self._records.commit(put=[sandbox])
        with self._exclusive(sandbox):
            try:
                self._deps.apply(self._deps.files.steps(sandbox), f"sandbox {name} could not be created")
                for network_ref, endpoint_spec in networks:
                    self._endpoints.join(network_ref, sandbox, endpoint_spec)
                sandbox = advance(sandbox, SandboxState.CREATED)
                self._records.commit(put=[sandbox])
            except Exception:
                self._discard_sandbox(sandbox)
                raise
        self._emit_sandbox("create", sandbox)
        return sandbox

    def mark_started(self, ref: str, pid: int) -> Sandbox:
        """Takes note of the sandbox's main process; raises InvalidArgument when there is no such process."""
        start = process_start(pid)
        if start is None:
            raise InvalidArgument(f"there is no process {pid}: report the pid of a running process of this host")
        with self._exclusive(self._records.sandbox(ref)) as sandbox:
            if sandbox.state not in (SandboxState.CREATED, SandboxState.EXITED):
                raise Forbidden(f"sandbox {sandbox.name} is {sandbox.state}: it runs a process already")
            sandbox = advance(
                sandbox, SandboxState.RUNNING, pid=pid, pid_start=start, started=utcnow(), finished=None, exit_code=None
            )
            self._records.commit(put=[sandbox])
        self._emit_sandbox("start", sandbox)
        return sandbox

    def mark_exited(self, ref: str, exit_code: int | None) -> None:
        """Takes note that the main process ended: the sandbox stays, its endpoints leave. Harmless when repeated."""
        with self._exclusive(self._records.sandbox(ref)) as sandbox:
            if sandbox.state is SandboxState.RUNNING:
                sandbox = advance(sandbox, SandboxState.EXITED, finished=utcnow(), exit_code=exit_code)
                self._records.commit(put=[sandbox])
                self._emit_sandbox("exit", sandbox)
            if sandbox.state is not SandboxState.EXITED:
                return
            for endpoint in self._records.in_sandbox(sandbox.id):
                self._endpoints.leave(self._records.network(endpoint.network_id), sandbox, endpoint, force=True)

    def read_exit_status(self, sandbox: Sandbox) -> int | None:
        """What the supervisor of the sandbox's main process wrote, or None as long as it has not."""
        return self._deps.files.read_exit_status(sandbox)

    def remove_sandbox(self, ref: str, force: bool = False) -> None:
        """Removes a sandbox; one whose process runs only with `force`, which kills it. Raises NotFound, Conflict."""
        operation = self._deps.observers.operation("sandbox_remove", f"sandbox {ref}")
        with operation, self._exclusive(self._records.sandbox(ref)) as sandbox:
            if sandbox.state is SandboxState.RUNNING and is_running(sandbox) and not force:
                raise Conflict(
                    f"cannot remove sandbox {sandbox.name}: it is running; end its process first, or force removal"
                )
            if sandbox.state is not SandboxState.REMOVING:
                sandbox = advance(sandbox, SandboxState.REMOVING)
                self._records.commit(put=[sandbox])
            self._discard_sandbox(sandbox)
        self._emit_sandbox("destroy", sandbox)

    def _discard_sandbox(self, sandbox: Sandbox) -> None:
        kill_processes(sandbox, self._deps.files.paths(sandbox).netns)
        for endpoint in self._records.in_sandbox(sandbox.id):
            network = self._records.network(endpoint.network_id)
            self._endpoints.leave(network, sandbox, endpoint, force=True)
        self._deps.undo(self._deps.files.steps(sandbox), f"sandbox {sandbox.name} could not be removed whole: repeat")
        self._records.commit(drop=[sandbox])

    # -- helpers -------------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive(self, sandbox: Sandbox) -> Iterator[Sandbox]:
        """Holds off other changes of the sandbox, and yields it as it then is; raises NotFound when it went
        meanwhile."""
        with self._sandbox_locks.held(sandbox.id):
            yield self._records.sandbox(sandbox.id)

    def _emit_sandbox(self, action: str, sandbox: Sandbox) -> None:
        attributes = {"name": sandbox.name}
        if action == "exit" and sandbox.exit_code is not None:
            attributes["exitCode"] = str(sandbox.exit_code)
        self._bus.emit(Event("sandbox", action, sandbox.id, attributes))
