"""`linkspan bench`: which path each network's packets take on this host, and what it costs."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from control.cli import complete
from control.cli.client import Client
from control.cli.command import Arity, Flag, command
from control.cli.errors import FAILED, USAGE, CliError
from control.cli.progress import Progress
from control.cli.values import Bool, Seconds

if TYPE_CHECKING:
    from control.cli.bench_measure import Measured

_SECONDS_LEAST: Final = 0.1
_SECONDS_MOST: Final = 40.0
"""With what is made before and removed after, the command ends within 90 s."""
_FEW: Final = 0.05
"""Packets that are the kernel's on any network: what opens a connection, neighbours."""
_COLUMNS: Final = ("NETWORK", "DRIVER", "PATH", "TCP P50", "TCP P99", "UDP P50", "COST", "10 % .. 90 %", "X VETH")


@command(
    "bench",
    "[OPTIONS] [NETWORK...]",
    Arity(0, None),
    Flag("json", Bool(), "Print in JSON format, with every round"),
    Flag("seconds", Seconds(_SECONDS_LEAST, _SECONDS_MOST), "How long to measure", default=15.0, shown="15"),
    complete=complete.networks,
)
def bench(client: Client, args: list[str], json: bool | None, seconds: float) -> int:
    """Show which path each network takes on this host, and what it costs"""
    if os.geteuid() != 0:
        raise CliError(
            "linkspan: bench needs root, because it opens sockets in sandboxes: use sudo linkspan bench", USAGE
        )
    from control.cli.bench_measure import measure

    with _interrupted_once(), Progress("measuring round trips"):
        rows = measure(client, args, seconds)
    click.echo(_document(rows) if json else _text(rows), nl=False)
    return FAILED if args and any(row.problem for row in rows) else 0


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Has the first SIGINT, SIGTERM or SIGHUP end the block, and no further one disturb how it ends."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _text(rows: list[Measured]) -> str:
    from control.cli.tabwriter import aligned

    base = rows[0]
    lines = ["\t".join(_COLUMNS)]
    lines += ["\t".join(_cells(row, base)) for row in rows if not row.problem]
    table = aligned("".join(f"{line}\n" for line in lines))
    notes = (
        "\nMicroseconds a round trip of 64 bytes, from one thread with a socket at each end; COST is what TCP takes\n"
        f"more than over the bare veth pair, round by round ({len(base.p50s['tcp'])} rounds in turns).\n"
    )
    problems = "".join(f"Not measured, {row.network}: {row.problem}\n" for row in rows if row.problem)
    return table + notes + problems


def _cells(row: Measured, base: Measured) -> list[str]:
    tcp, cost = row.p50s["tcp"], costs(row, base)
    ratio = statistics.median(value / other for value, other in zip(tcp, base.p50s["tcp"], strict=True))
    low, _, high = _tenths(cost)
    return [
        row.network,
        row.driver,
        path_of(row),
        f"{statistics.median(tcp):.2f}",
        f"{statistics.median(row.p99s['tcp']):.2f}",
        f"{statistics.median(row.p50s['udp']):.2f}",
        *(("-", "-") if row is base else (f"{statistics.median(cost):+.2f}", f"{low:+.2f} .. {high:+.2f}")),
        f"{ratio:.2f}",
    ]


def costs(row: Measured, base: Measured) -> list[float]:
    """How many microseconds more a TCP round trip takes than over another path, a value a round."""
    return [value - other for value, other in zip(row.p50s["tcp"], base.p50s["tcp"], strict=True)]


def path_of(row: Measured) -> str:
    """In words, what carried the packets."""
    if row.fast is None or row.fast < _FEW:
        return "kernel"
    return "fast" if row.fast > 1 - _FEW else f"{row.fast:.0%} fast"


def _tenths(values: list[float]) -> tuple[float, float, float]:
    """The values that 10 %, half and 90 % lie below."""
    ordered = sorted(values)
    return ordered[len(ordered) // 10], statistics.median(ordered), ordered[len(ordered) * 9 // 10]


def _document(rows: list[Measured]) -> str:
    """Names say the unit; `rounds` are the medians of each, in the same order for all paths."""
    paths: list[dict[str, Any]] = []
    for row in rows:
        shown: dict[str, Any] = {"network": row.network, "driver": row.driver, "problem": row.problem or None}
        if not row.problem:
            shown |= {"path": path_of(row), "fast_share": row.fast}
            shown["cost_us"] = dict(zip(("p10", "p50", "p90"), _tenths(costs(row, rows[0])), strict=True))
            for proto, p50s in row.p50s.items():
                shown[proto] = {
                    "p50_us": statistics.median(p50s),
                    "p99_us": statistics.median(row.p99s[proto]),
                    "rounds": [round(value, 3) for value in p50s],
                }
        paths.append(shown)
    machine = {"kernel": os.uname().release, "machine": os.uname().machine, "cpus": os.cpu_count()}
    return dumps({**machine, "load_1min": os.getloadavg()[0], "paths": paths}, indent=4, ensure_ascii=False) + "\n"
