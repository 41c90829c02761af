"""Histograms of latencies: bounds, sums and quantiles, against the samples themselves."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.latency import BASE, Histogram, upper_bound

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
