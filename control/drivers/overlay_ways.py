"""How packets get from this node to the others of its cluster, as the kernel sends them; remembered for a while."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from control.drivers.peering import Peering
from control.model import Address
from datapath import devices, underlay
from datapath.fast_peers import NO_MAC, Way
from datapath.link_monitor import LinkChange
from datapath.vxlan import Peer

_FRESH_S: Final = 10.0


class Ways:
    """The kernel's routes to nodes, and the device that nodes know this one by. Thread-safe; methods raise OSError."""

    def __init__(self, peering: Peering) -> None:
        self._peering = peering
        self._ways: dict[Address, tuple[float, Way]] = {}
        self._own: tuple[float, Address, int | None] | None = None
        self._lock = threading.Lock()

    def to(self, node: Address) -> Way | None:
        """The way to a node, without its MAC; None where the kernel has no route."""
        now = time.monotonic()
        with self._lock:
            known = self._ways.get(node)
            if known is not None and now - known[0] < _FRESH_S:
                return known[1]
        try:
            route = underlay.route(node, self._peering.address)
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
                raise
            return None
        way = Way(
            ifindex=route.ifindex,
            mtu=route.mtu,
            local=route.source,
            remote=node,
            next_hop=route.gateway or node,
            local_mac=route.mac if route.is_on_link and route.ifindex == self.uplink() else NO_MAC,
        )
        with self._lock:
            self._ways[node] = now, way
        return way

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
        now, address = time.monotonic(), self._peering.address
        if address is None:
            return None
        with self._lock:
            if self._own is not None and self._own[1] == address and now - self._own[0] < _FRESH_S:
                return self._own[2]
        ifname = devices.holder(address)
        index = devices.need_ifindex(ifname) if ifname is not None and devices.mac(ifname) else None
        with self._lock:
            self._own = now, address, index
        return index

    def forget(self, changes: Collection[LinkChange] | None) -> bool:
        """Forgets all if one of these devices, with None any, is on a way; whether it did."""
        with self._lock:
            ifindexes = {way.ifindex for _, way in self._ways.values()}
            if self._own is not None and self._own[2] is not None:
                ifindexes.add(self._own[2])
            if changes is not None and not any(change.ifindex in ifindexes for change in changes):
                return False
            self._ways.clear()
            self._own = None
        return True
