"""Addresses that a container engine asks for through the plugin, for networks of whatever driver of its own.

Pools lie in an address space of their own. Calls whose answer was lost are repeated by the engine, and get the same
answer again as far as they can be told from new ones: see docs/adr/0009.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Final

from control.deps import Deps
from control.errors import ControlError, InvalidArgument, NotFound
from control.ipam.base import Pool
from control.model import Address, Endpoint, EndpointState, Subnet
from control.records import Records
from control.store.base import Change

SPACE: Final = "docker"
_GATEWAY: Final = "gateway"


class RemoteIpam:
    """Synchronous; every method may be called from any thread."""

    def __init__(self, deps: Deps, records: Records) -> None:
        self._ipam = deps.ipam
        self._routed_networks = deps.routed_networks
        self._records = records
        self._unanswered: set[str] = set()
        self._unstored: list[Change] = []

    def start(self) -> None:
        """Takes note of pools from which nothing was taken, and that no network has.

        Whoever asked for one may not have got the answer.
        """
        in_use = {
            str(pool.subnet) for network in self._records.networks() for pool in network.pools if not pool.pool_id
        }
        self._unanswered = {id_ for id_ in self._ipam.untouched(SPACE) if _subnet_of(id_) not in in_use}

    def request_pool(self, subnet: Subnet | None, ip_range: Subnet | None, *, v6: bool) -> Pool:
        """Raises InvalidArgument, Forbidden ("Pool overlaps…"), Exhausted."""
        avoid = [*self._routed_networks(), *self._own_subnets()] if subnet is None else ()
        with self._records.lock:
            if subnet is not None:
                pool_id = f"{SPACE}/{subnet}" if ip_range is None else f"{SPACE}/{subnet}/{ip_range}"
                if pool_id in self._unanswered:
                    self._unanswered.discard(pool_id)
                    return Pool(id=pool_id, space=SPACE, subnet=subnet, ip_range=ip_range)
            pool, changes = self._ipam.request_pool(
                SPACE, subnet=subnet, ip_range=ip_range, v6=v6, avoid=avoid, owner="a network of docker"
            )
            try:
                self._store(changes)
            except ControlError:
                self._ipam.release_pool(pool.id)
                raise
            return pool

    def release_pool(self, pool_id: str) -> None:
        """Harmless for a pool that is not there. Raises InvalidArgument for one that is not the engine's."""
        _check_space(pool_id)
        with self._records.lock:
            self._unanswered.discard(pool_id)
            with suppress(NotFound):
                self._unstored += self._ipam.release_pool(pool_id)
            self._store()

    def request_address(
        self, pool_id: str, address: Address | None, *, gateway: bool, mac: str
    ) -> IPv4Interface | IPv6Interface:
        """The address with its subnet's prefix length, for the endpoint with `mac` if it is for one.

        Raises NotFound (pool), InvalidArgument, Forbidden ("Address already in use"), Exhausted.
        """
        _check_space(pool_id)
        owner = _GATEWAY if gateway else f"endpoint {mac}" if mac else "docker"
        with self._records.lock:
            self._unanswered.discard(pool_id)
            held = self._ipam.find(pool_id, owner) if gateway or mac else None
            if held is not None and address in (None, held) and self._is_unused(pool_id, held, mac):
                return _in_pool(pool_id, held)
            given, changes = self._ipam.request_address(pool_id, address, owner=owner)
            try:
                self._store(changes)
            except ControlError:
                self._ipam.release_address(pool_id, given)
                raise
            return _in_pool(pool_id, given)

    def release_address(self, pool_id: str, address: Address) -> None:
        """Harmless for what is not there, and for what an endpoint has: it went to that one since it was lost.

        Raises InvalidArgument for a pool that is not the engine's.
        """
        _check_space(pool_id)
        with self._records.lock:
            if self._is_held(pool_id, address):
                return
            with suppress(NotFound):
                self._unstored += self._ipam.release_address(pool_id, address)
            self._store()

    def release_lost(self, endpoint: Endpoint) -> None:
        """Gives back what an endpoint has that the engine will not give back: it knows nothing of it any more."""
        with self._records.lock:
            for interface in (endpoint.ipv4, endpoint.ipv6):
                for pool in self._ipam.pools(SPACE) if interface is not None else ():
                    if interface is not None and interface.network == pool.subnet:
                        self._unstored += self._ipam.release_address(pool.id, interface.ip)
            self._store()

    def _store(self, changes: Sequence[Change] = ()) -> None:
        """Stores the changes, after releases that could not be stored when they were made: nobody repeats those."""
        if self._unstored or changes:
            self._records.commit(changes=[*self._unstored, *changes])
            self._unstored.clear()

    def _is_held(self, pool_id: str, address: Address) -> bool:
        """Whether an endpoint on the pool's network has the address, and is not being deleted."""
        return any(
            _has(endpoint, address)
            for network in self._records.networks()
            if network.owner and any(str(pool.subnet) == _subnet_of(pool_id) for pool in network.pools)
            for endpoint in self._records.on_network(network.id)
            if endpoint.state is not EndpointState.LEAVING
        )

    def _is_unused(self, pool_id: str, address: Address, mac: str) -> bool:
        """Whether nobody can have got the address yet: its network is being made, or no endpoint has it."""
        subnet = _subnet_of(pool_id)
        for network in self._records.networks():
            for pool in network.pools:
                if network.owner and not pool.pool_id and str(pool.subnet) == subnet:
                    has_it = [e for e in self._records.on_network(network.id) if e.mac == mac or _has(e, address)]
                    return bool(mac) and not has_it
        return not mac

    def _own_subnets(self) -> list[Subnet]:
        return [pool.subnet for network in self._records.networks() for pool in network.pools]


def _check_space(pool_id: str) -> None:
    if not pool_id.startswith(f"{SPACE}/"):
        raise InvalidArgument(f"invalid address pool {pool_id!r}: pools that linkspan gave out begin with {SPACE}/")


def _subnet_of(pool_id: str) -> str:
    return "/".join(pool_id.split("/")[1:3])


def _in_pool(pool_id: str, address: Address) -> IPv4Interface | IPv6Interface:
    return ip_interface(f"{address}/{pool_id.split('/')[2]}")


def _has(endpoint: Endpoint, address: Address) -> bool:
    return any(interface is not None and interface.ip == address for interface in (endpoint.ipv4, endpoint.ipv6))
