"""dockerd ends and comes back, in order or not, with and without --live-restore, and linkspand with it or after it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.docker import lab as labs
from tests.docker.lab import Lab
from tests.docker.leftovers import leftovers
from tests.docker.populated import assert_all_well, populated, unharmed
from tests.hosts import wait_for


@pytest.fixture(scope="module", params=["--live-restore", "--live-restore=false"])
def flag(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lab(flag: str) -> Iterator[Lab]:
    with populated(flag) as made:
        yield made


def while_away(lab: Lab, flag: str, stack: ExitStack) -> None:
    """With --live-restore containers go on, and must not notice."""
    if flag == "--live-restore":
        stack.enter_context(unharmed(lab))


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_dockerd_comes_back(lab: Lab, flag: str, end: str) -> None:
    with ExitStack() as stack:
        while_away(lab, flag, stack)
        getattr(lab.engine, end)()
        lab.engine.start(flag)
    assert_all_well(lab)


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_dockerd_comes_back_before_linkspand(lab: Lab, flag: str, end: str) -> None:
    with ExitStack() as stack:
        while_away(lab, flag, stack)
        getattr(lab.engine, end)()
        lab.host.stop(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        lab.engine.start(flag, wait=False)
        wait_for(lambda: "linkspan" in lab.engine.log(), "dockerd to ask for its plugin", 10)
        lab.host.start()
        lab.engine.wait()
    assert_all_well(lab)


def test_linkspand_appears_after_a_first_start_of_dockerd() -> None:
    with labs.lab(linkspan=False) as made:
        create = ("network", "create", "-d", "linkspan", "--ipam-driver", "linkspan", "--subnet", "10.120.0.0/24", "n")
        done = made.docker(*create, check=False)
        assert done.returncode == 1
        assert "linkspan" in done.stderr
        made.host.start()
        made.docker(*create)
        one, other = made.run("one", "n"), made.run("other", "n")
        assert one.pings(other.ip4)
        made.assert_agreement()
        made.clear()
        assert leftovers(made) == []
