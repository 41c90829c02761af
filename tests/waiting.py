"""Waiting for what comes about on its own."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    """Asks again and again until the condition holds; an AssertionError when it does not within `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"does not hold after {within_s} s"
        time.sleep(0.005)
