"""The maps through bpf(2): one element in and out, and all counters in batches, as a scrape reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.test_program import fill
from datapath import abi
from datapath.maps import Maps
from tests.bpf.lab import SEGMENT, Lab

ENDPOINTS = (2, 4000)
MAC = bytes.fromhex("0242aaaa0001")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture(params=ENDPOINTS, ids=lambda count: f"{count} endpoints")
def maps(lab: Lab, request: pytest.FixtureRequest) -> Maps:
    lab.reset()
    fill(lab.maps, request.param)
    return lab.maps


def test_endpoint_in_and_out(benchmark: BenchmarkFixture, maps: Maps) -> None:
    endpoint = abi.Endpoint(SEGMENT, 9000, IPv4Address("10.9.7.7"), MAC, abi.EP_FAST, None, None)

    def cycle() -> bool:
        maps.endpoint_put(99_999, endpoint)
        assert maps.endpoint(99_999) == endpoint
        return maps.endpoint_delete(99_999)

    assert benchmark(cycle)


def test_fdb_in_and_out(benchmark: BenchmarkFixture, maps: Maps) -> None:
    def cycle() -> bool:
        maps.fdb_put(SEGMENT, MAC, abi.FdbEntry(99_999, 9000))
        return maps.fdb_delete(SEGMENT, MAC)

    assert benchmark(cycle)


def test_all_endpoints(benchmark: BenchmarkFixture, maps: Maps) -> None:
    found = benchmark(maps.endpoints)
    assert len(found) >= 2
    assert {type(one) for one in found.values()} == {abi.Endpoint}


def test_all_counters(benchmark: BenchmarkFixture, maps: Maps) -> None:
    assert len(benchmark(maps.counters)) >= 2
