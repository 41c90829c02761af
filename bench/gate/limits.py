"""The committed limits: gates.toml, one line a figure with its value, what it may grow by, and why it is watched."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("gates.toml")
_HEAD: Final = """\
# Limits of `make bench-gate`. `python -m bench.gate --bless` writes today's values; the limits follow by each line's
# `slack`, in percent. A line with `kernel` is judged on that kernel alone, because the figure is the kernel's.

"""


@dataclass(frozen=True)
class Limit:
    """One figure's value when it was last blessed, and the percents that it may exceed it by."""

    gate: str
    what: str
    today: float
    slack: float
    why: str
    kernel: str = ""

    @property
    def limit(self) -> float:
        return self.today * (1 + self.slack / 100)

    @property
    def is_judged(self) -> bool:
        """Whether the figure says something on the kernel that runs."""
        return not self.kernel or os.uname().release.startswith(f"{self.kernel}.")

    def row(self, value: float) -> list[str]:
        """The cells of COLUMNS."""
        if not self.is_judged:
            verdict = f"of {self.kernel}"
        elif value > self.limit:
            verdict = "FAILED"
        else:
            verdict = "better" if value < self.today / (1 + self.slack / 100) else "passed"
        return [self.what, f"{value:g}", f"{self.today:g}", f"{self.limit:g}", verdict]


COLUMNS: Final = ("figure", "now", "blessed", "limit", "verdict")


def read(path: Path = FILE) -> list[Limit]:
    with path.open("rb") as file:
        return [Limit(**one) for one in tomllib.load(file)["limit"]]


def judge(found: Mapping[str, float], limits: Sequence[Limit]) -> tuple[list[list[str]], list[str]]:
    """The rows of the table, and one sentence for each figure that fails: past its limit, or without one.

    A limit whose figure was not found fails too: a gate that nobody measures any more is no gate.
    """
    rows, failures, by_name = [], [], {limit.what: limit for limit in limits}
    for what, value in found.items():
        limit = by_name.get(what)
        if limit is None:
            failures.append(f"{what} is {value:g} and has no limit: give it one in {FILE.name}")
            continue
        rows.append(limit.row(value))
        if limit.is_judged and value > limit.limit:
            failures.append(f"{what} is {value:g}, more than {limit.limit:g}: {limit.why}")
    failures += [f"{what} has a limit and was not measured" for what in by_name.keys() - found.keys()]
    return rows, failures


def bless(found: Mapping[str, float], path: Path = FILE) -> None:
    """Writes the values found as today's; limits of another kernel, and those whose figure was not found, stay."""
    kept = [
        replace(limit, today=round(found[limit.what], 3)) if limit.is_judged and limit.what in found else limit
        for limit in read(path)
    ]
    write(kept, path)


def write(limits: Sequence[Limit], path: Path = FILE) -> None:
    path.write_text(_HEAD + "limit = [\n" + "".join(f"  {{ {_line(limit)} }},\n" for limit in limits) + "]\n")


def _line(limit: Limit) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in vars(limit).items() if value != "")
