"""/linkspan/stats: every endpoint with what its driver counted, and the cluster's nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.drivers.base import EndpointCounters
from datapath.latency import Histogram, Kind
from tests.api_server import ApiServer
from tests.fake_cluster import SPEC, FakeCluster, node
from tests.fakes import FakeDriver, FakeSlots, fake_controller

COUNTED = EndpointCounters(1, 2, 3, 4, 5, 6, 7, 2**53 - 1, drops={"spoofed_mac": 9, "spoofed_ip": 0})
TALLIES = {
    "out_fast_packets": 1,
    "out_fast_bytes": 2,
    "out_slow_packets": 3,
    "out_slow_bytes": 4,
    "in_fast_packets": 5,
    "in_fast_bytes": 6,
    "in_slow_packets": 7,
    "in_slow_bytes": 2**53 - 1,
}


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def server(tmp_path: Path, driver: FakeDriver, cluster: FakeCluster) -> Iterator[ApiServer]:
    with ApiServer(fake_controller(tmp_path, driver, cluster=cluster), tmp_path / "api.sock") as running:
        yield running


def stats(server: ApiServer) -> dict[str, Any]:
    reply = server.ask("GET", "/linkspan/stats")
    assert reply.status == 200, reply.body
    return dict(reply.json)


def test_a_host_without_endpoints_has_its_predefined_networks(server: ApiServer, driver: FakeDriver) -> None:
    driver.fallbacks = {"tcx": "the kernel is 5.15"}
    before = time.time()
    found = stats(server)
    assert before <= found["at"] <= time.time()
    assert stats(server)["monotonic"] > found["monotonic"]
    assert [(each["name"], each["driver"], each["endpoints"]) for each in found["networks"]] == [
        ("bridge", "bridge", []),
        ("host", "host", []),
        ("none", "null", []),
    ]
    assert (found["nodes"], found["fallbacks"]) == ([], {"tcx": "the kernel is 5.15"})


def test_an_endpoint_has_its_addresses_counters_and_drops(server: ApiServer, driver: FakeDriver) -> None:
    ipam = {"Config": [{"Subnet": "10.9.0.0/24"}, {"Subnet": "fd00:9::/64"}]}
    made = server.ask("POST", "/networks/create", {"Name": "blue", "EnableIPv6": True, "IPAM": ipam})
    network = {"Network": "blue", "MacAddress": "02:00:00:00:00:05"}
    network["IPAMConfig"] = {"IPv4Address": "10.9.0.5", "IPv6Address": "fd00:9::5"}
    sandbox = server.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [network, {"Network": "bridge"}]})
    first, second = (sandbox.json["Networks"][name]["EndpointID"] for name in ("blue", "bridge"))
    driver.tallies[first] = COUNTED
    blue, bridge = (each for each in stats(server)["networks"] if each["driver"] == "bridge")
    assert {key: blue[key] for key in ("id", "name", "driver", "scope", "nodes")} == {
        "id": made.json["Id"],
        "name": "blue",
        "driver": "bridge",
        "scope": "local",
        "nodes": [],
    }
    assert blue["endpoints"] == [
        {
            "id": first,
            "sandbox": sandbox.json["Id"],
            "name": "web",
            "ipv4": "10.9.0.5",
            "ipv6": "fd00:9::5",
            "mac": "02:00:00:00:00:05",
            "counters": TALLIES,
            "drops": {"spoofed_mac": 9},
            "latency": {},
        }
    ]
    (other,) = bridge["endpoints"]
    assert (other["id"], other["sandbox"], other["ipv6"]) == (second, sandbox.json["Id"], "")
    assert set(other["counters"].values()) == {0}


def test_an_endpoint_that_nobody_counts_has_no_counters(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    monkeypatch.setattr(FakeDriver, "counters", lambda self, endpoints: {})
    (endpoint,) = stats(server)["networks"][0]["endpoints"]
    assert (endpoint["name"], endpoint["counters"], endpoint["drops"]) == ("web", None, {})


def test_an_endpoint_has_its_latencies(tmp_path: Path, driver: FakeDriver) -> None:
    """Buckets of a quarter octave: half of the samples took up to 2**-20 s, all of them up to 2**-16 s."""
    slots = FakeSlots()
    timed = {
        Kind.FAST: Histogram({-80: 50, -64: 50}, 0.001),
        Kind.SLOW: Histogram({}, 0.0),
        Kind.TCP_RTT: Histogram({-40: 1}, 0.0009),
    }
    controller = fake_controller(tmp_path, driver, slots=slots)
    with ApiServer(controller, tmp_path / "api.sock") as server:
        server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
        (endpoint,) = controller.endpoints()
        slots.timed[endpoint.slot] = timed
        found = stats(server)
    latency = found["networks"][0]["endpoints"][0]["latency"]
    assert (found["latency_schema"], latency.keys()) == (2, {"fast", "tcp_rtt"})
    fast = latency["fast"]
    assert (fast["count"], fast["seconds"], fast["buckets"]) == (100, 0.001, {"-80": 50, "-64": 50})
    assert fast["p50"] == pytest.approx(2**-20)
    assert 2**-16.25 < fast["p99"] < 2**-16


def test_an_endpoint_that_left_and_a_configuration_are_not_there(server: ApiServer) -> None:
    server.ask("POST", "/networks/create", {"Name": "plan", "ConfigOnly": True})
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    assert [len(each["endpoints"]) for each in stats(server)["networks"]] == [1, 0, 0]
    server.ask("POST", "/networks/bridge/disconnect", {"Container": "web"})
    assert [(each["name"], each["endpoints"]) for each in stats(server)["networks"]] == [
        ("bridge", []),
        ("host", []),
        ("none", []),
    ]


def test_a_node_sees_the_others(server: ApiServer, cluster: FakeCluster) -> None:
    cluster.spec, cluster.others = SPEC, [node("b"), node("c", "10.0.0.8", "lost")]
    assert stats(server)["nodes"] == [
        {"name": "b", "address": "10.0.0.9", "state": "ready", "self": False},
        {"name": "c", "address": "10.0.0.8", "state": "lost", "self": False},
        {"name": "a", "address": "10.0.0.1", "state": "ready", "self": True},
    ]
