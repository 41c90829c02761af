"""What endpoints have counted: of each that is there, and by network also of those that have gone.

An endpoint's packets are counted in its slot, which nobody clears before another endpoint takes it. The record of an
endpoint is dropped in one transaction with the note of what it had counted. So a crash at any moment leaves each packet
counted once: in the slot as long as there is a record, in the note afterwards.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

import msgspec

from control.drivers.base import Driver, EndpointCounters
from control.errors import StoreError
from control.model import Endpoint, Network, NetworkId, from_json, to_json
from control.records import Records
from control.store.base import Change, Delete, Put, Store
from datapath.latency import Histogram, Histograms, Kind

KIND: Final = "counted"
_FIELDS: Final = tuple(name for name in EndpointCounters.__struct_fields__ if name != "drops")
_NUMBERS: Final = attrgetter(*_FIELDS)


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoints of one network had counted that have gone.

    `since` is when counting began: it ends with the host's uptime. `unread` are the slots of endpoints that went before
    the programs' maps were open.
    """

    since: str
    counters: dict[str, int] = {}
    drops: dict[str, int] = {}
    latencies: dict[Kind, Histogram] = {}
    unread: tuple[int, ...] = ()


@dataclass(frozen=True)
class Counts:
    """All counters of one moment: rows of a network, its endpoint, the sandbox's name and what it counted; and by
    network the sums, those included that have gone. Latencies are by slot, which may be anybody's but those of `slots`,
    and by the network's place among `networks`."""

    endpoints: list[tuple[Network, Endpoint, str, EndpointCounters]] = field(default_factory=list)
    networks: list[tuple[Network, EndpointCounters]] = field(default_factory=list)
    latencies: Histograms = field(default_factory=Histograms)
    network_latencies: Histograms = field(default_factory=Histograms)
    slots: dict[str, int] = field(default_factory=dict)

    def endpoint_latencies(self, id_: str) -> Mapping[Kind, Histogram]:
        """What took how long of the endpoint with this id; empty without samples."""
        return self.latencies.get(self.slots.get(id_, -1), {})


@dataclass(frozen=True)
class Slots:
    """The slots that programs count in; as it stands, those of a host without programs.

    `read` returns what slots have counted, `latencies` what took how long, of these slots and perhaps others, or of all
    for None; `clear` sets one to zero. `since` names what slots have been counting since.
    """

    read: Callable[[Collection[int]], Mapping[int, EndpointCounters]] = lambda _: {}
    clear: Callable[[int], None] = lambda _: None
    since: Callable[[], str] = lambda: ""
    latencies: Callable[[Collection[int] | None], Histograms] = lambda _: Histograms()


class Counted:
    """Thread-safe. `load` comes before the drivers start, `settle` after."""

    def __init__(self, store: Store, slots: Slots, drivers: Mapping[str, Driver], records: Records) -> None:
        self._store = store
        self._slots = slots
        self._drivers = drivers
        self._records = records
        self._gone: dict[NetworkId, Gone] = {}
        self._last: dict[str, EndpointCounters] = {}
        self._lock = threading.Lock()
        self._is_settled = False

    def load(self) -> None:
        """Raises StoreError."""
        for id_, body in self._store.read(KIND):
            try:
                self._gone[NetworkId(id_)] = from_json(Gone, body)
            except (msgspec.MsgspecError, ValueError) as error:
                raise StoreError(
                    f"what the endpoints of network {id_[:12]} had counted is damaged in the store ({error}): restore "
                    "a copy of the store, or remove the record"
                ) from error

    def settle(self) -> None:
        """Forgets what was counted before the slots began to count anew, and reads those that were left unread.

        Raises StoreError.
        """
        since = self._slots.since()
        changes: list[Change] = []
        for id_, gone in list(self._gone.items()):
            if self._records.network_by_id(id_) is None or gone.since not in ("", since):
                changes.append(Delete(KIND, id_))
                del self._gone[id_]
            elif gone.unread:
                gone = self._with_slots(gone, gone.unread, since)
                self._gone[id_] = msgspec.structs.replace(gone, unread=())
                changes.append(Put(KIND, id_, to_json(self._gone[id_])))
        self._store.write(changes)
        self._is_settled = True

    # -- endpoints that come and go ------------------------------------------------------------------------------

    def begin(self, slot: int) -> None:
        """Has the slot of an endpoint that is about to be recorded count from zero."""
        self._slots.clear(slot)

    def ending(self, driver: Driver, endpoint: Endpoint) -> None:
        """Takes note of counters that go with the endpoint's device, before that does."""
        if self._is_settled and (last := driver.last_counters(endpoint)) is not None:
            self._last[endpoint.id] = last

    def ended(self, endpoint: Endpoint) -> tuple[list[Change], Callable[[], None]]:
        """What is to be stored as the endpoint's record is dropped, and what is to be called when it was.

        The records' lock is held over both.
        """
        network_id = endpoint.network_id
        before = gone = self._gone.get(network_id, Gone(since=""))
        if self._is_settled:
            since, last = self._slots.since(), self._last.get(endpoint.id)
            gone = self._with_slots(gone, [endpoint.slot], since) if last is None else _added(gone, [last], since)
        else:
            gone = msgspec.structs.replace(gone, unread=(*gone.unread, endpoint.slot))

        has_counted = _content(gone) != _content(before)

        def remember() -> None:
            self._last.pop(endpoint.id, None)
            if has_counted:
                self._gone[network_id] = gone

        return [Put(KIND, network_id, to_json(gone))] if has_counted else [], remember

    def network_ended(self, network_id: NetworkId) -> tuple[list[Change], Callable[[], None]]:
        """As `ended`, for a network that has no endpoint any more."""
        changes: list[Change] = [Delete(KIND, network_id)] if network_id in self._gone else []

        def forget() -> None:
            self._gone.pop(network_id, None)

        return changes, forget

    def _with_slots(self, gone: Gone, slots: Collection[int], since: str) -> Gone:
        gone = _added(gone, self._slots.read(slots).values(), since)
        sums = Histograms(1)
        sums.hold_sum(0, self._slots.latencies(slots), slots, gone.latencies)
        return msgspec.structs.replace(gone, latencies=sums.get(0, {}))

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self) -> Counts:
        """All that is counted. Blocks for as long as the maps take to be read, and nobody else."""
        with self._lock:  # two at once would only read the same twice
            before = {endpoint.id for endpoint in self._records.endpoints()}
            live = self._live()
            at_rest = self._at_rest(live)
            latencies = self._slots.latencies(None)
            with self._records.lock:
                names = {sandbox.id: sandbox.name for sandbox in self._records.sandboxes()}
                last = dict(self._last)
                networks = [
                    (network, self._gone.get(network.id), self._records.on_network(network.id))
                    for network in self._records.networks()
                    if not network.config_only
                ]
        # As the records were then: who has gone since the maps were read is in the notes, and who has come, perhaps in
        # the slot of one that has gone, counts from the next time on.
        counts = Counts(latencies=latencies, network_latencies=Histograms(len(networks)))
        for place, (network, gone, endpoints) in enumerate(networks):
            found = []
            for endpoint in endpoints:
                if endpoint.id not in before:
                    continue
                counts.slots[endpoint.id] = endpoint.slot
                counted = last.get(endpoint.id) or live.get(endpoint.id)
                name = names.get(endpoint.sandbox_id) or endpoint.sandbox_key.rpartition("/")[2]
                if counted is not None and name:
                    counts.endpoints.append((network, endpoint, name, counted))
                counted = counted or at_rest.get(endpoint.id)
                if counted is not None:
                    found.append(counted)
            counts.networks.append((network, _sum(gone, found)))
            slots = [endpoint.slot for endpoint in endpoints if endpoint.id in before]
            counts.network_latencies.hold_sum(place, latencies, slots, gone.latencies if gone is not None else {})
        return counts

    def _live(self) -> dict[str, EndpointCounters]:
        """By endpoint; each driver reads its maps once, however many networks it has."""
        drivers = {network.id: network.driver for network in self._records.networks() if not network.config_only}
        by_driver: dict[str, list[Endpoint]] = {}
        for endpoint in self._records.endpoints():
            if endpoint.network_id in drivers:
                by_driver.setdefault(drivers[endpoint.network_id], []).append(endpoint)
        live: dict[str, EndpointCounters] = {}
        for name, endpoints in by_driver.items():
            live.update(self._drivers[name].counters(endpoints))
        return live

    def _at_rest(self, live: Mapping[str, EndpointCounters]) -> dict[str, EndpointCounters]:
        """By endpoint, what those have counted that no driver speaks of: their device may be gone for now."""
        silent = {each.slot: each.id for each in self._records.endpoints() if each.id not in live}
        counted = self._slots.read(silent) if silent else {}
        return {silent[slot]: counters for slot, counters in counted.items()}


def _added(gone: Gone, counted: Collection[EndpointCounters], since: str) -> Gone:
    sums = _sum(gone, counted)
    counters = {name: getattr(sums, name) for name in _FIELDS}
    return msgspec.structs.replace(gone, since=since, counters=counters, drops=dict(sums.drops))


def _content(gone: Gone) -> tuple[object, ...]:
    """What there is besides zeros."""
    counters, drops = ({name: n for name, n in tally.items() if n} for tally in (gone.counters, gone.drops))
    return counters, drops, gone.latencies, gone.unread


def _sum(gone: Gone | None, rows: Collection[EndpointCounters]) -> EndpointCounters:
    """Modulo 2**64, as counters themselves are."""
    drops = Counter(gone.drops if gone is not None else {})
    for row in rows:
        if row.drops:
            drops.update(row.drops)
    base = gone.counters if gone is not None else {}
    columns = zip([base.get(name, 0) for name in _FIELDS], *map(_NUMBERS, rows), strict=True)
    sums = {name: sum(column) % 2**64 for name, column in zip(_FIELDS, columns, strict=True)}
    return EndpointCounters(**sums, drops=drops)
