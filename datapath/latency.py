"""Latencies as histograms whose buckets are those of Prometheus's native histograms.

Bucket i counts what took longer than BASE**(i-1) seconds and at most BASE**i. So powers of two are bounds, and coarser
classic buckets are sums of these. Source: Prometheus, "Native Histograms", standard exponential schemas.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from datapath._native import ffi, lib
from datapath.abi import LATENCY_SECOND, LatencyKey, LatencyKind

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

    @property
    def number(self) -> int:
        """As the programs have it."""
        return LatencyKind[self.name].value


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


_SECOND_NS: Final = 1_000_000_000


class Histograms(Mapping[int, dict[Kind, Histogram]]):
    """Many histograms by owner, which is a slot or another small number, and by kind.

    They are packed, and Python meets those alone that it asks for: a host has thousands, with some twenty buckets in
    use each. Whoever has no histogram of any kind is no owner.
    """

    def __init__(self, owners: int = 0) -> None:
        """Room for owners below `owners`."""
        kinds = max(LatencyKind) + 1
        self._held = ffi.new("struct ls_histogram *[]", owners * kinds)
        self._rooms: list[Any] = []
        self.c = ffi.new("struct ls_histograms *", (owners, kinds, self._held))
        """For C, while this is there."""

    def hold(self, keys: bytes | memoryview, values: bytes | memoryview) -> None:
        """Takes elements of the map latencies, keys and values one behind the other, in the place of what it has of
        them; leaves out what it has no room for, and kinds of another linkspan's."""
        count = len(keys) // LatencyKey.SIZE
        c_values = ffi.from_buffer("struct ls_latency[]", values)
        room = ffi.new("__u64[]", lib.ls_histograms_size(c_values, count) // 8)
        lib.ls_histograms_hold(self.c, ffi.from_buffer("struct ls_latency_key[]", keys), c_values, count, room)
        self._rooms.append(room)

    def hold_sum(
        self, owner: int, of: Histograms, owners: Collection[int], more: Mapping[Kind, Histogram] = MappingProxyType({})
    ) -> None:
        """Makes the sums of the histograms that `owners` have among `of`, and of `more`, those of one owner."""
        numbers = ffi.new("__u32[]", list(owners))
        for kind in Kind:
            total = ffi.new("struct ls_latency *")
            found = lib.ls_histograms_add(total, of.c, kind.number, numbers, len(numbers))
            if kind in more:
                total.total_ns += round(more[kind].total_seconds * _SECOND_NS)
                for bucket, count in more[kind].buckets.items():
                    total.buckets[bucket + LATENCY_SECOND] += count
            if found or kind in more:
                self.hold(LatencyKey(owner, kind.number).pack(), bytes(ffi.buffer(total)))

    def __getitem__(self, owner: int) -> dict[Kind, Histogram]:
        found = {kind: histogram for kind in Kind if (histogram := self.one(owner, kind)) is not None}
        if not found:
            raise KeyError(owner)
        return found

    def one(self, owner: int, kind: Kind) -> Histogram | None:
        found = lib.ls_histogram_of(self.c, owner, kind.number)
        if not found:
            return None
        first = found.first - LATENCY_SECOND
        counts = ffi.unpack(found.count, found.used) if found.used else ()
        return Histogram(
            {bucket: count for bucket, count in enumerate(counts, first) if count}, found.total_ns / _SECOND_NS
        )

    def __iter__(self) -> Iterator[int]:
        kinds = self.c.kinds
        return (owner for owner in range(self.c.owners) if any(self._held[owner * kinds : (owner + 1) * kinds]))

    def __len__(self) -> int:
        return sum(1 for _ in self)
