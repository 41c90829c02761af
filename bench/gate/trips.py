"""Round trips over Linkspan's networks against the kernel's own paths, which nobody's change makes faster or slower.

Of short messages, and of long ones: a message that is one packet of TCP costs what a stream's packets cost, without the
waking up that makes a stream between two cores move by a third from one second to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from bench import macvlan, overlay, paths, trips
from bench.gate import decide
from bench.gate.decide import Ratio
from bench.gate.joins import START_S
from bench.gate.outcome import Outcome
from bench.nodes import joined_nodes
from bench.report import Table
from bench.world import world
from datapath.probe import BULK_BYTES, MESSAGE_BYTES

Pair = tuple[str, str]
Limits = Mapping[int, Mapping[Pair, float]]
"""By the message's bytes: the greatest ratio of the first path's round trip to the second's."""

_MACVLAN: Final = macvlan.local("macvlan"), macvlan.local(macvlan.BY_HAND)
HERE: Final[Limits] = {
    MESSAGE_BYTES: {(paths.ACCEL, paths.VETH): 1.14, (paths.ACCEL, paths.BRIDGE): 0.90, _MACVLAN: 1.14},
    BULK_BYTES: {(paths.ACCEL, paths.VETH): 1.14, (paths.ACCEL, paths.BRIDGE): 0.88, _MACVLAN: 1.14},
}
"""On one host: today's, and 6 to 7 % more."""
BETWEEN_HOSTS: Final[Limits] = {
    MESSAGE_BYTES: {(overlay.TUNNEL, overlay.KERNEL): 0.78, (overlay.DIRECT, overlay.KERNEL): 0.73},
    BULK_BYTES: {(overlay.TUNNEL, overlay.KERNEL): 0.75, (overlay.DIRECT, overlay.KERNEL): 0.68},
}
"""Between two, likewise."""
_MOST: Final = 400

Ratios = dict[tuple[Pair, int], list[float]]


def gate(_sources: Path) -> Outcome:
    """Holds the ratios against their limits. Takes about a minute, half of it to start nodes; raises BenchError."""
    with world() as machine:
        machine.start(START_S)
        built = [*paths.build(machine, (paths.VETH, paths.BRIDGE)), *macvlan.build(machine)]
        built.append(paths.sandboxes(machine, paths.ACCEL, paths.FAST_NETWORK))
        measured = _measured(built, HERE)
    with joined_nodes(2) as cluster:
        measured |= _measured(overlay.build(cluster, overlay.ACCELERATED), BETWEEN_HOSTS)
    return _judged(measured)


def _measured(built: Sequence[paths.Path], limits: Limits) -> Ratios:
    """Ratios, round by round, until each is decided or given up."""
    measured: Ratios = {}
    for size, pairs in limits.items():
        own: dict[Pair, list[float]] = {pair: [] for pair in pairs}
        compared = [path for path in built if any(path.name in pair for pair in pairs)]
        with closing(trips.rounds(compared, turn=partial(trips.turn_us, size=size))) as rounds:
            for found in rounds:
                for ours, theirs in pairs:
                    own[ours, theirs].append(found[ours] / found[theirs])
                if all(decide.is_enough(own[pair], limit, _MOST) for pair, limit in pairs.items()):
                    break
        measured |= {(pair, size): values for pair, values in own.items()}
    return measured


def _judged(measured: Ratios) -> Outcome:
    rows, failures, figures = [], [], {}
    for ((ours, theirs), size), values in measured.items():
        what = f"round trip{'' if size == MESSAGE_BYTES else f' of {size:,} bytes'}, {ours} / {theirs}"
        limit = {**HERE[size], **BETWEEN_HOSTS[size]}[ours, theirs]
        ratio, verdict = decide.ratio(values), decide.verdict(values, limit)
        rows.append([f"{ours} / {theirs}", f"{size:,}", *ratio.cells(), f"{limit:.3f}", verdict])
        figures[what] = ratio.median
        if verdict != "passed":
            failures.append(f"{what}: {ratio}, limit {limit:.3f}: {verdict}")
    title = "Round trips over TCP, within one thread"
    return Outcome(Table(title, ("", "bytes", *Ratio.COLUMNS, "limit", "verdict"), rows), failures, figures)
