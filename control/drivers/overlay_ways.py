"""How packets get from this node to the others of its cluster, as the kernel sends them; remembered for a while."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, Generic, TypeVar

from control.drivers.peering import Peering
from control.model import Address
from datapath import devices, underlay
from datapath.fast_peers import NO_MAC, Way
from datapath.link_monitor import LinkChange
from datapath.vxlan import Peer

_FRESH_S: Final = 10.0

T = TypeVar("T")


class Ways:
    """The kernel's routes to nodes, and the device that nodes know this one by. Thread-safe; methods raise OSError."""

    def __init__(self, peering: Peering) -> None:
        self._peering = peering
        self._ways = _Remembered[Way]()
        self._uplinks = _Remembered[int | None]()

    def to(self, node: Address) -> Way | None:
        """The way to a node, without its MAC; None where the kernel has no route."""
        try:
            return self._ways.get(node, lambda: self._look_up(node))
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
                raise
            return None

    def _look_up(self, node: Address) -> Way:
        route = underlay.route(node, self._peering.address)
        return Way(
            ifindex=route.ifindex,
            mtu=route.mtu,
            local=route.source,
            remote=node,
            next_hop=route.gateway or node,
            local_mac=route.mac if route.is_on_link and route.ifindex == self.uplink() else NO_MAC,
        )

    def to_peers(self, peers: Collection[Peer]) -> tuple[list[Peer], dict[Address, Way]]:
        """The peers as this node can reach them, and how packets get to their nodes, without those that none leads
        to."""
        ways = {}
        for node, mac in {peer.node: peer.node_mac for peer in peers}.items():
            way = self.to(node)
            if way is not None:
                ways[node] = replace(way, mac=mac or NO_MAC)
        is_direct = {node for node, way in ways.items() if way.is_direct}
        return [replace(peer, is_direct=peer.is_direct and peer.node in is_direct) for peer in peers], ways

    def uplink(self) -> int | None:
        """The ifindex of the device with the address that other nodes know; None if it has no MAC."""
        address = self._peering.address
        return None if address is None else self._uplinks.get(address, lambda: _ethernet_with(address))

    def forget(self, changes: Collection[LinkChange] | None) -> bool:
        """Forgets all if one of these devices, with None any, is on a way; whether it did."""
        ifindexes = {*(way.ifindex for way in self._ways.values()), *self._uplinks.values()}
        is_concerned = changes is None or any(change.ifindex in ifindexes for change in changes)
        self._ways.forget(is_concerned)
        self._uplinks.forget(is_concerned)
        return is_concerned


def _ethernet_with(address: Address) -> int | None:
    ifname = devices.holder(address)
    return devices.need_ifindex(ifname) if ifname is not None and devices.mac(ifname) else None


class _Remembered(Generic[T]):
    """What was looked up for addresses within the last seconds. Thread-safe."""

    def __init__(self) -> None:
        self._found: dict[Address, tuple[float, T]] = {}
        self._changes = 0
        self._lock = threading.Lock()

    def get(self, address: Address, look_up: Callable[[], T]) -> T:
        begin = time.monotonic()
        with self._lock:
            known, changes = self._found.get(address), self._changes
        if known is not None and begin - known[0] < _FRESH_S:
            return known[1]
        found = look_up()
        with self._lock:
            # Who began to look before a change, or before another did, may have seen what is no longer so.
            known = self._found.get(address)
            if changes == self._changes and (known is None or known[0] <= begin):
                self._found[address] = begin, found
        return found

    def values(self) -> list[T]:
        with self._lock:
            return [found for _, found in self._found.values()]

    def forget(self, is_all: bool) -> None:
        """Keeps nothing that is being looked up; with `is_all` nothing else either."""
        with self._lock:
            self._changes += 1
            if is_all:
                self._found.clear()
