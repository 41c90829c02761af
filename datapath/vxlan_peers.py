"""What a VXLAN device and its bridge know of the endpoints of other nodes: brought to exactly what is wanted.

A peer is an entry in the device's FDB (MAC to node), one in the bridge's (MAC to device), and one neighbour of the
bridge for each of its addresses, from which the bridge answers ARP and ND. A node that has endpoints is one entry more,
for broadcasts. All are replaced, never added exclusively; what is missing is added before what is too much goes.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from ipaddress import ip_address
from typing import Final, NamedTuple

from datapath import devices, rtnl, rtnl_vxlan
from datapath.announce import Announcer
from datapath.rtnl import Request, Rtnl
from datapath.vxlan import Peer, Vtep

ANNOUNCED_AT_ONCE: Final = 256
"""More new addresses than this are a node's start, or the cluster's return. They are not announced, because every local
endpoint hears every announcement; who waits for one of them is answered when it asks again, a second later."""


class Table(Enum):
    """Where an entry is, in the order in which those of a peer are added."""

    FDB = "node of MAC"
    PORT = "VXLAN port of MAC"
    BROADCAST = "broadcasts to node"
    NEIGHBOUR = "MAC of address"


Tables = dict[Table, dict[bytes, bytes]]
"""FDB: node by MAC. PORT: MACs. BROADCAST: nodes. NEIGHBOUR: MAC by address. All packed, in network order; what has no
value has an empty one."""


class Difference(NamedTuple):
    """An entry of `Tables` that is not as wanted: missing (`found` is None), extra (`wanted` is None), or another."""

    table: Table
    key: bytes
    wanted: bytes | None
    found: bytes | None

    def __str__(self) -> str:
        state = "missing" if self.found is None else "extra" if self.wanted is None else "other"
        found = f", is {_text(self.found)}" if self.found else ""
        wanted = f", should be {_text(self.wanted)}" if self.wanted else ""
        return f"{state}: {self.table.value} {_text(self.key)}{found}{wanted}"


def _text(raw: bytes) -> str:
    return raw.hex(":") if len(raw) == 6 else str(ip_address(raw))


class PeerTable:
    """The peers of one network on this node. Not thread-safe: one thread at a time.

    Methods block until the kernel is done, and raise NetlinkError; after that `synchronize` puts things right. Whoever
    waits for a new peer, having asked in vain, hears of it at once.
    """

    def __init__(self, vtep: Vtep, announcer: Announcer) -> None:
        self._vtep, self._announcer = vtep, announcer
        self._wanted = _Wanted()

    def synchronize(self, peers: Iterable[Peer]) -> list[Difference]:
        """Makes the kernel hold exactly these peers, and returns what it had to change.

        Reads every table once, and writes only what differs.
        """
        self._wanted = _Wanted(peers)
        with Rtnl() as netlink:
            differences = _compare(self._wanted.tables, self._found(netlink))
            self._mend(netlink, differences)
        return differences

    def differences(self, peers: Iterable[Peer]) -> list[Difference]:
        """What `synchronize` would change; changes nothing, and may run beside the others."""
        with Rtnl() as netlink:
            return _compare(_Wanted(peers).tables, self._found(netlink))

    def change(self, added: Iterable[Peer] = (), removed: Iterable[Peer] = ()) -> list[Difference]:
        """Adds and removes peers without reading the tables, and returns what it changed.

        Peers go by their MAC. One that is there already takes the place of what it was: its packets go the new way from
        the next one on. It may be in `removed` as well.
        """
        added, removed = list(added), list(removed)
        known = self._wanted.peers
        gone = [known[peer.mac] for peer in (*removed, *added) if peer.mac in known]
        before = {key: self._wanted.get(*key) for peer in (*gone, *added) for key in _keys(peer)}
        for peer in removed:
            self._wanted.remove(peer.mac)
        for peer in added:
            self._wanted.add(peer)
        differences = [
            Difference(table, key, wanted, found)
            for (table, key), found in before.items()
            if (wanted := self._wanted.get(table, key)) != found
        ]
        with Rtnl() as netlink:
            self._mend(netlink, differences)
        return differences

    def _found(self, netlink: Rtnl) -> Tables:
        ifname, bridge = self._vtep.ifname, self._vtep.bridge
        index, bridge_index = devices.need_ifindex(ifname), devices.need_ifindex(bridge)
        tables: Tables = {table: {} for table in Table}
        for entry in map(rtnl_vxlan.entry, netlink.dump(rtnl_vxlan.fdb_dump(index, ifname))):
            if not entry.flags & rtnl.NTF_SELF:
                if entry.state & rtnl.NUD_NOARP:  # the device's own MAC is permanent
                    tables[Table.PORT][entry.mac] = b""
            elif entry.mac == rtnl_vxlan.NO_MAC:
                tables[Table.BROADCAST][entry.destination] = b""
            else:
                tables[Table.FDB][entry.mac] = entry.destination
        for family in (socket.AF_INET, socket.AF_INET6):
            query = rtnl_vxlan.neighbours_dump(bridge_index, bridge, family)
            for entry in map(rtnl_vxlan.entry, netlink.dump(query)):
                if _is_peer(entry):
                    tables[Table.NEIGHBOUR][entry.destination] = entry.mac
        return tables

    def _mend(self, netlink: Rtnl, differences: Sequence[Difference]) -> None:
        if not differences:
            return
        ifname, bridge = self._vtep.ifname, self._vtep.bridge
        device = devices.need_ifindex(ifname), ifname
        neighbours = devices.need_ifindex(bridge), bridge
        adds = [
            _addition(each, device, neighbours)
            for table in Table
            for each in differences
            if each.table is table and each.wanted is not None
        ]
        deletions = [
            _deletion(each, device, neighbours)
            for table in reversed(Table)
            for each in differences
            if each.table is table and each.wanted is None and _is_still_peers(netlink, each, neighbours)
        ]
        netlink.apply([*adds, *deletions])
        new = [
            (each.key, each.wanted) for each in differences if each.table is Table.NEIGHBOUR and each.wanted is not None
        ]
        if 0 < len(new) <= ANNOUNCED_AT_ONCE:
            self._announcer.announce(bridge, [(ip_address(address), mac) for address, mac in new])


class _Wanted:
    """The tables that a set of peers needs."""

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self.peers: dict[bytes, Peer] = {}
        self.tables: Tables = {table: {} for table in Table}
        self._endpoints: Counter[bytes] = Counter()
        for peer in peers:
            self.add(peer)

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self.tables[table].get(key)

    def add(self, peer: Peer) -> None:
        self.remove(peer.mac)
        self.peers[peer.mac] = peer
        node = peer.node.packed
        self._endpoints[node] += 1
        self.tables[Table.FDB][peer.mac] = node
        self.tables[Table.PORT][peer.mac] = b""
        self.tables[Table.BROADCAST][node] = b""
        for address in peer.addresses:
            self.tables[Table.NEIGHBOUR][address.packed] = peer.mac

    def remove(self, mac: bytes) -> None:
        """Takes a peer out, but for an address that another has taken over; one that is not there is no error."""
        peer = self.peers.pop(mac, None)
        if peer is None:
            return
        node = peer.node.packed
        self._endpoints[node] -= 1
        if not self._endpoints[node]:
            del self._endpoints[node], self.tables[Table.BROADCAST][node]
        del self.tables[Table.FDB][mac], self.tables[Table.PORT][mac]
        for address in peer.addresses:
            if self.get(Table.NEIGHBOUR, address.packed) == mac:
                del self.tables[Table.NEIGHBOUR][address.packed]


def _keys(peer: Peer) -> list[tuple[Table, bytes]]:
    """The entries that the peer has a part in."""
    return [
        (Table.FDB, peer.mac),
        (Table.PORT, peer.mac),
        (Table.BROADCAST, peer.node.packed),
        *((Table.NEIGHBOUR, address.packed) for address in peer.addresses),
    ]


def _compare(wanted: Tables, found: Tables) -> list[Difference]:
    return [
        Difference(table, key, want, has)
        for table in Table
        for key in wanted[table].keys() | found[table].keys()
        if (want := wanted[table].get(key)) != (has := found[table].get(key))
    ]


def _addition(difference: Difference, device: tuple[int, str], neighbours: tuple[int, str]) -> Request:
    table, key, wanted, _ = difference
    assert wanted is not None
    match table:
        case Table.FDB:
            return rtnl_vxlan.fdb_replace(*device, key, wanted)
        case Table.PORT:
            return rtnl.fdb_add(*device, key)
        case Table.BROADCAST:
            return rtnl_vxlan.broadcast_add(*device, key)
        case Table.NEIGHBOUR:
            return rtnl_vxlan.peer_neighbour_replace(*neighbours, key, wanted)


def _deletion(difference: Difference, device: tuple[int, str], neighbours: tuple[int, str]) -> Request:
    table, key, _, _ = difference
    match table:
        case Table.FDB:
            return rtnl_vxlan.fdb_delete(*device, key)
        case Table.PORT:
            return rtnl.fdb_delete(*device, key)
        case Table.BROADCAST:
            return rtnl_vxlan.broadcast_delete(*device, key)
        case Table.NEIGHBOUR:
            return rtnl_vxlan.neighbour_delete(*neighbours, key)


def _is_peer(entry: rtnl_vxlan.Entry) -> bool:
    """Whether a neighbour is a peer's as we made it, and nobody else's since."""
    return bool(entry.state & rtnl.NUD_PERMANENT and entry.flags & rtnl_vxlan.NTF_EXT_LEARNED)


def _is_still_peers(netlink: Rtnl, difference: Difference, neighbours: tuple[int, str]) -> bool:
    """False for a neighbour that has become that of a local endpoint, which took over the peer's address."""
    if difference.table is not Table.NEIGHBOUR:
        return True
    body = netlink.get(rtnl_vxlan.neighbour_get(*neighbours, difference.key))
    return body is not None and _is_peer(rtnl_vxlan.entry(body))
