"""What this host has stored of its membership in a cluster."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from control.cluster_spec import ClusterSpec
from control.deps import Deps
from control.encryption import Encryption
from control.errors import StoreError
from control.model import from_json, to_json
from control.store.base import Delete, Put

_KIND: Final = "cluster"
_ID: Final = "membership"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored: `identity` tells the cluster from another one of its name, and `incarnation` this node from
    another one of its. `node_id` is that which the cluster gave it last."""

    spec: ClusterSpec
    identity: str
    incarnation: str
    node_id: int
    since: datetime


class StoredMembership:
    """`settings` are None while this host is in no cluster. The drivers and the tunnels get to know what changes."""

    def __init__(self, deps: Deps, encryption: Encryption) -> None:
        self._deps = deps
        self._encryption = encryption
        self.settings: Settings | None = None

    def load(self) -> None:
        """Raises StoreError."""
        for _, body in self._deps.store.read(_KIND):
            try:
                self._take(from_json(Settings, body))
            except (msgspec.MsgspecError, ValueError) as error:
                raise StoreError(
                    f"the stored membership in a cluster is damaged ({error}): restore a copy of the store, or remove "
                    "the record and join again"
                ) from error

    def keep(self, settings: Settings | None) -> None:
        """Stores that this host is in a cluster, or that it is in none; raises StoreError."""
        self._deps.store.write([Delete(_KIND, _ID) if settings is None else Put(_KIND, _ID, to_json(settings))])
        self._take(settings)

    def _take(self, settings: Settings | None) -> None:
        self.settings = settings
        self._deps.peering.address = settings.spec.advertise if settings is not None else None
        self._encryption.node_id = settings.node_id if settings is not None else 0
