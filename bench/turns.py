"""Processes that take turns: all are stopped (SIGSTOP) but one, which runs alone for a slice of time.

A shared machine changes within a second by more than what is to be seen, so paths are compared in slices of
milliseconds that follow each other: what disturbs one slice disturbs its neighbours too. One slice of each is a round.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

K = TypeVar("K")


def take_turns(pids: Mapping[K, int], rounds: int, slice_of: Callable[[K], None], *, seed: int = 1) -> None:
    """Calls `slice_of` with each process's key, `rounds` times, with that process running and the others stopped.

    All of them must be stopped before, and are after. The order is shuffled, so that none always follows the same one,
    but within each half alone, so that between two slices of one process there are always as many slices of others as
    the smaller half has.
    """
    order, keys = random.Random(seed), list(pids)
    half = len(keys) - len(keys) // 2
    with before_others():
        for _ in range(rounds):
            for key in (*order.sample(keys[:half], half), *order.sample(keys[half:], len(keys) - half)):
                os.kill(pids[key], signal.SIGCONT)
                slice_of(key)
                os.kill(pids[key], signal.SIGSTOP)


@contextmanager
def before_others() -> Iterator[None]:
    """Lets this thread, and with autogroups (sched(7)) this session, run before other work on the machine.

    So slices end when they should, and are not cut up.
    """
    before, group_before = os.getpriority(os.PRIO_PROCESS, 0), _group_priority()
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    _set_group_priority(-20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
        _set_group_priority(group_before)


_AUTOGROUP: Final = Path("/proc/self/autogroup")


def _group_priority() -> int:
    """The nice value of the session's autogroup; 0 where there are none, or the process is in none (an empty file)."""
    shown = _AUTOGROUP.read_text().split() if _AUTOGROUP.exists() else []
    return int(shown[-1]) if shown else 0


def _set_group_priority(value: int) -> None:
    with suppress(OSError):  # no autogroups
        _AUTOGROUP.write_text(str(value))
