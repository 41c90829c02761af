"""Files and processes of sandboxes, without namespaces: what is written, whose process is whose, who gets killed."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from control.model import Sandbox, SandboxId, SandboxState, utcnow
from control.plan import execute, undo
from control.sandboxes import SandboxFiles, is_running, kill_processes, process_start
from datapath import netns

BOX = Sandbox(id=SandboxId("ab" * 32), name="box", state=SandboxState.CREATED, created=utcnow(), owns_netns=False)
RESOLV = """\
# the host's
search example.org
nameserver 127.0.0.53
nameserver ::1
nameserver 127.9.9.9%lo
nameserver 192.0.2.1
nameserver fe80::1%eth0
nameserver
options edns0
"""


@pytest.fixture
def files(tmp_path: Path) -> SandboxFiles:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(RESOLV)
    (tmp_path / "run" / "sandboxes").mkdir(parents=True)
    return SandboxFiles(tmp_path / "run", resolv)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def running(pid: int) -> Sandbox:
    return msgspec.structs.replace(BOX, state=SandboxState.RUNNING, pid=pid, pid_start=process_start(pid))


def test_files_are_made_once_kept_and_removed(files: SandboxFiles) -> None:
    paths = files.paths(BOX)
    assert not files.is_intact(BOX)
    execute(files.steps(BOX))
    assert files.is_intact(BOX)
    assert Path(paths.hostname).read_text() == "box\n"
    assert Path(paths.hosts).read_text().splitlines()[0] == "127.0.0.1\tlocalhost"
    files.write_hosts(BOX, "10.0.0.1\tbox\n")
    execute(files.steps(BOX))
    assert Path(paths.hosts).read_text() == "10.0.0.1\tbox\n", "made again, it keeps the names"
    undo(files.steps(BOX))
    undo(files.steps(BOX))
    assert not Path(paths.hosts).parent.exists()


def test_the_hosts_file_stays_the_same_file_because_it_may_be_mounted(files: SandboxFiles) -> None:
    execute(files.steps(BOX))
    path = Path(files.paths(BOX).hosts)
    inode = path.stat().st_ino
    for text in ("10.0.0.1\ta-long-name another\n" * 50, "short\n", ""):
        files.write_hosts(BOX, text)
        assert (path.read_text(), path.stat().st_ino) == (text, inode)


def test_a_hosts_file_of_a_sandbox_that_is_gone_is_not_made_again(files: SandboxFiles) -> None:
    files.write_hosts(BOX, "10.0.0.1\tbox\n")
    assert not Path(files.paths(BOX).hosts).exists()


def test_name_servers_on_loopback_are_for_those_who_share_the_hosts_stack(files: SandboxFiles) -> None:
    execute(files.steps(BOX))
    assert Path(files.paths(BOX).resolv_conf).read_text() == RESOLV
    own = msgspec.structs.replace(BOX, owns_netns=True)
    execute(files.steps(own)[:1])
    assert Path(files.paths(own).resolv_conf).read_text() == (
        "# the host's\nsearch example.org\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\noptions edns0\n"
    )


def test_a_host_without_a_resolver_file_gives_an_empty_one(tmp_path: Path) -> None:
    files = SandboxFiles(tmp_path, tmp_path / "absent")
    (tmp_path / "sandboxes").mkdir()
    execute(files.steps(BOX))
    assert Path(files.paths(BOX).resolv_conf).read_text() == ""


@pytest.mark.parametrize(("text", "code"), [("0\n", 0), ("137\n", 137), ("", None), ("x\n", None)])
def test_the_exit_status_is_what_the_supervisor_wrote(files: SandboxFiles, text: str, code: int | None) -> None:
    execute(files.steps(BOX))
    assert files.read_exit_status(BOX) is None
    Path(files.paths(BOX).exit_status).write_text(text)
    assert files.read_exit_status(BOX) == code


def test_a_process_is_told_from_a_later_one_of_the_same_number(sleeper: subprocess.Popen[bytes]) -> None:
    box = running(sleeper.pid)
    assert is_running(box)
    assert box.pid_start is not None
    assert not is_running(msgspec.structs.replace(box, pid_start=box.pid_start - 1))
    assert not is_running(BOX)


def test_a_zombie_does_not_run(sleeper: subprocess.Popen[bytes]) -> None:
    box = running(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(sleeper.pid) is None
    assert not is_running(box)


def test_a_name_with_blanks_and_brackets_does_not_hide_when_a_process_started(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        box = running(process.pid)
        ticks = os.sysconf("SC_CLK_TCK")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        process.kill()
    assert box.pid_start is not None
    assert abs(box.pid_start / ticks - uptime) < 60


def test_killing_ends_the_main_process_and_spares_a_later_one_of_its_number(
    sleeper: subprocess.Popen[bytes],
) -> None:
    box = running(sleeper.pid)
    assert box.pid_start is not None
    kill_processes(msgspec.structs.replace(box, pid_start=box.pid_start - 1), "/nowhere")
    assert sleeper.poll() is None
    kill_processes(box, "/nowhere")
    assert sleeper.wait(10) == -9
    kill_processes(box, "/nowhere")


def test_a_process_that_ends_meanwhile_keeps_no_other_from_being_killed(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is ending, /proc still has the entry, and a namespace no more."""
    ending = subprocess.Popen(["/bin/sleep", "600"])

    def inode(path: object) -> int:
        if str(path) == f"/proc/{ending.pid}/ns/net":
            raise OSError(errno.EINVAL, f"{path} is no network namespace")
        return 7

    monkeypatch.setattr(netns, "is_netns", lambda path: True)
    monkeypatch.setattr(netns, "inode", inode)
    monkeypatch.setattr(netns, "pids_in", lambda inode: [ending.pid, sleeper.pid])
    try:
        kill_processes(msgspec.structs.replace(BOX, owns_netns=True), "/somewhere")
        assert sleeper.wait(10) == -9
        assert ending.poll() is None
    finally:
        ending.kill()
        ending.wait()
