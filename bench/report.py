"""What a suite found: bars with their verdicts, tables for people, data for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.stats import Spread


@dataclass(frozen=True)
class Bar:
    """What is promised of one number, and the number. `limit` is in `unit`; an empty unit is a ratio."""

    what: str
    sense: Literal["<=", "<", ">="]
    limit: float
    measured: Spread
    unit: str = ""

    @property
    def is_met(self) -> bool:
        value = self.measured.median
        if self.sense == ">=":
            return value >= self.limit
        return value < self.limit if self.sense == "<" else value <= self.limit

    def row(self) -> list[str]:
        """The cells of BAR_COLUMNS."""
        unit, digits = (f" {self.unit}", 1) if self.unit else (" x", 3)
        return [
            self.what,
            f"{self.sense} {self.limit:g}{unit}",
            f"{self.measured.median:.{digits}f}{unit}",
            f"{self.measured.least:.{digits}f} .. {self.measured.most:.{digits}f}",
            f"{self.measured.low:.{digits}f} .. {self.measured.high:.{digits}f}",
            "met" if self.is_met else "MISSED",
        ]


@dataclass(frozen=True)
class Table:
    """Columns are aligned when printed: the first to the left, the others to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return f"{self.title}\n{aligned([self.columns, *self.rows])}"


@dataclass(frozen=True)
class Result:
    """One suite's findings; `data` can be written as JSON."""

    tables: Sequence[Table]
    bars: Sequence[Bar] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


BAR_COLUMNS = ("bar", "promised", "median", "sure to 95 %", "10 % .. 90 % of rounds", "verdict")


def bar_table(bars: Iterable[Bar]) -> Table:
    return Table("Bars, as ratios round by round where they compare", BAR_COLUMNS, [bar.row() for bar in bars])


def aligned(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """The rows as lines, with a rule under the first."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        indent
        + "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, indent + "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """The machine that was measured on, for the record."""
    cpus = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "bpf_jit": int(_lines("/proc/sys/net/core/bpf_jit_enable")[0]),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
