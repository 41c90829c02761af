"""Waiting for what comes about on its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = float(os.environ.get("LINKSPAN_TESTS_PATIENCE", "1"))
"""What deadlines are multiplied by: more than 1 in a guest whose processor is emulated."""


def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    """Asks again and again until the condition holds; an AssertionError when it does not within `within_s`."""
    deadline = time.monotonic() + within_s * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"does not hold after {within_s} s"
        time.sleep(0.005)
