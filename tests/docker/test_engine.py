"""The harness itself, by Docker's own bridge: a real engine, real containers, and nothing left of them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.docker.engine import CLIENTS, Engine
from tests.docker.image import NAME
from tests.docker.lab import SLEEP, bare_lab, lab
from tests.hosts import wait_for
from tests.netns.outside import HOST4, OUTSIDE4


def test_an_engine_runs_containers_that_talk_and_leaves_nothing_on_this_machine() -> None:
    with lab(linkspan=False) as made:
        directory, cgroup = made.host.dir, made.engine.cgroup
        for client in CLIENTS:
            assert made.docker("version", "--format", "{{.Server.Os}}", client=client).stdout == "linux\n"
        first = made.run("first", "bridge", command=("httpd", "-f"))
        second = made.run("second", "bridge", "-p", "8080:80", command=("httpd", "-f"))
        assert first.pings(second.on["IPAddress"])
        assert second.pings(OUTSIDE4)
        assert "404" in made.outside.run("curl", "-sS", f"http://{HOST4}:8080/").stdout
        made.engine.restart(live_restore=True)
        made.docker("start", "first", "second")
        wait_for(lambda: len(made.engine.processes()) == 4, "an init and a program each")
        before = made.engine.processes()
        made.engine.restart()
        assert made.engine.processes() == before
        made.engine.kill()
        assert made.engine.processes() == before
        made.engine.start("--live-restore")
        assert made.docker("ps", "--format", "{{.Names}}").stdout.split() == ["second", "first"]
    assert not directory.exists()
    assert [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{cgroup}")] == []
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    wait_for(lambda: not any(map(_is_alive, before)), "the containers' processes to end")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_two_engines_run_side_by_side() -> None:
    with lab(linkspan=False) as one, lab(linkspan=False) as other:
        assert isinstance(other.engine, Engine)
        for made in (one, other):
            made.docker("run", "-d", "--name", "same", "-p", "80:80", NAME, *SLEEP)
        one.engine.terminate()
        assert other.docker("ps", "--format", "{{.Names}}").stdout == "same\n"


def test_one_that_has_not_come_far_is_ended_too() -> None:
    with bare_lab() as made:
        made.engine.start(wait=False)
        made.engine.stop()
        assert made.docker("version", check=False).returncode != 0
