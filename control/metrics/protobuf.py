"""The protobuf format, which alone can carry native histograms: families one after the other, each after its length.

A message on the wire is its fields one after the other, so a series' labels are encoded once and put in front of each
of its values. Sources: prometheus/client_model, metrics.proto (io.prometheus.client); protobuf.dev, Encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Exemplar, Sample

from control.metrics.writer import Labels, Octaves, Tallies, Timed
from control.protos import message_classes
from datapath.exposition import CounterEncoder

_TABLE: Final[dict[str, str]] = {
    "LabelPair": "name:string:1 value:string:2",
    "Gauge": "value:double:1",
    "Exemplar": "label:LabelPair*:1 value:double:2 timestamp:Timestamp:3",
    "Timestamp": "seconds:int64:1 nanos:int32:2",
    "Counter": "value:double:1 exemplar:Exemplar:2",
    "Bucket": "cumulative_count:uint64:1 upper_bound:double:2 exemplar:Exemplar:3",
    "BucketSpan": "offset:sint32:1 length:uint32:2",
    "Histogram": "sample_count:uint64:1 sample_sum:double:2 bucket:Bucket*:3 schema:sint32:5 zero_threshold:double:6"
    " zero_count:uint64:7 positive_span:BucketSpan*:12 positive_delta:sint64*:13",
    "Metric": "label:LabelPair*:1 gauge:Gauge:2 counter:Counter:3 histogram:Histogram:7",
    "MetricFamily": "name:string:1 help:string:2 type:int32:3 metric:Metric*:4",
}
_COUNTER, _GAUGE, _HISTOGRAM = 0, 1, 4
"""MetricType."""

_CLASSES: Final = message_classes("linkspan/metrics.proto", "io.prometheus.client", "proto2", _TABLE)
"""proto2, whose zeros are on the wire."""
MetricFamily: Final[Any] = _CLASSES["MetricFamily"]


class Protobuf:
    """Implements `control.metrics.writer.Writer`. A family is in memory whole, because its length goes first."""

    media_type = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

    def labels(self, pairs: Labels) -> bytes:
        """Fields 1 of a Metric: LabelPairs, each of a name (1) and a value (2)."""
        encoded = b""
        for name, value in pairs:
            body = b"\x0a%b\x12%b" % (_sized(name.encode()), _sized(value.encode()))
            encoded += b"\x0a%b" % _sized(body)
        return encoded

    more = labels

    def counters(self, name: str, help_text: str, tallies: Tallies) -> Iterator[bytes]:
        encoder = CounterEncoder(is_sparse=tallies.is_sparse)
        metrics = encoder.protobuf(tallies.values, tallies.owners, tallies.kinds)
        yield from _family(f"{name}_total", help_text, _COUNTER, metrics)

    def histograms(self, name: str, help_text: str, timed: Timed, octaves: Octaves) -> Iterator[bytes]:
        metrics = octaves.encoder().protobuf(timed.histograms, timed.owners, timed.kinds)
        yield from _family(name, help_text, _HISTOGRAM, metrics)

    def registry(self, registry: CollectorRegistry) -> Iterator[bytes]:
        for family in registry.collect():
            made = _of_library(family)
            if made.metric:
                encoded = made.SerializeToString()
                yield _varint(len(encoded)) + encoded


def _family(name: str, help_text: str, kind: int, metrics: Iterable[bytes]) -> Iterator[bytes]:
    """Nothing where there are no metrics, which a family must not be without."""
    parts = list(metrics)
    size = sum(map(len, parts))
    if size:
        head = MetricFamily(name=name, help=help_text, type=kind).SerializeToString()
        yield _varint(len(head) + size) + head
        yield from parts


def _sized(body: bytes) -> bytes:
    return _varint(len(body)) + body


def _varint(value: int) -> bytes:
    if value < len(_SHORT):
        return _SHORT[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_SHORT: Final = [bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7)) for size in range(1 << 11)]
"""The lengths of most messages."""


def _pairs(labels: Mapping[str, str]) -> list[Any]:
    return [_CLASSES["LabelPair"](name=name, value=value) for name, value in labels.items()]


def _of_library(family: Metric) -> Any:
    """The message for a family of the client library's; those are counters, gauges and histograms here."""
    kind = {"counter": _COUNTER, "histogram": _HISTOGRAM}.get(family.type, _GAUGE)
    made = MetricFamily(
        name=f"{family.name}_total" if kind == _COUNTER else family.name, help=family.documentation, type=kind
    )
    if kind == _HISTOGRAM:
        _add_histograms(made, family.samples)
        return made
    for sample in family.samples:
        metric = made.metric.add(label=_pairs(sample.labels))
        (metric.counter if kind == _COUNTER else metric.gauge).value = sample.value
    return made


def _add_histograms(made: Any, samples: Iterable[Sample]) -> None:
    """The library's samples of one histogram follow each other, buckets first."""
    by_labels: dict[tuple[tuple[str, str], ...], Any] = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        key = tuple(labels.items())
        if key not in by_labels:
            by_labels[key] = made.metric.add(label=_pairs(labels)).histogram
        histogram = by_labels[key]
        if sample.name.endswith("_bucket"):
            bucket = histogram.bucket.add(cumulative_count=int(sample.value), upper_bound=float(sample.labels["le"]))
            if sample.exemplar is not None:
                bucket.exemplar.CopyFrom(_exemplar(sample.exemplar))
        elif sample.name.endswith("_count"):
            histogram.sample_count = int(sample.value)
        else:
            histogram.sample_sum = sample.value


def _exemplar(exemplar: Exemplar) -> Any:
    made = _CLASSES["Exemplar"](label=_pairs(exemplar.labels), value=exemplar.value)
    if exemplar.timestamp is not None:
        at = float(exemplar.timestamp)
        made.timestamp.seconds, made.timestamp.nanos = int(at), int(at % 1 * 1e9)
    return made
