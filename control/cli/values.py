"""Kinds of flag values as Docker's command line has them (Go's pflag and docker/cli's `opts`).

A kind parses one value at a time, raising ValueError with the reason, and collects the values of a repeated flag.
`label` is the word that stands for the value in the help. Source: docker --help and the messages of docker 28.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final


class Kind:
    """One text value; the last one given wins."""

    label: ClassVar[str] = "string"
    repeatable: ClassVar[bool] = False
    takes_value: ClassVar[bool] = True

    def parse(self, text: str) -> Any:
        return text

    def collect(self, values: Sequence[Any]) -> Any:
        """Turns the parsed values of a repeatable flag, in order, into what the command gets."""
        raise NotImplementedError


class String(Kind):
    pass


class Bool(Kind):
    """A switch that also takes `=true` and `=false` in all spellings of Go's strconv.ParseBool."""

    label = ""
    takes_value = False
    _WORDS: Final = {
        **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
        **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
    }

    def parse(self, text: str) -> bool:
        if text not in self._WORDS:
            raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
        return self._WORDS[text]


class Seconds(Kind):
    """A number of seconds from `least` to `most`."""

    label = "seconds"

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most

    def parse(self, text: str) -> float:
        try:
            seconds = float(text.removesuffix("s"))
        except ValueError as error:
            raise ValueError("not a number of seconds") from error
        if not self._least <= seconds <= self._most:
            raise ValueError(f"not in {self._least:g} to {self._most:g} seconds")
        return seconds


class Int(Kind):
    """A 64-bit integer in decimal, 0x, 0o or 0b notation."""

    label = "int"

    def parse(self, text: str) -> int:
        try:
            value = int(text, 0) if not re.fullmatch(r"[+-]?0[0-7]+", text) else int(text, 8)
        except ValueError as error:
            raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax') from error
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f'strconv.ParseInt: parsing "{text}": value out of range')
        return value


class Strings(Kind):
    """Several values: the flag is repeated, or one value holds comma-separated ones (CSV, so "a,b" may be quoted)."""

    label = "strings"
    repeatable = True

    def parse(self, text: str) -> list[str]:
        if '"' not in text and "\n" not in text:
            return text.split(",") if text else []
        import csv

        try:
            return next(csv.reader([text], strict=True))
        except (csv.Error, StopIteration) as error:
            raise ValueError(f"not a comma-separated list: {error}") from error

    def collect(self, values: Sequence[list[str]]) -> list[str]:
        return [item for value in values for item in value]


class List(Kind):
    """Several values, one at a time, each checked by `check` (which raises ValueError)."""

    label = "list"
    repeatable = True

    def __init__(self, check: Callable[[str], str] = str) -> None:
        self._check = check

    def parse(self, text: str) -> str:
        return self._check(text)

    def collect(self, values: Sequence[str]) -> list[str]:
        return list(values)


class Map(Kind):
    """Pairs "key=value"; a key alone has the empty value, and the last one of a key wins."""

    label = "map"
    repeatable = True

    def parse(self, text: str) -> tuple[str, str]:
        key, _, value = text.partition("=")
        return key, value

    def collect(self, values: Sequence[tuple[str, str]]) -> dict[str, str]:
        return dict(values)


class Filter(Kind):
    """Filters "name=value" in the form the Engine API wants: {name: {value: true}}."""

    label = "filter"
    repeatable = True

    def parse(self, text: str) -> tuple[str, str] | None:
        if not text:
            return None
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError("bad format of filter (expected name=value)")
        return name.strip().lower(), value.strip()

    def collect(self, values: Sequence[tuple[str, str] | None]) -> dict[str, dict[str, bool]]:
        filters: dict[str, dict[str, bool]] = {}
        for name, value in filter(None, values):
            filters.setdefault(name, {})[value] = True
        return filters


def label(text: str) -> str:
    """Checks one `--label`: a name, or name=value."""
    name = text.partition("=")[0].strip()
    if not name:
        raise ValueError(f"invalid label '{text}': empty name")
    if re.search(r"\s", name):
        raise ValueError(f"label '{name}' contains whitespaces")
    return text


def link(text: str) -> str:
    """Checks one `--link`: a name, or name:alias."""
    if not text:
        raise ValueError("empty string specified for links")
    if text.count(":") > 1:
        raise ValueError(f"bad format for links: {text}")
    return text


def pairs(items: Sequence[str]) -> dict[str, str]:
    """Makes a map of "key=value" items; a key alone has the empty value."""
    return {key: value for key, _, value in (item.partition("=") for item in items)}
