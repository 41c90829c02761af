"""linkspand, counting the calls of Python functions; its arguments are linkspand's.

SIGUSR2 has the number written to the file `calls` in the run directory.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from control.daemon import main


def count_calls(told: Path) -> None:
    """Counts in all threads that start from now on, and in this one."""
    calls = itertools.count()  # whose next() is one step, so that no thread loses another's

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            next(calls)

    def tell(_signal: int, _frame: FrameType | None) -> None:
        new = told.with_suffix(".new")
        new.write_text(str(next(calls)))
        new.replace(told)

    signal.signal(signal.SIGUSR2, tell)
    threading.setprofile(profile)
    sys.setprofile(profile)


if __name__ == "__main__":
    count_calls(Path(sys.argv[sys.argv.index("--run-dir") + 1], "calls"))
    sys.exit(main())
