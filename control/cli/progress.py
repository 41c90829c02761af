"""Shows on a terminal that a request is still under way, once it has taken longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Final

_PATIENCE_S: Final = 1.0
_PERIOD_S: Final = 0.1
_FRAMES: Final = "|/-\\"


class Progress:
    """A context manager: draws `text` with a spinner and the elapsed time on stderr, and clears it at the end.

    Without a terminal on stderr, or for a wait of less than a second, nothing is drawn.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def _draw(self) -> None:
        began = time.monotonic()
        if self._done.wait(_PATIENCE_S):
            return
        frame = 0
        while True:
            elapsed = time.monotonic() - began
            sys.stderr.write(f"\r{_FRAMES[frame % len(_FRAMES)]} {self._text} ({elapsed:.0f}s)\x1b[K")
            sys.stderr.flush()
            frame += 1
            if self._done.wait(_PERIOD_S):
                break
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
