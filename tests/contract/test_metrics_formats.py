"""The formats of /metrics: read by the client library, by promtool, and by protobuf's own parser."""

from __future__ import annotations

import subprocess
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.internal.decoder import _DecodeVarint32  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from prometheus_client.utils import floatToGoString

from control.drivers.base import EndpointCounters
from control.metrics import Metrics
from control.metrics.protobuf import MetricFamily, Protobuf
from control.metrics.server import preferred
from control.metrics.text import OpenMetrics, Text
from control.metrics.writer import Octaves, Tallies, Timed, Writer
from control.model import SandboxSpec
from datapath import abi
from datapath.exposition import Labelled
from datapath.latency import Histogram, Kind, upper_bound
from tests.fakes import FakeDriver, FakeSlots, fake_controller, histograms

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


FIRST, LAST = -abi.LATENCY_SECOND, abi.LATENCY_BUCKETS - abi.LATENCY_SECOND - 1
OCTAVES = Octaves(-20, -8, 2)
TIMED = st.builds(
    Histogram,
    st.dictionaries(st.integers(FIRST, LAST), st.integers(1, 2**56), max_size=40),
    st.integers(0, 2**50).map(lambda ns: ns / 1e9),
)
FULL = Histogram(dict.fromkeys(range(FIRST, LAST + 1), 2**40), 1e6)
EMPTY = Histogram({}, 0.0)
By = dict[int, dict[Kind, Histogram]]


def written(writer: Writer, by_owner: By) -> bytes:
    """A family of histograms; owners are written from the last to the first."""
    owners = Labelled((owner, writer.labels([("owner", str(owner))])) for owner in reversed(range(12)))
    kinds = Labelled((kind.number, writer.more([("kind", kind.value)])) for kind in Kind)
    return b"".join(writer.histograms("h", "help", Timed(histograms(by_owner), owners, kinds), OCTAVES))


def in_order(by_owner: By) -> dict[tuple[str, str], Histogram]:
    return {
        (str(owner), kind.value): by_owner[owner][kind]
        for owner in sorted(by_owner, reverse=True)
        for kind in Kind
        if kind in by_owner[owner]
    }


def at_most(histogram: Histogram, bound: float) -> int:
    return sum(count for bucket, count in histogram.buckets.items() if upper_bound(bucket) <= bound)


@given(st.dictionaries(st.integers(0, 11), st.dictionaries(st.sampled_from(Kind), TIMED), max_size=12))
@example({0: {Kind.FAST: EMPTY}, 3: {Kind.FAST: FULL, Kind.TCP_RTT: Histogram({-40: 1}, 1e-3)}, 4: {}})
def test_any_histograms_come_through(by_owner: By) -> None:
    wanted = in_order(by_owner)
    native_ones = {
        (labels(metric)["owner"], labels(metric)["kind"]): metric.histogram
        for family in families(written(Protobuf(), by_owner)).values()
        for metric in family.metric
    }
    assert list(native_ones) == list(wanted)
    for key, read in native_ones.items():
        assert native(read) == wanted[key].buckets
        assert (read.sample_count, read.sample_sum) == (wanted[key].count, wanted[key].total_seconds)
        for bucket in read.bucket:
            assert bucket.cumulative_count == at_most(wanted[key], bucket.upper_bound)
        assert [bucket.upper_bound for bucket in read.bucket] == [*OCTAVES.bounds, float("inf")]
    for writer, parse in (
        (Text(), text_families),
        (OpenMetrics(), lambda body: text_string_to_metric_families(f"{body}# EOF\n")),
    ):
        (family,) = parse(written(writer, by_owner).decode())
        read_series: dict[tuple[str, str], dict[str, float]] = {}
        for sample in family.samples:
            series = read_series.setdefault((sample.labels["owner"], sample.labels["kind"]), {})
            series[sample.labels.get("le", sample.name)] = sample.value
        assert list(read_series) == list(wanted)
        for key, values in read_series.items():
            assert values == {
                **{floatToGoString(bound): at_most(wanted[key], bound) for bound in OCTAVES.bounds},
                "+Inf": wanted[key].count,
                "h_count": wanted[key].count,
                "h_sum": pytest.approx(wanted[key].total_seconds, rel=1e-8),
            }


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1) | st.just(0)] * 3), max_size=9), st.booleans())
def test_any_counters_come_through(rows: list[tuple[int, ...]], is_sparse: bool) -> None:
    wanted = {
        (str(owner), f"k{kind}"): value
        for owner, row in enumerate(rows)
        for kind, value in enumerate(row)
        if value or not is_sparse
    }

    def body(writer: Writer) -> bytes:
        owners = Labelled((0, writer.labels([("owner", str(owner))])) for owner in range(len(rows)))
        kinds = Labelled((0, writer.more([("kind", f"k{kind}")])) for kind in range(3))
        tallies = Tallies([value for row in rows for value in row], owners, kinds, is_sparse)
        return b"".join(writer.counters("c", "help", tallies))

    (family,) = text_families(body(Text()).decode())
    assert {(s.labels["owner"], s.labels["kind"]): s.value for s in family.samples} == wanted
    assert [line.split()[-1] for line in body(Text()).decode().splitlines()[2:]] == [*map(str, wanted.values())]
    (family,) = text_string_to_metric_families(f"{body(OpenMetrics()).decode()}# EOF\n")
    assert {(s.labels["owner"], s.labels["kind"]): s.value for s in family.samples} == wanted
    metrics = [metric for family in families(body(Protobuf())).values() for metric in family.metric]
    read = {(labels(metric)["owner"], labels(metric)["kind"]): metric.counter.value for metric in metrics}
    assert read == {key: float(value) for key, value in wanted.items()}


def test_many_histograms_go_out_in_parts() -> None:
    by_owner = {owner: {Kind.FAST: FULL} for owner in range(12)}
    writer = Text()
    long = Labelled((owner, writer.labels([("owner", f"{owner:05000}")])) for owner in by_owner)
    kinds = Labelled([(Kind.FAST.number, b"")])
    parts = list(writer.histograms("h", "help", Timed(histograms(by_owner), long, kinds), OCTAVES))
    assert len(parts) > 4
    (family,) = text_families(b"".join(parts).decode())
    assert len(family.samples) == len(by_owner) * (len(OCTAVES.bounds) + 3)


def test_a_family_has_no_more_bounds_than_there_is_room_for() -> None:
    with pytest.raises(ValueError, match="at most 48 bounds, not 49"):
        Octaves(-30, 18).encoder()


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
