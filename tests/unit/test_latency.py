"""Histograms of latencies: bounds, sums and quantiles, against the samples themselves."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import abi
from datapath.latency import BASE, Histogram, Histograms, Kind, upper_bound
from tests.fakes import histograms

SECONDS = st.lists(st.floats(1e-8, 10, allow_subnormal=False), min_size=2)


def of(samples: list[float]) -> Histogram:
    buckets: dict[int, int] = {}
    for seconds in samples:
        bucket = math.ceil(math.log2(seconds) * 4)
        buckets[bucket] = buckets.get(bucket, 0) + 1
    return Histogram(buckets, sum(samples))


def test_powers_of_two_are_bounds() -> None:
    assert [upper_bound(bucket) for bucket in (-40, -4, 0, 4, 8)] == [2**-10, 0.5, 1, 2, 4]


@given(SECONDS)
def test_a_quantile_is_within_a_bucket_of_the_samples(samples: list[float]) -> None:
    found = of(samples)
    for share, sample in ((0.5, statistics.median_high(samples)), (0, min(samples)), (1, max(samples))):
        near = 1 + 1e-9
        low = statistics.median_low(samples) if share == 0.5 else sample
        assert low / BASE / near <= found.quantile(share) <= sample * BASE * near


def test_within_a_bucket_samples_lie_evenly_on_a_logarithmic_scale() -> None:
    assert Histogram({4: 10}, 15).quantile(0.5) == pytest.approx(2**0.875)


def test_there_is_no_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"no quantile 0\.5 of 0 samples"):
        Histogram({}, 0).quantile(0.5)


@given(SECONDS, SECONDS)
def test_the_sum_is_that_of_all_samples(some: list[float], more: list[float]) -> None:
    total = of(some) + of(more)
    assert total.buckets == of(some + more).buckets
    assert total.count == len(some) + len(more)
    assert total.total_seconds == pytest.approx(math.fsum(some + more))


HELD = {
    3: {Kind.FAST: Histogram({-104: 1, 15: 2**40}, 0.5), Kind.TCP_RTT: Histogram({}, 0.0)},
    7: {Kind.FAST: Histogram({-60: 3, -58: 4}, 0.25)},
}


def test_histograms_are_held_by_owner_and_kind() -> None:
    held = histograms(HELD)
    assert held == HELD
    assert (held.one(7, Kind.FAST), held.one(7, Kind.SLOW), held.one(99, Kind.FAST)) == (HELD[7][Kind.FAST], None, None)
    assert 4 not in held
    assert not Histograms()


def test_what_is_held_again_takes_the_place_of_what_was() -> None:
    held = histograms(HELD)
    held.hold_sum(7, held, [7], HELD[7])
    assert held[7] == {Kind.FAST: Histogram({-60: 6, -58: 8}, 0.5)}


def test_sums_are_of_those_who_are_asked_for_and_have_any() -> None:
    total = Histograms(2)
    total.hold_sum(1, histograms(HELD), [7, 5, 3, 99], {Kind.SLOW: Histogram({0: 1}, 1.0)})
    assert total == {
        1: {
            Kind.FAST: Histogram({-104: 1, -60: 3, -58: 4, 15: 2**40}, 0.75),
            Kind.SLOW: Histogram({0: 1}, 1.0),
            Kind.TCP_RTT: Histogram({}, 0.0),
        }
    }
    total.hold_sum(0, histograms(HELD), [])
    assert 0 not in total


def test_what_there_is_no_room_for_is_left_out() -> None:
    """Slots from another map than ours, or kinds from another linkspan."""
    held, value = Histograms(2), abi.Latency(1, bytes(8 * abi.LATENCY_BUCKETS)).pack()
    keys = [abi.LatencyKey(0, 99), abi.LatencyKey(2, 0), abi.LatencyKey(1, 0)]
    held.hold(b"".join(key.pack() for key in keys), value * len(keys))
    assert held == {1: {Kind.FAST: Histogram({}, 1e-9)}}
