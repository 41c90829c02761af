"""What all metrics together cost the packets of a bridge network: one packet in 64 is timed, against none.

Two pairs of sandboxes differ by half a percent, so one pair is timed while the other isn't, then the other way round,
and a ratio is of four measurements in which the pairs cancel out. Scrapes: bench/scrape.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from math import sqrt
from typing import Final

from bench import latency, paths, trips
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import spread
from bench.world import World, world
from control.config import MetricsSection
from datapath.abi import ABI_VERSION, Sampling
from datapath.bpf import Map, possible_cpus

PAIRS: Final = ("one", "other")
Values = Mapping[str, Sequence[float]]


def suite(rounds: int) -> Result:
    """Round trips of short messages, and a stream; the pairs' roles are exchanged half-way."""
    with world() as machine:
        machine.start()
        built = [paths.linkspan(machine, name, f"metrics-{name}") for name in PAIRS]
        with sampling(machine) as sample:
            short = _exchanged(built, sample, lambda built, before: _p50s(built, rounds, before))
            bulk = _exchanged(built, sample, lambda built, before: _bulk(built, rounds, before))
    bars = [
        Bar("time of a stream's packet, with all metrics against none", "<=", 1.01, spread(bulk)),
        Bar("TCP round trip p50 with all metrics against none", "<=", 1.02, spread(short)),
    ]
    rows = [
        [what, f"{found.median:.4f}", f"{found.least:.4f} .. {found.most:.4f}", f"{found.low:.3f} .. {found.high:.3f}"]
        for what, found in (("a stream's packet", spread(bulk)), ("round trip p50", spread(short)))
    ]
    columns = ("with all metrics, x none", "median", "sure to 95 %", "10 % .. 90 %")
    table = Table("Cost of metrics, TCP on a bridge network", columns, rows)
    return Result([table], bars, {"round_trips": short, "bulk": bulk})


@contextmanager
def sampling(machine: World) -> Iterator[Callable[[bool], None]]:
    """A switch for the timing of packets, which linkspand has on."""
    every = MetricsSection().forwarding_sample
    with Map.from_pin(machine.seen(machine.bpffs / f"linkspan/abi-{ABI_VERSION}/maps/sampling")) as table:
        yield lambda is_on: table.update(bytes(4), Sampling(every=every if is_on else 0).pack() * possible_cpus())


def _exchanged(
    built: Sequence[Path],
    sample: Callable[[bool], None],
    measure: Callable[[Sequence[Path], Callable[[str], None]], Values],
) -> list[float]:
    """Ratios of with to without, a value a round."""
    one, other = PAIRS
    first = measure(built, lambda name: sample(name == one))
    second = measure(built, lambda name: sample(name == other))
    return [
        sqrt(a_on / b_off * b_on / a_off)
        for a_on, b_off, b_on, a_off in zip(first[one], first[other], second[other], second[one], strict=False)
    ]


def _p50s(built: Sequence[Path], rounds: int, before: Callable[[str], None]) -> Values:
    measured = latency.measure(built, rounds, protos=("tcp",), before=before)
    return {path.name: measured[path.name, "tcp"].p50s() for path in built}


def _bulk(built: Sequence[Path], rounds: int, before: Callable[[str], None]) -> Values:
    with closing(trips.rounds(built, turn=trips.stream_us, before=before)) as turns:
        found = list(islice(turns, rounds))
    return {path.name: [each[path.name] for each in found] for path in built}
