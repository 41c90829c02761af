"""When enough has been measured: a sequential test of a ratio against its limit.

Order statistics give an interval that holds the median of endlessly many ratios, whatever their distribution. Once the
whole of it lies below the limit the gate passes, and above it fails; until then one measures on. It is looked at after
each new ratio, so it is wider than one that is looked at once: 99.9 % a look. docs/adr/0023-gates.md has what is left
of that after all looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Final, Literal

Verdict = Literal["passed", "FAILED", "undecided"]

LEAST: Final = 12
"""Ratios before the first look: fewer have no interval of 99.9 %."""
MOST: Final = 80
"""Ratios after which one gives up. Undecided counts as failed: nobody has shown that it is not slower."""
_SIGMAS: Final = 3.29  # of a normal distribution, 99.9 % two-sided


@dataclass(frozen=True)
class Ratio:
    """A ratio's median and the interval that it lies in, from `count` measurements that `noise` tells apart: half of
    what the middle 68 % of them span, relative."""

    median: float
    least: float
    most: float
    noise: float
    count: int

    COLUMNS: ClassVar = ("median", "sure to 99.9 %", "one measurement", "measurements")

    def cells(self) -> list[str]:
        """The cells of COLUMNS."""
        return [
            f"{self.median:.3f}",
            f"{self.least:.3f} .. {self.most:.3f}",
            f"+- {self.noise:.1%}",
            str(self.count),
        ]

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.least:.3f} .. {self.most:.3f})"


def ratio(values: Sequence[float]) -> Ratio:
    """Raises StatisticsError without values."""
    ordered, count = sorted(values), len(values)
    reach = _SIGMAS / 2 * math.sqrt(count)
    least, most = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach) - 1)
    middle = median(ordered)
    span = ordered[min(count - 1, int(count * 0.84))] - ordered[int(count * 0.16)]
    return Ratio(middle, ordered[least], ordered[most], span / 2 / middle, count)


def verdict(values: Sequence[float], limit: float) -> Verdict:
    """What can be said by now of ratios that may be at most `limit`."""
    if len(values) < LEAST:
        return "undecided"
    found = ratio(values)
    if found.most < limit:
        return "passed"
    return "FAILED" if found.least > limit else "undecided"


def is_enough(values: Sequence[float], limit: float, most: int = MOST) -> bool:
    """Whether no more is to be measured: it is decided, or one gives up."""
    return len(values) >= most or verdict(values, limit) != "undecided"
