"""The text formats: Prometheus's own 0.0.4, and OpenMetrics 1.0.

Sources: Prometheus, Exposition formats; the OpenMetrics specification 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from control.metrics.writer import Labels, Octaves, Rows, Timed, in_parts


class Text:
    """Implements `control.metrics.writer.Writer`."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def labels(self, pairs: Labels) -> bytes:
        return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs).encode()

    def more(self, pairs: Labels) -> bytes:
        return b"," + self.labels(pairs)

    def counters(self, name: str, help_text: str, rows: Rows) -> Iterator[bytes]:
        yield self._counter_head(name, help_text)
        line = f"{name}_total{{%b%b}} %d\n".encode()
        yield from in_parts(line % row for row in rows)

    def histograms(self, name: str, help_text: str, rows: Timed, octaves: Octaves) -> Iterator[bytes]:
        yield _head(name, help_text, "histogram")
        bounds = [*map(floatToGoString, octaves.bounds), "+Inf"]
        lines = "".join(f'{name}_bucket{{%b,le="{bound}"}} %d\n' for bound in bounds)
        template = f"{lines}{name}_count{{%b}} %d\n{name}_sum{{%b}} %.9g\n".encode()

        def pieces() -> Iterator[bytes]:
            for who, what, histogram in rows:
                series, counts = who + what, octaves.cumulative(histogram)
                values = chain.from_iterable((series, count) for count in counts)
                yield template % (*values, series, counts[-1], series, histogram.total_seconds)

        yield from in_parts(pieces())

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
