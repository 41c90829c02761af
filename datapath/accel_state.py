"""What the endpoint programs' maps hold, against what they are to hold; `Accelerator` puts it there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from datapath import abi
from datapath.expected import Difference
from datapath.maps import Maps

if TYPE_CHECKING:
    from datapath.accel import Port

Address = IPv4Address | IPv6Address
Gateways = Mapping[tuple[int, Address], bytes]
"""The MACs of gateways by segment and address."""


class Extra(NamedTuple):
    """An entry that nobody is to have there, in words, and what deletes it."""

    what: str
    delete: Callable[[], object]


def missing(maps: Maps, ports: Mapping[int, Port], gateways: Gateways) -> Iterator[tuple[str, Difference]]:
    """What is not there, or other than it is to be, with the host end concerned ("" for a gateway's entry).

    `ports` are by the ifindex of their host end. Reads every map once.
    """
    endpoints, fdb, neighbours = maps.endpoints(), maps.fdb(at_parents=False), maps.neighbours(at_parents=False)
    for index, port in ports.items():
        has = endpoints.get(index)
        if has != port.record():
            yield port.ifname, _difference("map ep_by_if", "the endpoint", has)
        entry = fdb.get(abi.FdbKey(port.segment, port.mac))
        if entry != abi.FdbEntry(ifindex=index, slot=port.slot):
            yield port.ifname, _difference("map fdb", f"MAC {port.mac.hex(':')}", entry)
        for address, neighbour in port.neighbours().items():
            held = neighbours.get((port.segment, address))
            if held != neighbour:
                yield port.ifname, _difference("map neigh", f"address {address}", held)
    for (segment, address), mac in gateways.items():
        held = neighbours.get((segment, address))
        if held != abi.Neighbour(mac=mac, flags=abi.NEIGH_ROUTER):
            yield "", _difference("map neigh", f"gateway {address}", held)


def _difference(where: str, what: str, has: object) -> Difference:
    if has is None:
        return Difference("map-missing", f"{where} does not have {what}")
    return Difference("map-wrong", f"{where} has other facts than its record of {what}")


def extra(maps: Maps, ports: Mapping[int, Port], gateways: Gateways) -> Iterator[Extra]:
    """The entries that no port or gateway explains, those of peers and of parents left out."""
    wanted = {(port.segment, port.mac) for port in ports.values()}
    addresses = {(port.segment, address) for port in ports.values() for address in port.neighbours()}
    for key in maps.fdb(at_parents=False):
        if (key.segment, key.mac) not in wanted:
            yield Extra(
                f"map fdb has {key.mac.hex(':')} of segment {key.segment}, which no endpoint has",
                lambda key=key: maps.fdb_delete(key.segment, key.mac),  # type: ignore[misc]
            )
    peers = _peers(maps)
    for (segment, address), neighbour in maps.neighbours(at_parents=False).items():
        is_explained = (segment, address) in addresses or (segment, address) in gateways
        if not is_explained and abi.FdbKey(segment, neighbour.mac) not in peers:
            yield Extra(
                f"map neigh has {address} of segment {segment}, which no endpoint has",
                lambda s=segment, a=address: maps.neighbour_delete(s, a),  # type: ignore[misc]
            )
    for index, endpoint in maps.endpoints().items():
        if endpoint.segment < abi.PARENT_SEGMENT and index not in ports:
            yield Extra(
                f"map ep_by_if has an endpoint of segment {endpoint.segment} at ifindex {index}, where none is",
                lambda index=index: maps.endpoint_delete(index),  # type: ignore[misc]
            )


def _peers(maps: Maps) -> Collection[abi.FdbKey]:
    return {abi.FdbKey.unpack(key) for key, _ in maps.table("peers").items()}
