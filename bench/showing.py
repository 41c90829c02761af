"""What demos have in common: they narrate, and nothing is left of them, however they end."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

from bench.world import BenchError

ELLIPSIS: Final = "..."
"""Stands in a command for words that would tell the reader nothing."""


class Narrator:
    """Prints what happens: a numbered sentence a step, commands as one would type them, and what they say."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._steps = 0

    def step(self, sentence: str) -> None:
        self._steps += 1
        print(self._styled("1", f"\n{self._steps}. {sentence}"), flush=True)

    def command(self, *words: str) -> None:
        print(self._styled("36", f"   $ {' '.join(map(_quoted, words))}"), flush=True)

    def say(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            print(f"   {line}", flush=True)

    def _styled(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._is_terminal else text


def _quoted(word: str) -> str:
    return word if word == ELLIPSIS else shlex.quote(word)


class Show(Protocol):
    """A demo on a machine of its own, which is there from the start."""

    def show(self) -> None:
        """All steps; raises BenchError for the one that does not work."""

    def end(self, *, tidy: bool) -> bool:
        """Ends the machine and returns whether nothing is left of it; with `tidy` by the reader's commands first."""
        ...

    def log(self) -> str:
        """What the daemons on the machine have written."""
        ...


def run(begin: Callable[[], Show], narrator: Narrator, remark: str = "") -> int:
    """Makes a demo, shows it, and ends it, which nothing interrupts. `remark` is said at the end of one that worked.

    Returns the exit status: 0 when every step worked and nothing is left, 1 otherwise, 130 after Ctrl-C or SIGTERM.
    """
    start = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the caller has them ignored, as for background jobs
        signal.signal(number, _interrupt)
    status = 1
    try:
        demo = begin()
    except KeyboardInterrupt:
        return 130
    try:
        demo.show()
        status = 0
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        status = 130
    except (BenchError, OSError) as error:
        print(f"\ndemo: {error}\n\nthe end of the log:", file=sys.stderr)
        print("\n".join(demo.log().splitlines()[-15:]), file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        is_clean = demo.end(tidy=status == 0)
    if not is_clean:
        return 1
    if status == 0:
        narrator.say(f"\n{time.monotonic() - start:.0f} s in all{'; ' * bool(remark)}{remark}")
    return status


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
