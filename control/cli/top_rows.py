"""Which rows `linkspan top` shows, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from control.cli.filters import TRAFFIC, matching
from control.cli.natural import natural_key
from control.cli.rates import Rates, Row

Filters = dict[str, dict[str, bool]]

SORTS: Final[dict[str, Callable[[Rates], float]]] = {
    "rate": lambda rates: rates.bits,
    "out": lambda rates: rates.out_bits,
    "in": lambda rates: rates.in_bits,
    "packets": lambda rates: rates.packets,
    "fast": lambda rates: -1.0 if rates.fast_share is None else rates.fast_share,
    "p50": lambda rates: rates.forwarding.quantile(0.50) if rates.forwarding.buckets else -1.0,
    "p99": lambda rates: rates.forwarding.quantile(0.99) if rates.forwarding.buckets else -1.0,
    "rtt": lambda rates: rates.tcp_rtt.quantile(0.50) if rates.tcp_rtt.buckets else -1.0,
    "drops": lambda rates: rates.dropped,
}
"""What rows are sorted by, the largest first; besides these there is "name"."""
SORT_NAMES: Final = (*SORTS, "name")
_WHAT: Final = "networks and endpoints"


def parse_filter(text: str) -> Filters:
    """Returns the filters of a line such as "web driver=bridge"; a word alone is part of a name. Raises CliError."""
    filters: Filters = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        filters.setdefault(*(name, {}) if equals else ("name", {}))[value if equals else word] = True
    check(filters)
    return filters


def check(filters: Filters) -> None:
    """Raises CliError for a filter that does not exist."""
    matching([], filters, TRAFFIC, _WHAT)


def select(rows: Sequence[Row], filters: Filters) -> list[Row]:
    """The networks that the filters let through with all their endpoints; others with those that they let through."""
    if not filters:
        return list(rows)
    found = []
    for row in rows:
        endpoints = row.endpoints if _fits(row, filters) else [each for each in row.endpoints if _fits(each, filters)]
        if endpoints or _fits(row, filters):
            found.append(_with(row, endpoints))
    return found


def _fits(row: Row, filters: Filters) -> bool:
    record = {"id": row.id, "name": row.name, "network": row.network, "driver": row.driver}
    return bool(matching([record], filters, TRAFFIC, _WHAT))


def _with(row: Row, endpoints: Sequence[Row]) -> Row:
    return Row(row.id, row.name, row.network, row.driver, row.addresses, row.rates, tuple(endpoints))


def ordered(rows: Sequence[Row], sort: str, *, is_reversed: bool = False) -> list[Row]:
    """The rows, and the endpoints of each, by `sort`: the largest or the first name comes first, the unknown last."""
    by_name = sorted(
        (_with(row, ordered(row.endpoints, sort, is_reversed=is_reversed)) if row.endpoints else row for row in rows),
        key=lambda row: natural_key(row.name),
        reverse=is_reversed and sort == "name",
    )
    if sort == "name":
        return by_name
    value = SORTS[sort]
    known = [row for row in by_name if row.rates is not None]
    known.sort(key=lambda row: value(row.rates) if row.rates else 0.0, reverse=not is_reversed)
    return known + [row for row in by_name if row.rates is None]
