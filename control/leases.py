"""Leases of DHCP servers: asked for before an endpoint is recorded, stored with it, given back when it goes.

A network has them whose IPAM driver is DHCP. Its pools are those of any network: the address that a server gives is
asked of IPAM like one that a user chose, so that both kinds meet in one place. Design: docs/adr/0013.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_network
from typing import Final

import msgspec

from control import addressing
from control.deps import Deps
from control.drivers.base import Driver
from control.drivers.inside import mac_bytes
from control.errors import Conflict, ControlError, DeadlineExceeded, InvalidArgument, StoreError
from control.model import (
    Endpoint,
    EndpointId,
    EndpointState,
    Network,
    NetworkId,
    NetworkSpec,
    NetworkState,
    PoolSpec,
    SandboxId,
    from_json,
    to_json,
    utcnow,
)
from control.records import Records
from control.store.base import Change, Delete, Put
from datapath.dhcp import Client, Extension, NoAnswer, Refused
from datapath.dhcp_message import FOR_EVER, Answer

LOG = logging.getLogger(__name__)

DHCP: Final = "dhcp"
"""The name of the IPAM driver, and the kind of the stored records."""
JOIN_WITHIN_S: Final = 20.0
"""How long a join waits for a server. Servers that ping an address before they offer it take up to three seconds for
that, and dnsmasq pings six in a row when many ask at once."""
CREATE_WITHIN_S: Final = 10.0
_EARLY: Final = 0.1
"""Times to renew and rebind are shortened at random by up to this part, so that endpoints that were made together do
not stay together (RFC 2131, 4.4.5)."""
_NO_LABEL: Final = re.compile(r"[^A-Za-z0-9-]+")


@dataclass(frozen=True)
class Clock:
    """`now` is the time of day, for what is stored; `uptime` in seconds goes on evenly, suspended or not; `wait` waits
    on a condition for some seconds."""

    now: Callable[[], datetime] = utcnow
    uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    wait: Callable[[threading.Condition, float], object] = threading.Condition.wait


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """An address that a server lends an endpoint, until `expires`; the times are None for one that does not end.

    `left` is the address that the endpoint had before, as long as the kernel may still hold it.
    """

    mac: str
    hostname: str
    address: IPv4Address
    server: IPv4Address
    server_mac: str
    renew_at: datetime | None = None
    rebind_at: datetime | None = None
    expires: datetime | None = None
    left: IPv4Interface | None = None

    @property
    def client(self) -> Client:
        return Client(mac_bytes(self.mac), self.hostname)

    @property
    def at_server(self) -> tuple[IPv4Address, bytes]:
        return self.server, mac_bytes(self.server_mac)

    def is_over(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires

    def text(self, now: datetime) -> str:
        """For people: from whom until when."""
        if self.expires is None:
            return f"from {self.server} for ever"
        verb = "LOST since" if self.is_over(now) else "until"
        return f"from {self.server} {verb} {self.expires:%Y-%m-%dT%H:%M:%SZ}"


def lease_of(answer: Answer, client: Client, now: datetime) -> Lease:
    """What an acknowledgement that was asked for `now` gives (RFC 2131, 4.4.1: from the time of the request)."""
    lease = Lease(
        mac=client.mac.hex(":"),
        hostname=client.hostname,
        address=answer.address,
        server=answer.server,
        server_mac=answer.server_mac.hex(":"),
    )
    if answer.lease_s == FOR_EVER:
        return lease
    early = 1 - _EARLY * random.random()
    return msgspec.structs.replace(
        lease,
        renew_at=now + timedelta(seconds=answer.renew_s * early),
        rebind_at=now + timedelta(seconds=answer.rebind_s * early),
        expires=now + timedelta(seconds=answer.lease_s),
    )


def has_leases(network: Network | NetworkSpec) -> bool:
    """Whether the network's IPv4 addresses are a DHCP server's to give."""
    return network.ipam_driver == DHCP


class Leases:
    """Every lease of this host, by endpoint. Thread-safe.

    `changed` is called with the id of an endpoint whose lease is new or gone.
    """

    def __init__(self, deps: Deps, records: Records, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.changed: Callable[[str], None] = lambda _: None
        self._deps = deps
        self._records = records
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()

    def load(self) -> None:
        """Reads what is stored; records are loaded. Raises StoreError."""
        orphans: list[Change] = []
        for endpoint_id, body in self._deps.store.read(DHCP):
            try:
                lease = from_json(Lease, body)
            except (msgspec.MsgspecError, ValueError) as error:
                raise StoreError(
                    f"the stored lease of endpoint {endpoint_id[:12]} is damaged ({error}): "
                    "restore a copy of the store, or remove the record"
                ) from error
            if self._records.endpoint(endpoint_id) is None:
                orphans.append(Delete(DHCP, endpoint_id))
            else:
                self._leases[endpoint_id] = lease
        self._records.commit(changes=orphans)

    def get(self, endpoint_id: str) -> Lease | None:
        return self._leases.get(endpoint_id)

    def ids(self) -> list[str]:
        """The endpoints that have leases."""
        return list(self._leases)

    # -- networks ------------------------------------------------------------------------------------------------

    def settle(self, spec: NetworkSpec, network_id: NetworkId) -> NetworkSpec:
        """The network with what the server knows of it, subnet and gateway, where the user left them out.

        Raises InvalidArgument for what cannot be had with leases, Conflict, DeadlineExceeded when no server answers.
        """
        driver = self._deps.driver(spec.driver)
        ifname = driver.dhcp_link(spec)
        pool = _check(spec)
        if pool is not None and pool.gateway is not None:
            return spec
        network = Network(
            id=network_id, name=spec.name, driver=spec.driver, state=NetworkState.CREATING, created=utcnow(),
            segment=0, options=spec.options,
        )  # fmt: skip
        what = f"network {spec.name} could not be created"
        steps = driver.network_steps(network)
        self._deps.apply(steps, what)
        try:
            client = Client(mac_bytes(settled_mac(driver, network, addressing.make_mac(None, ()), ())))
            with _explained(what, ifname, "; or give --subnet and --gateway"):
                offer = self._deps.dhcp.probe(ifname, client, within_s=CREATE_WITHIN_S)
        finally:
            self._deps.undo(steps, what)
        learned = _learned_pool(offer, pool, what)
        others = tuple(each for each in spec.pools if each is not pool)
        return msgspec.structs.replace(spec, pools=(learned, *others))

    # -- endpoints -----------------------------------------------------------------------------------------------

    def take(
        self, network: Network, mac: str, hostname: str, wanted: IPv4Address | None = None, *, failure: str
    ) -> Lease:
        """A lease in the network; raises Conflict, and DeadlineExceeded when no server answers, introduced by
        `failure`."""
        ifname = self._deps.driver_of(network).dhcp_link(network)
        client = Client(mac_bytes(mac), hostname)
        now = self.clock.now()
        with _explained(failure, ifname):
            answer = self._deps.dhcp.acquire(
                ifname,
                client,
                wanted=wanted,
                accepts=lambda address: any(address in pool.subnet for pool in network.pools),
                within_s=JOIN_WITHIN_S,
            )
        lease = lease_of(answer, client, now)
        LOG.info("net=%s: %s has a lease of %s %s", network.name, mac, lease.address, lease.text(now))
        return lease

    def extend(self, network: Network, lease: Lease, how: Extension, within_s: float) -> Lease:
        """The lease with more time; raises NoAnswer, Refused, OSError."""
        ifname = self._deps.driver_of(network).dhcp_link(network)
        now = self.clock.now()
        answer = self._deps.dhcp.extend(
            ifname, lease.client, lease.address, how=how, server=lease.at_server, within_s=within_s
        )
        return lease_of(answer, lease.client, now)

    def stored(self, endpoint_id: EndpointId, lease: Lease) -> Change:
        """What is to be stored in one transaction with the endpoint."""
        return Put(DHCP, endpoint_id, to_json(lease))

    def remember(self, endpoint_id: EndpointId, lease: Lease) -> None:
        """Has the lease kept from now on; it is stored."""
        with self._lock:
            self._leases[endpoint_id] = lease
        self.changed(endpoint_id)

    def replace(self, endpoint_id: EndpointId, lease: Lease) -> bool:
        """Stores the endpoint's lease as it is now; False when the endpoint has none any more. Raises StoreError."""
        with self._records.lock:
            if endpoint_id not in self._leases:
                return False
            self._records.commit(changes=[self.stored(endpoint_id, lease)])
            with self._lock:
                self._leases[endpoint_id] = lease
        return True

    def ended(self, lease: Lease) -> Lease:
        """The lease as of now no more, so that another is asked for."""
        return msgspec.structs.replace(lease, expires=self.clock.now())

    def give_back(self, network: Network | None, endpoint_id: EndpointId) -> list[Change]:
        """Tells the server that the endpoint's address is free, and forgets it once the changes are stored.

        Said before it is stored: who dies in between says it again. Harmless for an endpoint that has none.
        """
        with self._lock:
            lease = self._leases.pop(endpoint_id, None)
        if lease is None:
            return [] if network is None or not has_leases(network) else [Delete(DHCP, endpoint_id)]
        self.changed(endpoint_id)
        if network is not None:
            self.release(network, lease)
        return [Delete(DHCP, endpoint_id)]

    def release(self, network: Network, lease: Lease) -> None:
        """Tells the server that the address is free; what it does not hear ends with its time."""
        if lease.is_over(self.clock.now()):
            return
        try:
            ifname = self._deps.driver_of(network).dhcp_link(network)
            self._deps.dhcp.release(ifname, lease.client, lease.address, lease.at_server)
        except (OSError, ControlError) as error:
            LOG.warning("net=%s: address %s could not be given back: %s", network.name, lease.address, error)
        else:
            LOG.info("net=%s: %s gave %s back to %s", network.name, lease.mac, lease.address, lease.server)

    def decline(self, network: Network, lease: Lease) -> None:
        """Tells the server that somebody else has the address, so that it gives another."""
        LOG.warning("net=%s: server %s lent %s, which is in use", network.name, lease.server, lease.address)
        try:
            ifname = self._deps.driver_of(network).dhcp_link(network)
            self._deps.dhcp.decline(ifname, lease.client, lease.address, lease.server)
        except (OSError, ControlError) as error:
            LOG.warning("net=%s: address %s could not be declined: %s", network.name, lease.address, error)

    def decline_of(self, network: Network, endpoint_id: EndpointId, address: object) -> None:
        """`decline` for the endpoint's lease, which it then has no more, if it is of the address."""
        with self._lock:
            lease = self._leases.get(endpoint_id)
            if lease is None or lease.address != address:
                return
            del self._leases[endpoint_id]
        self.changed(endpoint_id)
        self.decline(network, lease)

    def states(self) -> list[tuple[Network, str]]:
        """For every lease its network, and whether it is "kept" or "lost"."""
        now = self.clock.now()
        found = [(self._records.endpoint(each), self.get(each)) for each in self.ids()]
        return [
            (self._records.network(endpoint.network_id), "lost" if lease.is_over(now) else "kept")
            for endpoint, lease in found
            if endpoint is not None and lease is not None
        ]

    def describe(self, network: Network) -> str:
        """Who has which lease, for `inspect`."""
        now = self.clock.now()
        leases = [(self.get(each.id), each) for each in self._records.on_network(network.id)]
        lines = [
            (lease.address, f"{lease.address} ({each.id[:12]}) {lease.text(now)}") for lease, each in leases if lease
        ]
        return ", ".join(line for _, line in sorted(lines))


def settled_mac(driver: Driver, network: Network, mac: str, siblings: Sequence[Endpoint]) -> str:
    """The MAC that an endpoint which asked for `mac` gets; raises Exhausted where there is no room for another."""
    endpoint = Endpoint(
        id=EndpointId(""), network_id=network.id, sandbox_id=SandboxId(""), state=EndpointState.JOINING,
        created=utcnow(), mac=mac,
    )  # fmt: skip
    return driver.settle_endpoint(network, endpoint, siblings).mac


def _check(spec: NetworkSpec) -> PoolSpec | None:
    """The one IPv4 subnet that the user gave, if any; raises InvalidArgument."""
    if not spec.enable_ipv4:
        raise InvalidArgument("the IPAM driver dhcp gives IPv4 addresses: leave --ipv4=false out")
    if spec.ipam_options:
        raise InvalidArgument(f"unknown option {next(iter(spec.ipam_options))!r}: the IPAM driver dhcp has no options")
    if any(pool.subnet is None and (pool.gateway or pool.ip_range or pool.aux_addresses) for pool in spec.pools):
        raise InvalidArgument("every ip-range or gateway must have a corresponding subnet")
    pools = [pool for pool in spec.pools if isinstance(pool.subnet, IPv4Network)]
    if any(pool.ip_range or pool.aux_addresses for pool in pools):
        raise InvalidArgument(
            "with the IPAM driver dhcp the server says which addresses are given: leave --ip-range and --aux-address "
            "out"
        )
    if len(pools) > 1:
        raise InvalidArgument("the IPAM driver dhcp takes one IPv4 subnet: make a network for each")
    return next(iter(pools), None)


def _learned_pool(offer: Answer, pool: PoolSpec | None, what: str) -> PoolSpec:
    from_server = f"DHCP server {offer.server}"
    if pool is None:
        if offer.prefixlen is None:
            raise Conflict(f"{what}: {from_server} does not say which subnet it is for: give --subnet")
        subnet = ip_network(f"{offer.address}/{offer.prefixlen}", strict=False)
        pool = PoolSpec(subnet=subnet)
    assert pool.subnet is not None
    if offer.address not in pool.subnet:
        raise Conflict(f"{what}: {from_server} offers {offer.address}, which is not in subnet {pool.subnet}")
    if offer.router is not None and offer.router not in pool.subnet:
        raise Conflict(
            f"{what}: {from_server} names the router {offer.router}, which is not in subnet {pool.subnet}: "
            "give --gateway"
        )
    return msgspec.structs.replace(pool, gateway=offer.router)


@contextmanager
def _explained(what: str, ifname: str, otherwise: str = "") -> Iterator[None]:
    try:
        yield
    except NoAnswer as error:
        raise DeadlineExceeded(
            f"{what}: no DHCP server on {ifname} gave an address in time ({error}): "
            f"see that there is one, and that it has addresses left{otherwise}"
        ) from error
    except Refused as error:
        raise Conflict(f"{what}: on {ifname}, {error}") from error
    except OSError as error:
        raise Conflict(f"{what}: {ifname} cannot be asked for DHCP: {error.strerror or error}") from error


def hostname_of(name: str) -> str:
    """The sandbox's name as a label that servers put into DNS (RFC 1123, 2.1), or nothing."""
    return _NO_LABEL.sub("-", name)[:63].strip("-")
