"""Debian's Prometheus scrapes linkspands with traffic: whatever dashboards ask it has an answer, and no rule fails."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.hosts import wait_for
from tests.prometheus.panels import Query, documents, filled, queries, variables
from tests.prometheus.scene import PORT, Scene, scene
from tests.prometheus.server import SHIPPED

pytestmark = pytest.mark.root

RATE_INTERVAL = "10s"


@pytest.fixture(scope="module")
def seen() -> Iterator[Scene]:
    with scene() as made:
        yield made


def exposition(seen: Scene) -> str:
    return seen.nodes[0].run("curl", "-sS", f"http://127.0.0.1:{PORT}/metrics").stdout


def has_data(seen: Scene, expression: str) -> bool:
    """Whether there is a series with a number; 0/0 is none."""
    found = seen.server.query(filled(expression, RATE_INTERVAL))
    return any(not math.isnan(float(series["value"][1])) for series in found)


def test_every_query_of_every_dashboard_has_data(seen: Scene) -> None:
    unanswered = {query for document in documents().values() for query in queries(document)}

    def are_answered() -> bool:
        unanswered.difference_update([query for query in unanswered if has_data(seen, query.expression)])
        return not unanswered

    wait_for(are_answered, lambda: "data for\n" + "\n".join(map("\n    ".join, sorted(unanswered))))


def test_every_variable_of_every_dashboard_has_choices(seen: Scene) -> None:
    for document in documents().values():
        for name, (series, label) in variables(document).items():
            choices = seen.server.ask(f"label/{label}/values", **{"match[]": filled(series, RATE_INTERVAL)})
            assert choices, Query(document["title"], name)


def test_no_rule_fails(seen: Scene) -> None:
    def evaluated() -> bool:
        return all(rule["health"] != "unknown" for rule in seen.server.rules())

    wait_for(evaluated, "every rule to be evaluated")
    assert [(rule["name"], rule["lastError"]) for rule in seen.server.rules() if rule["health"] != "ok"] == []


def test_promtool_has_nothing_to_say_about_the_metrics(seen: Scene) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition(seen), capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_metric_that_is_asked_for_is_exposed(seen: Scene) -> None:
    asked = [query.expression for document in documents().values() for query in queries(document)]
    asked += [series for document in documents().values() for series, _ in variables(document).values()]
    asked += [(SHIPPED / name).read_text() for name in ("recording.yml", "alerts.yml")]
    recorded = {rule["name"] for rule in seen.server.rules() if rule["type"] == "recording"}
    names = {name for text in asked for name in re.findall(r"\b[\w:]*linkspan_\w+(?::\w+)*", text)}
    exposed = set()
    for family in text_string_to_metric_families(exposition(seen)):
        suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(family.type, ("",))
        exposed |= {family.name + suffix for suffix in suffixes}
    assert names <= exposed | recorded, names - exposed - recorded
