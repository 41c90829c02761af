"""Killed at any step of removing something, linkspan has it gone after the next start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.agreement import assert_agreement
from tests.e2e.fragile import (
    FragileHost,
    ensure_no_sandbox,
    ensure_two_joins,
    fragile_host,
    has_exited,
    kill_at_every_step,
)
from tests.hosts import wait_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def machine() -> Iterator[FragileHost]:
    with fragile_host() as machine:
        yield machine


@pytest.mark.parametrize("name", ["disconnect", "sandbox rm", "network rm"])
def test_killed_at_any_step_the_next_start_has_it_gone(machine: FragileHost, name: str) -> None:
    kill_at_every_step(machine, name)


def test_killed_while_a_sandboxs_process_ends_the_next_start_has_it_exited(machine: FragileHost) -> None:
    for number in count(1):
        ensure_two_joins(machine)
        process = machine.popen("sleep", "600")
        assert machine.ask("POST", "/linkspan/sandboxes/box/started", {"Pid": process.pid}).status == 204
        box = machine.ask("GET", "/linkspan/sandboxes/box").json
        Path(box["ExitStatusPath"]).write_text("137\n")
        machine.arm("revert", number, "after")
        process.kill()
        process.wait()
        wait_for(lambda: machine.is_dead or has_exited(machine), "linkspand or the sandbox to end")
        is_killed = machine.is_dead
        machine.disarm()
        if is_killed:
            machine.await_death()
            machine.start_fragile()
            wait_for(lambda: has_exited(machine), "the sandbox to have exited")
        assert_agreement(machine)
        ensure_no_sandbox(machine)
        if not is_killed:
            assert number > 6, "two endpoints leave"
            return
