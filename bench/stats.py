"""Medians and spreads. Timings are skewed, so nothing here is a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order; raises IndexError without values."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass(frozen=True)
class Spread:
    """A median; the values that 10 % and 90 % of the rounds lie below (low, high); and those between which the median
    of endlessly many rounds would lie with 95 % probability (least, most)."""

    median: float
    low: float
    high: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Raises StatisticsError without values. The interval is by order statistics, which suppose no distribution."""
    ordered = sorted(values)
    count, reach = len(ordered), 0.98 * math.sqrt(len(ordered))
    least, most = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    return Spread(median(ordered), percentile(ordered, 10), percentile(ordered, 90), ordered[least], ordered[most])


def single(value: float) -> Spread:
    """A value that was measured once."""
    return Spread(value, value, value, value, value)


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of value / base, round by round: what disturbs a whole round cancels out."""
    return spread([value / reference for value, reference in zip(values, base, strict=True)])
