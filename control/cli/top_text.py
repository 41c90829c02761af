"""Numbers, times and lines as a narrow terminal has room for them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from control.cli.tabwriter import display_width

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = "_.-:=+*#"
UNKNOWN: Final = "-"
_POWERS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float) -> str:
    """Three digits and a decimal prefix, at most five characters up to 999T: "0", "0.4", "12.3k", "1.23G"."""
    for power, prefix in _POWERS:
        if value >= power * 0.9995:
            return _three_digits(value / power) + prefix
    if not value:
        return "0"
    return f"{value:.0f}" if value >= 9.95 else f"{max(value, 0.1):.1f}"


def duration(seconds: float | None) -> str:
    """At most six characters up to 999 s: "840ns", "12.3us", "1.23ms"."""
    if seconds is None:
        return UNKNOWN
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit * 0.9995:
            return _three_digits(seconds / unit) + name
    return f"{seconds * 1e9:.0f}ns"


def percent(share: float | None) -> str:
    """Whole percents; 100% is said only of all."""
    if share is None:
        return UNKNOWN
    return f"{100 if share == 1 else min(99, round(share * 100))}%"


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """The values, oldest first, as bars up to the largest of them, right-aligned; many are drawn as the largest of few.

    A value that is not 0 is never drawn as the lowest bar, which stands for nothing.
    """
    peak = max(values, default=0.0)
    count = min(width, len(values))
    bounds = [len(values) * place // count for place in range(count + 1)] if count else [0]
    drawn = [max(values[begin:end]) for begin, end in pairwise(bounds)]
    steps = len(blocks) - 1
    bars = (blocks[max(1, round(value / peak * steps)) if value else 0] for value in drawn)
    return "".join(bars).rjust(width)


def fit(text: str, width: int) -> str:
    """Cuts or pads to exactly `width` columns of a terminal. What would move its cursor, or cannot be shown, becomes a
    question mark: names may be anything."""
    clean = "".join(char if char.isprintable() and not unicodedata.combining(char) else "?" for char in text)
    if display_width(clean) > width:
        while clean and display_width(clean) > width - 1:
            clean = clean[:-1]
        clean += "~"[:width]
    return clean + " " * (width - display_width(clean))


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
