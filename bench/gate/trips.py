"""Round trips over Linkspan's networks against the kernel's own paths, which nobody's change makes faster or slower."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from bench import macvlan, paths, trips
from bench.gate import decide
from bench.gate.decide import Ratio
from bench.gate.joins import START_S
from bench.gate.outcome import Outcome
from bench.report import Table
from bench.world import world

LIMITS: Final[Mapping[tuple[str, str], float]] = {
    (paths.ACCEL, paths.VETH): 1.11,
    (paths.ACCEL, paths.BRIDGE): 0.87,
    (macvlan.local("macvlan"), macvlan.local(macvlan.BY_HAND)): 1.10,
}
"""The greatest ratio of the first path's round trip to the second's: today's, and 5 % more."""
_MOST: Final = 400


def gate(_sources: Path) -> Outcome:
    """Holds the ratios against their limits. Takes some 10 s; raises BenchError."""
    ratios: dict[tuple[str, str], list[float]] = {pair: [] for pair in LIMITS}
    with world() as machine:
        machine.start(START_S)
        built = [*paths.build(machine, (paths.VETH, paths.BRIDGE)), *macvlan.build(machine)]
        built.append(paths.sandboxes(machine, paths.ACCEL, paths.FAST_NETWORK))
        compared = [path for path in built if any(path.name in pair for pair in LIMITS)]
        with closing(trips.rounds(compared)) as rounds:
            for found in rounds:
                for ours, theirs in LIMITS:
                    ratios[ours, theirs].append(found[ours] / found[theirs])
                if all(decide.is_enough(ratios[pair], limit, _MOST) for pair, limit in LIMITS.items()):
                    break
    rows, failures, figures = [], [], {}
    for (ours, theirs), limit in LIMITS.items():
        ratio, verdict = decide.ratio(ratios[ours, theirs]), decide.verdict(ratios[ours, theirs], limit)
        rows.append([f"{ours} / {theirs}", *ratio.cells(), f"{limit:.2f}", verdict])
        figures[f"round trip, {ours} / {theirs}"] = ratio.median
        if verdict != "passed":
            failures.append(f"round trip, {ours} / {theirs}: {ratio}, limit {limit:.2f}: {verdict}")
    title = "Round trips of 64 bytes over TCP, within one thread"
    return Outcome(Table(title, ("", *Ratio.COLUMNS, "limit", "verdict"), rows), failures, figures)
