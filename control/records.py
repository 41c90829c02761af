"""The records of this host: what the store holds, indexed in memory.

Every method needs `lock` to be held when what it returns must still be true afterwards; single look-ups take it
themselves.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from control.errors import InvalidArgument, NotFound, StoreError
from control.model import Endpoint, Network, NetworkId, Sandbox, SandboxId, from_json, to_json
from control.plan import Step
from control.store.base import Change, Delete, Put, Store

Record = Network | Endpoint | Sandbox
_KINDS: Final[dict[type[Record], str]] = {Network: "network", Endpoint: "endpoint", Sandbox: "sandbox"}


class Numbers:
    """Hands out the smallest number, from `first` up, that is not in use."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._freed: list[int] = []

    def reserve(self, used: Iterable[int]) -> None:
        """Marks numbers as used; called once, before any is taken."""
        taken = set(used)
        top = max(taken, default=self._next - 1) + 1
        self._freed = [number for number in range(self._next, top) if number not in taken]
        self._next = max(self._next, top)

    def take(self) -> int:
        if self._freed:
            return heapq.heappop(self._freed)
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        heapq.heappush(self._freed, number)


N = TypeVar("N", Network, Sandbox)


class Records:
    """Networks, endpoints and sandboxes, written through to the store: first the store, then memory."""

    def __init__(self, store: Store) -> None:
        self.lock = threading.RLock()
        self.slots = Numbers(0)
        self.segments = Numbers(1)
        self._store = store
        self._networks: dict[str, Network] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._sandboxes: dict[str, Sandbox] = {}
        self._by_network: dict[str, dict[str, Endpoint]] = {}
        self._by_sandbox: dict[str, dict[str, Endpoint]] = {}
        self._network_names: dict[str, str] = {}
        self._sandbox_names: dict[str, str] = {}

    def load(self) -> None:
        """Reads everything, oldest first as it was made; raises StoreError naming a record that does not read."""
        loaded: list[Record] = []
        for type_, kind in _KINDS.items():
            for id_, body in self._store.read(kind):
                try:
                    loaded.append(from_json(type_, body))
                except (msgspec.MsgspecError, ValueError) as error:
                    raise StoreError(
                        f"the stored {kind} {id_[:12]} is damaged ({error}): "
                        "restore a copy of the store, or remove the record"
                    ) from error
        for record in sorted(loaded, key=lambda record: record.created):
            self._remember(record)
        self.slots.reserve(endpoint.slot for endpoint in self._endpoints.values())
        self.segments.reserve(network.segment for network in self._networks.values())

    def commit(
        self, *, put: Sequence[Record] = (), drop: Sequence[Record] = (), changes: Sequence[Change] = ()
    ) -> None:
        """Stores all of it in one transaction and only then makes it known; raises StoreError with nothing changed."""
        with self.lock:
            self._store.write(
                [
                    *(Put(_KINDS[type(record)], record.id, to_json(record)) for record in put),
                    *(Delete(_KINDS[type(record)], record.id) for record in drop),
                    *changes,
                ]
            )
            for record in put:
                self._remember(record)
            for record in drop:
                self._forget(record)

    def settle(self, record: Record) -> Step:
        """The last step of a change: with it the record is stored as settled, or everything before it is undone."""
        name = f"store {_KINDS[type(record)]} {record.id[:12]} as {record.state}"
        return Step(name, lambda: self.commit(put=[record]), lambda: None, kind="record")

    def _remember(self, record: Record) -> None:
        match record:
            case Network():
                self._networks[record.id] = record
                self._network_names[record.name] = record.id
            case Sandbox():
                self._sandboxes[record.id] = record
                self._sandbox_names[record.name] = record.id
            case Endpoint():
                self._endpoints[record.id] = record
                self._by_network.setdefault(record.network_id, {})[record.id] = record
                if record.sandbox_id:
                    self._by_sandbox.setdefault(record.sandbox_id, {})[record.id] = record

    def _forget(self, record: Record) -> None:
        match record:
            case Network():
                if self._networks.pop(record.id, None):
                    self.segments.give_back(record.segment)
                    self._by_network.pop(record.id, None)
                    self._network_names.pop(record.name, None)
            case Sandbox():
                self._sandboxes.pop(record.id, None)
                self._sandbox_names.pop(record.name, None)
                self._by_sandbox.pop(record.id, None)
            case Endpoint():
                if self._endpoints.pop(record.id, None):
                    self.slots.give_back(record.slot)
                    self._by_network[record.network_id].pop(record.id, None)
                    self._by_sandbox.get(record.sandbox_id, {}).pop(record.id, None)

    def networks(self) -> list[Network]:
        with self.lock:
            return list(self._networks.values())

    def endpoints(self) -> list[Endpoint]:
        with self.lock:
            return list(self._endpoints.values())

    def sandboxes(self) -> list[Sandbox]:
        with self.lock:
            return list(self._sandboxes.values())

    def network(self, ref: str) -> Network:
        """By full id, name, or unique prefix of an id; raises NotFound, or InvalidArgument when several match."""
        with self.lock:
            return _find(self._networks, self._network_names, ref, "network", "network {ref} not found")

    def sandbox(self, ref: str) -> Sandbox:
        """As `network`, for sandboxes, with Docker's wording for a container that is not there."""
        with self.lock:
            return _find(self._sandboxes, self._sandbox_names, ref, "sandbox", "No such container: {ref}")

    def network_by_id(self, network_id: str) -> Network | None:
        """By full id alone."""
        return self._networks.get(network_id)

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """By full id."""
        return self._endpoints.get(endpoint_id)

    def has_network_named(self, name: str) -> bool:
        return name in self._network_names

    def has_sandbox_named(self, name: str) -> bool:
        return name in self._sandbox_names

    def on_network(self, network_id: NetworkId) -> list[Endpoint]:
        """The network's endpoints, in no order."""
        with self.lock:
            return list(self._by_network.get(network_id, {}).values())

    def in_sandbox(self, sandbox_id: SandboxId) -> list[Endpoint]:
        """The sandbox's endpoints, oldest first."""
        with self.lock:
            return sorted(self._by_sandbox.get(sandbox_id, {}).values(), key=lambda endpoint: endpoint.created)


def _find(records: dict[str, N], names: dict[str, str], ref: str, kind: str, missing: str) -> N:
    found = records.get(ref) or records.get(names.get(ref, ""))
    if found is not None:
        return found
    matches = [record for id_, record in records.items() if ref and id_.startswith(ref)]
    if len(matches) > 1:
        raise InvalidArgument(f"{kind} {ref} is ambiguous ({len(matches)} matches found on ID prefix)")
    if not matches:
        raise NotFound(missing.format(ref=ref))
    return matches[0]
