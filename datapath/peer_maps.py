"""The maps of the endpoints of other nodes, typed, as `datapath.maps` is of this node's own.

What programs remember is forgotten by `forget` alone, so that many changes cost one such call; until then they may go
by what was there before.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from datapath import abi
from datapath.maps import Maps, write

Address = IPv4Address | IPv6Address

_U32: Final = struct.Struct("=I")
_EMPTY: Final = bytes(abi.Node.SIZE)


class PeerMaps:
    """On the maps of one bpffs directory, which it does not close. Refusals are OSErrors that name the map."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._peers, self._nodes = maps.table("peers"), maps.table("nodes")
        self._node_by_ip, self._vnis = maps.table("node_by_ip"), maps.table("vnis")
        self._direct = maps.table("direct")

    def forget(self) -> None:
        self._maps.forget()

    def peer_put(self, key: abi.FdbKey, entry: abi.PeerEntry) -> None:
        write(self._peers, key.pack(), entry.pack())

    def peer_delete(self, key: abi.FdbKey) -> None:
        self._peers.delete(key.pack())

    def peers(self) -> dict[abi.FdbKey, abi.PeerEntry]:
        return {abi.FdbKey.unpack(key): abi.PeerEntry.unpack(value) for key, value in self._peers.items()}

    def node_put(self, number: int, node: abi.Node) -> None:
        """Makes the node known at its place in `nodes` and by its remote address."""
        write(self._nodes, _U32.pack(number), node.pack())
        write(self._node_by_ip, abi.NodeKey(node.remote).pack(), _U32.pack(number))

    def node_delete(self, number: int, remote: Address) -> None:
        """Frees the place of a node that no peer refers to."""
        self._node_by_ip.delete(abi.NodeKey(remote).pack())
        self._nodes.update(_U32.pack(number), _EMPTY)

    def nodes(self) -> dict[int, abi.Node]:
        """The nodes that have a place, by it."""
        places = [_U32.unpack(value)[0] for _, value in self._node_by_ip.items()]
        found = {place: self._nodes.lookup(_U32.pack(place)) for place in places}
        return {place: abi.Node.unpack(value) for place, value in found.items() if value is not None}

    def free_node(self, taken: Iterable[int]) -> int:
        """The first place that is not taken; raises OSError when there is none."""
        free = set(range(abi.MAX_NODES)).difference(taken)
        if not free:
            raise OSError(f"map nodes: it is full, with {abi.MAX_NODES} other nodes")
        return min(free)

    def vni_put(self, vni: int, segment: int) -> None:
        write(self._vnis, _U32.pack(vni), _U32.pack(segment))

    def vni_delete(self, vni: int) -> None:
        self._vnis.delete(_U32.pack(vni))

    def vnis(self) -> dict[int, int]:
        """Segments by VNI."""
        return {_U32.unpack(key)[0]: _U32.unpack(value)[0] for key, value in self._vnis.items()}

    def direct_put(self, address: Address, entry: abi.Direct) -> None:
        write(self._direct, abi.DirectKey(address).pack(), entry.pack())

    def direct_delete(self, address: Address) -> None:
        self._direct.delete(abi.DirectKey(address).pack())

    def direct(self) -> dict[Address, abi.Direct]:
        """This node's endpoints that take direct packets, by their addresses."""
        return {abi.DirectKey.unpack(key).address: abi.Direct.unpack(value) for key, value in self._direct.items()}

    def neighbour_put(self, segment: int, address: Address, mac: bytes) -> None:
        self._maps.neighbour_put(segment, address, abi.Neighbour(mac=mac, flags=0))

    def neighbour_delete(self, segment: int, address: Address) -> None:
        self._maps.neighbour_delete(segment, address)

    def neighbour(self, segment: int, address: Address) -> bytes | None:
        """The MAC that questions for an address are answered with."""
        found = self._maps.neighbour(segment, address)
        return None if found is None else found.mac

    def addresses(self) -> dict[tuple[int, bytes], list[Address]]:
        """All addresses that are answered for, by segment and MAC."""
        found: defaultdict[tuple[int, bytes], list[Address]] = defaultdict(list)
        for (segment, address), neighbour in self._maps.neighbours().items():
            found[segment, neighbour.mac].append(address)
        return found
