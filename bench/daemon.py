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
FEW, MANY = 2, 300


def suite(rounds: int) -> Result:
    """Cold starts in fresh worlds, then warm ones by turns: with few endpoints on a network, and with many."""
    with before_others():
        return _measure(rounds)


def _measure(rounds: int) -> Result:
    colds = []
    for _ in range(COLD_STARTS - 1):
        with world() as machine:
            colds.append(machine.start())
    starts: dict[int, list[float]] = {FEW: [], MANY: []}
    used: dict[int, list[float]] = {FEW: [], MANY: []}
    with world() as few, world() as many:
        colds.append(few.start())
        many.start()
        machines = {FEW: few, MANY: many}
        for endpoints, machine in machines.items():
            machine.api("POST", "/networks/create", {"Name": "fast", "IPAM": {"Config": [{"Subnet": "10.99.0.0/16"}]}})
            for number in range(endpoints):
                machine.sandbox(f"s{number}", "fast")
        for _ in range(rounds):
            for endpoints, machine in machines.items():
                machine.stop()
                starts[endpoints].append(machine.start())
                used[endpoints].append(cpu_seconds(machine.daemon_pid))
        resident = resident_bytes(few.daemon_pid) / 1e6
        begin, before = time.monotonic(), cpu_seconds(few.daemon_pid)
        time.sleep(IDLE_S)
        idle = (cpu_seconds(few.daemon_pid) - before) / (time.monotonic() - begin) * 100
    cold = spread(colds)
    rows = [["cold start (s), programs compiled", f"{cold.median:.2f}", f"{cold.low:.2f} .. {cold.high:.2f}"]]
    for endpoints in (FEW, MANY):
        for what, values in (("warm start (s)", starts), ("its CPU time (s)", used)):
            of = spread(values[endpoints])
            rows.append([f"{what}, {endpoints} endpoints", f"{of.median:.2f}", f"{of.low:.2f} .. {of.high:.2f}"])
    table = Table(
        "linkspand; starts are until the first answer",
        ("", "median", "10 % .. 90 %"),
        [*rows, ["resident (MB)", f"{resident:.1f}", ""], [f"CPU while idle, {IDLE_S:.0f} s (%)", f"{idle:.2f}", ""]],
    )
    bars = [
        Bar("linkspand warm start", "<", 1, spread(starts[FEW]), "s"),
        Bar(f"linkspand warm start with {MANY} endpoints", "<", 1, spread(starts[MANY]), "s"),
        Bar("linkspand resident", "<", 60, single(resident), "MB"),
        Bar("linkspand idle CPU", "<", 0.5, single(idle), "%"),
    ]
    data = {
        "cold_s": colds,
        "warm_s": {str(endpoints): values for endpoints, values in starts.items()},
        "warm_cpu_s": {str(endpoints): values for endpoints, values in used.items()},
        "resident_mb": resident,
        "idle_cpu_percent": idle,
    }
    return Result([table], bars, data)


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM, shared pages included; see proc(5), VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def cpu_seconds(pid: int) -> float:
    """The time that a process's threads have run on a CPU; see the kernel's Documentation/scheduler/sched-stats.rst."""
    return sum(int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir())
