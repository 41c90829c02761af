"""The text formats: Prometheus's own 0.0.4, and OpenMetrics 1.0.

Sources: Prometheus, Exposition formats; the OpenMetrics specification 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from control.metrics.writer import Labels, Octaves, Tallies, Timed
from datapath.exposition import CounterEncoder


class Text:
    """Implements `control.metrics.writer.Writer`."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def labels(self, pairs: Labels) -> bytes:
        return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs).encode()

    def more(self, pairs: Labels) -> bytes:
        return b"," + self.labels(pairs)

    def counters(self, name: str, help_text: str, tallies: Tallies) -> Iterator[bytes]:
        yield self._counter_head(name, help_text)
        encoder = CounterEncoder([(f"{name}_total{{".encode(), b"} ")], is_sparse=tallies.is_sparse)
        yield from encoder.text(tallies.values, tallies.owners, tallies.kinds)

    def histograms(self, name: str, help_text: str, timed: Timed, octaves: Octaves) -> Iterator[bytes]:
        yield _head(name, help_text, "histogram")
        bounds = [*map(floatToGoString, octaves.bounds), "+Inf"]
        lines = [(f"{name}_bucket{{", f',le="{bound}"}} ') for bound in bounds]
        lines += [(f"{name}_count{{", "} "), (f"{name}_sum{{", "} ")]
        encoder = octaves.encoder([(before.encode(), after.encode()) for before, after in lines])
        yield from encoder.text(timed.histograms, timed.owners, timed.kinds)

    def registry(self, registry: CollectorRegistry) -> Iterator[bytes]:
        yield exposition.generate_latest(registry)

    def _counter_head(self, name: str, help_text: str) -> bytes:
        return _head(f"{name}_total", help_text, "counter")


class OpenMetrics(Text):
    """Families of counters go by their names without the suffix of samples; there are exemplars."""

    media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    def registry(self, registry: CollectorRegistry) -> Iterator[bytes]:
        body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        yield body

    def _counter_head(self, name: str, help_text: str) -> bytes:
        return _head(name, help_text, "counter")


def _head(name: str, help_text: str, kind: str) -> bytes:
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n".encode()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
