"""A change to the kernel as a list of steps: one description serves set-up, roll-back, tear-down and reconcile.

A step's `apply` brings the thing about and `revert` takes it away; each may be called when the work is already done
and then changes nothing. So `execute` after a restart repairs what is missing, and `undo` removes what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Step:
    """One change; `name` says what on which object, as in "enslave ls01 to br-3f", `kind` what alone, in one word."""

    name: str
    apply: Callable[[], None]
    revert: Callable[[], None]
    kind: str = "other"


Observer = Callable[[str, Step], None]
"""Called as (phase, step) before each step; phases are "apply" and "revert"."""


def ignore(phase: str, step: Step) -> None:
    """The observer that does nothing."""


def ignore_time(phase: str, step: Step, seconds: float) -> None:
    """The timer that does nothing."""


IDLE: Final[Observer] = ignore
Timer = Callable[[str, Step, float], None]
"""Called as (phase, step, duration in seconds) after each step, whether it worked or not."""


def execute(steps: Sequence[Step], observe: Observer = IDLE, took: Timer = ignore_time) -> None:
    """Applies the steps in order; when one fails, reverts it and those before it, in reverse, and raises its error.

    What fails while reverting is added to the error as notes.
    """
    for index, step in enumerate(steps):
        try:
            _take("apply", step, step.apply, observe, took)
        except Exception as error:
            error.add_note(f"while applying: {step.name}")
            for failure in _revert(steps[: index + 1], observe, took):
                error.add_note(f"and while undoing: {failure}")
            raise


def reapply(steps: Sequence[Step], observe: Observer = IDLE, took: Timer = ignore_time) -> None:
    """Applies the steps of something that works already: one that fails raises its error, and nothing is reverted."""
    for step in steps:
        try:
            _take("apply", step, step.apply, observe, took)
        except Exception as error:
            error.add_note(f"while applying again: {step.name}")
            raise


def undo(steps: Sequence[Step], observe: Observer = IDLE, took: Timer = ignore_time) -> None:
    """Reverts every step, last first, never stopping at an error; raises them together as an ExceptionGroup."""
    failures = _revert(steps, observe, took)
    if failures:
        raise ExceptionGroup("teardown left something behind", failures)


def _revert(steps: Sequence[Step], observe: Observer, took: Timer) -> list[Exception]:
    failures: list[Exception] = []
    for step in reversed(steps):
        try:
            _take("revert", step, step.revert, observe, took)
        except Exception as error:
            error.add_note(f"while reverting: {step.name}")
            failures.append(error)
    return failures


def _take(phase: str, step: Step, act: Callable[[], None], observe: Observer, took: Timer) -> None:
    observe(phase, step)
    begin = time.monotonic()
    try:
        act()
    finally:
        took(phase, step, time.monotonic() - begin)
