"""Networks: how they are made and removed."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from control import addressing
from control.counted import Counted
from control.deps import Deps
from control.drivers.base import Driver
from control.errors import Conflict, ControlError, Forbidden, InvalidArgument, NotFound, NotImplementedByDriver
from control.events import Event, EventBus
from control.global_networks import GLOBAL, GlobalNetworks
from control.leases import Leases, has_leases
from control.model import (
    Endpoint,
    Network,
    NetworkId,
    NetworkSpec,
    NetworkState,
    PoolConfig,
    PoolSpec,
    advance,
    utcnow,
)
from control.records import Records
from control.store.base import Change

LOG = logging.getLogger(__name__)

MAX_NAME_LENGTH: Final = 128
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
PREDEFINED: Final = {"bridge": "bridge", "host": "host", "none": "null"}
"""Names of the networks that always exist, and their drivers."""
_HOLDERS_NAMED: Final = 10

TakePools = Callable[[], tuple[tuple[PoolConfig, ...], Sequence[Change]]]


class Networks:
    """The lifecycle of networks. Thread-safe; a network is made or removed by one request at a time."""

    def __init__(
        self,
        deps: Deps,
        records: Records,
        counted: Counted,
        leases: Leases,
        global_networks: GlobalNetworks,
        bus: EventBus,
    ) -> None:
        self._deps = deps
        self._records = records
        self._counted = counted
        self._leases = leases
        self._global = global_networks
        self._bus = bus
        self._changing: set[NetworkId] = set()

    # -- making --------------------------------------------------------------------------------------------------

    def create_predefined(self) -> None:
        """Makes the networks that every host has, where they are missing."""
        for name, driver_name in PREDEFINED.items():
            if driver_name in self._deps.drivers and not self._records.has_network_named(name):
                options = dict(self._deps.predefined_options.get(name, {}))
                self._create(NetworkSpec(name=name, driver=driver_name, options=options), predefined=True)

    def create(self, spec: NetworkSpec) -> tuple[Network, list[str]]:
        """See NetworkController.create_network."""
        with self._deps.observers.operation("network_create", f"network {spec.name}"):
            return self._create_asked(spec)

    def _create_asked(self, spec: NetworkSpec) -> tuple[Network, list[str]]:
        check_name("network", spec.name)
        if spec.name in PREDEFINED:
            raise Forbidden(f"operation is not permitted on predefined {spec.name} network: choose another name")
        if spec.config_only:
            return self._store_configuration(spec), []
        if spec.config_from:
            spec = _configured(spec, self._configuration(spec.config_from))
        return self._create(spec, predefined=False)

    def _store_configuration(self, spec: NetworkSpec) -> Network:
        """Whether the settings can be is for the drivers of the networks that are made from them to say."""
        spec = msgspec.structs.replace(spec, driver=PREDEFINED["none"])
        network_id = NetworkId(secrets.token_hex(32))
        return self._make(spec, network_id, take_pools=lambda: (_untaken(spec.pools), ()))

    def _configuration(self, name: str) -> Network:
        found = next((each for each in self._records.networks() if each.config_only and each.name == name), None)
        if found is None or found.state is not NetworkState.ACTIVE:
            raise NotFound(f'configuration network "{name}" does not exist')
        return found

    def _create(self, spec: NetworkSpec, *, predefined: bool) -> tuple[Network, list[str]]:
        driver = self._deps.driver(spec.driver)
        if driver.capabilities.singleton and not predefined:
            raise Forbidden(f'only one instance of "{spec.driver}" network is allowed: use the predefined network')
        network_id = NetworkId(secrets.token_hex(32))
        if driver.capabilities.scope == GLOBAL:
            self._check(spec, driver)
            return self._global.create(spec, network_id), []
        if has_leases(spec):
            # Checked before a server is asked, and again, with what it said, when the name is taken.
            self._check(spec, driver)
            spec = self._leases.settle(spec, network_id)
        routed = self._deps.routed_networks()
        network = self._make(
            spec,
            network_id,
            take_pools=lambda: addressing.request_pools(
                self._deps.ipam,
                spec,
                owner=f"network {spec.name}",
                is_needed=driver.capabilities.addresses,
                avoid=routed,
                is_routerless=lambda subnet: has_leases(spec) and subnet.version == 4,
            ),
            predefined=predefined,
        )
        return network, [] if driver.capabilities.existing else [
            f"subnet {pool.subnet} overlaps {route}, which the host has a route to"
            for pool in network.pools
            for route in routed
            if pool.subnet.version == route.version and pool.subnet.overlaps(route)
        ]

    def adopt(self, spec: NetworkSpec, network_id: NetworkId, owner: str) -> Network:
        """Makes a network whose id and addresses are its owner's to give. Raises as `create` does."""
        check_name("network", spec.name)
        if self._deps.driver(spec.driver).capabilities.scope == GLOBAL:
            raise NotImplementedByDriver(
                f"the driver {spec.driver} is not available to a container engine, because its networks are the "
                "cluster's: use `linkspan network create`, and `linkspan run` for what is to be on the network"
            )
        with self._deps.observers.operation("network_create", f"network {spec.name}"):
            return self._make(spec, network_id, take_pools=lambda: (_untaken(spec.pools), ()), owner=owner)

    def _make(
        self,
        spec: NetworkSpec,
        network_id: NetworkId,
        *,
        take_pools: TakePools,
        predefined: bool = False,
        owner: str = "",
    ) -> Network:
        driver = self._deps.driver(spec.driver)
        with self._records.lock:
            self._check(spec, driver)
            if spec.config_from:
                self._configuration(spec.config_from)  # it may have gone meanwhile
            pools, changes = take_pools()
            segment = self._records.segments.take()
            try:
                network = Network(
                    id=network_id,
                    name=spec.name,
                    driver=spec.driver,
                    state=NetworkState.CREATING,
                    created=utcnow(),
                    segment=segment,
                    internal=spec.internal,
                    attachable=spec.attachable,
                    enable_ipv4=spec.enable_ipv4,
                    enable_ipv6=spec.enable_ipv6,
                    ipam_driver=spec.ipam_driver,
                    ipam_options=spec.ipam_options,
                    pools=pools,
                    options=spec.options,
                    labels=spec.labels,
                    predefined=predefined,
                    owner=owner,
                    config_only=spec.config_only,
                    config_from=spec.config_from,
                )
                self._records.commit(put=[network], changes=changes)
            except Exception:
                self._records.segments.give_back(segment)
                addressing.release_pools(self._deps.ipam, pools)
                raise
            self._changing.add(network.id)
        try:
            made = advance(network, NetworkState.ACTIVE)
            self._deps.apply(
                [*driver.network_steps(network), self._records.settle(made)],
                f"network {network.name} could not be created",
            )
        except ControlError:
            self._forget(network)
            raise
        finally:
            self._changing.discard(network.id)
        self._emit("create", made)
        return made

    def _check(self, spec: NetworkSpec, driver: Driver) -> None:
        with self._records.lock:
            if self._records.has_network_named(spec.name):
                raise Conflict(f"network with name {spec.name} already exists")
            if not spec.config_only:
                driver.validate(spec, [network for network in self._records.networks() if not network.config_only])

    def mend(self, network_id: NetworkId, *, always: bool = False) -> None:
        """Applies again a network that is not whole in the kernel, or `always`; harmless for one that is gone, or
        going.

        Raises DatapathFailed with what there is left as it is, Conflict, and OSError when it cannot be looked at.
        """
        with self._records.lock:
            network = self._records.network_by_id(network_id)
            if network is None or network.state is not NetworkState.ACTIVE or network.id in self._changing:
                return
            self._changing.add(network.id)
        try:
            driver = self._deps.driver_of(network)
            if always or network.id not in driver.intact([network], ()):
                LOG.warning("network %s is not whole in the kernel: applying it again", network.name)
                self._deps.reapply(driver.network_steps(network), f"network {network.name} could not be applied again")
        finally:
            self._changing.discard(network.id)

    # -- removing ------------------------------------------------------------------------------------------------

    def remove(self, ref: str, *, owner: str = "") -> None:
        """Removes a network; see NetworkController.remove_network. `owner` is who asks, with the right to what it
        owns."""
        with self._deps.observers.operation("network_remove", f"network {ref}"):
            self._remove(ref, owner)

    def _remove(self, ref: str, owner: str) -> None:
        with self._records.lock:
            network = self._records.network(ref)
            if network.predefined:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            if network.owner != owner:
                self.require_own(network, "remove it with `docker network rm`, or here with --abandoned")
            if network.id in self._changing:
                if network.state is NetworkState.REMOVING:
                    raise Conflict(f"removal of network {network.name} is already in progress")
                raise Forbidden(f"network {network.name} is still being created: try again when it is there")
            if network.config_only:
                self._require_unused(network)
            endpoints = self._records.on_network(network.id)
            if endpoints:
                holders = ", ".join(f"{self._holder(e)}:{e.id[:12]}" for e in endpoints[:_HOLDERS_NAMED])
                left_out = len(endpoints) - _HOLDERS_NAMED
                more = f" and {left_out} more" if left_out > 0 else ""
                raise Forbidden(
                    f"error while removing network: network {network.name} id {network.id} has active endpoints "
                    f"({holders}{more}): disconnect or remove them first"
                )
            if network.state is not NetworkState.REMOVING and not network.is_global:
                network = advance(network, NetworkState.REMOVING)
                self._records.commit(put=[network])
            self._changing.add(network.id)
        try:
            if network.is_global:
                self._global.remove(network)
                return
            self.discard(network)
        finally:
            self._changing.discard(network.id)
        self._emit("destroy", network)

    def _require_unused(self, settings: Network) -> None:
        users = [network.name for network in self._records.networks() if network.config_from == settings.name]
        if users:
            raise Forbidden(f'configuration network "{settings.name}" is in use: {", ".join(users)} came from it')

    def prune(self, keep: Callable[[Network], bool]) -> list[str]:
        """See NetworkController.prune_networks."""
        removed = []
        for network in self._records.networks():
            if network.predefined or network.owner or network.config_only:
                continue
            if network.id in self._changing or keep(network):
                continue
            if self._records.on_network(network.id):
                continue
            try:
                self.remove(network.id)
            except (NotFound, Forbidden, Conflict):
                continue  # somebody was quicker: it is gone, or in use by now
            removed.append(network.name)
        return removed

    def discard(self, network: Network) -> None:
        """Takes the network out of the kernel, then out of the records; raises DatapathFailed."""
        self._deps.undo(
            self._deps.driver_of(network).network_steps(network),
            f"network {network.name} could not be removed whole: remove the cause and repeat network rm {network.name}",
        )
        self._forget(network)

    def _forget(self, network: Network) -> None:
        with self._records.lock:
            noted, forget = self._counted.network_ended(network.id)
            changes = addressing.release_pools(self._deps.ipam, network.pools)
            try:
                self._records.commit(drop=[network], changes=[*changes, *noted])
                forget()
            except ControlError:
                addressing.retake_pools(self._deps.ipam, network.pools, owner=f"network {network.name}")
                raise

    # -- helpers -------------------------------------------------------------------------------------------------

    def require_own(self, network: Network, instead: str) -> None:
        """Raises Forbidden for a network that a container engine owns, saying what to do instead."""
        if network.owner:
            raise Forbidden(f"network {network.name} belongs to {network.owner}: {instead}")

    def _holder(self, endpoint: Endpoint) -> str:
        try:
            return self._records.sandbox(endpoint.sandbox_id).name
        except NotFound:
            return (endpoint.sandbox_id or endpoint.sandbox_key.rpartition("/")[2])[:12] or "unjoined"

    def _emit(self, action: str, network: Network) -> None:
        attributes: Mapping[str, str] = {"name": network.name, "type": network.driver}
        self._bus.emit(Event("network", action, network.id, attributes))


def _untaken(specs: Sequence[PoolSpec]) -> tuple[PoolConfig, ...]:
    """The pools as they were asked for, without an address taken from IPAM."""
    return tuple(
        PoolConfig(subnet=spec.subnet, ip_range=spec.ip_range, gateway=spec.gateway, aux_addresses=spec.aux_addresses)
        for spec in specs
        if spec.subnet is not None
    )


def _configured(spec: NetworkSpec, settings: Network) -> NetworkSpec:
    """The network that `spec` asks for, with the settings of the configuration network that it names."""
    return msgspec.structs.replace(
        spec,
        enable_ipv4=settings.enable_ipv4,
        enable_ipv6=settings.enable_ipv6,
        ipam_driver=settings.ipam_driver,
        ipam_options=settings.ipam_options,
        pools=tuple(
            PoolSpec(subnet=pool.subnet, ip_range=pool.ip_range, gateway=pool.gateway, aux_addresses=pool.aux_addresses)
            for pool in settings.pools
        ),
        options=settings.options,
        labels=settings.labels,
    )


def check_name(kind: str, name: str) -> None:
    """Raises InvalidArgument for what is no name of a network or sandbox."""
    if not name:
        raise InvalidArgument(f"{kind} name cannot be empty: give it a name")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidArgument(
            f"invalid {kind} name {name[:20]}…: {len(name)} characters, at most {MAX_NAME_LENGTH} are allowed"
        )
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"invalid {kind} name {name!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed")
