"""Debian's Prometheus takes the native histograms that it asks for, and finds the right quantiles in them."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from control.api.server import bind_tcp
from control.drivers.base import EndpointCounters
from control.metrics import Metrics
from control.metrics.server import build_metrics_app
from control.model import SandboxSpec
from datapath.latency import Histogram, Kind
from tests.fakes import FakeDriver, FakeSlots, fake_controller
from tests.served import served
from tests.waiting import until

DEADLINE_S = 60.0
FAST = Histogram({-70: 10, -69: 60, -68: 25, -40: 5}, 0.002)


@contextmanager
def metrics_served(metrics: Metrics) -> Iterator[int]:
    with (
        closing(bind_tcp("127.0.0.1", 0)) as sock,
        served(lambda scraper: build_metrics_app(metrics, scraper), sock) as port,
    ):
        yield port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def query(tmp_path: Path) -> Iterator[Any]:
    """Asks a Prometheus that scrapes linkspand's metrics for an expression's one value, None while there is none."""
    slots = FakeSlots()
    controller = fake_controller(tmp_path / "run", FakeDriver(), slots=slots)
    metrics = Metrics()
    metrics.watch(controller)
    controller.start()
    controller.create_sandbox(SandboxSpec(name="web"))
    slots.held[0] = EndpointCounters(in_fast_packets=2**53, drops={"spoofed_mac": 3})
    slots.timed[0] = {Kind.FAST: FAST}
    with metrics_served(metrics) as target:
        config, port = tmp_path / "prometheus.json", free_port()
        scrape = {
            "job_name": "linkspan",
            "scrape_interval": "1s",
            "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
        }
        config.write_text(json.dumps({"scrape_configs": [scrape]}))  # JSON is YAML
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=native-histograms",
        ]

        def ask(expression: str) -> float | None:
            url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
            try:
                with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
                    found = json.load(response)["data"]["result"]
            except OSError:
                return None  # it is starting
            return float(found[0]["value"][1]) if found else None

        with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
            try:
                until(lambda: ask('up{job="linkspan"} == 1') is not None, DEADLINE_S)
                yield ask
            finally:
                server.kill()


def test_quantiles_of_native_histograms(query: Any) -> None:
    for series in ("linkspan_network_forwarding_seconds", 'linkspan_endpoint_forwarding_seconds{sandbox="web"}'):
        assert query(f"histogram_count({series})") == FAST.count
        assert query(f"histogram_sum({series})") == pytest.approx(FAST.total_seconds)
        assert query(f"{series.partition('{')[0]}_bucket") is None  # it is native, and nothing else
        # 2.42 takes samples to lie evenly within a bucket, whose bounds are 19 % apart.
        for quantile in (0.05, 0.5, 0.9, 0.99):
            assert query(f"histogram_quantile({quantile}, {series})") == pytest.approx(
                FAST.quantile(quantile), rel=0.02
            )
    assert query('linkspan_endpoint_packets_total{direction="in",path="fast"}') == 2**53
    assert query("linkspan_network_drops_total") == 3
    assert query('linkspan_operation_seconds_count{operation="sandbox_create"}') == 1
    assert query('linkspan_operation_seconds_bucket{operation="sandbox_create",le="+Inf"}') == 1
