"""What the formats of /metrics have in common: families of series, written straight from what is counted.

The client library would make an object of each series; those of 4,000 endpoints would take 50 MB and a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client.registry import CollectorRegistry

from datapath.exposition import Encoder, Labelled
from datapath.latency import Histograms

_PART_BYTES: Final = 1 << 16

Labels = Sequence[tuple[str, str]]
Rows = Iterable[tuple[bytes, bytes, int]]
"""Whose the series is and what of it, both as `Writer.labels` gives them, and the value."""


@dataclass(frozen=True)
class Timed:
    """Histograms with labels: `owners` in the order in which they are written, and of each its `kinds`."""

    histograms: Histograms
    owners: Labelled
    kinds: Labelled


@dataclass(frozen=True)
class Octaves:
    """Bounds of classic buckets: powers of two from 2**`first` to 2**`last` seconds, `step` octaves apart.

    Powers of two are bounds of the native buckets too, so that the classic ones are exact.
    """

    first: int
    last: int
    step: int = 1

    @property
    def bounds(self) -> list[float]:
        return [2.0**octave for octave in range(self.first, self.last + 1, self.step)]

    def encoder(self, lines: Sequence[tuple[bytes, bytes]] = ()) -> Encoder:
        return Encoder(self.first, self.last, self.step, lines)


class Writer(Protocol):
    """One format. Names are without the suffix of their samples; all text is yielded in parts of some size."""

    media_type: str

    def labels(self, pairs: Labels) -> bytes:
        """Labels as they stand at the beginning of a series."""

    def more(self, pairs: Labels) -> bytes:
        """Labels as they follow others."""

    def counters(self, name: str, help_text: str, rows: Rows) -> Iterator[bytes]: ...

    def histograms(self, name: str, help_text: str, timed: Timed, octaves: Octaves) -> Iterator[bytes]: ...

    def registry(self, registry: CollectorRegistry) -> Iterator[bytes]:
        """All that the registry has, and the end of the body."""


def in_parts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of some size."""
    part = bytearray()
    for piece in pieces:
        part += piece
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)
