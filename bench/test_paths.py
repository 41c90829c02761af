"""One round trip over every path and its peers: on this host by bridge and macvlan, and between two by overlay.

`make bench` compares them in turns; these are single figures for a look at one path.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import closing

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import macvlan, overlay, paths, trips
from bench.docker_world import DockerWorld
from bench.nodes import joined_nodes
from bench.paths import Path
from bench.world import World, world
from tests.docker.image import NAME
from tests.docker.lab import SLEEP

ROUNDS = 100
LOOPBACK, DOCKER = "host loopback", "Docker's bridge"
HERE = (LOOPBACK, *paths.ALL)
MACVLAN = tuple(of(kind) for kind in (macvlan.BY_HAND, "macvlan") for of in (macvlan.out, macvlan.local))
OVERLAY = (overlay.UNDERLAY, overlay.KERNEL, overlay.TUNNEL, overlay.NO_ACCEL)


@pytest.fixture(scope="module")
def here(machine: World) -> Iterator[dict[str, Path]]:
    built = {path.name: path for path in paths.build(machine)}
    built[LOOPBACK] = Path(LOOPBACK, machine, "/proc/1/ns/net", "/proc/1/ns/net", "127.0.0.1", "lo")
    yield built
    machine.api.disconnect()  # linkspand has, if nothing was asked for so long
    for network in (paths.FAST_NETWORK, paths.SLOW_NETWORK):
        for end in "ab":
            machine.api("DELETE", f"/linkspan/sandboxes/{network}-{end}")
        machine.api("DELETE", f"/networks/{network}")


@pytest.fixture(scope="module")
def with_engine() -> Iterator[Path]:
    """Two containers on the bridge that a dockerd of its own has made."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with closing(DockerWorld()) as machine:
        machine.start_engine()
        machine.docker("network", "create", "theirs")
        for name in ("one", "two"):
            machine.docker("run", "-d", "--net=theirs", "--name", name, NAME, *SLEEP)
        yield machine.way(DOCKER, "theirs", "one", "two")


@pytest.fixture(scope="module")
def on_parents() -> Iterator[dict[str, Path]]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with world() as machine:
        machine.start()
        yield {path.name: path for path in macvlan.build(machine)}


@pytest.fixture(scope="module")
def between_hosts() -> Iterator[dict[str, Path]]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with joined_nodes(2) as cluster:
        yield {path.name: path for path in overlay.build(cluster, (overlay.TUNNEL, overlay.NO_ACCEL))}


def measure(benchmark: BenchmarkFixture, path: Path, group: str) -> None:
    """One turn a round; the server's device must have counted what was sent."""
    with closing(trips.ends_of(path)) as ends:
        before = received(path)
        benchmark.group = group
        benchmark.pedantic(ends.round_trips, (trips.TRIPS,), rounds=ROUNDS, warmup_rounds=1)
        assert received(path) - before >= trips.TRIPS
    median_s = benchmark.stats.stats.median if benchmark.stats else 0
    benchmark.extra_info.update(kernel=platform.release(), cpus=os.cpu_count(), trip_us=median_s / trips.TRIPS * 1e6)


def received(path: Path) -> int:
    """Packets that the device with the server's address has received, by the kernel's own count."""
    server = path.server_world or path.world
    counter = server.run("nsenter", f"--net={path.server}", "--", "ip", "-s", "link", "show", path.server_ifname)
    lines = counter.splitlines()
    return int(lines[next(at for at, line in enumerate(lines) if "RX:" in line) + 1].split()[1])


@pytest.mark.parametrize("name", HERE)
def test_bridge(benchmark: BenchmarkFixture, here: dict[str, Path], name: str) -> None:
    measure(benchmark, here[name], "bridge")


def test_dockers_bridge(benchmark: BenchmarkFixture, with_engine: Path) -> None:
    measure(benchmark, with_engine, "bridge")


@pytest.mark.parametrize("name", MACVLAN)
def test_macvlan(benchmark: BenchmarkFixture, on_parents: dict[str, Path], name: str) -> None:
    measure(benchmark, on_parents[name], "macvlan")


@pytest.mark.parametrize("name", OVERLAY)
def test_overlay(benchmark: BenchmarkFixture, between_hosts: dict[str, Path], name: str) -> None:
    measure(benchmark, between_hosts[name], "overlay")
