"""Nodes whose lease has ended and which answer nevertheless: what is known of their endpoints stays.

A node that is cut off from etcd, or whose linkspand is down, loses its records there while its endpoints go on. Its
peers take it for gone only when it does not answer them either.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from control.cluster.records import Node, RemoteEndpoint
from control.model import Address, EndpointId, NetworkId

LOG = logging.getLogger(__name__)

ASK_EVERY_S: Final = 1.0
MISSED_AT_MOST: Final = 2
"""Answers in a row that a lost node may owe."""
_AT_ONCE: Final = 16
_RETURN_WITHIN_S: Final = 10.0
"""How long a node that has come back may take to tell of its endpoints again."""

Endpoints = Mapping[str, RemoteEndpoint]


@dataclass
class _Lost:
    node: Node
    by_network: dict[NetworkId, dict[str, RemoteEndpoint]] = field(default_factory=dict)
    missed: int = 0
    returned: float | None = None


class LostNodes:
    """Remembers the endpoints of lost nodes, and asks these whether they are there. Thread-safe.

    `answers` tells within a second or so whether a node answers at an address; `changed` is called, in a thread of its
    own, with the networks of which something was forgotten.
    """

    def __init__(self, answers: Callable[[Address], bool], changed: Callable[[set[NetworkId]], None]) -> None:
        self._answers = answers
        self._changed = changed
        self._lock = threading.Lock()
        self._nodes: dict[str, _Lost] = {}
        self._wake = threading.Event()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """Ends the asking, and forgets all; what is kept after that is asked for again. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._nodes.clear()
        if thread is not None:
            self._is_stopped = True
            self._wake.set()
            thread.join()
            self._is_stopped = False

    def keep(self, node: Node, network_id: NetworkId, endpoints: Endpoints) -> None:
        """Takes note of endpoints of a node that is lost as of now."""
        with self._lock:
            lost = self._nodes.setdefault(node.name, _Lost(node))
            lost.by_network.setdefault(network_id, {}).update(endpoints)
            if self._thread is None:
                self._thread = threading.Thread(target=self._ask_on, name="lost-nodes", daemon=True)
                self._thread.start()
        self._wake.set()

    def returned(self, node: str) -> None:
        """Takes note that the node has a lease again; it tells of its endpoints soon."""
        with self._lock:
            lost = self._nodes.get(node)
            if lost is not None and lost.returned is None:
                lost.returned = time.monotonic()

    def endpoints(self, network_id: NetworkId, known: Mapping[EndpointId, RemoteEndpoint]) -> dict[str, RemoteEndpoint]:
        """The network's endpoints on lost nodes, without those that are `known`, which are forgotten here, and without
        those whose addresses have been given to a known one."""
        with self._lock:
            if not self._nodes:
                return {}
            taken = {address for each in known.values() for address in each.addresses}
            found: dict[str, RemoteEndpoint] = {}
            for lost in self._nodes.values():
                kept = lost.by_network.get(network_id, {})
                for id_ in [id_ for id_, each in kept.items() if id_ in known or taken.intersection(each.addresses)]:
                    del kept[id_]
                found.update(kept)
            return found

    def nodes(self) -> dict[str, Node]:
        """Those that are lost and were not found gone."""
        with self._lock:
            return {name: lost.node for name, lost in self._nodes.items()}

    def _ask_on(self) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ask-node") as pool:
            while not self._is_stopped:
                with self._lock:
                    asked = dict(self._nodes)
                answers = list(pool.map(lambda lost: self._answers(lost.node.address), asked.values()))
                forgotten: set[NetworkId] = set()
                with self._lock:
                    for (name, lost), is_there in zip(asked.items(), answers, strict=True):
                        forgotten |= self._judge(name, lost, is_there)
                if forgotten and not self._is_stopped:
                    self._changed(forgotten)
                self._wake.wait(ASK_EVERY_S if asked else None)
                self._wake.clear()

    def _judge(self, name: str, lost: _Lost, is_there: bool) -> set[NetworkId]:
        """The networks of which something is forgotten, now that the node has answered, or has not."""
        if lost.returned is not None and time.monotonic() - lost.returned > _RETURN_WITHIN_S:
            why = "has come back without them"
        else:
            lost.missed = 0 if is_there else lost.missed + 1
            if lost.missed <= MISSED_AT_MOST:
                return set()
            why = f"does not answer at {lost.node.address} either"
        del self._nodes[name]
        left = {id_ for id_, endpoints in lost.by_network.items() if endpoints}
        if left:
            LOG.warning("node %s, whose lease has ended, %s: forgetting its endpoints", name, why)
        return left
