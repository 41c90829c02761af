"""/metrics: what it says is true, parses by Prometheus's own rules, and never holds up the API."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from control.api.server import ListenError, bind_tcp, serve
from control.config import ApiSection
from control.drivers.base import EndpointCounters, ParentState
from control.metrics import Metrics
from control.metrics.server import build_metrics_app
from control.model import Endpoint, EndpointSpec, Network, NetworkSpec, NetworkState, SandboxSpec, utcnow
from tests.api_server import DEADLINE_SECONDS, ApiServer
from tests.fake_cluster import SPEC, FakeCluster, node
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(metrics: Metrics) -> Samples:
    """Samples by name and labels, read by the client library's parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(b"".join(metrics.expose()).decode())
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    """The only sample of this name that has these labels."""
    found = [
        value for (other, have), value in samples.items() if other == name and labels.items() <= dict(have).items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_endpoints_are_counted_by_direction_path_and_reason(server: ApiServer, driver: FakeDriver) -> None:
    server.ask("POST", "/networks/create", {"Name": "blue"})
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [{"Network": "blue"}]})
    endpoint_id = next(iter(driver.endpoints))
    driver.tallies[endpoint_id] = EndpointCounters(
        out_fast_packets=1,
        out_fast_bytes=2,
        out_slow_packets=3,
        out_slow_bytes=4,
        in_fast_packets=5,
        in_fast_bytes=6,
        in_slow_packets=7,
        in_slow_bytes=2**53 - 1,
        drops={"spoofed_mac": 9},
    )
    samples = scraped(server.metrics)
    who = {"network": "blue", "driver": "bridge", "endpoint": endpoint_id[:12], "sandbox": "web"}
    for number, (direction, path) in enumerate([("out", "fast"), ("out", "slow"), ("in", "fast"), ("in", "slow")]):
        labels = who | {"direction": direction, "path": path}
        assert of(samples, "linkspan_endpoint_packets_total", **labels) == 2 * number + 1
        assert of(samples, "linkspan_endpoint_bytes_total", **labels) == (2 * number + 2 if number < 3 else 2**53 - 1)
    assert of(samples, "linkspan_endpoint_drops_total", reason="spoofed_mac", **who) == 9


def test_objects_requests_joins_and_fallbacks_are_counted(server: ApiServer, driver: FakeDriver) -> None:
    driver.fallbacks = {"tcx": 'the kernel says "no"\nand \\ no more'}
    driver.parents = {"bridge": ParentState("eth1", "up, no carrier", False)}
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    server.ask("GET", "/v1.41/networks/nosuch-1")
    server.ask("GET", "/networks/nosuch-2")
    server.ask("PATCH", "/pot")
    samples = scraped(server.metrics)
    assert of(samples, "linkspan_networks", driver="bridge") == 1
    assert of(samples, "linkspan_endpoints", network="bridge") == 1
    assert of(samples, "linkspan_sandboxes", state="created") == 1
    assert of(samples, "linkspan_join_seconds_count") == 1
    assert of(samples, "linkspan_fallback", feature="tcx", reason='the kernel says "no"\nand \\ no more') == 1
    assert of(samples, "linkspan_parent_up", network="bridge", parent="eth1") == 0
    assert of(samples, "linkspan_request_seconds_count", route="/networks/{ref}", method="GET", status="404") == 2
    assert of(samples, "linkspan_request_seconds_count", route="/{elsewhere:(?s:.*)}", method="*", status="404") == 1
    assert of(samples, "linkspan_build_info") == 1
    assert of(samples, "process_resident_memory_bytes") > 1 << 20


def test_work_is_timed_by_operation_step_and_store(server: ApiServer, driver: FakeDriver) -> None:
    server.ask("POST", "/networks/create", {"Name": "blue"})
    server.ask("POST", "/networks/create", {"Name": "blue"})
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [{"Network": "blue"}]})
    server.ask("DELETE", "/linkspan/sandboxes/web")
    server.ask("DELETE", "/networks/blue")
    samples = scraped(server.metrics)
    expected = {"join": 1, "leave": 1, "network_remove": 1, "sandbox_create": 1, "sandbox_remove": 1, "start": 1}
    for operation, times in (expected | {"network_create": 1}).items():
        assert of(samples, "linkspan_operation_seconds_count", operation=operation, outcome="ok") == times
    assert of(samples, "linkspan_operation_seconds_count", operation="network_create", outcome="error") == 1
    assert of(samples, "linkspan_plan_step_seconds_count", step="files", direction="apply") == 1
    assert of(samples, "linkspan_plan_step_seconds_count", step="files", direction="revert") == 1


def test_what_does_not_agree_at_start_is_counted(tmp_path: Path) -> None:
    driver, store = FakeDriver(), MemoryStore()
    first = fake_controller(tmp_path, driver, store)
    first.start()
    first.create_sandbox(SandboxSpec(name="web"))
    driver.endpoints.clear()
    metrics, again = Metrics(), fake_controller(tmp_path, driver, store)
    metrics.watch(again)
    again.start()
    assert of(scraped(metrics), "linkspan_reconcile_differences_total", what="endpoint", outcome="mended") == 1
    driver.endpoints.clear()
    driver.failing["endpoint"] = OSError("no")
    metrics, again = Metrics(), fake_controller(tmp_path, driver, store)
    metrics.watch(again)
    again.start()
    assert of(scraped(metrics), "linkspan_reconcile_differences_total", what="endpoint", outcome="left") == 1


def test_networks_pools_and_the_cluster_are_shown(server: ApiServer, driver: FakeDriver) -> None:
    config = [{"Subnet": "10.9.0.0/29", "Gateway": "10.9.0.1"}]
    server.ask("POST", "/networks/create", {"Name": "blue", "IPAM": {"Config": config}})
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [{"Network": "blue"}]})
    endpoint_id = next(iter(driver.endpoints))
    driver.tallies[endpoint_id] = EndpointCounters(in_fast_packets=5, in_fast_bytes=500, drops={"spoofed_mac": 2})
    server.ask("DELETE", "/linkspan/sandboxes/web")
    samples = scraped(server.metrics)
    blue = {"network": "blue", "driver": "bridge"}
    assert of(samples, "linkspan_network_packets_total", direction="in", path="fast", **blue) == 5
    assert of(samples, "linkspan_network_bytes_total", direction="in", path="fast", **blue) == 500
    assert of(samples, "linkspan_network_drops_total", reason="spoofed_mac", **blue) == 2
    assert not any(name.startswith("linkspan_endpoint_") for name, _ in samples)
    pool = {"network": "blue", "subnet": "10.9.0.0/29"}
    used, free = (of(samples, "linkspan_pool_addresses", state=state, **pool) for state in ("used", "free"))
    assert (used, free) == (3, 5)  # network, broadcast and gateway are nobody else's
    assert not any(name.startswith("linkspan_cluster_") for name, _ in samples)
    cluster = server.controller.cluster
    assert isinstance(cluster, FakeCluster)
    cluster.spec, cluster.others, cluster.lag_s = SPEC, [node("b"), node("c", state="lost")], 7.5
    samples = scraped(server.metrics)
    assert of(samples, "linkspan_cluster_connected") == 0
    assert of(samples, "linkspan_cluster_lag_seconds") == 7.5
    assert of(samples, "linkspan_cluster_nodes", state="ready") == 2
    assert of(samples, "linkspan_cluster_nodes", state="lost") == 1


def test_without_series_of_endpoints_those_of_networks_are_left(tmp_path: Path) -> None:
    controller = fake_controller(tmp_path)
    controller.start()
    controller.create_sandbox(SandboxSpec(name="web"))
    metrics = Metrics(per_endpoint=False)
    metrics.watch(controller)
    samples = scraped(metrics)
    assert not any(name.startswith("linkspan_endpoint_") for name, _ in samples)
    assert of(samples, "linkspan_network_packets_total", network="bridge", direction="in", path="fast") == 0


def test_labels_with_any_character_come_through(server: ApiServer, driver: FakeDriver) -> None:
    name = 'a"b\\c\nd{e}=,\u00e9\U0001f433'
    network = Network(
        id="1" * 64,  # type: ignore[arg-type]
        name=name,
        driver="bridge",
        state=NetworkState.ACTIVE,
        created=utcnow(),
        segment=99,
    )
    server.controller._records.commit(put=[network])
    assert of(scraped(server.metrics), "linkspan_endpoints", network=name) == 0
    server.controller._records.commit(drop=[network])


@pytest.fixture
def metrics_port(server: ApiServer) -> Iterator[int]:
    """Serves the API server's metrics on a free port of loopback, on a loop of their own."""
    started, done = threading.Event(), threading.Event()
    sock = bind_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]

    async def run() -> None:
        with ThreadPoolExecutor(1) as scraper:
            runner = await serve(build_metrics_app(server.metrics, scraper), sock, ApiSection(stop_timeout_seconds=1))
            started.set()
            await asyncio.get_running_loop().run_in_executor(None, done.wait)
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(DEADLINE_SECONDS)
    yield port
    done.set()
    thread.join(DEADLINE_SECONDS)
    sock.close()


def test_metrics_are_served_over_http_with_prometheus_content_type(metrics_port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=DEADLINE_SECONDS) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert b"# TYPE linkspan_endpoint_packets_total counter" in response.read()


def test_a_scrape_that_waits_for_counters_holds_up_nobody(
    server: ApiServer, metrics_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    original = server.controller.counted

    def slow() -> object:
        assert gate.wait(DEADLINE_SECONDS)
        return original()

    monkeypatch.setattr(server.controller, "counted", slow)
    with ThreadPoolExecutor(8) as pool:
        scrapes = [
            pool.submit(lambda: urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30).close())
            for _ in range(8)
        ]
        begin = time.monotonic()
        assert server.ask("GET", "/networks").status == 200
        assert server.ask("POST", "/networks/create", {"Name": "blue"}).status == 201
        assert time.monotonic() - begin < 5
        gate.set()
        for scrape in scrapes:
            scrape.result(DEADLINE_SECONDS)


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}.*--metrics-listen"):
            bind_tcp("127.0.0.1", port)


def test_a_thousand_endpoints_are_read_at_once(tmp_path: Path) -> None:
    """However many networks they are on, and sent in parts."""
    driver = FakeDriver()
    controller = fake_controller(tmp_path, driver)
    controller.start()
    metrics = Metrics()
    metrics.watch(controller)
    for number in range(4):
        controller.create_network(NetworkSpec(name=f"net{number}"))
    for number in range(1000):
        networks = ((f"net{number % 4}", EndpointSpec()),)
        controller.create_sandbox(SandboxSpec(name=f"s{number}", networks=networks))
    asked: list[int] = []
    counters = driver.counters

    def counting(endpoints: Sequence[Endpoint]) -> dict[str, EndpointCounters]:
        asked.append(len(endpoints))
        return counters(endpoints)

    driver.counters = counting  # type: ignore[method-assign]
    parts = list(metrics.expose())
    assert asked == [1000]
    assert b"".join(parts).count(b"linkspan_endpoint_packets_total{") == 4000
    assert max(map(len, parts)) < 1 << 17
    controller.stop()
