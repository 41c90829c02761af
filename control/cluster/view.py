"""The cluster as this node knows it: nodes, networks and their endpoints, followed in etcd and kept while that is away.

It is made for many endpoints of which a node needs few: records of endpoints are kept as they came, and decoded for the
networks that somebody asks for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec

from control.cluster.etcd import Background, Etcd
from control.cluster.etcd_following import Snapshot
from control.cluster.etcd_messages import DELETED, Event
from control.cluster.records import GlobalNetwork, Keys, Node, RemoteEndpoint
from control.model import EndpointId, NetworkId, from_json

LOG = logging.getLogger(__name__)

NODES: Final = "nodes"
"""Stands for the nodes among the ids of networks that changed."""
_STARTING: Final = "reading the cluster"
_NONE: Final = b"\n"
"""The beginning of no key."""

R = TypeVar("R", bound=msgspec.Struct)
_Raw = dict[str, bytes]
_Decoded = dict[EndpointId, RemoteEndpoint]


class View:
    """Thread-safe. `on_change` is told what changed, by the ids of networks and NODES, after the view has it, in a
    thread of the client's; `on_state` that the view is up to date (""), or else why not."""

    def __init__(
        self,
        etcd: Etcd,
        cluster: str,
        on_change: Callable[[frozenset[str]], None] = lambda changed: None,
        on_state: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._etcd = etcd
        self._keys = Keys(cluster)
        self._cut = len(self._keys.root)
        self._on_change, self._on_state = on_change, on_state
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._networks: dict[NetworkId, GlobalNetwork] = {}
        self._raw: dict[str, _Raw] = {}
        self._decoded: dict[str, _Decoded] = {}
        self._taken: dict[str, dict[int, int]] = {}
        self._following: Background | None = None
        self.revision = 0
        """The revision of etcd that the view is of, at least."""
        self.why_waiting = _STARTING
        """Why changes do not come for now; empty while they do."""

    def start(self) -> None:
        """Begins to follow; what there is comes with the first `on_change`."""
        self._following = self._etcd.follow(*self._keys.followed, self)

    def close(self) -> None:
        """Follows no more, and keeps what it knows. Idempotent."""
        if self._following is not None:
            self._following.stop()

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[str, Node]:
        """By name; one that is gone, or whose lease is over, is not among them."""
        with self._lock:
            return MappingProxyType(self._nodes.copy())

    @property
    def networks(self) -> Mapping[NetworkId, GlobalNetwork]:
        with self._lock:
            return MappingProxyType(self._networks.copy())

    def network(self, network_id: str) -> GlobalNetwork | None:
        with self._lock:
            return self._networks.get(NetworkId(network_id))

    def endpoints(self, network_id: str) -> Mapping[EndpointId, RemoteEndpoint]:
        """Those of all nodes, this one too. The network is kept decoded until `forget`."""
        with self._lock:
            return MappingProxyType(self._endpoints(network_id).copy())

    def taken(self, network_id: str) -> Collection[int]:
        """The addresses of the network's endpoints, as numbers; not a copy, so only for `in` and len()."""
        with self._lock:
            self._endpoints(network_id)
            return self._taken[network_id].keys()

    def endpoint_count(self, network_id: str) -> int:
        """Without decoding any."""
        with self._lock:
            return len(self._raw.get(network_id, ()))

    def forget(self, network_id: str) -> None:
        """Keeps the endpoints of the network as raw records again; for when it has none on this node."""
        with self._lock:
            self._decoded.pop(network_id, None)
            self._taken.pop(network_id, None)

    # -- what etcd says (control.cluster.etcd_following.Follower) ------------------------------------------------

    def read(self, snapshot: Snapshot) -> None:
        nodes: dict[str, Node] = {}
        networks: dict[NetworkId, GlobalNetwork] = {}
        raw: dict[str, _Raw] = {}
        prefix, siblings = _NONE, _Raw()  # keys come in order: all endpoints of a network one after the other
        for kv in snapshot:
            key = kv.key  # a copy each time
            if key.startswith(prefix):
                siblings[key[len(prefix) :].decode()] = kv.value
                continue
            kind, _, rest = key[self._cut :].partition(b"/")
            if kind == b"endpoints":
                network, _, endpoint = rest.partition(b"/")
                prefix = self._keys.endpoints_of(network.decode()).encode()
                siblings = raw.setdefault(network.decode(), {})
                siblings[endpoint.decode()] = kv.value
            elif kind == b"networks" and (record := _read(GlobalNetwork, key.decode, kv.value)):
                networks[record.id] = record
            elif kind == b"nodes" and (node := _read(Node, key.decode, kv.value)):
                nodes[node.name] = node
        with self._lock:
            changed: set[str] = {NODES} if nodes != self._nodes else set()
            changed |= _different(networks, self._networks) | _different(raw, self._raw)
            self._nodes, self._networks, self._raw = nodes, networks, raw
            for network_id in changed & self._decoded.keys():
                del self._decoded[network_id], self._taken[network_id]
                self._endpoints(network_id)
            self.revision = snapshot.revision
        self._tell(changed)

    def change(self, events: Sequence[Event], revision: int) -> None:
        changed = set()
        with self._lock:
            for event in events:
                key = event.kv.key
                kind, _, rest = key[self._cut :].partition(b"/")
                value = None if event.type == DELETED else event.kv.value
                if kind == b"endpoints":
                    network, _, endpoint = rest.partition(b"/")
                    changed.add(self._change_endpoint(network.decode(), endpoint.decode(), value))
                elif kind == b"networks":
                    changed.add(_put(self._networks, NetworkId(rest.decode()), GlobalNetwork, key, value))
                elif kind == b"nodes":
                    _put(self._nodes, rest.decode(), Node, key, value)
                    changed.add(NODES)
            self.revision = revision
        self._tell(changed)

    def connected(self) -> None:
        self._become("")

    def waiting(self, why: str) -> None:
        self._become(why)

    # -- inside; the lock is held ----------------------------------------------------------------------------------

    def _endpoints(self, network_id: str) -> _Decoded:
        decoded = self._decoded.get(network_id)
        if decoded is None:
            decoded = self._decoded[network_id] = {}
            self._taken[network_id] = {}
            for endpoint_id, value in self._raw.get(network_id, {}).items():
                self._decode(network_id, endpoint_id, value)
        return decoded

    def _decode(self, network_id: str, endpoint_id: str, value: bytes) -> None:
        """Takes the record of an endpoint up in a network that is kept decoded."""
        record = _read(RemoteEndpoint, lambda: self._keys.endpoint(network_id, endpoint_id), value)
        if record is not None:
            self._decoded[network_id][EndpointId(endpoint_id)] = record
            _count(self._taken[network_id], record, 1)

    def _change_endpoint(self, network_id: str, endpoint_id: str, value: bytes | None) -> str:
        raw = self._raw.setdefault(network_id, {})
        if value is None:
            raw.pop(endpoint_id, None)
        else:
            raw[endpoint_id] = value
        if not raw:
            del self._raw[network_id]
        if network_id in self._decoded:
            old = self._decoded[network_id].pop(EndpointId(endpoint_id), None)
            if old is not None:
                _count(self._taken[network_id], old, -1)
            if value is not None:
                self._decode(network_id, endpoint_id, value)
        return network_id

    # -- inside; the lock is not held ------------------------------------------------------------------------------

    def _tell(self, changed: Iterable[str]) -> None:
        told = frozenset(changed)
        if told:
            self._on_change(told)

    def _become(self, why: str) -> None:
        if why != self.why_waiting:
            self.why_waiting = why
            self._on_state(why)


def _count(taken: dict[int, int], record: RemoteEndpoint, by: int) -> None:
    """Counts that an endpoint has its addresses, or has them no more."""
    for address in record.addresses:
        number = int(address)
        taken[number] = taken.get(number, 0) + by
        if not taken[number]:
            del taken[number]


def _read(type_: type[R], key: Callable[[], str], value: bytes) -> R | None:
    """The record, or None for what nobody of this version wrote."""
    try:
        return from_json(type_, value)
    except msgspec.MsgspecError as error:
        LOG.error("etcd key %s is damaged and left out: %s; delete it, or restart its node", key(), error)
        return None


def _put(records: dict[Any, Any], name: str, type_: type[R], key: bytes, value: bytes | None) -> str:
    record = None if value is None else _read(type_, key.decode, value)
    if record is None:
        records.pop(name, None)
    else:
        records[name] = record
    return name


def _different(new: Mapping[Any, Any], old: Mapping[Any, Any]) -> set[str]:
    return {name for name in new.keys() | old.keys() if new.get(name) != old.get(name)}
