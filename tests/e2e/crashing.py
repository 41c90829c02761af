"""linkspand that dies or fails at a chosen step: `crashing.py FILE <linkspand's flags>`.

FILE, read anew before every step, holds {"phase": "apply" | "revert", "number": n, "how": …}; numbers count the steps
of the phase, from 1, since FILE was changed. "before" and "after" kill the process before and right after the step,
"fail" makes the step raise.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from control import daemon
from control.controller_factory import build_controller
from control.plan import Step

FAILURE = "injected failure"


class Saboteur:
    """Sees every step before it is taken."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._orders = ""
        self._count = 0

    def __call__(self, phase: str, step: Step) -> None:
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return
        if text != self._orders:
            self._orders, self._count = text, 0
        orders = json.loads(text)
        if phase != orders["phase"]:
            return
        self._count += 1
        if self._count == orders["number"]:
            self._strike(orders["how"], phase, step)

    def _strike(self, how: str, phase: str, step: Step) -> None:
        if how == "fail":
            raise OSError(f"{FAILURE} of: {step.name}")
        if how == "after":
            (step.apply if phase == "apply" else step.revert)()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    observed = partial(build_controller, observe=Saboteur(Path(sys.argv[1])))
    setattr(daemon, "build_controller", observed)  # noqa: B010 - not exported
    sys.exit(daemon.main(sys.argv[2:]))
