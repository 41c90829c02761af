"""Medians and spreads. Timings are skewed, so nothing here is a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order; raises IndexError without values."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass(frozen=True)
class Spread:
    """A median, and the values that 10 % and 90 % of the rounds lie below."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Raises StatisticsError without values."""
    ordered = sorted(values)
    return Spread(median(ordered), percentile(ordered, 10), percentile(ordered, 90))


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of value / base, round by round: what disturbs a whole round cancels out."""
    return spread([value / reference for value, reference in zip(values, base, strict=True)])
