"""A step that fails is undone at once, or gone past, and told; linkspan goes on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.e2e import crashing
from tests.e2e.agreement import assert_agreement, shown
from tests.e2e.fragile import CASES, FragileHost, fragile_host

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def machine() -> Iterator[FragileHost]:
    with fragile_host() as machine:
        yield machine


@pytest.mark.parametrize("case", ["network create", "sandbox create", "connect"])
def test_a_failing_step_is_undone_at_once_and_named(machine: FragileHost, case: str) -> None:
    _, prepare, change, is_there = CASES[case]
    for number in count(1):
        prepare(machine)
        before = shown(machine)
        machine.arm("apply", number, "fail")
        reply = change(machine)
        machine.disarm()
        if reply.status != 500:
            assert reply.status in (200, 201), reply.body
            assert number > 3
            assert is_there(machine)
            return
        assert crashing.FAILURE in reply.message
        assert ("network net" if case != "sandbox create" else "sandbox box") in reply.message
        assert shown(machine) == before
        assert_agreement(machine)


@pytest.mark.parametrize("case", ["disconnect", "network rm"])
def test_a_removal_goes_on_past_a_failing_step_says_so_and_can_be_repeated(machine: FragileHost, case: str) -> None:
    _, prepare, change, is_there = CASES[case]
    for number in count(1):
        prepare(machine)
        machine.arm("revert", number, "fail")
        reply = change(machine)
        machine.disarm()
        if reply.status != 500:
            assert reply.status in (200, 204), reply.body
            assert number > 3
            return
        assert crashing.FAILURE in reply.message
        assert "network net" in reply.message
        assert "repeat" in reply.message
        assert change(machine).status in (200, 204)
        assert not is_there(machine)
        assert_agreement(machine)
