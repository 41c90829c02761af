"""linkspand itself: how soon it is ready, what it weighs, and what it does when there is nothing to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from bench.report import Bar, Result, Table
from bench.stats import single, spread
from bench.turns import before_others
from bench.world import world

IDLE_S: Final = 5.0
COLD_STARTS: Final = 3


def suite(rounds: int) -> Result:
    """Cold starts in fresh worlds, then warm ones in one with a network and two endpoints."""
    with before_others():
        return _measure(rounds)


def _measure(rounds: int) -> Result:
    colds = []
    for _ in range(COLD_STARTS - 1):
        with world() as machine:
            colds.append(machine.start())
    warms = []
    with world() as machine:
        colds.append(machine.start())
        machine.api("POST", "/networks/create", {"Name": "fast"})
        for name in ("a", "b"):
            machine.sandbox(name, "fast")
        for _ in range(rounds):
            machine.stop()
            warms.append(machine.start())
        resident = resident_bytes(machine.daemon_pid) / 1e6
        begin, before = time.monotonic(), cpu_seconds(machine.daemon_pid)
        time.sleep(IDLE_S)
        idle = (cpu_seconds(machine.daemon_pid) - before) / (time.monotonic() - begin) * 100
    cold, warm = spread(colds), spread(warms)
    table = Table(
        "linkspand; starts are until the first answer",
        ("", "median", "10 % .. 90 %"),
        [
            ["cold start (s), programs compiled", f"{cold.median:.2f}", f"{cold.low:.2f} .. {cold.high:.2f}"],
            ["warm start (s)", f"{warm.median:.2f}", f"{warm.low:.2f} .. {warm.high:.2f}"],
            ["resident (MB)", f"{resident:.1f}", ""],
            [f"CPU while idle, {IDLE_S:.0f} s (%)", f"{idle:.2f}", ""],
        ],
    )
    bars = [
        Bar("linkspand warm start", "<", 1, warm, "s"),
        Bar("linkspand resident", "<", 60, single(resident), "MB"),
        Bar("linkspand idle CPU", "<", 0.5, single(idle), "%"),
    ]
    return Result([table], bars, {"cold_s": colds, "warm_s": warms, "resident_mb": resident, "idle_cpu_percent": idle})


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM, shared pages included; see proc(5), VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def cpu_seconds(pid: int) -> float:
    """The time that a process's threads have run on a CPU; see the kernel's Documentation/scheduler/sched-stats.rst."""
    return sum(int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir())
