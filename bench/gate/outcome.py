"""What one gate found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.gate import limits
from bench.report import Table


@dataclass(frozen=True)
class Outcome:
    """A table for people, a sentence for each failure, and the figures for the history."""

    table: Table
    failures: Sequence[str]
    figures: Mapping[str, float]


def exact(gate: str, title: str, figures: Mapping[str, float]) -> Outcome:
    """The outcome of a gate of exact figures, by its lines in gates.toml."""
    rows, failures = limits.judge(figures, [limit for limit in limits.read() if limit.gate == gate])
    return Outcome(Table(title, limits.COLUMNS, rows), failures, figures)
