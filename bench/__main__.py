"""`python -m bench [SUITE...]`: measures the bars, prints them as tables and saves everything as JSON.

Needs root. Exit status: 0 if all bars are met, 1 if one is missed, 2 if something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from bench import (
    cluster,
    daemon,
    joining,
    latency,
    macvlan,
    metrics,
    micro,
    overlay,
    overlay_join,
    plugin,
    results,
    scrape,
    storm,
    throughput,
)
from bench.report import Bar, Result, Table, bar_table, environment
from bench.world import BenchError

SUITES: Final[Mapping[str, tuple[Callable[[int], Result], int]]] = {
    "latency": (latency.suite, 300),
    "throughput": (throughput.suite, 120),
    "join": (joining.suite, 10),
    "macvlan": (macvlan.suite, 150),
    "storm": (storm.suite, 60),
    "overlay": (overlay.suite, 150),
    "overlay-join": (overlay_join.suite, 150),
    "cluster": (cluster.suite, 1000),
    "plugin": (plugin.suite, 100),
    "daemon": (daemon.suite, 10),
    "metrics": (metrics.suite, 150),
    "scrape": (scrape.suite, 30),
    "micro": (micro.suite, 0),
}
"""Each suite with its number of rounds."""
DEFAULT_JSON: Final = Path("out/bench.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the suites named, or all."""
    arguments = _parser().parse_args(argv)
    if os.geteuid() != 0:
        print("bench: root is needed, for network namespaces and eBPF", file=sys.stderr)
        return 2
    machine = environment()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    bars: list[Bar] = []
    tables: dict[str, Sequence[Table]] = {}
    data: dict[str, object] = {"machine": machine}
    failed = []
    for name in arguments.suite or SUITES:
        measure, rounds = SUITES[name]
        print(f"\n{name} ...", flush=True)
        begin = time.monotonic()
        try:
            result = measure(arguments.rounds or rounds)
        except BenchError as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        bars += result.bars
        tables[name] = result.tables
        data[name] = {
            **result.data,
            "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in result.bars],
            "took_s": round(time.monotonic() - begin, 1),
            "load_1min": os.getloadavg()[0],
        }
        for table in result.tables:
            print(f"\n{table}", flush=True)
    if bars:
        print(f"\n{bar_table(bars)}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    print(f"\nall values: {arguments.json}")
    if arguments.report:
        print(f"report: {results.write(machine, tables | {'bars': [bar_table(bars)]}, bars, data)}")
    if failed:
        return 2
    return 0 if all(bar.is_met for bar in bars) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures Linkspan against its bars.")
    parser.add_argument("suite", nargs="*", choices=[*SUITES, []], help=f"{', '.join(SUITES)}; default: all")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each suite, instead of its own number")
    parser.add_argument("--json", type=Path, metavar="FILE", default=DEFAULT_JSON, help=f"default: {DEFAULT_JSON}")
    parser.add_argument("--report", action="store_true", help="write bench/results/: report, pictures, all values")
    return parser


if __name__ == "__main__":
    sys.exit(main())
