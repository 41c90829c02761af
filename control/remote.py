"""Networks and endpoints that a container engine owns: it says when, Linkspan does it.

The engine names them, gives them their addresses, and moves their devices into sandboxes of its own. Every method may
be called again with the same arguments: what is as asked already is left as it is. Design: docs/adr/0009.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

import msgspec

from control import addressing, ports
from control.deps import Deps
from control.endpoints import Endpoints
from control.errors import Conflict, ControlError, Forbidden, InvalidArgument, NotFound
from control.events import Event, EventBus
from control.locks import KeyedLocks
from control.model import (
    Endpoint,
    EndpointId,
    EndpointSpec,
    EndpointState,
    Network,
    NetworkId,
    NetworkSpec,
    NetworkState,
    SandboxId,
    advance,
    utcnow,
    waiting_ifname,
)
from control.networks import Networks
from control.ports import PortWish
from control.records import Records

LOG = logging.getLogger(__name__)

OWNER: Final = "docker"
_PATIENCE_S: Final = 0.05
"""How long the engine waits for devices to be deleted: the kernel takes 20 ms for one, more when many go at once."""
_CLEANERS: Final = 2
"""More would have devices gone sooner, and joins wait longer for the rtnl lock (`bench plugin`)."""


class RemoteNetworks:
    """The lifecycle of what an engine owns. Synchronous; every method may be called from any thread."""

    def __init__(self, deps: Deps, records: Records, bus: EventBus, networks: Networks, endpoints: Endpoints) -> None:
        self._deps = deps
        self._records = records
        self._bus = bus
        self._networks = networks
        self._endpoints = endpoints
        self._network_locks = KeyedLocks()
        self._endpoint_locks = KeyedLocks()
        self._cleaners = ThreadPoolExecutor(_CLEANERS, thread_name_prefix="cleaner")

    def stop(self) -> None:
        """Endpoints that are still being deleted are left to the next start. Idempotent."""
        self._cleaners.shutdown(cancel_futures=True)

    # -- networks ------------------------------------------------------------------------------------------------

    def create_network(self, network_id: NetworkId, spec: NetworkSpec) -> Network:
        """Raises InvalidArgument, NotFound (driver), Forbidden, Conflict."""
        if not any(pool.subnet is not None for pool in spec.pools):
            raise InvalidArgument(f"network {network_id[:12]} has no subnet: an endpoint needs an address")
        with self._network_locks.held(network_id):
            known = self._records.network_by_id(network_id)
            if known is not None and known.owner == OWNER and known.state is not NetworkState.ACTIVE:
                self._networks.remove(network_id, owner=OWNER)  # what a failure left: nobody else works on it
                known = None
            if known is None:
                return self._networks.adopt(spec, network_id, OWNER)
            if known.owner == OWNER and _is_as_asked(known, spec):
                return known
            raise Conflict(f"network {network_id[:12]} exists already, with other settings: remove it first")

    def delete_network(self, network_id: NetworkId) -> None:
        """Removes the network with the endpoints that are still recorded: the engine has none on it any more.

        Raises DatapathFailed; harmless for a network that is not known.
        """
        with self._network_locks.held(network_id):
            network = self._records.network_by_id(network_id)
            if network is None or network.owner != OWNER:
                return
            for endpoint in self._records.on_network(network.id):
                LOG.warning("removing endpoint %s with its network %s", endpoint.id[:12], network.name)
                self.discard(endpoint)
            self._networks.remove(network_id, owner=OWNER)

    # -- endpoints -----------------------------------------------------------------------------------------------

    def create_endpoint(
        self,
        network_id: NetworkId,
        endpoint_id: EndpointId,
        *,
        ipv4: IPv4Interface | None,
        ipv6: IPv6Interface | None,
        mac: str | None,
        options: Mapping[str, str],
    ) -> Endpoint:
        """Takes note of an endpoint with its addresses; the kernel is not touched. Without `mac` it gets one.

        Raises NotFound (network), InvalidArgument, Forbidden (address in use), Conflict, Exhausted.
        """
        with self._endpoint_locks.held(endpoint_id):
            while True:
                with self._records.lock:
                    network = self._network(network_id)
                    known = self._records.endpoint(endpoint_id)
                    if known is not None and not (known.is_remote and known.state is EndpointState.LEAVING):
                        return _as_asked(known, network, ipv4, ipv6, mac)
                    others = [e for e in self._records.on_network(network.id) if e.id != endpoint_id]
                    rivals = [e for e in others if _shares_address(e, ipv4, ipv6)]
                    self._check(network, endpoint_id, ipv4, ipv6, mac, options, rivals)
                    for rival in rivals:
                        self._require_leftover(network, rival)
                    if known is None and not rivals:
                        return self._record(network, endpoint_id, ipv4, ipv6, mac, options)
                self._finish_deletion(endpoint_id)
                for rival in rivals:
                    self._evict(network, rival)

    def _check(
        self,
        network: Network,
        endpoint_id: EndpointId,
        ipv4: IPv4Interface | None,
        ipv6: IPv6Interface | None,
        mac: str | None,
        options: Mapping[str, str],
        rivals: Sequence[Endpoint],
    ) -> None:
        """Raises for an endpoint that cannot be, whoever gives way to it: nobody does before that is known."""
        if network.state is not NetworkState.ACTIVE:
            raise Forbidden(f"network {network.name} is {network.state}: it cannot be joined")
        if ipv4 is None and ipv6 is None:
            raise InvalidArgument(
                f"endpoint {endpoint_id[:12]} has no address: use an IPAM driver that gives addresses"
            )
        for address in (ipv4, ipv6):
            if address is not None and not any(address.ip in pool.subnet for pool in network.pools):
                raise InvalidArgument(f"address {address.ip} is in no subnet of network {network.name}")
        self._deps.driver_of(network).validate_endpoint(network, EndpointSpec(mac=mac, driver_options=dict(options)))
        peer = waiting_ifname(endpoint_id)
        if any(e.ifname == peer and e.id != endpoint_id for e in self._records.endpoints() if e.is_remote):
            raise Conflict(
                f"endpoint {endpoint_id[:12]} begins like another one: ids must differ in their first 12 digits"
            )
        if mac:
            staying = [e for e in self._endpoints.on_link(network) if e.id != endpoint_id and e not in rivals]
            addressing.check_mac(mac, network, staying)

    def _record(
        self,
        network: Network,
        endpoint_id: EndpointId,
        ipv4: IPv4Interface | None,
        ipv6: IPv6Interface | None,
        mac: str | None,
        options: Mapping[str, str],
    ) -> Endpoint:
        siblings, on_link = self._records.on_network(network.id), self._endpoints.on_link(network)
        given = addressing.check_mac(mac, network, on_link) if mac else addressing.make_mac(ipv4, on_link)
        slot = self._endpoints.take_slot()
        try:
            endpoint = self._deps.driver_of(network).settle_endpoint(
                network,
                Endpoint(
                    id=endpoint_id,
                    network_id=network.id,
                    sandbox_id=SandboxId(""),
                    state=EndpointState.CREATED,
                    created=utcnow(),
                    slot=slot,
                    mac=given,
                    ipv4=ipv4,
                    ipv6=ipv6,
                    driver_options=dict(options),
                ),
                siblings,
            )
            endpoint = msgspec.structs.replace(endpoint, ifname=waiting_ifname(endpoint_id))
            self._records.commit(put=[endpoint])
        except Exception:
            self._records.slots.give_back(slot)
            raise
        return endpoint

    def _evict(self, network: Network, rival: Endpoint) -> None:
        """Makes room for an endpoint that was given the address of another."""
        with self._endpoint_locks.held(rival.id):
            self._require_leftover(network, rival)  # once more: it may have been joining
            LOG.warning("removing endpoint %s: it has no device, and its address went to another", rival.id[:12])
            self.discard(rival)

    def _require_leftover(self, network: Network, rival: Endpoint) -> None:
        """Raises Forbidden for an endpoint that has a device, and is not being deleted."""
        if rival.state is not EndpointState.LEAVING and self._deps.driver_of(network).remains(rival):
            raise Forbidden(
                f"Address already in use: {rival.ipv4 or rival.ipv6} of network {network.name} is held by endpoint "
                f"{rival.id[:12]}"
            )

    def delete_endpoint(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Takes the endpoint out of the kernel and the records; harmless for one that is not known.

        Returns before all is done when that takes long: what is left to do is in the records, and will be done.
        """
        self._begin_deletion(network_id, endpoint_id)
        deletion = self._cleaners.submit(self._finish_deletion, endpoint_id)
        try:
            deletion.result(_PATIENCE_S)
        except TimeoutError:
            deletion.add_done_callback(partial(_log_failure, endpoint_id))

    def discard(self, endpoint: Endpoint) -> None:
        """Deletes an endpoint that its engine knows nothing of any more; raises DatapathFailed, StoreError."""
        self._begin_deletion(endpoint.network_id, endpoint.id)
        self._finish_deletion(endpoint.id)

    def _begin_deletion(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Takes its ports away, and takes note that the rest is to go."""
        with self._endpoint_locks.held(endpoint_id):
            endpoint = self._records.endpoint(endpoint_id)
            if endpoint is None or endpoint.network_id != network_id or not endpoint.is_remote:
                return
            network = self._records.network(network_id)
            if endpoint.ports:
                endpoint = self._unpublish(network, endpoint)
            if endpoint.state is not EndpointState.LEAVING:
                self._records.commit(put=[advance(endpoint, EndpointState.LEAVING)])
            if endpoint.state is EndpointState.JOINED:
                self._emit("disconnect", network, endpoint)

    def _finish_deletion(self, endpoint_id: EndpointId) -> None:
        """Harmless for an endpoint that is not being deleted."""
        with self._endpoint_locks.held(endpoint_id):
            endpoint = self._records.endpoint(endpoint_id)
            if endpoint is not None and endpoint.state is EndpointState.LEAVING and endpoint.is_remote:
                with self._deps.observers.operation("leave", f"endpoint {endpoint_id[:12]}"):
                    self._endpoints.discard(self._records.network_by_id(endpoint.network_id), None, endpoint)

    def join(self, network_id: NetworkId, endpoint_id: EndpointId, sandbox_key: str) -> tuple[Network, Endpoint]:
        """Makes the endpoint's devices; its peer waits in this namespace, under the endpoint's `ifname`.

        Raises NotFound, Conflict (it is in another sandbox), DatapathFailed with everything undone.
        """
        begin = time.monotonic()
        with self._deps.observers.operation("join", f"endpoint {endpoint_id[:12]}"):
            network, joined, is_new = self._join(network_id, endpoint_id, sandbox_key)
        if is_new:
            self._deps.observers.joined(time.monotonic() - begin)
            self._emit("connect", network, joined)
        return network, joined

    def _join(self, network_id: NetworkId, endpoint_id: EndpointId, sandbox_key: str) -> tuple[Network, Endpoint, bool]:
        """As `join`; also whether the endpoint had not joined before."""
        with self._held(network_id, endpoint_id) as (network, endpoint):
            driver = self._deps.driver_of(network)
            if endpoint.state is EndpointState.JOINED:
                if endpoint.sandbox_key != sandbox_key:
                    raise Conflict(
                        f"endpoint {endpoint_id[:12]} is in sandbox {endpoint.sandbox_key}: it must leave first"
                    )
                if driver.remains(endpoint):
                    return network, endpoint, False
            if endpoint.state is not EndpointState.CREATED:
                endpoint = self.reset(endpoint)
            endpoint = advance(endpoint, EndpointState.JOINING, sandbox_key=sandbox_key)
            self._records.commit(put=[endpoint])
            joined = advance(endpoint, EndpointState.JOINED)
            try:
                self._deps.apply(
                    [*driver.endpoint_steps(self._endpoints.join_of(endpoint)), self._records.settle(joined)],
                    f"endpoint {endpoint_id[:12]} could not be connected to network {network.name}",
                )
            except ControlError:
                self._records.commit(put=[advance(endpoint, EndpointState.CREATED, sandbox_key="")])
                raise
        return network, joined, True

    def leave(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Takes note that the endpoint is in no sandbox; the devices stay until it is deleted. Repeated, harmless."""
        with suppress(NotFound), self._held(network_id, endpoint_id) as (network, endpoint):
            if endpoint.state is not EndpointState.JOINED:
                return
            if endpoint.ports:
                endpoint = self._unpublish(network, endpoint)
            self._records.commit(put=[advance(endpoint, EndpointState.CREATED, sandbox_key="")])
            self._emit("disconnect", network, endpoint)

    def reset(self, endpoint: Endpoint) -> Endpoint:
        """Makes an endpoint that is in no sandbox what it was before it joined; raises DatapathFailed."""
        network = self._records.network(endpoint.network_id)
        if endpoint.ports:
            endpoint = self._unpublish(network, endpoint)
        self._deps.undo(
            self._deps.driver_of(network).endpoint_steps(self._endpoints.join_of(endpoint)),
            f"endpoint {endpoint.id[:12]} could not be taken off network {network.name} whole",
        )
        endpoint = advance(endpoint, EndpointState.CREATED, sandbox_key="")
        self._records.commit(put=[endpoint])
        return endpoint

    def mend(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Applies again an endpoint that is joined and not whole in the kernel: its device may have gone with a device
        of the host's, and the engine, which has put it into its sandbox once, does not know.

        Harmless for one that is not known or joined. Raises Conflict, DatapathFailed.
        """
        with suppress(NotFound), self._held(network_id, endpoint_id) as (network, endpoint):
            if endpoint.state is not EndpointState.JOINED:
                return
            driver = self._deps.driver_of(network)
            failure = f"endpoint {endpoint_id[:12]} could not be applied again"
            if endpoint.id in driver.intact([network], [endpoint]):
                self._deps.reapply(driver.endpoint_steps(self._endpoints.join_of(endpoint)), failure)
            elif driver.lost(endpoint):
                LOG.warning("making the device of endpoint %s again in %s", endpoint_id[:12], endpoint.sandbox_key)
                outward = not network.internal
                join = replace(
                    self._endpoints.join_of(self._endpoints.with_mac_of_now(endpoint)),
                    netns_path=endpoint.sandbox_key,
                    default_v4=outward,
                    default_v6=outward,
                )
                self._deps.apply(driver.endpoint_steps(join), failure)
            elif driver.remains(endpoint):
                raise Conflict(
                    f"endpoint {endpoint_id[:12]} is not on the device that network {network.name} is on: "
                    "start its container anew"
                )

    # -- published ports -----------------------------------------------------------------------------------------

    def publish(self, network_id: NetworkId, endpoint_id: EndpointId, wishes: Sequence[PortWish]) -> Endpoint:
        """Publishes all ports or none. Raises NotFound, InvalidArgument, Conflict naming who has a port.

        An endpoint that has published ports keeps those: the engine revokes them before it asks for others. An internal
        network is not reached from outside, so there is nothing to publish on it.
        """
        with self._held(network_id, endpoint_id) as (network, endpoint):
            if endpoint.ports:
                # Recorded, but perhaps not in the kernel: a failure may have come between the two.
                self._deps.reapply(
                    self._deps.driver_of(network).publish_steps(network, endpoint),
                    f"ports of endpoint {endpoint_id[:12]} could not be published",
                )
                return endpoint
            if not wishes or network.internal:
                return endpoint
            with self._records.lock:
                networks = {each.id: each for each in self._records.networks()}
                others = [(networks[e.network_id], e) for e in self._records.endpoints() if e.ports]
                settled = ports.settle(wishes, endpoint, others, self._deps.ports)
                endpoint = msgspec.structs.replace(endpoint, ports=settled)
                try:
                    self._records.commit(put=[endpoint])
                except ControlError:
                    ports.release(settled, self._deps.ports)
                    raise
            try:
                self._deps.apply(
                    self._deps.driver_of(network).publish_steps(network, endpoint),
                    f"ports of endpoint {endpoint_id[:12]} could not be published",
                )
            except ControlError:
                self._forget_ports(endpoint)
                raise
        return endpoint

    def unpublish(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Harmless for an endpoint that is not known or has no ports."""
        with suppress(NotFound), self._held(network_id, endpoint_id) as (network, endpoint):
            if endpoint.ports:
                self._unpublish(network, endpoint)

    def _unpublish(self, network: Network, endpoint: Endpoint) -> Endpoint:
        self._deps.undo(
            self._deps.driver_of(network).publish_steps(network, endpoint),
            f"ports of endpoint {endpoint.id[:12]} could not be taken back",
        )
        return self._forget_ports(endpoint)

    def _forget_ports(self, endpoint: Endpoint) -> Endpoint:
        without = msgspec.structs.replace(endpoint, ports=())
        self._records.commit(put=[without])
        ports.release(endpoint.ports, self._deps.ports)
        return without

    # -- looking -------------------------------------------------------------------------------------------------

    def endpoint(self, network_id: NetworkId, endpoint_id: EndpointId) -> Endpoint:
        """Raises NotFound."""
        return self._endpoint(self._network(network_id), endpoint_id)

    def _network(self, network_id: str) -> Network:
        network = self._records.network_by_id(network_id)
        if network is None or network.owner != OWNER:
            raise NotFound(
                f"network {network_id[:12]} is not known to linkspan: remove it from docker, and create it again"
            )
        return network

    def _endpoint(self, network: Network, endpoint_id: str) -> Endpoint:
        endpoint = self._records.endpoint(endpoint_id)
        if endpoint is None or endpoint.network_id != network.id or endpoint.state is EndpointState.LEAVING:
            raise NotFound(f"endpoint {endpoint_id[:12]} is not known on network {network.name}")
        return endpoint

    @contextmanager
    def _held(self, network_id: str, endpoint_id: str) -> Iterator[tuple[Network, Endpoint]]:
        """Holds off other changes of the endpoint, and yields it as it then is; raises NotFound."""
        with self._endpoint_locks.held(endpoint_id):
            network = self._network(network_id)
            yield network, self._endpoint(network, endpoint_id)

    def _emit(self, action: str, network: Network, endpoint: Endpoint) -> None:
        attributes = {"name": network.name, "type": network.driver, "container": endpoint.sandbox_key}
        self._bus.emit(Event("network", action, network.id, attributes))


def _is_as_asked(network: Network, spec: NetworkSpec) -> bool:
    asked = [(pool.subnet, pool.gateway, pool.aux_addresses) for pool in spec.pools]
    return (network.name, network.driver, network.options, network.internal, network.enable_ipv6) == (
        spec.name,
        spec.driver,
        spec.options,
        spec.internal,
        spec.enable_ipv6,
    ) and [(pool.subnet, pool.gateway, pool.aux_addresses) for pool in network.pools] == asked


def _as_asked(
    known: Endpoint, network: Network, ipv4: IPv4Interface | None, ipv6: IPv6Interface | None, mac: str | None
) -> Endpoint:
    """The endpoint that is there, if it is what is asked for; raises Conflict."""
    given = addressing.check_mac(mac, network, ()) if mac else known.mac
    if (known.network_id, known.ipv4, known.ipv6, known.mac) != (network.id, ipv4, ipv6, given):
        raise Conflict(f"endpoint {known.id[:12]} exists already, with other settings: delete it first")
    return known


def _log_failure(endpoint_id: EndpointId, deletion: Future[None]) -> None:
    """What nobody waits for any more is said in the log; the next start, or deletion, finishes it."""
    if not deletion.cancelled() and (error := deletion.exception()) is not None:
        LOG.error("endpoint %s is not deleted whole: %s", endpoint_id[:12], error)


def _shares_address(endpoint: Endpoint, ipv4: IPv4Interface | None, ipv6: IPv6Interface | None) -> bool:
    return (ipv4 is not None and endpoint.ipv4 is not None and endpoint.ipv4.ip == ipv4.ip) or (
        ipv6 is not None and endpoint.ipv6 is not None and endpoint.ipv6.ip == ipv6.ip
    )
