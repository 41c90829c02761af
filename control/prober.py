"""The prober: echo requests between endpoints of a network and between nodes, for networks that are idle.

Each endpoint asks the next few in the order of their ids, each node the next few in the order of their names: traffic
and series grow with the endpoints, not with their pairs.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from control.config import ProberSection
from control.controller import NetworkController
from control.errors import ControlError
from control.model import Endpoint, EndpointState, Network
from datapath.echoes import Answer, Ask, round_trips
from datapath.latency import Kind

LOG = logging.getLogger(__name__)
T = TypeVar("T")

BUCKETS: Final = (
    25e-6,
    50e-6,
    1e-4,
    2e-4,
    4e-4,
    8e-4,
    1.6e-3,
    3.2e-3,
    6.4e-3,
    12.8e-3,
    25e-3,
    50e-3,
    0.1,
    0.25,
    0.5,
    1.0,
)
"""Upper bounds in seconds."""


class Pair(NamedTuple):
    """Who asks whom, by what the metrics call them; `network` is "" for nodes."""

    network: str
    kind: str
    source: str
    target: str


@dataclass
class Tally:
    """`buckets` are by BUCKETS, and one more for what took longer; not cumulative."""

    answered: int = 0
    lost: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def add(self, seconds: float | None) -> None:
        if seconds is None:
            self.lost += 1
            return
        self.answered += 1
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1


class Prober:
    """One thread, with a bounded number of sockets, which sleeps between rounds."""

    def __init__(
        self,
        controller: NetworkController,
        settings: ProberSection,
        ask: Callable[[Sequence[Ask], float], list[Answer]] = round_trips,
    ) -> None:
        self._controller = controller
        self._settings = settings
        self._ask = ask
        self._lock = threading.Lock()
        self._tallies: dict[Pair, Tally] = {}
        self._samples: Mapping[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, which may take a request's timeout. Idempotent."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def tallies(self) -> dict[Pair, Tally]:
        """What was counted since the start, by pairs that there are still."""
        there = {endpoint.id[:12] for endpoint in self._controller.endpoints()}
        with self._lock:
            return {
                pair: Tally(tally.answered, tally.lost, tally.seconds, list(tally.buckets))
                for pair, tally in self._tallies.items()
                if pair.kind == "node" or {pair.source, pair.target} <= there
            }

    def round(self) -> None:
        """Asks everybody once, but for those of whom TCP has told the round trip since the last time."""
        pairs = dict([*self._endpoints(), *self._nodes()])
        busy = self._busy() if self._settings.idle_only else set()
        asked = [pair for pair in pairs if pair.source not in busy]
        answers = self._ask([pairs[pair] for pair in asked], self._settings.timeout_seconds)
        with self._lock:
            self._tallies = {pair: tally for pair, tally in self._tallies.items() if pair in pairs}
            for pair, answer in zip(asked, answers, strict=True):
                if answer.is_asked:
                    self._tallies.setdefault(pair, Tally()).add(answer.seconds)

    def _run(self) -> None:
        while not self._stopped.wait(self._settings.interval_seconds):
            try:
                self.round()
            except (ControlError, OSError) as error:
                LOG.warning("a round of probes came to nothing: %s", error)

    def _busy(self) -> set[str]:
        """The endpoints with new samples of TCP's round trips."""
        counts = self._controller.counted()
        now = {
            id_: found.count
            for id_, slot in counts.slots.items()
            if (found := counts.latencies.one(slot, Kind.TCP_RTT)) is not None
        }
        before, self._samples = self._samples, now
        return {id_[:12] for id_, count in now.items() if count != before.get(id_, 0)}

    def _endpoints(self) -> Iterator[tuple[Pair, Ask]]:
        for network in self._controller.networks():
            known = [
                (each, path) for each in self._controller.network_endpoints(network.id) if (path := self._path(each))
            ]
            for (one, path), (other, _) in _ring(sorted(known, key=lambda each: each[0].id), self._settings.targets):
                ask = _ask_of(one, other, path)
                if ask is not None:
                    yield _pair(network, one, other), ask

    def _path(self, endpoint: Endpoint) -> str:
        """Where the endpoint's namespace is, "" where that is not known or it has no address in it."""
        if endpoint.state is not EndpointState.JOINED or not endpoint.addresses:
            return ""
        if endpoint.is_remote:
            return endpoint.sandbox_key
        try:
            return self._controller.paths(self._controller.sandbox(endpoint.sandbox_id)).netns
        except ControlError:  # it has left meanwhile
            return ""

    def _nodes(self) -> Iterator[tuple[Pair, Ask]]:
        try:
            nodes = self._controller.cluster.nodes()
        except ControlError:  # this host is in no cluster
            return
        for one, other in _ring(sorted(nodes, key=lambda each: each.name), self._settings.targets):
            if one.is_self and one.address.version == other.address.version:
                yield Pair("", "node", one.name, other.name), Ask(other.address, source=one.address)


def _ring(members: Sequence[T], targets: int) -> Iterator[tuple[T, T]]:
    """Each with the `targets` that come next, the first being next to the last."""
    for place, member in enumerate(members):
        for step in range(1, min(targets, len(members) - 1) + 1):
            yield member, members[(place + step) % len(members)]


def _ask_of(one: Endpoint, other: Endpoint, path: str) -> Ask | None:
    """By IPv4 where both have it."""
    for mine, its in ((one.ipv4, other.ipv4), (one.ipv6, other.ipv6)):
        if mine is not None and its is not None:
            return Ask(its.ip, path, mine.ip)
    return None


def _pair(network: Network, one: Endpoint, other: Endpoint) -> Pair:
    return Pair(network.name, "endpoint", one.id[:12], other.id[:12])
