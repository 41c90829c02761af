"""Counters and histograms in the formats of /metrics, written in C: a host has thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

from datapath._native import ffi, lib
from datapath.latency import SCHEMA, Histograms

_PART_BYTES: Final = 1 << 16
_ZERO_THRESHOLD: Final = 2.0**-128
"""Tells a native histogram; nothing takes so little."""

Lines = Sequence[tuple[bytes, bytes]]
"""The texts before and after the labels in each line of text that a series has."""


class Labelled:
    """Owners of series, or kinds of them, in the order in which they are written, each with the labels that tell it
    from the others. Histograms have numbers for both: `Histograms`' owners, and `Kind.number`."""

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
        """For C, while this is there."""


class _Encoder:
    """A family's series, some at a time: those of each owner, and of its kinds what there is. For protobuf they are
    messages io.prometheus.client.Metric as they lie in a MetricFamily."""

    def __init__(self, lines: Lines, **family: Any) -> None:
        around = b"".join(b"%b\0%b\0" % line for line in lines)
        self._around = ffi.new("char[]", around)
        self._family = ffi.new("struct ls_family *", {**family, "around": self._around, "around_size": len(around)})

    def _parts(self, write: Callable[..., int], source: Any, owners: Labelled, kinds: Labelled) -> Iterator[bytes]:
        family = self._family
        longest = (family.bounds + 3) * (owners.longest + kinds.longest) + family.around_size + lib.LS_HISTOGRAM_BYTES
        out, at = ffi.new("char[]", max(longest, _PART_BYTES)), ffi.new("__u32 *")
        while at[0] < owners.c.count * kinds.c.count:
            size = write(out, len(out), family, source, owners.c, kinds.c, at)
            if size:
                yield bytes(ffi.buffer(out, size))


class CounterEncoder(_Encoder):
    """Values are those of each owner's kinds, owner by owner; with `is_sparse` those that are 0 are left out."""

    def __init__(self, lines: Lines = (), *, is_sparse: bool = False) -> None:
        super().__init__(lines, is_sparse=is_sparse)

    def text(self, values: Sequence[int], owners: Labelled, kinds: Labelled) -> Iterator[bytes]:
        return self._parts(lib.ls_counters_text, ffi.new("__u64[]", values), owners, kinds)

    def protobuf(self, values: Sequence[int], owners: Labelled, kinds: Labelled) -> Iterator[bytes]:
        return self._parts(lib.ls_counters_protobuf, ffi.new("__u64[]", values), owners, kinds)


class HistogramEncoder(_Encoder):
    """Classic bounds are powers of two from 2**`first` to 2**`last` seconds, `step` octaves apart; `lines` are one a
    bound, +Inf, the count and the sum. Protobuf has native buckets too."""

    def __init__(self, first: int, last: int, step: int, lines: Lines = ()) -> None:
        bounds = [2.0**octave for octave in range(first, last + 1, step)]
        if len(bounds) > lib.LS_HISTOGRAM_BOUNDS:
            raise ValueError(f"a histogram has at most {lib.LS_HISTOGRAM_BOUNDS} bounds, not {len(bounds)}")
        self._bounds = ffi.new("double[]", [*bounds, float("inf")])
        super().__init__(
            lines,
            first=first,
            step=step,
            bounds=len(bounds),
            bound=self._bounds,
            schema=SCHEMA,
            zero_threshold=_ZERO_THRESHOLD,
        )

    # Generators, which hold the histograms for as long as C reads them.

    def text(self, histograms: Histograms, owners: Labelled, kinds: Labelled) -> Iterator[bytes]:
        yield from self._parts(lib.ls_histograms_text, histograms.c, owners, kinds)

    def protobuf(self, histograms: Histograms, owners: Labelled, kinds: Labelled) -> Iterator[bytes]:
        yield from self._parts(lib.ls_histograms_protobuf, histograms.c, owners, kinds)
