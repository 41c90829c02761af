"""Histograms in the formats of /metrics, written in C: a host has thousands.

An Encoder holds the buffers of one family of histograms, and is for one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from datapath._native import ffi, lib
from datapath.latency import SCHEMA, Histogram

_MOST: Final[int] = lib.LS_HISTOGRAM_BUCKETS
_ZERO_THRESHOLD: Final = 2.0**-128
"""Tells a native histogram; nothing takes so little."""


class Encoder:
    """Classic bounds are powers of two from 2**`first` to 2**`last` seconds, `step` octaves apart; `lines` are the
    texts before and after the series in each line of text: one a bound, +Inf, the count and the sum."""

    def __init__(self, first: int, last: int, step: int, lines: Sequence[tuple[bytes, bytes]] = ()) -> None:
        octaves = range(first, last + 1, step)
        self._octaves = ffi.new("struct ls_octaves *", (first, step, len(octaves), 2**SCHEMA))
        self._bounds = ffi.new("double[]", [*(2.0**octave for octave in octaves), float("inf")])
        self._around = b"".join(b"%b\0%b\0" % line for line in lines)
        self._lines = len(lines)
        self._histogram = ffi.new("struct ls_histogram *")
        self._room = 0
        self._out = ffi.NULL

    def text(self, series: bytes, histogram: Histogram) -> bytes:
        self._set(histogram)
        self._reserve(self._lines * len(series) + len(self._around) + lib.LS_HISTOGRAM_BYTES)
        size = lib.ls_histogram_text(self._out, self._histogram, self._octaves, self._around, series, len(series))
        return bytes(ffi.buffer(self._out, size))

    def protobuf(self, histogram: Histogram) -> bytes:
        """The message io.prometheus.client.Histogram, with classic and native buckets."""
        self._set(histogram)
        self._reserve(lib.LS_HISTOGRAM_BYTES)
        size = lib.ls_histogram_protobuf(
            self._out, self._histogram, self._octaves, self._bounds, SCHEMA, _ZERO_THRESHOLD
        )
        return bytes(ffi.buffer(self._out, size))

    def _set(self, histogram: Histogram) -> None:
        buckets, into = histogram.buckets, self._histogram
        used = sorted(buckets)
        if len(used) > _MOST:
            raise ValueError(f"a histogram has at most {_MOST} buckets, not {len(used)}")
        into.total_seconds, into.used = histogram.total_seconds, len(used)
        into.bucket[0 : len(used)] = used
        into.count[0 : len(used)] = [buckets[bucket] for bucket in used]

    def _reserve(self, size: int) -> None:
        if size > self._room:
            self._room, self._out = size, ffi.new("char[]", size)
