"""GET /events: what happens to networks and sandboxes, as Docker's JSON lines.

The controller's thread hands each event to the loop; every client has a bounded queue, and one that does not keep up is
cut off, so that no reader can hold up the controller or fill the memory. The last HISTORY events are kept for `since`.
Source: the Engine API reference, version 1.56 (SystemEvents, EventMessage).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from control.api import filters
from control.api.filters import Filters
from control.api.versions import EVENTS_WITHOUT_STATUS_SINCE, PRUNE_EVENTS_SINCE, Version
from control.events import Event
from control.model import utcnow

LOG = logging.getLogger(__name__)

HISTORY: Final = 256
"""Docker keeps as many."""
QUEUE_MAX: Final = 1024
_KINDS: Final = frozenset({"container", "network"})
_KINDS_ELSEWHERE: Final = frozenset(
    {"config", "daemon", "image", "node", "plugin", "secret", "service", "volume"},
)
"""Docker's other objects, of which nothing happens here: who asks for one hears nothing."""
KEYS: Final = frozenset({"event", "label", "scope", "type"}) | _KINDS | _KINDS_ELSEWHERE

JSON: Final = "application/json"
JSON_LINES: Final = "application/jsonl"
JSON_SEQUENCE: Final = "application/json-seq"
_CONTENT_TYPES: Final = (JSON_LINES, "application/x-ndjson", JSON_SEQUENCE)
"""Those that a client may ask for, the preferred first."""

_WEIGHT: Final = re.compile(r"[01](\.[0-9]{0,3})?")
"""RFC 9110, section 12.4.2."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TYPES: Final = {"sandbox": "container"}
_ACTIONS: Final = {("sandbox", "exit"): "die"}
"""Where Docker's word for the same thing differs."""


def view(event: Event, version: Version) -> dict[str, Any]:
    """Docker's EventMessage; a sandbox is a container, whose process `die`s."""
    action = _ACTIONS.get((event.kind, event.action), event.action)
    microseconds = (event.time - _EPOCH) // timedelta(microseconds=1)
    message = {
        "Type": _TYPES.get(event.kind, event.kind),
        "Action": action,
        "Actor": {"ID": event.id, "Attributes": dict(event.attributes)},
        "scope": "local",
        "time": microseconds // 1_000_000,
        "timeNano": microseconds * 1000,
    }
    if event.kind == "sandbox" and version < EVENTS_WITHOUT_STATUS_SINCE:
        message |= {"status": action, "id": event.id, "from": ""}
    return message


def accepts(wanted: Filters, message: Mapping[str, Any], version: Version) -> bool:
    """Whether a message of `view` passes; `network` and `container` take the beginning of a name or of an id."""
    if message["Action"] == "prune" and version < PRUNE_EVENTS_SINCE:
        return False
    return (
        filters.exact(wanted, "type", message["Type"])
        and filters.exact(wanted, "event", message["Action"])
        and filters.exact(wanted, "scope", message["scope"])
        and filters.labelled(wanted, "label", message["Actor"]["Attributes"])
        and not _KINDS_ELSEWHERE & wanted.keys()
        and all(any(_is_about(message, kind, ref) for ref in wanted[kind]) for kind in _KINDS & wanted.keys())
    )


def _is_about(message: Mapping[str, Any], kind: str, ref: str) -> bool:
    actor = message["Actor"]
    if message["Type"] == kind:
        named = (actor["ID"], actor["Attributes"].get("name", ""))
    else:
        named = (actor["Attributes"].get(kind, ""), "")
    return bool(ref) and any(name.startswith(ref) for name in named)


def content_type(accept: str, version: Version) -> str:
    """The type of the stream: that of the Accept header which is named there with the highest q, else the version's."""
    weights: dict[str, float] = {}
    for entry in accept.split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = next((text.removeprefix("q=") for text in parameters if text.startswith("q=")), "1")
        if name in _CONTENT_TYPES:
            weights[name] = max(weights.get(name, 0.0), float(weight) if _WEIGHT.fullmatch(weight) else 0.0)
    best = max(_CONTENT_TYPES, key=lambda name: weights.get(name, 0.0))
    if weights.get(best):
        return best
    return JSON if version < EVENTS_WITHOUT_STATUS_SINCE else JSON_LINES


def encode(message: Mapping[str, Any], content_type: str) -> bytes:
    """One line, after a record separator in a JSON text sequence (RFC 7464, section 2.2)."""
    return (b"\x1e" if content_type == JSON_SEQUENCE else b"") + msgspec.json.encode(message) + b"\n"


class Broadcaster:
    """Passes the controller's events on to any number of readers on the loop."""

    def __init__(self, queue_max: int = QUEUE_MAX) -> None:
        self._queue_max = queue_max
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._readers: set[Reader] = set()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self, subscribe: Callable[[Callable[[Event], None]], Callable[[], None]]) -> None:
        """Subscribes; to be called on the loop that readers run on."""
        loop = asyncio.get_running_loop()

        def pass_on(event: Event) -> None:
            loop.call_soon_threadsafe(self.publish, event)

        self._unsubscribe = subscribe(pass_on)

    def close(self) -> None:
        """Ends the subscription and every reader; idempotent."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for reader in list(self._readers):
            reader.end()

    def publish(self, event: Event) -> None:
        """Passes an event on; on the loop only."""
        self._history.append(event)
        for reader in list(self._readers):
            reader.offer(event)

    @property
    def readers(self) -> int:
        return len(self._readers)

    @contextmanager
    def reader(self, since: datetime | None) -> Iterator[Reader]:
        """Yields a reader of the kept events from `since` on and of all that come from now."""
        reader = Reader(self._queue_max)
        if since is not None:
            for event in self._history:
                if since <= event.time:
                    reader.offer(event)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)


class Reader:
    """A bounded queue that ends: by `end`, by a deadline, or at once when it overflows."""

    def __init__(self, queue_max: int) -> None:
        self._queue_max = queue_max
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._is_ended = False

    def offer(self, event: Event) -> None:
        if len(self._queue) >= self._queue_max:
            LOG.warning("a reader of /events does not keep up and is cut off")
            self._queue.clear()
            self.end()
        elif not self._is_ended:
            self._queue.append(event)
            self._wake.set()

    def end(self) -> None:
        self._is_ended = True
        self._wake.set()

    async def next(self, until: datetime | None) -> Event | None:
        """The next event, None when there is none before `until` or the reader has ended."""
        while not self._queue:
            if self._is_ended:
                return None
            self._wake.clear()
            timeout = None if until is None else max(0.0, (until - utcnow()).total_seconds())
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return None
        event = self._queue.popleft()
        return event if until is None or event.time <= until else None
