"""Docker hosts for the suites, one a module. At its end everything is removed by docker, and nothing may be left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.docker import lab as labs
from tests.docker.image import missing_programs
from tests.docker.lab import Lab
from tests.docker.leftovers import leftovers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says what is not tested where there is no root or no engine: the whole front door to Docker."""
    reason = "needs root" if os.geteuid() else ""
    if not reason and (missing := missing_programs()):
        reason = f"no {', '.join(missing)} on this machine: run tools/setup"
    if reason:
        for item in items:
            if item.path.parent.name == "docker":
                item.add_marker(pytest.mark.skip(reason=f"LINKSPAN'S DOCKER PLUGIN IS NOT TESTED: {reason}"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The module's Docker host; tests share it, so each makes networks and containers with names of its own."""
    with labs.lab() as made:
        yield made
        made.clear()
        assert leftovers(made) == []


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Removes the containers and networks that the test made, whether it failed or not; fixtures make theirs before."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: Lab = request.getfixturevalue("lab")
    before = lab.names()
    yield
    after = lab.names()
    if made := after.containers - before.containers:
        lab.remove(*made)
    if made := after.networks - before.networks:
        lab.docker("network", "rm", *made)
