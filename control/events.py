"""What happened to networks and sandboxes, told to whoever listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from control.model import utcnow

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One change that is complete. `kind` is "network" or "sandbox"; `id` the object's; names are in `attributes`."""

    kind: str
    action: str
    id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time: datetime = field(default_factory=utcnow)


Listener = Callable[[Event], None]


class EventBus:
    """Calls every listener in the thread that emits; a listener must not block, and one that fails harms no other."""

    def __init__(self) -> None:
        self._listeners: dict[int, Listener] = {}
        self._next = 0

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Returns what ends the subscription, which may be called twice."""
        key, self._next = self._next, self._next + 1
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None

    def emit(self, event: Event) -> None:
        LOG.info("%s %s %s %s", event.kind, event.action, event.id[:12], dict(event.attributes))
        for listener in list(self._listeners.values()):
            try:
                listener(event)
            except Exception:
                LOG.exception("a listener failed on %s %s", event.kind, event.action)
