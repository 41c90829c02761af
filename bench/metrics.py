"""What all metrics together cost the packets of a bridge network: one packet in 64 is timed, and TCP tells its round
trips, against neither.

Two pairs of sandboxes differ by half a percent, so one pair is timed while the other isn't, then the other way round,
and a ratio is of four measurements in which the pairs cancel out. Scrapes: bench/scrape.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from ipaddress import ip_address
from itertools import islice
from math import sqrt
from typing import Final

from bench import latency, paths, trips
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import spread
from bench.world import World, world
from control.config import MetricsSection
from datapath.abi import ABI_VERSION, Sampling, TcpLocalKey
from datapath.bpf import Map, possible_cpus

PAIRS: Final = ("one", "other")
Values = Mapping[str, Sequence[float]]


def suite(rounds: int) -> Result:
    """Round trips of short messages, and a stream; the pairs' roles are exchanged half-way."""
    with world() as machine:
        machine.start()
        built = [paths.linkspan(machine, name, f"metrics-{name}") for name in PAIRS]
        with timing(machine) as timed:
            short = _exchanged(built, timed, lambda built, before: _p50s(built, rounds, before))
            bulk = _exchanged(built, timed, lambda built, before: _bulk(built, rounds, before))
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


class Timing:
    """Switches for what linkspand has on: the timing of packets, and that of the connections of each pair."""

    def __init__(self, sampling: Map, tcp_locals: Map, machine: World) -> None:
        self._sampling, self._locals = sampling, tcp_locals
        pair_of = {
            paths.address_of(machine, f"metrics-{name}-{end}", f"metrics-{name}"): name
            for name in PAIRS
            for end in "ab"
        }
        addresses = {ip_address(address): name for address, name in pair_of.items()}
        self._entries = [
            (key, value, addresses.get(TcpLocalKey.unpack(key).address)) for key, value in tcp_locals.items()
        ]

    def packets(self, is_on: bool) -> None:
        every = MetricsSection().forwarding_sample if is_on else 0
        self._sampling.update(bytes(4), Sampling(every=every).pack() * possible_cpus())

    def connections(self, pair: str) -> None:
        """Those of one pair alone, of those that are established from now on."""
        for key, value, whose in self._entries:
            if whose == pair:
                self._locals.update(key, value)
            else:
                self._locals.delete(key)


@contextmanager
def timing(machine: World) -> Iterator[Timing]:
    """The switches of a world in which both pairs are."""
    directory = machine.bpffs / f"linkspan/abi-{ABI_VERSION}/maps"
    with (
        Map.from_pin(machine.seen(directory / "sampling")) as sampling,
        Map.from_pin(machine.seen(directory / "tcp_locals")) as tcp_locals,
    ):
        yield Timing(sampling, tcp_locals, machine)


def _exchanged(
    built: Sequence[Path],
    timed: Timing,
    measure: Callable[[Sequence[Path], Callable[[str], None]], Values],
) -> list[float]:
    """Ratios of with to without, a value a round."""
    one, other = PAIRS
    timed.connections(one)
    first = measure(built, lambda name: timed.packets(name == one))
    timed.connections(other)
    second = measure(built, lambda name: timed.packets(name == other))
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
