"""A store whose operations are timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import final

from control.store.base import Change, Store


@final
class TimedStore:
    """Does what `store` does, and calls `took` with each operation's name and duration in seconds, failed ones too."""

    def __init__(self, store: Store, took: Callable[[str, float], None]) -> None:
        self._store = store
        self._took = took

    def write(self, changes: Iterable[Change]) -> None:
        begin = time.monotonic()
        try:
            self._store.write(changes)
        finally:
            self._took("write", time.monotonic() - begin)

    def read(self, kind: str) -> Iterator[tuple[str, bytes]]:
        begin = time.monotonic()
        try:
            return self._store.read(kind)
        finally:
            self._took("read", time.monotonic() - begin)

    def close(self) -> None:
        self._store.close()
