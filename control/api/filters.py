"""Docker's list filters: how they arrive, which exist, and which networks they let through.

A filter is a key with one or more values. Names and ids match by substring or regular expression, drivers and scopes
exactly, labels all together, everything else as its function says.
Source: the Engine API reference (NetworkList, NetworkPrune) and the observable behaviour of the Engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

from control import decoding
from control.errors import InvalidArgument
from control.model import Network

LIST_KEYS: Final = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
PRUNE_KEYS: Final = frozenset({"label", "label!", "until"})

REPEATS_MAX: Final = 2
"""How many of * + ? {} an expression may hold: time grows with the length of a name to this power, plus one."""

Filters = Mapping[str, tuple[str, ...]]
Accept = Callable[[Network], bool]

_DURATION = re.compile(r"([+-]?)((?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS_PER: Final = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),  # U+00B5 and U+03BC, as Go's time.ParseDuration
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}


def parse(text: str, allowed: Collection[str]) -> Filters:
    """Returns {key: values} of the query parameter `filters`, in either form: {"k": {"v": true}} or {"k": ["v"]}.

    Raises InvalidArgument for anything else and for a key that is not in `allowed`.
    """
    if not text:
        return {}
    try:
        fields = decoding.decode(text.encode(), dict[str, dict[str, bool] | list[str]])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid filter: {error}") from error
    for key in fields:
        if key not in allowed:
            raise InvalidArgument(f"invalid filter '{key}'")
    return {key: tuple(dict.fromkeys(values)) for key, values in fields.items() if values}


def exact(filters: Filters, key: str, value: str) -> bool:
    """Whether `value` is one of the filter's values; True without that filter."""
    return key not in filters or value in filters[key]


def match(filters: Filters, key: str, value: str) -> bool:
    """Whether one of the filter's values is found in `value`, as text or as a regular expression.

    A value that is not a regular expression matches as text alone. Raises InvalidArgument for an expression that could
    take very long: Python's engine backtracks, which Docker's does not.
    """
    return key not in filters or any(pattern in value or _found(key, pattern, value) for pattern in filters[key])


def _found(key: str, pattern: str, value: str) -> bool:
    bare = re.sub(r"\\.", "", pattern)
    if "(" in bare or len(re.findall(r"[*+?{]", bare)) > REPEATS_MAX:
        raise InvalidArgument(
            f"invalid filter: '{key}'='{pattern[:64]}': groups and over {REPEATS_MAX} repetitions are not supported"
        )
    try:
        return re.search(pattern, value) is not None
    except (re.error, OverflowError):
        return False


def labelled(filters: Filters, key: str, labels: Mapping[str, str]) -> bool:
    """Whether all of the filter's `name` or `name=value` are among `labels`."""
    for wanted in filters.get(key, ()):
        name, has_value, value = wanted.partition("=")
        if name not in labels or (has_value and labels[name] != value):
            return False
    return True


def list_filter(filters: Filters, in_use: Collection[str]) -> Accept:
    """Returns the filter of GET /networks; `in_use` holds the ids of networks with endpoints. Raises InvalidArgument.

    `dangling=false` lets through what prune would keep: networks in use, and predefined ones.
    """
    dangling = _dangling(filters)
    for value in filters.get("type", ()):
        if value not in ("builtin", "custom"):
            raise InvalidArgument(f"invalid filter: 'type'='{value}'")

    def accept(network: Network) -> bool:
        return (
            exact(filters, "driver", network.driver)
            and exact(filters, "scope", network.scope)
            and exact(filters, "type", "builtin" if network.predefined else "custom")
            and match(filters, "name", network.name)
            and match(filters, "id", network.id)
            and labelled(filters, "label", network.labels)
            and dangling in (None, not network.predefined and network.id not in in_use)
        )

    return accept


def prune_filter(filters: Filters, now: datetime) -> Accept:
    """Returns the filter of POST /networks/prune: which unused networks are to go. Raises InvalidArgument."""
    until = filters.get("until", ())
    if len(until) > 1:
        raise InvalidArgument("more than one until filter specified")
    limit = timestamp(until[0], now) if until else None

    def accept(network: Network) -> bool:
        return (
            (limit is None or network.created <= limit)
            and labelled(filters, "label", network.labels)
            and not ("label!" in filters and labelled(filters, "label!", network.labels))
        )

    return accept


def _dangling(filters: Filters) -> bool | None:
    values = filters.get("dangling", ())
    if not values:
        return None
    if len(values) > 1:
        raise InvalidArgument('got more than one value for filter key "dangling"')
    if values[0] in ("1", "true"):
        return True
    if values[0] in ("0", "false"):
        return False
    raise InvalidArgument('invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")')


def timestamp(text: str, now: datetime) -> datetime:
    """Returns the moment of `text`, in UTC: Unix seconds with an optional fraction, a Go duration back from `now`, or
    RFC 3339.

    RFC 3339 may stop after the day, the minute or the second; without a zone it is UTC. Raises InvalidArgument.
    """
    try:
        if re.fullmatch(r"-?\d+(\.\d*)?", text, re.ASCII):
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(Decimal(text) * 1_000_000))
        if _DURATION.fullmatch(text):
            return now - timedelta(microseconds=int(_duration_seconds(text) * 1_000_000))
        if re.match(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            # Go's clients write nanoseconds; Python's parser takes at most six digits in 3.11.
            moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, InvalidOperation) as error:
        raise InvalidArgument(f"invalid time {text!r}: {error}") from error
    raise InvalidArgument(
        f"invalid time {text!r}: use a duration as 10m or 1h30m, Unix seconds, or a date as 2026-01-02T13:23:37"
    )


def _duration_seconds(text: str) -> Decimal:
    total = sum((Decimal(count) * _SECONDS_PER[unit] for count, unit in _DURATION_PART.findall(text)), Decimal(0))
    return -total if text.startswith("-") else total
