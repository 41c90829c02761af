"""Latencies as histograms whose buckets are those of Prometheus's native histograms.

Bucket i counts what took longer than BASE**(i-1) seconds and at most BASE**i. So powers of two are bounds, and coarser
classic buckets are sums of these. Source: Prometheus, "Native Histograms", standard exponential schemas.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from datapath._native import ffi, lib
from datapath.abi import LATENCY_BUCKETS, LATENCY_SECOND, Latency

DEFAULT_SAMPLE_EVERY: Final = 64
"""One packet in so many has its forwarding timed."""
MAX_SAMPLE_EVERY: Final = 1_000_000

SCHEMA: Final = 2
_PER_OCTAVE: Final = 2**SCHEMA
BASE: Final = 2.0 ** (1 / _PER_OCTAVE)


class Kind(StrEnum):
    """What was timed: a packet's way to the sandbox by the programs or by the kernel's own path, or the round trip of
    a TCP connection of the sandbox's."""

    FAST = "fast"
    SLOW = "slow"
    TCP_RTT = "tcp_rtt"


def upper_bound(bucket: float) -> float:
    """The longest duration that the bucket counts, in seconds; a place between two buckets lies on the same scale."""
    return float(2.0 ** (bucket / _PER_OCTAVE))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long the samples took: bucket -> how many, without empty ones; `total_seconds` of all together."""

    buckets: Mapping[int, int]
    total_seconds: float

    @property
    def count(self) -> int:
        """Samples, not packets."""
        return sum(self.buckets.values())

    def quantile(self, share: float) -> float:
        """Seconds within which `share` (0 to 1) of the samples were done, as histogram_quantile() of Prometheus has it:
        within a bucket samples are taken to lie evenly on a logarithmic scale. Raises ValueError without samples.
        """
        if not self.buckets or not 0 <= share <= 1:
            raise ValueError(f"no quantile {share} of {self.count} samples")
        rank, seen = share * self.count, 0
        for bucket in sorted(self.buckets):
            here = self.buckets[bucket]
            if seen + here >= rank:
                return upper_bound(bucket - 1 + (rank - seen) / here)
            seen += here
        raise AssertionError("the last bucket reaches every rank")

    def __add__(self, other: Histogram) -> Histogram:
        buckets = dict(self.buckets)
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        return Histogram(buckets, self.total_seconds + other.total_seconds)


_TOTAL: Final = struct.Struct("=Q")
_WORDS: Final = [struct.Struct(f"={count}Q") for count in range(LATENCY_BUCKETS + 1)]


def parse(values: bytes) -> list[Histogram]:
    """The histograms in values of the map latencies, which lie one behind the other (struct ls_latency in bpf/abi.h).

    A host has thousands with some twenty buckets in use each, so the others are skipped in C.
    """
    total = len(values) // Latency.SIZE
    first, end = ffi.new("__u8[]", total), ffi.new("__u8[]", total)
    lib.ls_latency_used(ffi.from_buffer("struct ls_latency[]", values), total, first, end)
    return [_histogram(values, number * Latency.SIZE, first[number], end[number]) for number in range(total)]


def _histogram(values: bytes, at: int, first: int, end: int) -> Histogram:
    counts = _WORDS[end - first].unpack_from(values, at + _TOTAL.size * (1 + first))
    buckets = dict(zip(range(first - LATENCY_SECOND, end - LATENCY_SECOND), counts, strict=True))
    if 0 in counts:
        buckets = {bucket: count for bucket, count in buckets.items() if count}
    return Histogram(buckets, _TOTAL.unpack_from(values, at)[0] / 1e9)
