"""What the controller needs of a store. A record is a JSON document under (kind, id); nothing else is known of it.

Kinds in use: network, endpoint, sandbox, pool, lease (of IPAM), dhcp (a server's lease), cluster (this host's
membership), meta. A batch is the unit that is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Put:
    """Write `body` (UTF-8 JSON) under (kind, id), whatever was there."""

    kind: str
    id: str
    body: bytes


@dataclass(frozen=True)
class Delete:
    """Remove (kind, id); harmless when it is not there."""

    kind: str
    id: str


Change = Put | Delete


class Store(Protocol):
    """Thread-safe; may block on the disk. Every method raises StoreError (Exhausted for a full disk) with the store's
    path and what to do, and leaves the stored records as they were."""

    def write(self, changes: Iterable[Change]) -> None:
        """Applies all changes in one transaction."""

    def read(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Yields (id, body) of every record of a kind, ordered by id, as of one moment."""

    def close(self) -> None:
        """Idempotent."""
