"""The text formats: Prometheus's own 0.0.4, and OpenMetrics 1.0.

Endpoints' series are written directly: as objects of the client library, those of 4,000 endpoints would take 50 MB and
a second. Sources: Prometheus, Exposition formats; the OpenMetrics specification 1.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final

from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import CollectorRegistry

from control.drivers.base import EndpointCounters
from control.model import Endpoint, Network

_PART_BYTES: Final = 1 << 16
_PATHS: Final = (("out", "fast"), ("out", "slow"), ("in", "fast"), ("in", "slow"))


class Format(Enum):
    """A format with its media type, as a scraper asks for it and is told."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


Row = tuple[Network, Endpoint, str, EndpointCounters]
"""The text is the sandbox's name."""


def endpoint_counters(rows: Iterable[Row], form: Format) -> Iterator[bytes]:
    """Yields the counters of endpoints; a reason appears with its first drop."""
    labelled = [
        (
            f'network="{_escape(network.name)}",driver="{_escape(network.driver)}",'
            f'endpoint="{endpoint.id[:12]}",sandbox="{_escape(sandbox)}"'.encode(),
            counted,
        )
        for network, endpoint, sandbox, counted in rows
    ]
    yield from _counters("linkspan_endpoint", "an endpoint", labelled, form)


def network_counters(rows: Iterable[tuple[Network, EndpointCounters]], form: Format) -> Iterator[bytes]:
    """Yields the sums of networks, over their endpoints on this host, those included that have gone."""
    labelled = [
        (f'network="{_escape(network.name)}",driver="{_escape(network.driver)}"'.encode(), counted)
        for network, counted in rows
    ]
    yield from _counters("linkspan_network", "a network's endpoints", labelled, form)


def registry(metrics: CollectorRegistry, form: Format) -> bytes:
    """Everything in a registry, which is the end of what is exposed."""
    if form is Format.OPENMETRICS:
        body: bytes = openmetrics.generate_latest(metrics)  # type: ignore[no-untyped-call]
        return body
    return exposition.generate_latest(metrics)


def _counters(prefix: str, whose: str, rows: Sequence[tuple[bytes, EndpointCounters]], form: Format) -> Iterator[bytes]:
    yield from in_parts(_counter_lines(prefix, whose, rows, form))


def _counter_lines(
    prefix: str, whose: str, rows: Sequence[tuple[bytes, EndpointCounters]], form: Format
) -> Iterator[bytes]:
    name = f"{prefix}_packets"
    yield _head(name, f"Packets that {whose} sent (out) and got (in), by the path that carried them.", form)
    template = _paths_template(name)
    for who, each in rows:
        yield template % (
            *(who, each.out_fast_packets, who, each.out_slow_packets),
            *(who, each.in_fast_packets, who, each.in_slow_packets),
        )
    name = f"{prefix}_bytes"
    yield _head(name, "Bytes of those packets, Ethernet headers included.", form)
    template = _paths_template(name)
    for who, each in rows:
        yield template % (
            *(who, each.out_fast_bytes, who, each.out_slow_bytes),
            *(who, each.in_fast_bytes, who, each.in_slow_bytes),
        )
    name = f"{prefix}_drops"
    yield _head(name, f"Packets of {whose} that were dropped, by reason.", form)
    for who, each in rows:
        for reason, count in each.drops.items():
            if count:
                yield b'%b_total{%b,reason="%b"} %d\n' % (name.encode(), who, _escape(reason).encode(), count)


def _paths_template(name: str) -> bytes:
    """Four lines, each for the labels of an endpoint or network and a value."""
    return "".join(
        f'{name}_total{{%b,direction="{direction}",path="{path}"}} %d\n' for direction, path in _PATHS
    ).encode()


def _head(name: str, help_text: str, form: Format) -> bytes:
    """In OpenMetrics a family of counters goes without the suffix of its samples."""
    family = name if form is Format.OPENMETRICS else f"{name}_total"
    return f"# HELP {family} {help_text}\n# TYPE {family} counter\n".encode()


def in_parts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of some size."""
    part = bytearray()
    for piece in pieces:
        part += piece
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
