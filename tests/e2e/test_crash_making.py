"""Killed at any step of making something, linkspan has it whole or not at all after the next start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.e2e.agreement import assert_agreement
from tests.e2e.fragile import (
    FragileHost,
    create_sandbox,
    ensure_network_alone,
    fragile_host,
    has_sandbox,
    kill_at_every_step,
)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def machine() -> Iterator[FragileHost]:
    with fragile_host() as machine:
        yield machine


@pytest.mark.parametrize("name", ["network create", "sandbox create", "connect"])
def test_killed_at_any_step_the_next_start_has_it_whole_or_gone(machine: FragileHost, name: str) -> None:
    kill_at_every_step(machine, name)


def test_killed_again_and_again_while_it_recovers_it_recovers_in_the_end(machine: FragileHost) -> None:
    ensure_network_alone(machine)
    machine.arm("apply", 6, "after")
    with pytest.raises(OSError):  # noqa: PT011 - whichever way a connection ends when its server is killed
        create_sandbox(machine)
    machine.await_death()
    for number in count(1):
        machine.arm("revert", number, "after")
        if machine.survives_start():
            break
    assert number > 3, "the recovery has at least three steps"
    machine.disarm()
    assert not has_sandbox(machine)
    assert_agreement(machine)
