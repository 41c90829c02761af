"""The dashboards as files: what Grafana would stumble over, and that they are what their description says."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest

from deploy import dashboards
from tests.prometheus.panels import documents, queries, variables

DOCUMENTS = documents()
each_dashboard = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def test_the_files_are_those_of_the_description() -> None:
    for dashboard in dashboards.DASHBOARDS:
        written = (dashboards.FOLDER / f"{dashboard.name}.json").read_text()
        assert written == dashboards.text(dashboard), "run `python -m deploy.dashboards`"
    assert DOCUMENTS.keys() == {dashboard.name for dashboard in dashboards.DASHBOARDS}


def test_dashboards_are_told_apart() -> None:
    uids = [document["uid"] for document in DOCUMENTS.values()]
    titles = [document["title"] for document in DOCUMENTS.values()]
    assert len(set(uids)) == len(set(titles)) == len(DOCUMENTS)
    assert all(re.fullmatch(r"[a-z-]{1,40}", uid) for uid in uids)


@each_dashboard
def test_panels_are_told_apart_and_do_not_overlap(document: dict[str, Any]) -> None:
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert not any(overlap(one, other) for one, other in combinations(places, 2))


@each_dashboard
def test_every_panel_has_a_question_a_unit_and_the_chosen_data_source(document: dict[str, Any]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in document["panels"]:
        assert panel["description"].endswith("?"), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == chosen
        assert panel["targets"], panel["title"]
        assert all(target["datasource"] == chosen for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each_dashboard
def test_every_variable_is_defined_before_it_is_used_and_every_one_is_used(document: dict[str, Any]) -> None:
    known = {"datasource", "__rate_interval"}
    used = set()
    for name, (series, _) in variables(document).items():
        asked = set(re.findall(r"\$(\w+)", series))
        assert asked <= known, name
        used |= asked
        known.add(name)
    for query in queries(document):
        asked = set(re.findall(r"\$(\w+)", query.expression))
        assert asked <= known, query
        used |= asked
    assert used >= known - {"datasource", "__rate_interval"}
