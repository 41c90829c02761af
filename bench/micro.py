"""The pytest-benchmark suites as a table: programs by test run, IPAM, store, netlink."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.report import Bar, Result, Table
from bench.stats import single
from bench.world import BenchError

HERE: Final = Path(__file__).resolve().parent
PROGRAM_BAR: Final = "test_the_program_stays_under_its_bar"
IPAM_BAR: Final = "test_request_and_release"
_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def suite(rounds: int) -> Result:
    """Runs the suites, which know their own number of rounds, and shows which of their tests fail."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.json")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--benchmark-only", f"--benchmark-json={report}", str(HERE)],
            cwd=HERE.parent,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            raise BenchError(f"the pytest-benchmark suites gave no report:\n{done.stdout}{done.stderr}")
        found: list[dict[str, Any]] = json.loads(report.read_text())["benchmarks"]
    rows = [
        [one["name"], _time(one["stats"]["median"]), _time(one["stats"]["iqr"]), _notes(one["extra_info"])]
        for one in found
    ]
    tables = [Table("pytest-benchmark", ("", "median", "quartiles apart", "notes"), rows)]
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if failed:
        tables.append(Table("failed", ("",), [[line] for line in failed]))
    return Result(tables, _bars(found), {"failed": failed})


def _bars(found: list[dict[str, Any]]) -> list[Bar]:
    bars = []
    for one in found:
        info = one["extra_info"]
        if one["name"].startswith(PROGRAM_BAR):
            for count, nanoseconds in info["ns_per_packet"].items():
                bars.append(Bar(f"endpoint program, {count} endpoints", "<", 150, single(nanoseconds), "ns"))
        if one["name"].startswith(IPAM_BAR) and "pairs_per_second" in info:
            rate = info["pairs_per_second"] / 1e3
            what = f"IPAM request and release, {one['params']['subnet']}, {one['params']['held']} held"
            bars.append(Bar(what, ">=", 50, single(rate), "k/s"))
    return bars


def _time(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e9:.1f} ns"


def _notes(info: dict[str, Any]) -> str:
    skipped = ("kernel", "cpus", "python")
    return ", ".join(f"{name} {value}" for name, value in info.items() if name not in skipped)[:60]
