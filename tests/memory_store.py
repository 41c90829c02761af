"""A Store that lives in memory, for tests of what stands above the store."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from control.errors import StoreError
from control.store.base import Change, Put


class MemoryStore:
    """Implements `control.store.base.Store`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, bytes]] = {}
        self._is_closed = False

    def write(self, changes: Iterable[Change]) -> None:
        batch = list(changes)
        with self._lock:
            self._require_open()
            for change in batch:
                records = self._records.setdefault(change.kind, {})
                if isinstance(change, Put):
                    records[change.id] = change.body
                else:
                    records.pop(change.id, None)

    def read(self, kind: str) -> Iterator[tuple[str, bytes]]:
        with self._lock:
            self._require_open()
            return iter(sorted(self._records.get(kind, {}).items()))

    def dump(self) -> dict[str, dict[str, bytes]]:
        """All that it holds, by kind and id."""
        with self._lock:
            return {kind: dict(records) for kind, records in self._records.items() if records}

    def close(self) -> None:
        with self._lock:
            self._is_closed = True

    def _require_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store in memory is closed")
