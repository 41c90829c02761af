"""Histograms in the formats of /metrics, written in C: a host has thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from datapath._native import ffi, lib
from datapath.latency import SCHEMA, Histograms

_PART_BYTES: Final = 1 << 16
_ZERO_THRESHOLD: Final = 2.0**-128
"""Tells a native histogram; nothing takes so little."""


class Labelled:
    """Owners of histograms, or kinds of them by `Kind.number`, in the order in which they are written: each number with
    the labels that tell it from the others."""

    def __init__(self, each: Iterable[tuple[int, bytes]]) -> None:
        numbers, labels = zip(*each, strict=True) if (each := list(each)) else ((), ())
        sizes = [len(label) for label in labels]
        self.longest = max(sizes, default=0)
        self._held = (
            ffi.new("char[]", b"".join(labels)),
            ffi.new("__u32[]", list(accumulate(sizes))),
            ffi.new("__u32[]", numbers),
        )
        self.c = ffi.new("struct ls_labelled *", (*self._held, len(numbers)))
        """For C."""


class Encoder:
    """Classic bounds are powers of two from 2**`first` to 2**`last` seconds, `step` octaves apart; `lines` are the
    texts before and after the labels in each line of text: one a bound, +Inf, the count and the sum."""

    def __init__(self, first: int, last: int, step: int, lines: Sequence[tuple[bytes, bytes]] = ()) -> None:
        bounds = [2.0**octave for octave in range(first, last + 1, step)]
        if len(bounds) > lib.LS_HISTOGRAM_BOUNDS:
            raise ValueError(f"a histogram has at most {lib.LS_HISTOGRAM_BOUNDS} bounds, not {len(bounds)}")
        around = b"".join(b"%b\0%b\0" % line for line in lines)
        self._held = ffi.new("double[]", [*bounds, float("inf")]), ffi.new("char[]", around)
        self._family = ffi.new(
            "struct ls_family *",
            (first, step, len(bounds), self._held[0], SCHEMA, _ZERO_THRESHOLD, self._held[1], len(around)),
        )

    def text(self, histograms: Histograms, owners: Labelled, kinds: Labelled) -> Iterator[bytes]:
        """Yields the lines, some at a time: those of each owner, and of its kinds what there is."""
        return self._parts(lib.ls_histograms_text, histograms, owners, kinds)

    def protobuf(self, histograms: Histograms, owners: Labelled, kinds: Labelled) -> Iterator[bytes]:
        """As `text`, messages io.prometheus.client.Metric as they lie in a MetricFamily, with classic and native
        buckets."""
        return self._parts(lib.ls_histograms_protobuf, histograms, owners, kinds)

    def _parts(
        self, write: Callable[..., int], histograms: Histograms, owners: Labelled, kinds: Labelled
    ) -> Iterator[bytes]:
        family = self._family
        longest = (family.bounds + 3) * (owners.longest + kinds.longest) + family.around_size + lib.LS_HISTOGRAM_BYTES
        out, at = ffi.new("char[]", max(longest, _PART_BYTES)), ffi.new("__u32 *")
        while at[0] < owners.c.count * kinds.c.count:
            size = write(out, len(out), family, histograms.c, owners.c, kinds.c, at)
            if size:
                yield bytes(ffi.buffer(out, size))
