"""Endpoints: how sandboxes join networks and leave them."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from control import addressing
from control.counted import Counted
from control.deps import Deps
from control.drivers.base import Driver, Join
from control.errors import AddressInUse, Conflict, ControlError, DatapathFailed, Forbidden, NotFound
from control.events import Event, EventBus
from control.global_networks import GlobalNetworks
from control.hosts import HostsTable, HostsWriter
from control.leases import Lease, Leases, has_leases, hostname_of, settled_mac
from control.model import (
    Address,
    Endpoint,
    EndpointId,
    EndpointSpec,
    EndpointState,
    Network,
    NetworkState,
    Sandbox,
    advance,
    utcnow,
)
from control.plan import Step
from control.records import Records

LOG = logging.getLogger(__name__)

ADDRESSES_TRIED: Final = 16
"""How many addresses that others have are passed over. More than that in a row are a range that is not ours."""


class Endpoints:
    """The lifecycle of endpoints. Callers see to it that a sandbox is changed by one thread at a time."""

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
        self._counted = counted
        self._records = records
        self._leases = leases
        self._global = global_networks
        self._bus = bus
        self._names = HostsTable()
        self._writing = threading.Lock()
        self._hosts = HostsWriter(self.write_hosts)

    def start(self) -> None:
        """Makes all recorded endpoints known by name, and keeps hosts files up to date from now on."""
        self._global.names_changed = self._remote_names_changed
        for endpoint in (each for each in self._records.endpoints() if not each.is_remote):
            self._names.add(endpoint, self._records.sandbox(endpoint.sandbox_id))
        self._hosts.start()
        self._hosts.mark(sandbox.id for sandbox in self._records.sandboxes())

    def stop(self) -> None:
        """Idempotent."""
        self._hosts.close()

    def _remote_names_changed(self, network: Network) -> None:
        """Has the sandboxes on a global network know those on other nodes by name."""
        if self._names.set_remote(network.id, self._global.names(network)):
            self._hosts.mark(e.sandbox_id for e in self._records.on_network(network.id) if not e.is_remote)

    def at(self, network: Network, sandbox: Sandbox) -> Endpoint | None:
        """The sandbox's endpoint on the network."""
        return next((e for e in self._records.in_sandbox(sandbox.id) if e.network_id == network.id), None)

    def on_link(self, network: Network) -> list[Endpoint]:
        """All endpoints that an endpoint of the network could not have the MAC of."""
        driver = self._deps.driver_of(network)
        return [
            endpoint
            for other in self._records.networks()
            if driver.shares_link(network, other)
            for endpoint in self._records.on_network(other.id)
        ]

    def join(self, network_ref: str, sandbox: Sandbox, spec: EndpointSpec) -> Endpoint:
        """Raises NotFound, InvalidArgument, Forbidden, Conflict, Exhausted; DatapathFailed with everything undone.

        An address that somebody turns out to have already is replaced by the next one, unless `spec` asks for it.
        """
        begin = time.monotonic()
        with self._deps.observers.operation("join", f"sandbox {sandbox.name} to network {network_ref}"):
            network, endpoint = self._join_with_free_addresses(network_ref, sandbox, spec)
            self._names.add(endpoint, sandbox)
            self.write_hosts(sandbox.id)
            self._hosts.mark(e.sandbox_id for e in self._records.on_network(network.id) if e.id != endpoint.id)
        self._deps.observers.joined(time.monotonic() - begin)
        self._emit("connect", network, sandbox)
        return endpoint

    def _join_with_free_addresses(
        self, network_ref: str, sandbox: Sandbox, spec: EndpointSpec
    ) -> tuple[Network, Endpoint]:
        taken: dict[Address, AddressInUse] = {}
        while True:
            network, endpoint = self._reserve_or_lease(network_ref, sandbox, spec)
            # A range of which all else is in use gives out the same again.
            known = next((taken[address] for address in endpoint.addresses if address in taken), None)
            if known is not None:
                self._forget(network, endpoint)
                raise known
            try:
                return network, self._bring_in(network, sandbox, endpoint)
            except AddressInUse as error:
                if error.address in (spec.ipv4, spec.ipv6, *spec.link_local_ips):
                    raise
                LOG.warning("net=%s: address %s is in use: trying the next", network.name, error.address)
                taken[error.address] = error
                if len(taken) == ADDRESSES_TRIED:
                    raise Conflict(
                        f"{ADDRESSES_TRIED} addresses of network {network.name} turned out to be in use, the last one "
                        f"being {error.address}: make the network with an --ip-range that is its own, or choose an "
                        "address by --ip"
                    ) from error

    def _reserve_or_lease(self, network_ref: str, sandbox: Sandbox, spec: EndpointSpec) -> tuple[Network, Endpoint]:
        """As `_reserve`, with the address that a DHCP server or the cluster gives where the network has such."""
        network = self._records.network(network_ref)
        if network.is_global:
            return self._reserve_in_cluster(network, sandbox, spec)
        if not has_leases(network):
            return self._reserve(network.id, sandbox, spec)
        mac = self._mac_for(network, sandbox, spec)
        failure = f"sandbox {sandbox.name} could not be connected to network {network.name}"
        lease = self._leases.take(network, mac, hostname_of(sandbox.name), spec.ipv4, failure=failure)
        try:
            return self._reserve(network.id, sandbox, msgspec.structs.replace(spec, ipv4=lease.address, mac=mac), lease)
        except Forbidden:  # IPAM knows somebody else who has the address
            self._leases.decline(network, lease)
            raise
        except Exception:
            self._leases.release(network, lease)
            raise

    def _reserve_in_cluster(self, network: Network, sandbox: Sandbox, spec: EndpointSpec) -> tuple[Network, Endpoint]:
        """As `_reserve`; what the cluster gave is given back when it fails."""
        with self._records.lock:
            driver = self._deps.driver_of(network)
            self._check_join(network, sandbox, driver)
            driver.validate_endpoint(network, spec)
        endpoint_id = EndpointId(secrets.token_hex(32))
        given = self._global.take(network, endpoint_id, spec)
        try:
            return self._reserve(network.id, sandbox, given, endpoint_id=endpoint_id)
        except Exception:
            self._global.give_back(network, endpoint_id)
            raise

    def _mac_for(self, network: Network, sandbox: Sandbox, spec: EndpointSpec) -> str:
        """The MAC that the endpoint will have, by which servers know it; raises as `_reserve` does."""
        with self._records.lock:
            driver = self._deps.driver_of(network)
            self._check_join(network, sandbox, driver)
            driver.validate_endpoint(network, spec)
            if spec.ipv4 is not None:
                addressing.pools_with(network, spec.ipv4)
            on_link = self.on_link(network)
            mac = addressing.check_mac(spec.mac, network, on_link) if spec.mac else addressing.make_mac(None, on_link)
            return settled_mac(driver, network, mac, self._records.on_network(network.id))

    def _reserve(
        self,
        network_ref: str,
        sandbox: Sandbox,
        spec: EndpointSpec,
        lease: Lease | None = None,
        *,
        endpoint_id: EndpointId | None = None,
    ) -> tuple[Network, Endpoint]:
        """The endpoint that is to be, in the records, with addresses and all that makes it what it is."""
        with self._records.lock:
            network = self._records.network(network_ref)
            driver = self._deps.driver_of(network)
            self._check_join(network, sandbox, driver)
            driver.validate_endpoint(network, spec)
            siblings = self._records.on_network(network.id)
            endpoint_id = endpoint_id or EndpointId(secrets.token_hex(32))
            on_link = self.on_link(network)
            mac = addressing.check_mac(spec.mac, network, on_link) if spec.mac else None
            (ipv4, ipv6), changes = (
                (addressing.given_addresses(network, spec), [])
                if network.is_global
                else addressing.request_addresses(self._deps.ipam, network, spec, owner=f"sandbox {sandbox.name}")
            )
            slot = self.take_slot()
            try:
                endpoint = Endpoint(
                    id=endpoint_id,
                    network_id=network.id,
                    sandbox_id=sandbox.id,
                    state=EndpointState.JOINING,
                    created=utcnow(),
                    slot=slot,
                    ifname=self._free_ifname(network, sandbox) if driver.capabilities.addresses else "",
                    mac=mac or (addressing.make_mac(ipv4, on_link) if driver.capabilities.addresses else ""),
                    ipv4=ipv4,
                    ipv6=ipv6,
                    aliases=spec.aliases,
                    links=spec.links,
                    driver_options=spec.driver_options,
                    gateway_priority=spec.gateway_priority,
                    link_local_ips=spec.link_local_ips,
                )
                endpoint = driver.settle_endpoint(network, endpoint, siblings)
                self._check_link_locals(network, endpoint, on_link)
                if endpoint.ifname and any(e.ifname == endpoint.ifname for e in self._records.in_sandbox(sandbox.id)):
                    raise Conflict(
                        f"sandbox {sandbox.name} has a device {endpoint.ifname} already: choose another name"
                    )
                if lease is not None:
                    changes.append(self._leases.stored(endpoint.id, lease))
                self._records.commit(put=[endpoint], changes=changes)
            except Exception:
                addressing.release_addresses(self._deps.ipam, network, ipv4, ipv6)
                self._records.slots.give_back(slot)
                raise
            if lease is not None:
                self._leases.remember(endpoint.id, lease)
        return network, endpoint

    def take_slot(self) -> int:
        """A slot for a new endpoint, which counts from zero; the records are locked."""
        slot = self._records.slots.take()
        try:
            self._counted.begin(slot)
        except OSError as error:
            self._records.slots.give_back(slot)
            raise DatapathFailed(f"an endpoint's counters could not be set to zero: {error}") from error
        return slot

    def _check_link_locals(self, network: Network, endpoint: Endpoint, on_link: Sequence[Endpoint]) -> None:
        found = addressing.check_link_locals(network, endpoint, on_link)
        if found is not None:
            address, other = found
            holder = f"endpoint {other.id[:12]}" if other.is_remote else self._records.sandbox(other.sandbox_id).name
            raise Conflict(
                f"link-local address {address} is in use on network {network.name} by {holder}: choose another"
            )

    def _bring_in(self, network: Network, sandbox: Sandbox, endpoint: Endpoint) -> Endpoint:
        """Brings the endpoint into its sandbox, or forgets it."""
        joined = advance(endpoint, EndpointState.JOINED)
        try:
            steps = self._steps(self.join_of(endpoint))
            self._deps.apply(
                [*steps, self._records.settle(joined)],
                f"sandbox {sandbox.name} could not be connected to network {network.name}",
            )
        except ControlError as error:
            if isinstance(error, AddressInUse):
                self._leases.decline_of(network, endpoint.id, error.address)
            self._forget(network, endpoint)
            raise
        return joined

    def _check_join(self, network: Network, sandbox: Sandbox, driver: Driver) -> None:
        if network.state is not NetworkState.ACTIVE:
            raise Forbidden(f"network {network.name} is {network.state}: it cannot be joined")
        if network.owner:
            raise Forbidden(
                f"network {network.name} belongs to {network.owner}: run containers on it with {network.owner}"
            )
        if network.config_only:
            raise Forbidden(
                f"cannot create endpoint on configuration-only network {network.name}: join one that was made from it"
            )
        if self.at(network, sandbox) is not None:
            raise Forbidden(f"endpoint with name {sandbox.name} already exists in network {network.name}")
        if driver.capabilities.own_netns != sandbox.owns_netns:
            raise Forbidden(
                "container sharing network namespace with another container or host cannot be connected to any other "
                f"network: {sandbox.name} was {'not ' if sandbox.owns_netns else ''}created on the host network"
            )
        present = self._records.in_sandbox(sandbox.id)
        if any(self._driver_of(other).capabilities.exclusive for other in present) or (
            present and driver.capabilities.exclusive
        ):
            raise Forbidden(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode: "
                f"disconnect {sandbox.name} first"
            )

    def leave(self, network: Network, sandbox: Sandbox, endpoint: Endpoint, *, force: bool = False) -> None:
        """With `force` what fails on the way is logged, and the endpoint is gone all the same."""
        with self._deps.observers.operation("leave", f"sandbox {sandbox.name} from network {network.name}"):
            if endpoint.state is EndpointState.JOINED:
                endpoint = advance(endpoint, EndpointState.LEAVING)
                self._records.commit(put=[endpoint])
            self.discard(network, sandbox, endpoint, force=force)
        self._emit("disconnect", network, sandbox)

    def move(self, endpoint_id: EndpointId, sandbox: Sandbox, lease: Lease) -> None:
        """Gives a joined endpoint another address, its lease's; goes on with a move that was cut off.

        Its device is made anew, with the same name and MAC: what runs over the old address ends with it anyway. Raises
        NotFound when the endpoint has left, Conflict (and the lease is declined) when somebody has the address.
        """
        with self._records.lock:
            endpoint = self._records.endpoint(endpoint_id)
            if endpoint is None or endpoint.state is not EndpointState.JOINED:
                raise NotFound(f"endpoint {endpoint_id[:12]} has left")
            network = self._records.network(endpoint.network_id)
            if lease.left is None:
                endpoint, lease = self._readdress(network, endpoint, sandbox, lease)
        was = msgspec.structs.replace(endpoint, ipv4=lease.left)
        failure = f"sandbox {sandbox.name} could not be moved to {lease.address} on network {network.name}"
        driver = self._deps.driver_of(network)
        self._deps.undo(driver.endpoint_steps(self.join_of(was)), failure)
        # As one that joins, whose address is looked for first.
        joining = msgspec.structs.replace(endpoint, state=EndpointState.JOINING)
        try:
            self._deps.apply(driver.endpoint_steps(self.join_of(joining)), failure)
        except AddressInUse:
            self._leases.decline(network, lease)
            self._leases.replace(endpoint.id, self._leases.ended(lease))
            raise
        self._names.add(endpoint, sandbox)
        self._hosts.mark(each.sandbox_id for each in self._records.on_network(network.id))
        self._leases.replace(endpoint.id, msgspec.structs.replace(lease, left=None))
        LOG.warning("net=%s: sandbox %s has %s now, no more %s", network.name, sandbox.name, lease.address, was.ipv4)

    def _readdress(
        self, network: Network, endpoint: Endpoint, sandbox: Sandbox, lease: Lease
    ) -> tuple[Endpoint, Lease]:
        """The endpoint with its lease's address, both stored; the records are locked."""
        ipam, owner = self._deps.ipam, f"sandbox {sandbox.name}"
        try:
            ipv4, changes = addressing.exchange_address(ipam, network, endpoint.ipv4, lease.address, owner=owner)
        except Forbidden as error:
            self._leases.decline(network, lease)
            raise Conflict(f"{lease.address}, which DHCP server {lease.server} gave, is in use: {error}") from error
        lease = msgspec.structs.replace(lease, left=endpoint.ipv4)
        moved = msgspec.structs.replace(endpoint, ipv4=ipv4)
        try:
            self._records.commit(put=[moved], changes=[*changes, self._leases.stored(endpoint.id, lease)])
        except ControlError:
            if endpoint.ipv4 is not None:
                addressing.exchange_address(ipam, network, ipv4, endpoint.ipv4.ip, owner=owner)
            raise
        self._leases.remember(endpoint.id, lease)
        return moved, lease

    def discard(
        self, network: Network | None, sandbox: Sandbox | None, endpoint: Endpoint, *, force: bool = False
    ) -> None:
        """Takes the endpoint out of the kernel, then out of the records.

        Without its owners only the record is left to drop.
        """
        if network is not None and (sandbox is not None or endpoint.is_remote):
            join = self.join_of(endpoint)
            steps = self._steps(join)
            self._counted.ending(self._deps.driver_of(network), endpoint)
            try:
                self._deps.undo(
                    steps,
                    f"sandbox {join.holder} could not be taken off network {network.name} whole: repeat with --force",
                )
            except DatapathFailed:
                if not force:
                    raise
        self._forget(network, endpoint)

    def _steps(self, join: Join) -> list[Step]:
        """The driver's, and for a global network, last when it comes and first when it goes, what other nodes know."""
        steps = list(self._deps.driver_of(join.network).endpoint_steps(join))
        if join.network.is_global and join.sandbox is not None:
            steps.append(self._global.published(join.network, join.endpoint, join.sandbox))
        return steps

    def _forget(self, network: Network | None, endpoint: Endpoint) -> None:
        returned = self._leases.give_back(network, endpoint.id)
        if network is not None and network.is_global:
            self._global.give_back(network, endpoint.id)
        with self._records.lock:
            noted, remember = self._counted.ended(endpoint)
            released = addressing.release_addresses(self._deps.ipam, network, endpoint.ipv4, endpoint.ipv6)
            try:
                self._records.commit(drop=[endpoint], changes=[*returned, *released, *noted])
                remember()
            except ControlError:
                if network is not None and not endpoint.is_remote:
                    spec = EndpointSpec(
                        ipv4=endpoint.ipv4.ip if endpoint.ipv4 else None,
                        ipv6=endpoint.ipv6.ip if endpoint.ipv6 else None,
                    )
                    addressing.request_addresses(self._deps.ipam, network, spec, owner=f"endpoint {endpoint.id[:12]}")
                raise
            self._names.remove(endpoint)
            others = self._records.on_network(endpoint.network_id)
        if not others:
            self._names.set_remote(endpoint.network_id, {})
        self._hosts.mark(e.sandbox_id for e in (endpoint, *others) if not e.is_remote)

    def join_of(self, endpoint: Endpoint) -> Join:
        """What the driver gets to know, the default routes' way included."""
        network = self._records.network(endpoint.network_id)
        if endpoint.is_remote:
            return Join(network=network, endpoint=endpoint, sandbox=None, netns_path=None)
        sandbox = self._records.sandbox(endpoint.sandbox_id)
        rivals = [
            (other, self._records.network(other.network_id))
            for other in self._records.in_sandbox(sandbox.id)
            if other.state is not EndpointState.LEAVING and _gateway_rank(other) < _gateway_rank(endpoint)
        ]
        return Join(
            network=network,
            endpoint=endpoint,
            sandbox=sandbox,
            netns_path=self._deps.files.paths(sandbox).netns,
            default_v4=not network.internal and not any(addressing.has_gateway(other, 4) for _, other in rivals),
            default_v6=not network.internal and not any(addressing.has_gateway(other, 6) for _, other in rivals),
        )

    def with_mac_of_now(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, also as recorded, with the MAC that a device made for it now has to have.

        In some networks it is that of a device of the host, which may be another by now. Raises StoreError.
        """
        network = self._records.network(endpoint.network_id)
        mac = self._deps.driver_of(network).settle_endpoint(network, endpoint, ()).mac
        if mac != endpoint.mac:
            endpoint = msgspec.structs.replace(endpoint, mac=mac)
            self._records.commit(put=[endpoint])
        return endpoint

    def hand_over_default_route(self, sandbox: Sandbox) -> None:
        """After a leave the next endpoint with a gateway gets the default route; applying its steps again sees
        to that. Raises DatapathFailed."""
        for endpoint in self._records.in_sandbox(sandbox.id):
            join = self.join_of(endpoint)
            if endpoint.state is EndpointState.JOINED and (join.default_v4 or join.default_v6):
                self._deps.reapply(
                    self._driver_of(endpoint).endpoint_steps(join),
                    f"the default route of sandbox {sandbox.name} could not be moved to network {join.network.name}",
                )

    def _free_ifname(self, network: Network, sandbox: Sandbox) -> str:
        prefix = network.options.get("com.docker.network.container_iface_prefix", "eth")
        taken = {endpoint.ifname for endpoint in self._records.in_sandbox(sandbox.id)}
        return next(name for number in range(len(taken) + 1) if (name := f"{prefix}{number}") not in taken)

    def _driver_of(self, endpoint: Endpoint) -> Driver:
        return self._deps.driver_of(self._records.network(endpoint.network_id))

    def write_hosts(self, sandbox_id: str) -> None:
        """Writes the sandbox's /etc/hosts now; does nothing for a sandbox that is gone."""
        try:
            sandbox = self._records.sandbox(sandbox_id)
        except NotFound:
            return
        with self._writing:  # else what was put together earlier might be written later
            text = self._names.text(sandbox, self._records.in_sandbox(sandbox.id))
            self._deps.files.write_hosts(sandbox, text)

    def _emit(self, action: str, network: Network, sandbox: Sandbox) -> None:
        attributes = {"name": network.name, "type": network.driver, "container": sandbox.id}
        self._bus.emit(Event("network", action, network.id, attributes))


def _gateway_rank(endpoint: Endpoint) -> tuple[int, datetime]:
    """The lowest has the default route."""
    return -endpoint.gateway_priority, endpoint.created
