"""Selects sandboxes for `ps --filter`, nodes for `cluster ls --filter`, networks and endpoints for `top --filter`:
values of one name are alternatives, names and labels must all fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from control.cli.errors import CliError

Tests = dict[str, Callable[[dict[str, Any], str], bool]]

SANDBOXES: Final[Tests] = {
    "id": lambda sandbox, value: sandbox["Id"].startswith(value),
    "name": lambda sandbox, value: value in sandbox["Name"],
    "status": lambda sandbox, value: sandbox["State"] == value,
    "network": lambda sandbox, value: any(
        value == name or endpoint["NetworkID"].startswith(value) for name, endpoint in sandbox["Networks"].items()
    ),
    "label": lambda sandbox, value: _has_label(sandbox["Labels"] or {}, value),
}
NODES: Final[Tests] = {
    "address": lambda node, value: node["Address"] == value,
    "id": lambda node, value: str(node["ID"]) == value,
    "name": lambda node, value: value in node["Name"],
    "state": lambda node, value: node["State"] == value,
}
TRAFFIC: Final[Tests] = {
    "driver": lambda row, value: row["driver"] == value,
    "id": lambda row, value: row["id"].startswith(value),
    "name": lambda row, value: value in row["name"],
    "network": lambda row, value: row["network"] == value,
}


def matching(
    records: Sequence[dict[str, Any]], filters: dict[str, dict[str, bool]], tests: Tests, what: str
) -> list[dict[str, Any]]:
    """Returns those that all filters let through; raises CliError for a filter that `tests` has not, as one of
    `what`."""
    for name in filters:
        if name not in tests:
            raise CliError(f"invalid filter '{name}': {what} are filtered by {', '.join(sorted(tests))}")
    return [
        record
        for record in records
        if all(_fits(record, tests[name], name, values) for name, values in filters.items())
    ]


def _fits(
    record: dict[str, Any], test: Callable[[dict[str, Any], str], bool], name: str, values: Iterable[str]
) -> bool:
    combine = all if name == "label" else any
    return combine(test(record, value) for value in values)


def _has_label(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
