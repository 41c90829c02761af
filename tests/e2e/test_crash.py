"""Killed or failing at any step of any change, linkspan leaves nothing half-made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.api_server import Reply
from tests.e2e import crashing
from tests.e2e.agreement import assert_agreement, shown
from tests.hosts import ROOT, Host, wait_for

pytestmark = pytest.mark.root

NETWORK = {
    "Name": "net",
    "EnableIPv6": True,
    "IPAM": {"Config": [{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.254"}, {"Subnet": "fd07::/64"}]},
}
PEER = {"Name": "peer", "Networks": [{"Network": "other"}]}
ADDRESSES = {"IPAMConfig": {"IPv4Address": "10.7.0.7", "IPv6Address": "fd07::7"}}


class FragileHost(Host):
    """A host whose linkspand dies or fails when it is told to."""

    @property
    def orders(self) -> Path:
        return self.dir / "orders.json"

    def arm(self, phase: str, number: int, how: str) -> None:
        self.orders.write_text(json.dumps({"phase": phase, "number": number, "how": how}))

    def disarm(self) -> None:
        self.orders.unlink(missing_ok=True)

    def start_fragile(self, *, wait: bool = True) -> None:
        program = [sys.executable, crashing.__file__, str(self.orders)]
        self.start("--metrics-listen", "off", program=program, env={"PYTHONPATH": str(ROOT)}, wait=wait)

    def survives_start(self) -> bool:
        """Starts linkspand; False when it is killed before it is ready."""
        self.start_fragile(wait=False)
        assert self._daemon is not None
        try:
            wait_for(self._answers, "linkspand to answer or to die")
        except AssertionError:
            self.await_death()
            return False
        return True

    @property
    def is_dead(self) -> bool:
        assert self._daemon is not None
        return self._daemon.poll() is not None

    def await_death(self) -> None:
        assert self._daemon is not None
        assert self._daemon.wait(20) == -9, self.log()
        self._daemon = None


@pytest.fixture(scope="module")
def machine() -> Iterator[FragileHost]:
    host = FragileHost()
    try:
        host.start_fragile()
        assert host.ask("POST", "/networks/create", {"Name": "other", "EnableIPv6": True}).status == 201
        assert host.ask("POST", "/linkspan/sandboxes", PEER).status == 201
        yield host
    finally:
        host.close()


def ensure_network(host: Host) -> None:
    assert host.ask("POST", "/networks/create", NETWORK).status in (201, 409)


def ensure_no_sandbox(host: Host) -> None:
    assert host.ask("DELETE", "/linkspan/sandboxes/box?force=1").status in (204, 404)


def ensure_no_network(host: Host) -> None:
    ensure_no_sandbox(host)
    assert host.ask("DELETE", "/networks/net").status in (204, 404)


def ensure_sandbox(host: Host) -> None:
    ensure_network(host)
    if host.ask("GET", "/linkspan/sandboxes/box").status == 404:
        assert create_sandbox(host).status == 201


def ensure_network_alone(host: Host) -> None:
    ensure_no_sandbox(host)
    ensure_network(host)


def ensure_two_joins(host: Host) -> None:
    ensure_sandbox(host)
    for reply in (connect(host), host.ask("POST", "/networks/other/connect", {"Container": "box"})):
        assert reply.status == 200 or "already exists" in reply.message


def ensure_other_join_only(host: Host) -> None:
    ensure_two_joins(host)
    disconnect(host)


def create_network(host: Host) -> Reply:
    return host.ask("POST", "/networks/create", NETWORK)


def remove_network(host: Host) -> Reply:
    return host.ask("DELETE", "/networks/net")


def create_sandbox(host: Host) -> Reply:
    return host.ask("POST", "/linkspan/sandboxes", {"Name": "box", "Networks": [{"Network": "net", **ADDRESSES}]})


def remove_sandbox(host: Host) -> Reply:
    return host.ask("DELETE", "/linkspan/sandboxes/box")


def connect(host: Host) -> Reply:
    return host.ask("POST", "/networks/net/connect", {"Container": "box", "EndpointConfig": ADDRESSES})


def disconnect(host: Host) -> Reply:
    return host.ask("POST", "/networks/net/disconnect", {"Container": "box"})


def has_network(host: Host) -> bool:
    return host.ask("GET", "/networks/net").status == 200


def has_sandbox(host: Host) -> bool:
    return host.ask("GET", "/linkspan/sandboxes/box").status == 200


def has_exited(host: Host) -> bool:
    try:
        box = host.ask("GET", "/linkspan/sandboxes/box").json
    except OSError:
        return False
    return box["State"] == "exited" and not box["Networks"]


def has_join(host: Host) -> bool:
    return "net" in host.ask("GET", "/linkspan/sandboxes/box").json["Networks"]


Action = Callable[[Host], Any]
CASES = {
    # phase, what must be there before, the change, what it makes or removes
    "network create": ("apply", ensure_no_network, create_network, has_network),
    "sandbox create": ("apply", ensure_network_alone, create_sandbox, has_sandbox),
    "connect": ("apply", ensure_other_join_only, connect, has_join),
    "disconnect": ("revert", ensure_two_joins, disconnect, has_join),
    "sandbox rm": ("revert", ensure_two_joins, remove_sandbox, has_sandbox),
    "network rm": ("revert", ensure_network_alone, remove_network, has_network),
}
each_case = pytest.mark.parametrize(("phase", "prepare", "change", "is_there"), CASES.values(), ids=CASES.keys())


def other_works(host: Host) -> None:
    peer = host.ask("GET", "/linkspan/sandboxes/peer").json
    gateway = peer["Networks"]["other"]["Gateway"]
    host.run(*host_in(peer), "ping", "-c1", "-W2", gateway)


def host_in(sandbox: Any) -> list[str]:
    return ["nsenter", f"--net={sandbox['NetnsPath']}"]


@each_case
def test_killed_at_any_step_the_next_start_leaves_it_whole_or_gone(
    machine: FragileHost, phase: str, prepare: Action, change: Action, is_there: Action
) -> None:
    is_whole = False
    for number in count(1):
        # Before step 1, and after each; before a later step is after the one before it.
        for how in ("before", "after")[number > 1 :]:
            prepare(machine)
            machine.arm(phase, number, how)
            try:
                reply = change(machine)
            except OSError:
                machine.await_death()
                machine.disarm()
                machine.start_fragile()
                assert not is_whole, "nothing but the last step, which stores it, makes it whole"
                is_whole = is_there(machine)
                assert_agreement(machine)
                continue
            machine.disarm()
            assert reply.status in (200, 201, 204), reply.body
            assert number > 3, "the change has at least three steps"
            assert is_there(machine) == (phase == "apply")
            assert_agreement(machine)
            other_works(machine)
            return


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
