"""The SQLite store: a write as the controller makes it, and the start with many records."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from control.store.base import Delete, Put
from control.store.sqlite import SqliteStore

ENDPOINT = b'{"id":"%064x","filler":"%s"}'
WRITE_BAR_S = 100e-6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def note(benchmark: BenchmarkFixture, **extra: object) -> None:
    benchmark.extra_info.update(
        kernel=platform.release(), cpus=os.cpu_count(), python=platform.python_version(), **extra
    )


def endpoint(n: int) -> bytes:
    return ENDPOINT % (n, b"x" * 500)


@pytest.mark.parametrize("records", [0, 4_000])
def test_write_of_an_endpoint_and_its_lease(benchmark: BenchmarkFixture, path: Path, records: int) -> None:
    with SqliteStore(path) as store:
        store.write([Put("endpoint", f"{n:064x}", endpoint(n)) for n in range(records)])
        numbers = itertools.count(records)

        def join() -> None:
            n = next(numbers)
            store.write([Put("endpoint", f"{n:064x}", endpoint(n)), Put("lease", f"p|{n}", b'{"owner":"endpoint"}')])

        benchmark.pedantic(join, rounds=4_000)
        assert len(list(store.read("endpoint"))) == len(list(store.read("lease"))) + records == next(numbers)
    note(benchmark, records=records)
    if benchmark.stats is not None:
        # The log is folded into the file, with an fsync, about every 500 writes: that is the tail.
        times = sorted(benchmark.stats.stats.data)
        benchmark.extra_info["p99_us"] = round(statistics.quantiles(times, n=100)[-1] * 1e6, 1)
        assert benchmark.stats.stats.median < WRITE_BAR_S


def test_open_and_read_of_4000_endpoints(benchmark: BenchmarkFixture, path: Path) -> None:
    with SqliteStore(path) as store:
        store.write([Put("endpoint", f"{n:064x}", endpoint(n)) for n in range(4_000)])
        store.write([Put("lease", "p|gone", b"{}"), Delete("lease", "p|gone")])

    def start() -> int:
        with SqliteStore(path) as store:
            return len(list(store.read("endpoint")))

    assert benchmark(start) == 4_000
    note(benchmark, file_bytes=path.stat().st_size)
