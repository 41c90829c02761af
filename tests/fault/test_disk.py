"""A full disk and a damaged state file under a running linkspand: a clear error, and traffic goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.agreement import assert_agreement, shown
from tests.hosts import Host, host

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    """A host whose state directory is a small file system of its own."""
    with host() as machine:
        machine.run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(machine.state_dir))
        machine.start("--metrics-listen", "off")
        for name in ("a", "b"):
            machine.sandbox(name, "bridge")
        yield machine


@contextmanager
def traffic(machine: Host) -> Iterator[None]:
    """Pings from one sandbox to the other all the time; fails when one packet is lost."""
    a, b = (machine.ask("GET", f"/linkspan/sandboxes/{name}").json for name in "ab")
    address = b["Networks"]["bridge"]["IPAddress"]
    command = ["nsenter", f"--net={a['NetnsPath']}", "ping", "-q", "-i0.005", "-W1", "-w60", address]
    ping = machine.popen(*command, stdout=subprocess.PIPE)
    try:
        yield
    finally:
        ping.send_signal(2)
        output = ping.communicate()[0]
    assert " 0% packet loss" in output, output


def test_on_a_full_disk_changes_are_refused_with_the_reason_and_nothing_is_half_done(machine: Host) -> None:
    before = shown(machine)
    ballast = machine.seen(machine.state_dir) / "ballast"
    with traffic(machine):
        machine.run("sh", "-c", f"cat /dev/zero > {machine.state_dir}/ballast 2>/dev/null; true")
        requests = [
            ("POST", "/networks/create", {"Name": "new"}),
            ("POST", "/linkspan/sandboxes", {"Name": "new", "Networks": [{"Network": "bridge"}]}),
            ("POST", "/networks/bridge/disconnect", {"Container": "a"}),
            ("DELETE", "/linkspan/sandboxes/a", None),
        ]
        # What is left in the last page of the log takes a few writes.
        full = False
        for number in range(200):
            reply = machine.ask("POST", "/networks/create", {"Name": f"filler{number}"})
            if reply.status != 201:
                full = True
                break
            assert machine.ask("DELETE", f"/networks/filler{number}").status in (204, 503)
        assert full
        fillers = [n["Name"] for n in machine.ask("GET", "/networks").json if n["Name"].startswith("filler")]
        for method, path, body in requests:
            reply = machine.ask(method, path, body)
            assert reply.status == 503, (path, reply.body)
            assert f"{machine.state_dir}/linkspan.db: no space left" in reply.message
            assert "free space on its file system" in reply.message
        assert machine.ask("GET", "/networks").status == 200
        ballast.unlink()
        for name in fillers:
            assert machine.ask("DELETE", f"/networks/{name}").status == 204
        assert shown(machine) == before
        assert_agreement(machine)
        assert machine.ask("POST", "/networks/create", {"Name": "new"}).status == 201
        assert machine.ask("DELETE", "/networks/new").status == 204
    assert_agreement(machine)


def test_a_damaged_state_file_is_named_at_start_and_traffic_goes_on(machine: Host) -> None:
    before = shown(machine)
    file = machine.seen(machine.state_dir) / "linkspan.db"
    with traffic(machine):
        machine.stop()
        good = file.read_bytes()
        file.write_bytes(good[:100] + b"\xa5" * (len(good) - 100))
        process = machine.start("--metrics-listen", "off", wait=False)
        assert process.wait(20) == 1
        last = machine.log().splitlines()[-1]
        assert f"state file {machine.state_dir}/linkspan.db is damaged" in last
        assert "restore a copy" in last
        file.write_bytes(good)
        machine.start("--metrics-listen", "off")
        assert shown(machine) == before
    assert_agreement(machine)
