"""What networks and endpoints cost: time through the API on the unix socket, memory of linkspand and of the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Final

from bench.daemon import resident_bytes
from bench.report import Bar, Result, Table
from bench.stats import Spread, single, spread
from bench.turns import before_others
from bench.world import World, world

SIZES: Final = (10, 100, 1000)
PARALLEL: Final = 50
NETWORK: Final = "bench"
JOINS_PER_SIZE: Final = 40


def timed_ms(action: Callable[[], object]) -> float:
    """How long the action takes, in milliseconds."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1e3


def connect(machine: World, sandbox: str, network: str = NETWORK) -> None:
    """Creates an endpoint on the network and joins it to the sandbox."""
    machine.api("POST", f"/networks/{network}/connect", {"Container": sandbox})


def disconnect(machine: World, sandbox: str, network: str = NETWORK) -> None:
    machine.api("POST", f"/networks/{network}/disconnect", {"Container": sandbox})


def suite(rounds: int) -> Result:
    """Joins at each size, then many at once, then networks; in a world of its own."""
    with before_others(), world() as machine:
        machine.start()
        machine.api("POST", "/networks/create", {"Name": NETWORK, "IPAM": {"Config": [{"Subnet": "10.99.0.0/16"}]}})
        machine.sandbox("spare", "none")
        machine.api("POST", "/networks/none/disconnect", {"Container": "spare"})
        create, remove = _networks(machine, rounds)
        alone, together = _parallel(machine, rounds)
        sizes = [_at_size(machine, size) for size in SIZES]
    last = sizes[-1]
    ratio = spread([many / one for many, one in zip(together, alone, strict=True)])
    table = Table(
        "Endpoint create + join and leave + delete through the API (ms), memory an endpoint with its sandbox (KiB)",
        ("endpoints on the network", "join p50", "10 % .. 90 %", "leave p50", "linkspand", "kernel"),
        [
            [
                str(at.size),
                f"{at.join.median:.2f}",
                f"{at.join.low:.2f} .. {at.join.high:.2f}",
                f"{at.leave.median:.2f}",
                f"{at.daemon_kib:.1f}",
                f"{at.kernel_kib:.0f}",
            ]
            for at in sizes
        ],
    )
    others = Table(
        "Networks, and many joins at once (ms)",
        ("", "p50", "10 % .. 90 %"),
        [
            [what, f"{s.median:.2f}", f"{s.low:.2f} .. {s.high:.2f}"]
            for what, s in (
                ("network create", create),
                ("network rm", remove),
                ("one join", spread(alone)),
                (f"{PARALLEL} joins at once", spread(together)),
            )
        ],
    )
    bars = [Bar(f"join p50 at {at.size} endpoints", "<", 10, at.join, "ms") for at in sizes]
    bars.append(Bar(f"{PARALLEL} joins at once against one", "<", 15, ratio))
    bars.append(Bar(f"linkspand resident with {last.size} endpoints", "<", 60, last.resident_mb, "MB"))
    data = {
        "sizes": {str(at.size): {"join_ms": at.joins, "leave_ms": at.leaves} for at in sizes},
        "parallel_ms": together,
        "one_ms": alone,
    }
    return Result([table, others], bars, data)


class _AtSize:
    """What was found with so many endpoints on the network."""

    def __init__(
        self, size: int, joins: Sequence[float], leaves: Sequence[float], resident: int, daemon: float, kernel: float
    ) -> None:
        self.size, self.joins, self.leaves = size, joins, leaves
        self.join, self.leave = spread(joins), spread(leaves)
        self.resident_mb = single(resident / 1e6)
        self.daemon_kib, self.kernel_kib = daemon, kernel


def _at_size(machine: World, size: int) -> _AtSize:
    """Fills the network up to the size, and joins and leaves a spare sandbox."""
    present = len(machine.api("GET", f"/networks/{NETWORK}")["Containers"])
    daemon, kernel = resident_bytes(machine.daemon_pid), kernel_bytes()
    for number in range(present, size):
        machine.sandbox(f"s{number}", NETWORK)
    added = max(1, size - present)
    resident = resident_bytes(machine.daemon_pid)
    daemon_kib, kernel_kib = (resident - daemon) / 1024 / added, (kernel_bytes() - kernel) / 1024 / added
    joins, leaves = [], []
    for _ in range(JOINS_PER_SIZE):
        joins.append(timed_ms(lambda: connect(machine, "spare")))
        leaves.append(timed_ms(lambda: disconnect(machine, "spare")))
    return _AtSize(size, joins, leaves, resident, daemon_kib, kernel_kib)


def _parallel(machine: World, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of one join, and until the last of many at once is done, round by round."""
    names = [f"p{number}" for number in range(PARALLEL)]
    for name in names:
        machine.sandbox(name, "none")
        machine.api("POST", "/networks/none/disconnect", {"Container": name})
    alone, together = [], []
    start = Barrier(PARALLEL + 1)

    def join(name: str) -> None:
        machine.api("GET", "/networks/none")  # each thread's connection is there before
        start.wait()
        connect(machine, name)

    for _ in range(rounds):
        alone.append(timed_ms(lambda: connect(machine, "spare")))
        disconnect(machine, "spare")
        with ThreadPoolExecutor(PARALLEL) as pool:
            pending = [pool.submit(join, name) for name in names]
            start.wait()
            together.append(timed_ms(partial(wait, pending)))
        for one in pending:
            one.result()
        for name in names:
            disconnect(machine, name)
    return alone, together


def _networks(machine: World, rounds: int) -> tuple[Spread, Spread]:
    creates, removes = [], []
    for _ in range(max(rounds, 10)):
        creates.append(timed_ms(lambda: machine.api("POST", "/networks/create", {"Name": "short"})))
        removes.append(timed_ms(lambda: machine.api("DELETE", "/networks/short")))
    return spread(creates), spread(removes)


def kernel_bytes() -> int:
    """What the kernel holds for itself in slabs that it cannot give back, per-CPU areas and stacks; see proc(5)."""
    fields = ("SUnreclaim", "Percpu", "KernelStack", "PageTables")
    lines = (line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(value.split()[0]) * 1024 for name, value in lines if name in fields)
