"""What a run of `make bench` leaves in bench/results/: every value as JSON, and a report with pictures for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from bench.gate import history
from bench.report import Bar, Table

mpl.use("Agg")
from matplotlib import pyplot as plt

DIRECTORY: Final = Path(__file__).with_name("results")
_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#888888"
_QUIET_LOAD: Final = 2.0


def write(machine: Mapping[str, Any], tables: Mapping[str, Sequence[Table]], bars: Sequence[Bar], data: object) -> Path:
    """Writes results.json, report.md and the pictures, and returns the report's path."""
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = ["# Measured", "", *_machine(machine), ""]
    if bars:
        _bars(bars, DIRECTORY / "bars.png")
        lines += ["![bars](bars.png)", ""]
    runs = history.read()
    if len(runs) > 1:
        _trend(runs, DIRECTORY / "trend.png")
        lines += ["![trend of the gates' figures](trend.png)", ""]
    for suite, each in tables.items():
        lines += [f"## {suite}", ""]
        for table in each:
            lines += [table.title, "", *_rows(table), ""]
    report = DIRECTORY / "report.md"
    report.write_text("\n".join(lines))
    return report


def _machine(machine: Mapping[str, Any]) -> list[str]:
    load = machine["load_1min"]
    said = "quiet" if load < _QUIET_LOAD else "shared with other work: read ratios and their spread, not microseconds"
    return [f"Load {load:.1f} at the start ({said}).", "", *(f"- {name}: {value}" for name, value in machine.items())]


def _rows(table: Table) -> list[str]:
    cells = [table.columns, ["---"] * len(table.columns), *table.rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") or " " for cell in row) + " |" for row in cells]


def _bars(bars: Sequence[Bar], path: Path) -> None:
    """Each bar's measure over its limit, with the interval that it lies in and what single rounds span."""
    figure, axis = plt.subplots(figsize=(11, 1 + 0.3 * len(bars)), layout="constrained")
    for row, bar in enumerate(bars):
        colour = _BLUE if bar.is_met else _RED
        spread = [value / bar.limit for value in (bar.measured.low, bar.measured.high)]
        sure = [value / bar.limit for value in (bar.measured.least, bar.measured.most)]
        axis.plot(spread, [row, row], color=_GREY, linewidth=1)
        axis.plot(sure, [row, row], color=colour, linewidth=5, solid_capstyle="butt")
        axis.plot([bar.measured.median / bar.limit], [row], color=colour, marker="o", markersize=6)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(bars)), [f"{bar.what}  {bar.sense} {bar.limit:g} {bar.unit or 'x'}" for bar in bars])
    axis.invert_yaxis()
    axis.set_xlim(0, 2)
    axis.set_xlabel("measured / promised; thick: sure to 95 %, thin: 10 % to 90 % of rounds")
    axis.grid(axis="x", color="#dddddd")
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _trend(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The gates' figures over the recorded runs, each relative to its first value; sizes of programs summed up."""
    series: dict[str, list[tuple[int, float]]] = {}
    for number, run in enumerate(runs):
        summed: dict[str, float] = {}
        for name, value in run["figures"].items():
            what = re.sub(r"^ls_\w+: ", "all programs: ", name)
            summed[what] = summed.get(what, 0) + value
        for what, value in summed.items():
            series.setdefault(what, []).append((number, value))
    figure, axis = plt.subplots(figsize=(11, 6), layout="constrained")
    for what, points in series.items():
        first = points[0][1]
        axis.plot([x for x, _ in points], [y / first for _, y in points], marker="o", markersize=4, label=what)
    axis.set_xticks(
        range(len(runs)), [f"{run['date']}\n{run['commit'][:8]}\n{run['kernel']}" for run in runs], fontsize=8
    )
    axis.set_ylabel("relative to the first recorded run")
    axis.grid(axis="y", color="#dddddd")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
