"""Aligns tab-separated cells into columns as Go's text/tabwriter does with Docker's settings."""

from __future__ import annotations

import unicodedata
from typing import Final

_MIN_WIDTH: Final = 10
_PADDING: Final = 3


def aligned(text: str) -> str:
    """Pads every cell that a tab ends to the width of its column; what follows the last tab of a line is left alone.

    A column is a run of lines that have a cell there: a line without one starts a new column below it.
    """
    lines = [line.split("\t") for line in text.split("\n")]
    widths: list[list[int]] = [[] for _ in lines]
    _measure(lines, widths, 0, len(lines), 0)
    return "\n".join(
        "".join(cell + " " * (width - display_width(cell)) for cell, width in zip(cells, widths[row], strict=False))
        + cells[-1]
        for row, cells in enumerate(lines)
    )


def _measure(lines: list[list[str]], widths: list[list[int]], begin: int, end: int, column: int) -> None:
    """Settles the widths of `column` and those to its right in the lines from `begin` to before `end`."""
    row = begin
    while row < end:
        if len(lines[row]) - 1 <= column:
            row += 1
            continue
        last = row
        while last < end and len(lines[last]) - 1 > column:
            last += 1
        needed = max(display_width(lines[i][column]) for i in range(row, last))
        width = max(needed + _PADDING, _MIN_WIDTH)
        for i in range(row, last):
            widths[i].append(width)
        _measure(lines, widths, row, last, column + 1)
        row = last


def display_width(cell: str) -> int:
    """The columns of a terminal that the text takes: East Asian wide characters take two, combining ones none."""
    if cell.isascii():
        return len(cell)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in cell)
