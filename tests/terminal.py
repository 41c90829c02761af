"""A terminal for programs that draw on one: what they write is kept as a screen by pyte, an emulator of a VT102."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import pyte

from tests.hosts import DEADLINE_S


class Terminal:
    """Runs a command on a terminal of its own, as a context manager that ends it."""

    def __init__(self, command: Sequence[str], width: int = 80, height: int = 24) -> None:
        self._screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        self.resize(width, height)
        environment = {**os.environ, "TERM": "linux", "LC_ALL": "C.UTF-8"}
        # setsid, so that the terminal is the program's own, which a change of its size is told.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command], stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._master)  # which hangs up
        self.process.wait(DEADLINE_S)

    def resize(self, width: int, height: int) -> None:
        self._screen.resize(height, width)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    @property
    def lines(self) -> list[str]:
        """What the screen shows now."""
        self._take(0.0)
        return [line.rstrip() for line in self._screen.display]

    def wait(self, claim: Callable[[list[str]], object], what: str, deadline_s: float = DEADLINE_S) -> list[str]:
        """The first screen of which the claim holds."""
        end = time.monotonic() + deadline_s
        while not claim(lines := self.lines):
            shown = "\n".join(lines)
            assert time.monotonic() < end, f"waited {deadline_s:.0f} s in vain: {what}; the screen:\n{shown}"
            self._take(0.1)
        return lines

    def exit_status(self) -> int:
        """Waits for the program's end, taking what it still writes."""
        end = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, "the program did not end"
            self._take(0.05)
        return self.process.returncode

    def _take(self, timeout_s: float) -> None:
        while select.select([self._master], [], [], timeout_s)[0]:
            try:
                self._stream.feed(os.read(self._master, 1 << 16))
            except OSError:  # EIO: the program is gone
                return
            timeout_s = 0.0
