"""RangeSet against plain Python sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.ipam.ranges import RangeSet

SPAN = 24
values = st.integers(0, SPAN - 1)


def filled(members: set[int]) -> RangeSet:
    ranges = RangeSet()
    for value in members:
        ranges.add(value)
    return ranges


def expanded(ranges: RangeSet) -> set[int]:
    return {value for first, last in ranges for value in range(first, last + 1)}


@given(st.lists(st.tuples(st.booleans(), values)))
def test_any_order_of_adds_and_discards_equals_a_plain_set(steps: list[tuple[bool, int]]) -> None:
    ranges, model = RangeSet(), set[int]()
    for is_add, value in steps:
        (ranges.add if is_add else ranges.discard)(value)
        (model.add if is_add else model.discard)(value)
        assert expanded(ranges) == model
        assert ranges.count == len(model)
        assert all((value in ranges) == (value in model) for value in range(-1, SPAN + 1))
        spans = list(ranges)
        assert all(first <= last for first, last in spans)
        assert all(left[1] + 1 < right[0] for left, right in pairwise(spans)), "neighbours are not joined"


@given(st.sets(values), values, values)
def test_count_within_counts_the_members_of_an_interval(members: set[int], first: int, last: int) -> None:
    assert filled(members).count_within(first, last) == len(members & set(range(first, last + 1)))


@given(st.sets(values), st.integers(-1, SPAN), values, values)
def test_next_gap_walks_up_from_behind_the_start_and_round(members: set[int], after: int, a: int, b: int) -> None:
    first, last = sorted((a, b))
    start = after if first <= after <= last else last
    order = [*range(start + 1, last + 1), *range(first, start + 1)]
    expected = next((value for value in order if value not in members), None)
    assert filled(members).next_gap(after, first, last) == expected


def test_a_neighbour_joins_the_ranges_on_both_sides() -> None:
    ranges = filled({1, 3})
    assert len(ranges) == 2
    ranges.add(2)
    assert list(ranges) == [(1, 3)]


@pytest.mark.parametrize("value", [0, 2**32, 2**128 - 1])
def test_numbers_of_any_size_are_members(value: int) -> None:
    ranges = filled({value})
    assert value in ranges
    assert ranges.next_gap(value - 1, value, value + 1) == value + 1
    ranges.discard(value)
    assert len(ranges) == ranges.count == 0
