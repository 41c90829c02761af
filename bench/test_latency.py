"""The latency harness on a few rounds: not for its times, but for what it must show whatever the times are."""

from __future__ import annotations

import os
import platform
from pathlib import Path as File

from pytest_benchmark.fixture import BenchmarkFixture

from bench import latency, paths
from bench.stats import percentile
from bench.world import World

ROUNDS = 5


def test_round_trips_with_and_without_the_programs(benchmark: BenchmarkFixture, machine: World) -> None:
    compared = [paths.build(machine, [name])[0] for name in (paths.ACCEL, paths.NO_ACCEL)]
    measured = benchmark.pedantic(latency.measure, (compared, ROUNDS), rounds=1)
    for key, samples in measured.items():
        assert 1 <= len(samples.rounds) <= ROUNDS, key
        ordered = samples.ordered()
        assert len(ordered) >= len(samples.rounds) * 20, key
        assert 1 < percentile(ordered, 50) < 1000, f"{key}: microseconds"
    trips = sum(len(measured[paths.ACCEL, proto].ordered()) for proto in latency.PROTOS)
    fast = paths.packets(machine, paths.FAST_NETWORK)
    slow = paths.packets(machine, paths.SLOW_NETWORK)
    assert fast["fast"] >= 2 * trips, "a round trip is two packets of the fast path"
    assert fast["slow"] < 50, "what is not unicast IP between the two"
    assert slow["fast"] == 0
    for name in (paths.FAST_NETWORK, paths.SLOW_NETWORK):
        for end in ("a", "b"):
            machine.api("DELETE", f"/linkspan/sandboxes/{name}-{end}")
        machine.api("DELETE", f"/networks/{name}")
    benchmark.extra_info.update(kernel=platform.release(), cpus=os.cpu_count(), rounds=ROUNDS)


def write_log(path: File, rows: list[tuple[float, float]]) -> File:
    lines = ["------", "packet, txTime(sec), rxTime(sec), latency(usec)"]
    lines += [f"{number}, {sent:.9f}, {received:.9f}, 0.000" for number, (sent, received) in enumerate(rows)]
    path.write_text("\n".join(lines))
    return path


def test_a_log_is_cut_at_the_turns(tmp_path: File) -> None:
    """The clock of the log is 100 s behind; a trip that spans the pause or two turns belongs to none."""

    def trips(begin: float, count: int) -> list[tuple[float, float]]:
        return [(begin + n * 20e-6, begin + n * 20e-6 + 16e-6) for n in range(count)]

    rows = trips(4.0, 10)  # all ran together
    rows += [(4.1, 5.2)]  # stopped for the pause under way; the first turn begins at 5.2
    rows += trips(5.2001, 100)
    rows += [(5.2199, 5.3)]
    rows += trips(5.3001, 30)
    log = write_log(tmp_path / "log.csv", rows)
    first, second = latency.slices(log, [105.2, 105.3], margin_s=0.02)
    settled = latency.SETTLE_SAMPLES
    assert len(first) == 100 - settled
    assert len(second) == 30 - settled
    assert all(abs(trip - 16) < 0.01 for trip in first + second)


def test_a_log_without_a_pause_has_no_turns(tmp_path: File) -> None:
    log = write_log(tmp_path / "log.csv", [(1.0 + n * 1e-3, 1.0 + n * 1e-3 + 5e-4) for n in range(100)])
    assert latency.slices(log, [1.0, 1.1], margin_s=0.02) == [[], []]
