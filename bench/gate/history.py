"""The committed history: one line a recorded run, with everything that a reader of a trend must know."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.report import environment

FILE: Final = Path(__file__).resolve().parents[1] / "history.jsonl"


def append(figures: Mapping[str, float], path: Path = FILE) -> None:
    """Adds a line: when, which commit, on which machine, and the figures rounded to 6 digits."""
    line = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit(), **environment()}
    rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
    with path.open("a") as file:
        file.write(json.dumps(line | {"figures": rounded}) + "\n")


def read(path: Path = FILE) -> list[dict[str, Any]]:
    """The recorded runs, oldest first; none if there is no history."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def commit() -> str:
    """The checkout's commit, with a + if it has been changed since; empty outside of git."""
    command = ["git", "-C", str(FILE.parent), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
