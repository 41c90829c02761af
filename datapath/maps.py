"""The pinned maps, typed: what the programs know of endpoints, and what they have counted.

Values are those of `datapath.abi`. A change has taken effect for every packet that comes after the call's return;
writing the same again, and deleting what is not there, change nothing. Safe to use from several threads. Every refusal
by the kernel is an OSError that names the map (E2BIG: it is full).
"""

from __future__ import annotations

import struct
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from typing import Final, Self

from datapath.abi import (
    MAX_ENDPOINTS,
    PARENT_SEGMENT,
    Counters,
    DropKey,
    DropReason,
    Endpoint,
    FdbEntry,
    FdbKey,
    LatencyKey,
    LatencyKind,
    Limit,
    Neigh4Key,
    Neigh6Key,
    Neighbour,
    Parent,
    Sampling,
    StationKey,
)
from datapath.bpf import Map, possible_cpus
from datapath.latency import Histograms

Address = IPv4Address | IPv6Address

_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_GROUP_BIT: Final = 1
_SECOND_NS: Final = 1_000_000_000
_LABELS: Final = {int(reason): reason.label for reason in DropReason}


class Maps:
    """All maps of one bpffs directory, open. A context manager; `close` is idempotent."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps
        self._endpoints = maps["ep_by_if"]
        self._fdb = maps["fdb"]
        self._parents = maps["parents"]
        self._stations = maps["stations"]
        self._neigh4 = maps["neigh4"]
        self._neigh6 = maps["neigh6"]
        self._limits = maps["limits"]
        self._counters = maps["ep_counters"]
        self._drops = maps["ep_drops"]
        self._sampling = maps["sampling"]
        self._latencies = maps["latencies"]
        self._epoch = maps["epoch"]
        self._epoch_lock = threading.Lock()

    @classmethod
    def open(cls, pins: Mapping[str, str]) -> Self:
        """Opens the maps pinned at the given paths, as `loader.load` returns them."""
        opened: dict[str, Map] = {}
        try:
            for name, path in pins.items():
                opened[name] = Map.from_pin(path)
            maps = cls(opened)
            # Whoever had them open before may have died between a change and this.
            maps.forget()
            return maps
        except BaseException:
            for each in opened.values():
                each.close()
            raise

    def close(self) -> None:
        for each in self._maps.values():
            each.close()

    def table(self, name: str) -> Map:
        """One map by its name. Whoever changes one that programs remember calls `forget` afterwards."""
        return self._maps[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def endpoint_put(self, ifindex: int, endpoint: Endpoint) -> None:
        """Makes the programs on host end `ifindex` judge and count packets as this endpoint's."""
        _require_sound(endpoint)
        if write(self._endpoints, _U32.pack(ifindex), endpoint.pack()):
            self.forget()

    def endpoint(self, ifindex: int) -> Endpoint | None:
        """What the programs know of the endpoint behind a host end."""
        value = self._endpoints.lookup(_U32.pack(ifindex))
        return None if value is None else Endpoint.unpack(value)

    def endpoint_delete(self, ifindex: int) -> bool:
        """Makes the programs leave the host end's packets alone; False when they did already."""
        was_there = self._endpoints.delete(_U32.pack(ifindex))
        if was_there:
            self.forget()
        return was_there

    def endpoint_delete_slot(self, slot: int) -> None:
        """As `endpoint_delete`, for a host end that is gone and whose ifindex nobody knows any more."""
        for ifindex, endpoint in self.endpoints().items():
            if endpoint.slot == slot:
                self.endpoint_delete(ifindex)

    def endpoints(self) -> dict[int, Endpoint]:
        """All endpoints by the ifindex of their host end."""
        return {_U32.unpack(key)[0]: Endpoint.unpack(value) for key, value in self._endpoints.items()}

    def fdb_put(self, segment: int, mac: bytes, entry: FdbEntry) -> None:
        """Has unicast of the segment's endpoints for `mac` sent straight into the sandbox behind a host end."""
        _require_unicast(mac)
        if write(self._fdb, FdbKey(segment, mac).pack(), entry.pack()):
            self.forget()

    def fdb_delete(self, segment: int, mac: bytes) -> bool:
        """Leaves packets for `mac` to the kernel."""
        was_there = self._fdb.delete(FdbKey(segment, mac).pack())
        if was_there:
            self.forget()
        return was_there

    def flooder_put(self, parent: int, bridge: int) -> None:
        """Has packets for groups copied to the switched stations of a parent by a bridge, both given by ifindex."""
        if write(self._fdb, _flooder(parent), FdbEntry(ifindex=bridge, slot=0).pack()):
            self.forget()

    def flooder_delete(self, parent: int) -> None:
        if self._fdb.delete(_flooder(parent)):
            self.forget()

    def fdb_entry(self, segment: int, mac: bytes) -> FdbEntry | None:
        """The host end that unicast of the segment's endpoints for `mac` is sent to."""
        value = self._fdb.lookup(FdbKey(segment, mac).pack())
        return None if value is None else FdbEntry.unpack(value)

    def fdb(self, *, at_parents: bool | None = None) -> dict[FdbKey, FdbEntry]:
        """All entries, or those of parents alone, or those of all others."""
        return {FdbKey.unpack(key): FdbEntry.unpack(value) for key, value in _entries(self._fdb, at_parents)}

    def parent_put(self, ifindex: int, parent: Parent) -> None:
        """Makes the programs on a parent work for the stations on it."""
        _require_unicast(parent.mac)
        if write(self._parents, _U32.pack(ifindex), parent.pack()):
            self.forget()

    def parent_delete(self, ifindex: int) -> bool:
        """Makes the programs leave what the device sends alone; False when they did already."""
        was_there = self._parents.delete(_U32.pack(ifindex))
        if was_there:
            self.forget()
        return was_there

    def parents(self) -> dict[int, Parent]:
        """All parents by ifindex."""
        return {_U32.unpack(key)[0]: Parent.unpack(value) for key, value in self._parents.items()}

    def station_put(self, ifindex: int, station: Endpoint) -> None:
        """Makes the programs on parent `ifindex` judge and count packets with the endpoint's MAC as the endpoint's."""
        _require_sound(station)
        if write(self._stations, StationKey(ifindex, station.mac).pack(), station.pack()):
            self.forget()

    def station(self, ifindex: int, mac: bytes) -> Endpoint | None:
        """What the programs know of the endpoint with a MAC of its own on a parent."""
        value = self._stations.lookup(StationKey(ifindex, mac).pack())
        return None if value is None else Endpoint.unpack(value)

    def station_delete(self, ifindex: int, mac: bytes) -> bool:
        """Makes packets with this MAC a stranger's; False when they were already."""
        was_there = self._stations.delete(StationKey(ifindex, mac).pack())
        if was_there:
            self.forget()
        return was_there

    def stations(self) -> dict[StationKey, Endpoint]:
        return {StationKey.unpack(key): Endpoint.unpack(value) for key, value in self._stations.items()}

    def neighbour_put(self, segment: int, address: Address, neighbour: Neighbour) -> None:
        """Has ARP requests or neighbour solicitations for `address` answered with the neighbour's MAC."""
        _require_unicast(neighbour.mac)
        table, key = self._neighbour_key(segment, address)
        write(table, key, neighbour.pack())

    def neighbour_delete(self, segment: int, address: Address) -> bool:
        """Leaves requests for `address` to whoever has it."""
        table, key = self._neighbour_key(segment, address)
        return table.delete(key)

    def neighbour(self, segment: int, address: Address) -> Neighbour | None:
        """Whose an address is."""
        table, key = self._neighbour_key(segment, address)
        value = table.lookup(key)
        return None if value is None else Neighbour.unpack(value)

    def neighbours(self, *, at_parents: bool | None = None) -> dict[tuple[int, Address], Neighbour]:
        """Neighbours by segment and address: all, or those of parents alone, or those of all others."""
        found: dict[tuple[int, Address], Neighbour] = {}
        for raw, value in _entries(self._neigh4, at_parents):
            key4 = Neigh4Key.unpack(raw)
            found[key4.segment, key4.ip4] = Neighbour.unpack(value)
        for raw, value in _entries(self._neigh6, at_parents):
            key6 = Neigh6Key.unpack(raw)
            found[key6.segment, key6.ip6] = Neighbour.unpack(value)
        return found

    def limit_put(self, slot: int, packets_per_second: int) -> None:
        """Has an endpoint send at most so many packets a second that everybody gets; 0 for no limit."""
        cost_ns = _SECOND_NS // packets_per_second if packets_per_second else 0
        self._limits.update(_U32.pack(slot), Limit(cost_ns).pack())

    def counters(self, slots: Collection[int] | None = None) -> dict[int, Counters]:
        """Counters by slot, summed over CPUs, of these slots or of all that an endpoint has. One batch of system
        calls."""
        if slots is None:
            slots = self.used_slots()
        totals: list[Counters] = []
        for values in self._counters.array_batches(max(slots, default=-1) + 1):
            totals += Counters.totals(values, possible_cpus())
        return {slot: totals[slot] for slot in sorted(slots)}

    def used_slots(self) -> set[int]:
        """The slots of all endpoints, behind host ends and on parents."""
        return self.endpoint_slots() | self.station_slots()

    def endpoint_slots(self) -> set[int]:
        """The slots of the endpoints behind host ends."""
        return _slots(self._endpoints)

    def station_slots(self) -> set[int]:
        """The slots of the endpoints on parents."""
        return _slots(self._stations)

    def drops(self) -> dict[int, dict[str, int]]:
        """Dropped packets by slot and reason's label, summed over CPUs; only what has dropped at least once."""
        found: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for raw, value in self._drops.items():
            key = DropKey.unpack(raw)
            label = _LABELS.get(key.reason, f"unknown_{key.reason}")
            found[key.slot][label] = _total(value)
        return dict(found)

    def slot_counters(self, slot: int) -> tuple[Counters, dict[str, int]]:
        """What one slot holds, whether an endpoint has it or not: counters, and drops by reason's label."""
        counted = self._counters.lookup(_U32.pack(slot))
        assert counted is not None, "an array has all its elements"
        values = ((reason, self._drops.lookup(DropKey(slot, reason).pack())) for reason in DropReason)
        (total,) = Counters.totals(counted, possible_cpus())
        return total, {reason.label: _total(value) for reason, value in values if value is not None}

    def fill(self) -> dict[str, tuple[int, int]]:
        """(entries, most entries) by name, of the maps that can be full; reads their keys."""
        tables = {name: table for name, table in self._maps.items() if not table.is_array}
        return {
            name: (
                sum(len(keys) // table.info.key_size for keys, _ in table.batches()),
                table.info.max_entries,
            )
            for name, table in tables.items()
        }

    def sample(self, every: int) -> None:
        """Has one arrival in so many timed, as `latencies` tells; 0 for none."""
        self._sampling.update(_U32.pack(0), Sampling(every=every).pack() * possible_cpus())

    def latencies(self) -> Histograms:
        """What took how long, by slot, whether an endpoint has it or not; only what has samples."""
        found = Histograms(MAX_ENDPOINTS)
        for keys, values in self._latencies.batches():
            found.hold(keys, values)
        return found

    def slot_latencies(self, slots: Collection[int]) -> Histograms:
        """As `latencies`, of a few slots alone."""
        found = Histograms(MAX_ENDPOINTS)
        for slot, kind in product(slots, LatencyKind):
            key = LatencyKey(slot, kind).pack()
            if (value := self._latencies.lookup(key)) is not None:
                found.hold(key, value)
        return found

    def clear_slot(self, slot: int) -> None:
        """Sets the slot's counters and drops to zero, and forgets its latencies. For a slot that no endpoint uses: a
        program that counts meanwhile may bring its CPU's old values back."""
        self._counters.update(_U32.pack(slot), bytes(self._counters.value_size))
        for reason in DropReason:
            self._drops.delete(DropKey(slot, reason).pack())
        for kind in LatencyKind:
            self._latencies.delete(LatencyKey(slot, kind).pack())

    def keep_only(
        self,
        *,
        ifindexes: Collection[int],
        fdb: Collection[tuple[int, bytes]],
        neighbours: Collection[tuple[int, Address]],
    ) -> None:
        """Deletes every endpoint, FDB entry and neighbour that is not named, not a station's and not a peer's.

        Receivers go before senders, so that no packet takes the fast path to an endpoint that cannot answer.
        """
        for key in self.fdb(at_parents=False):
            if (key.segment, key.mac) not in fdb:
                self.fdb_delete(key.segment, key.mac)
        peers = {FdbKey.unpack(key) for key, _ in self._maps["peers"].items()}
        for (segment, address), neighbour in self.neighbours(at_parents=False).items():
            if (segment, address) not in neighbours and FdbKey(segment, neighbour.mac) not in peers:
                self.neighbour_delete(segment, address)
        for ifindex, endpoint in self.endpoints().items():
            if endpoint.segment < PARENT_SEGMENT and ifindex not in ifindexes:
                self.endpoint_delete(ifindex)

    def forget(self) -> None:
        """Makes the programs forget what they remember, after a change of anything but neighbours.

        The clock gives a new value each time: it counts from the machine's start, as the maps do.
        """
        with self._epoch_lock:
            self._epoch.update(_U32.pack(0), _U64.pack(time.monotonic_ns()))

    def _neighbour_key(self, segment: int, address: Address) -> tuple[Map, bytes]:
        if isinstance(address, IPv4Address):
            return self._neigh4, Neigh4Key(segment, address).pack()
        return self._neigh6, Neigh6Key(segment, address).pack()


def write(table: Map, key: bytes, value: bytes) -> bool:
    """True if it made a difference. Writes only what is not there yet: an element that an update replaces is reused at
    once for another key (kernel/bpf/hashtab.c, preallocated maps), under a program that may still be reading it."""
    if table.lookup(key) == value:
        return False
    table.update(key, value)
    return True


def _slots(endpoints: Map) -> set[int]:
    return {slot for _, values in endpoints.batches() for slot in Endpoint.slots_of(values)}


def _total(per_cpu: bytes) -> int:
    """The sum of a counter over CPUs, modulo 2**64 as the counter itself is."""
    total: int = sum(packets for (packets,) in _U64.iter_unpack(per_cpu))
    return total % 2**64


def _entries(table: Map, at_parents: bool | None) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) as the kernel has them, of a map whose keys begin with a segment; see `Maps.fdb`."""
    for key, value in table.items():
        if at_parents is None or (_U32.unpack_from(key)[0] >= PARENT_SEGMENT) is at_parents:
            yield key, value


def _flooder(parent: int) -> bytes:
    return FdbKey(PARENT_SEGMENT | parent, b"\xff" * 6).pack()


def _require_sound(endpoint: Endpoint) -> None:
    if endpoint.segment == 0:
        raise ValueError(f"segment 0 is no segment: {endpoint}")
    if not 0 <= endpoint.slot < MAX_ENDPOINTS:
        raise ValueError(f"slots end at {MAX_ENDPOINTS - 1}: {endpoint}")
    _require_unicast(endpoint.mac)


def _require_unicast(mac: bytes) -> None:
    if len(mac) != 6 or mac[0] & _GROUP_BIT or not any(mac):
        raise ValueError(f"not the MAC of one device: {mac.hex(':')}")
