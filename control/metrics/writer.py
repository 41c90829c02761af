"""What the formats of /metrics have in common: families of series, written straight from what is counted.

The client library would make an object of each series; those of 4,000 endpoints would take 50 MB and a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.registry import CollectorRegistry

from datapath.exposition import HistogramEncoder, Labelled, Lines
from datapath.latency import Histograms

Labels = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Tallies:
    """Counters with labels: `values` of `kinds` for each of `owners`, in the order in which they are written; with
    `is_sparse` those that are 0 are left out."""

    values: Sequence[int]
    owners: Labelled
    kinds: Labelled
    is_sparse: bool = False


@dataclass(frozen=True)
class Timed:
    """Histograms with labels: of each of `owners`, in the order in which they are written, those of `kinds`."""

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

    def encoder(self, lines: Lines = ()) -> HistogramEncoder:
        return HistogramEncoder(self.first, self.last, self.step, lines)


class Writer(Protocol):
    """One format. Names are without the suffix of their samples; all text is yielded in parts of some size."""

    media_type: str

    def labels(self, pairs: Labels) -> bytes:
        """Labels as they stand at the beginning of a series."""

    def more(self, pairs: Labels) -> bytes:
        """Labels as they follow others."""

    def counters(self, name: str, help_text: str, tallies: Tallies) -> Iterator[bytes]: ...

    def histograms(self, name: str, help_text: str, timed: Timed, octaves: Octaves) -> Iterator[bytes]: ...

    def registry(self, registry: CollectorRegistry) -> Iterator[bytes]:
        """All that the registry has, and the end of the body."""
