"""Endpoint create + join, leave + delete, and network create + remove, as a client of the API sees them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.joining import connect, disconnect
from bench.world import World

NETWORK = "joins"
ROUNDS = 40


def note(benchmark: BenchmarkFixture, **extra: object) -> None:
    benchmark.extra_info.update(kernel=platform.release(), cpus=os.cpu_count(), **extra)


def addresses(machine: World, netns: str) -> list[str]:
    """The global IPv4 addresses in a namespace, seen with ip(8)."""
    shown = machine.run("nsenter", f"--net={netns}", "ip", "-json", "-4", "address", "show", "scope", "global")
    return [info["local"] for link in json.loads(shown) for info in link["addr_info"]]


@pytest.fixture(scope="module")
def sandbox(machine: World) -> Iterator[tuple[str, str]]:
    """(name, namespace) of a sandbox on no network, beside a network with ten endpoints."""
    machine.api("POST", "/networks/create", {"Name": NETWORK, "IPAM": {"Config": [{"Subnet": "10.98.0.0/24"}]}})
    for number in range(10):
        machine.sandbox(f"peer{number}", NETWORK)
    netns = machine.sandbox("joining", "none")
    machine.api("POST", "/networks/none/disconnect", {"Container": "joining"})
    yield "joining", netns
    for name in ("joining", *(f"peer{number}" for number in range(10))):
        machine.api("DELETE", f"/linkspan/sandboxes/{name}")
    machine.api("DELETE", f"/networks/{NETWORK}")


def leave(machine: World, name: str) -> None:
    """Leaves the network if the sandbox is on it."""
    if name in {one["Name"] for one in machine.api("GET", f"/networks/{NETWORK}")["Containers"].values()}:
        disconnect(machine, name, NETWORK)


def test_join(benchmark: BenchmarkFixture, machine: World, sandbox: tuple[str, str]) -> None:
    name, netns = sandbox
    benchmark.pedantic(connect, (machine, name, NETWORK), setup=lambda: leave(machine, name), rounds=ROUNDS)
    assert len(addresses(machine, netns)) == 1
    assert addresses(machine, netns)[0].startswith("10.98.0.")
    note(benchmark, endpoints=10)


def test_leave(benchmark: BenchmarkFixture, machine: World, sandbox: tuple[str, str]) -> None:
    name, netns = sandbox
    leave(machine, name)

    def join() -> tuple[tuple[World, str, str], dict[str, object]]:
        connect(machine, name, NETWORK)
        assert addresses(machine, netns)
        return (machine, name, NETWORK), {}

    benchmark.pedantic(disconnect, setup=join, rounds=ROUNDS)
    assert addresses(machine, netns) == []
    note(benchmark, endpoints=10)


def test_network_create_and_remove(benchmark: BenchmarkFixture, machine: World) -> None:
    def bridges() -> set[str]:
        return {link["ifname"] for link in json.loads(machine.run("ip", "-json", "link", "show", "type", "bridge"))}

    before = bridges()

    def create() -> None:
        machine.api("POST", "/networks/create", {"Name": "short"})

    def remove() -> None:
        machine.api("DELETE", "/networks/short")

    def cycle() -> None:
        create()
        remove()

    benchmark.pedantic(cycle, rounds=ROUNDS // 2)
    assert bridges() == before
    create()
    assert len(bridges() - before) == 1
    remove()
    note(benchmark)
