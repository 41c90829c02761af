"""`python -m bench.gate [GATE...]`: what a change may cost, as hard limits.

Exit status: 0 if every gate passes, 1 if one fails, 2 if something could not be measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.gate import builds, history, joins, limits, programs, trips
from bench.gate.outcome import Outcome
from bench.turns import before_others
from bench.world import BenchError
from datapath.loader import sources

GATES: Final[Mapping[str, Callable[[Path], Outcome]]] = {
    "sizes": programs.sizes,
    "joins": joins.gate,
    "cost": programs.costs,
    "trips": trips.gate,
}
"""Each gate, measured on the programs' sources in a directory."""
_OF_TIME: Final = ("cost", "trips")
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the gates named, or all."""
    arguments = _parser().parse_args(argv)
    if os.geteuid() != 0:
        print("bench-gate: root is needed, for network namespaces and eBPF", file=sys.stderr)
        return 2
    if arguments.freeze:
        builds.freeze(builds.today(arguments.sources))
        print(f"the endpoint program as it is now is what `cost` compares with: {builds.FROZEN_TEXT}")
        return 0
    failures: list[str] = []
    figures: dict[str, float] = {}
    for name in arguments.gate or GATES:
        begin = time.monotonic()
        try:
            outcome = _confirmed(name, arguments.sources)
        except BenchError as error:
            print(f"bench-gate: {name}: {error}", file=sys.stderr)
            return 2
        print(f"\n{outcome.table}\n  took {time.monotonic() - begin:.0f} s", flush=True)
        failures += outcome.failures
        figures |= outcome.figures
    if arguments.bless:
        limits.bless(figures)
        print(f"\nblessed: {limits.FILE}; say in the commit why each figure that grew had to")
    if arguments.record:
        history.append(figures)
    print()
    for failure in failures:
        print(f"bench-gate: {failure}", file=sys.stderr)
    print(f"bench-gate: {len(failures)} failed" if failures else "bench-gate: passed", flush=True)
    return 1 if failures else 0


def _confirmed(name: str, directory: Path) -> Outcome:
    """What a gate found. A failure of one that measures time has to show itself again, some time later: others on the
    machine may take the memory's bandwidth for half a minute, and then what copies more is not so much slower any more.
    A slower program stays slower."""
    outcome = _measured(GATES[name], directory)
    for _ in range(_ATTEMPTS - 1 if name in _OF_TIME else 0):
        if not outcome.failures:
            break
        print(f"\n{outcome.table}\nbench-gate: {name}: once more in {_PAUSE_S} s, whether it stays so", flush=True)
        time.sleep(_PAUSE_S)
        outcome = _measured(GATES[name], directory)
    return outcome


def _measured(gate: Callable[[Path], Outcome], directory: Path) -> Outcome:
    """What a gate found; measured once more where it could not be, as when linkspand has not started in time."""
    with before_others():
        try:
            return gate(directory)
        except BenchError as error:
            print(f"bench-gate: once more, because: {error}", file=sys.stderr)
            return gate(directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gate", description="Fails when Linkspan costs more than it did."
    )
    parser.add_argument("gate", nargs="*", choices=[*GATES, []], help=f"{', '.join(GATES)}; default: all")
    parser.add_argument("--bless", action="store_true", help="make the exact figures of now the limits' new base")
    parser.add_argument("--freeze", action="store_true", help="make the endpoint program of now the frozen copy")
    parser.add_argument("--record", action="store_true", help=f"append the figures to {history.FILE.name}")
    parser.add_argument(
        "--sources", type=Path, metavar="DIR", default=sources.DIRECTORY, help="other sources of the programs than bpf/"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
