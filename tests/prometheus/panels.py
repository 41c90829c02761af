"""The shipped dashboards as their files have them, and the queries that they ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from tests.hosts import ROOT

FOLDER: Final = ROOT / "deploy/grafana"
_LABEL_VALUES: Final = re.compile(r"label_values\((?P<series>.*), (?P<label>\w+)\)", re.DOTALL)
_VARIABLE: Final = re.compile(r"\$(\w+)")


class Query(NamedTuple):
    where: str
    """Dashboard and panel."""
    expression: str


def documents() -> dict[str, dict[str, Any]]:
    """Every dashboard by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def filled(text: str, rate_interval: str, values: Mapping[str, str] = {}) -> str:
    """A query as Grafana sends it: with its variables replaced, by `.*` ("All") unless `values` say otherwise."""
    known = {"__rate_interval": rate_interval, **values}
    return _VARIABLE.sub(lambda found: known.get(found[1], ".*"), text)


def queries(document: Mapping[str, Any]) -> Iterator[Query]:
    """What the panels ask, in their order."""
    for panel in document["panels"]:
        for target in panel["targets"]:
            yield Query(f"{document['title']}, {panel['title']}", target["expr"])


def variables(document: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """For each variable that is asked for: the series and the label whose values are its choices."""
    found = {}
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            asked = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert asked is not None, variable
            found[variable["name"]] = (asked["series"], asked["label"])
    return found
