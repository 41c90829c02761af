"""Sets of whole numbers kept as sorted, disjoint, inclusive ranges.

A set costs memory by its number of ranges, never by the space that it lies in, so a pool of 2^64 addresses starts as
small as one of 256.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """A set of integers of any size; not thread-safe.

    Neighbouring ranges are always joined, so the number after a range's end is never in the set. Finding is O(log n) in
    the number of ranges; a change that makes or removes a range moves n pointers in one memmove besides.
    """

    __slots__ = ("_count", "_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        """The number of ranges; `count` is the number of members, which may be past what len() can return."""
        return len(self._starts)

    @property
    def count(self) -> int:
        return self._count

    def __contains__(self, value: int) -> bool:
        i = bisect_right(self._starts, value) - 1
        return i >= 0 and value <= self._ends[i]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields (first, last) of each range in ascending order."""
        return zip(self._starts, self._ends, strict=True)

    def add(self, value: int) -> None:
        """Puts `value` in; harmless when it is in already."""
        starts, ends = self._starts, self._ends
        i = bisect_right(starts, value)  # the range before the gap is i - 1, the one after it is i
        if i and value <= ends[i - 1]:
            return
        joins_left = i > 0 and ends[i - 1] == value - 1
        joins_right = i < len(starts) and starts[i] == value + 1
        if joins_left and joins_right:
            ends[i - 1] = ends[i]
            del starts[i], ends[i]
        elif joins_left:
            ends[i - 1] = value
        elif joins_right:
            starts[i] = value
        else:
            starts.insert(i, value)
            ends.insert(i, value)
        self._count += 1

    def discard(self, value: int) -> None:
        """Takes `value` out; harmless when it is not in."""
        starts, ends = self._starts, self._ends
        i = bisect_right(starts, value) - 1
        if i < 0 or value > ends[i]:
            return
        first, last = starts[i], ends[i]
        if first == last:
            del starts[i], ends[i]
        elif value == first:
            starts[i] = value + 1
        elif value == last:
            ends[i] = value - 1
        else:
            ends[i] = value - 1
            starts.insert(i + 1, value + 1)
            ends.insert(i + 1, last)
        self._count -= 1

    def count_within(self, first: int, last: int) -> int:
        """How many members lie in first..last, both included; O(log n) and the ranges met."""
        total = 0
        for i in range(bisect_left(self._ends, first), bisect_right(self._starts, last)):
            total += min(self._ends[i], last) - max(self._starts[i], first) + 1
        return total

    def next_gap(self, after: int, first: int, last: int) -> int | None:
        """The first number of first..last that is not in the set, searching upwards from behind `after` and round.

        `after` itself comes last. None when all of first..last is in the set.
        """
        if first <= after < last:
            gap = self._gap_from(after + 1)
            if gap <= last:
                return gap
        gap = self._gap_from(first)
        return gap if gap <= last else None

    def _gap_from(self, value: int) -> int:
        i = bisect_right(self._starts, value) - 1
        return self._ends[i] + 1 if i >= 0 and value <= self._ends[i] else value
