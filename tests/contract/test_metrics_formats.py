"""The formats of /metrics: read by the client library, by promtool, and by protobuf's own parser."""

from __future__ import annotations

import subprocess
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.internal.decoder import _DecodeVarint32  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from control.drivers.base import EndpointCounters
from control.metrics import Metrics
from control.metrics.protobuf import MetricFamily, Protobuf
from control.metrics.server import preferred
from control.metrics.text import OpenMetrics, Text
from control.metrics.writer import Octaves
from control.model import SandboxSpec
from datapath.latency import Histogram, Kind, upper_bound
from tests.fakes import FakeDriver, FakeSlots, fake_controller

FAST = Histogram({-80: 1, -79: 4, -60: 2, 3: 1}, 2.5)
NATIVE_SCRAPE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    slots = FakeSlots()
    controller = fake_controller(tmp_path, FakeDriver(), slots=slots)
    metrics = Metrics()
    metrics.watch(controller)
    controller.start()
    for name in ("web", "db"):
        controller.create_sandbox(SandboxSpec(name=name))
    slots.held[0] = EndpointCounters(in_fast_packets=2**40, drops={"spoofed_mac": 3})
    slots.timed[0] = {Kind.FAST: FAST, Kind.TCP_RTT: Histogram({-40: 7}, 0.25)}
    metrics.work.request("/networks", "GET", 200, 0.003, "/v1.41/networks")
    return metrics


def families(body: bytes) -> dict[str, Any]:
    """By protobuf's parser; every family once."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(body):
        length, at = _DecodeVarint32(body, at)
        family = MetricFamily.FromString(body[at : at + length])
        assert family.name not in found
        found[family.name], at = family, at + length
    return found


def labels(metric: Any) -> dict[str, str]:
    return {pair.name: pair.value for pair in metric.label}


def test_promtool_finds_nothing_wrong_with_the_text(metrics: Metrics) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=b"".join(metrics.expose(Text())), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_has_exemplars_and_an_end(metrics: Metrics) -> None:
    body = b"".join(metrics.expose(OpenMetrics())).decode()
    found = {family.name: family for family in text_string_to_metric_families(body)}
    buckets = [sample for sample in found["linkspan_request_seconds"].samples if sample.name.endswith("_bucket")]
    (exemplar,) = [sample.exemplar for sample in buckets if sample.exemplar is not None]
    assert (exemplar.labels, exemplar.value) == ({"path": "/v1.41/networks"}, 0.003)
    steps = found["linkspan_plan_step_seconds"].samples
    assert any(sample.exemplar is not None and "sandbox" in sample.exemplar.labels["step"] for sample in steps)
    assert found["linkspan_endpoint_packets"].type == "counter"
    assert body.endswith("\n# EOF\n")


def test_protobuf_says_what_the_text_says(metrics: Metrics) -> None:
    read = families(b"".join(metrics.expose(Protobuf())))
    text = {
        family.name: family
        for family in text_string_to_metric_families(b"".join(metrics.expose(OpenMetrics())).decode())
    }
    for name, family in text.items():
        if name.startswith("process_") or name == "linkspan_store_seconds" or not family.samples:
            continue  # as of another moment, or nothing
        there = read[f"{name}_total" if family.type == "counter" else name]
        if family.type == "histogram":
            counts = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in family.samples}
            for metric in there.metric:
                key = tuple(sorted(labels(metric).items()))
                assert counts[f"{name}_count", *key] == metric.histogram.sample_count
                assert counts[f"{name}_sum", *key] == pytest.approx(metric.histogram.sample_sum)
                for bucket in metric.histogram.bucket:
                    le = ("le", floatToGoString(bucket.upper_bound))
                    assert counts[f"{name}_bucket", *sorted([*key, le])] == bucket.cumulative_count
            continue
        values = {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
        got = {
            tuple(sorted(labels(metric).items())): (metric.counter if family.type == "counter" else metric.gauge).value
            for metric in there.metric
        }
        assert got == values


def test_native_buckets_are_those_that_were_counted(metrics: Metrics) -> None:
    read = families(b"".join(metrics.expose(Protobuf())))
    (metric,) = read["linkspan_endpoint_forwarding_seconds"].metric
    assert labels(metric) | {"endpoint": "", "sandbox": ""} == {
        "network": "bridge", "driver": "bridge", "path": "fast", "endpoint": "", "sandbox": ""
    }  # fmt: skip
    assert native(metric.histogram) == FAST.buckets
    assert (metric.histogram.schema, metric.histogram.sample_count) == (2, 8)
    assert {each.name for each in read.values() if each.metric[0].histogram.positive_span} == {
        f"linkspan_{of}_{what}_seconds" for of in ("endpoint", "network") for what in ("forwarding", "tcp_rtt")
    }


def native(histogram: Any) -> dict[int, int]:
    """Buckets by index, as the native histograms' specification reads spans and deltas."""
    counts, found, index = accumulate(histogram.positive_delta), {}, 0
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            found[index] = next(counts)
            index += 1
    return found


@given(st.dictionaries(st.integers(-140, 20), st.integers(1, 2**40), min_size=1, max_size=30))
def test_any_histogram_comes_through(buckets: dict[int, int]) -> None:
    octaves = Octaves(-20, -8, 2)
    histogram = Histogram(buckets, 1.5)
    body = b"".join(Protobuf().histograms("h", "help", [(b"", b"", histogram)], octaves))
    (metric,) = families(body)["h"].metric
    assert native(metric.histogram) == buckets
    for bucket in metric.histogram.bucket:
        within = sum(count for index, count in buckets.items() if upper_bound(index) <= bucket.upper_bound)
        assert bucket.cumulative_count == within


@pytest.mark.parametrize(
    ("accept", "writer"),
    [
        ("", Text),
        ("*/*", Text),
        ("text/plain;version=0.0.4", Text),
        ("application/openmetrics-text; version=1.0.0", OpenMetrics),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.3", Text),
        ("application/openmetrics-text;q=x,text/plain;q=0", Text),
        (NATIVE_SCRAPE, Protobuf),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", Text),
        (";;,=,q=", Text),
    ],
)
def test_the_scraper_gets_what_it_likes_best(accept: str, writer: type) -> None:
    assert type(preferred(accept)) is writer
