"""Who is told of the work that the control plane does, without the control plane knowing what for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from control.plan import Step


def _nobody(*_: Any) -> None:
    """Nobody listens."""


@dataclass
class Observers:
    """Called as things happen, in whatever thread; they return at once and never raise. Durations are in seconds.

    `ended`: (operation, whether it succeeded, duration, on what). `step`: ("apply" or "revert", step, duration), also
    of one that failed. `difference`: (kind of object, whether it was mended), each time that the kernel does not hold
    what the records say. `stored`: (store, operation, duration). `joined`: (duration).
    """

    ended: Callable[[str, bool, float, str], None] = _nobody
    step: Callable[[str, Step, float], None] = _nobody
    difference: Callable[[str, bool], None] = _nobody
    stored: Callable[[str, str, float], None] = _nobody
    joined: Callable[[float], None] = _nobody

    @contextmanager
    def operation(self, name: str, subject: str = "") -> Iterator[None]:
        """Has it told how long the block took, and whether it raised."""
        begin = time.monotonic()
        is_ok = False
        try:
            yield
            is_ok = True
        finally:
            self.ended(name, is_ok, time.monotonic() - begin, subject)
