"""Selects sandboxes for `ps --filter`: values of one name are alternatives, names and labels must all fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from control.cli.errors import CliError

_TESTS: Final[dict[str, Callable[[dict[str, Any], str], bool]]] = {
    "id": lambda sandbox, value: sandbox["Id"].startswith(value),
    "name": lambda sandbox, value: value in sandbox["Name"],
    "status": lambda sandbox, value: sandbox["State"] == value,
    "network": lambda sandbox, value: any(
        value == name or endpoint["NetworkID"].startswith(value) for name, endpoint in sandbox["Networks"].items()
    ),
    "label": lambda sandbox, value: _has_label(sandbox["Labels"] or {}, value),
}


def matching(sandboxes: Sequence[dict[str, Any]], filters: dict[str, dict[str, bool]]) -> list[dict[str, Any]]:
    """Returns those that all filters let through; raises CliError for a filter that there is not."""
    for name in filters:
        if name not in _TESTS:
            raise CliError(f"invalid filter '{name}': sandboxes are filtered by {', '.join(sorted(_TESTS))}")
    return [
        sandbox for sandbox in sandboxes if all(_fits(sandbox, name, list(values)) for name, values in filters.items())
    ]


def _fits(sandbox: dict[str, Any], name: str, values: Sequence[str]) -> bool:
    combine = all if name == "label" else any
    return combine(_TESTS[name](sandbox, value) for value in values)


def _has_label(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
