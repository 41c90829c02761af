"""`linkspan run` and `exec` with real namespaces, before a daemon of canned answers: what the program sees."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datapath import netns
from tests.cli_fake import FakeDaemon, Request, fake_daemon
from tests.isolated import isolated, run

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
ID = "5" * 64
PATH = f"/linkspan/sandboxes/{ID}"
DEADLINE_S = 20.0
SUPERVISOR_MAX_KIB = 12 * 1024


def wait_for(claim: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (result := claim()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)
    return result


class Bench:
    """A sandbox that the daemon will hand out, and the command line to run in it."""

    def __init__(self, daemon: FakeDaemon, directory: Path, *, owns_netns: bool = True) -> None:
        self.daemon = daemon
        self.netns = directory / "netns"
        self.files = directory / "files"
        self.files.mkdir()
        self.status_file = self.files / "exit-status"
        for name, text in (
            ("hosts", "10.9.8.7\tpeer\n"),
            ("resolv.conf", "nameserver 192.0.2.53\n"),
            ("hostname", "web\n"),
        ):
            (self.files / name).write_text(text)
        netns.create(self.netns)
        self.sandbox = {
            "Id": ID,
            "Name": "web",
            "State": "created",
            "OwnsNetns": owns_netns,
            "NetnsPath": str(self.netns),
            "HostsPath": str(self.files / "hosts"),
            "ResolvConfPath": str(self.files / "resolv.conf"),
            "HostnamePath": str(self.files / "hostname"),
            "ExitStatusPath": str(self.status_file),
        }
        daemon.on("POST", "/linkspan/sandboxes", self.sandbox, 201)
        daemon.on("POST", f"{PATH}/started", status=204)
        daemon.on("DELETE", PATH, status=204)
        daemon.on("GET", "/linkspan/sandboxes/web", self.sandbox)

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "control.cli.main", "-H", self.daemon.url, *args]

    def linkspan(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False, **options
        )

    def popen(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*args), cwd=ROOT, text=True, stdout=subprocess.PIPE, **options)

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.daemon.requests if (request.method, request.path) == (method, path)]

    def started_pid(self) -> int:
        (request,) = self.asked("POST", f"{PATH}/started")
        return int(request.body["Pid"])

    def exit_status(self) -> str:
        return self.status_file.read_text() if self.status_file.exists() else ""


@contextmanager
def bench(**options: Any) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as name, fake_daemon(Path(name)) as daemon:
        made = Bench(daemon, Path(name), **options)
        try:
            yield made
        finally:
            netns.delete(made.netns)


@isolated
def test_the_exit_code_is_the_programs_and_is_left_for_the_daemon() -> None:
    with bench() as b:
        done = b.linkspan("run", "--net", "n", "--name", "web", "--", "sh", "-c", "echo out $$; echo err >&2; exit 7")
        assert done.returncode == 7
        assert done.stdout == f"out {b.started_pid()}\n"
        assert done.stderr == "err\n"
        assert b.exit_status() == "7\n"
        assert not b.asked("DELETE", f"{PATH}?force=1")


@isolated
def test_the_request_says_what_the_command_line_says() -> None:
    with bench() as b:
        b.linkspan(
            "run", "--net=n,m", "--network",
            "name=o,ip=10.1.0.9,alias=x,alias=y,driver-opt=k=v,mac-address=02:00:00:00:00:02,"
            "link-local-ip=169.254.1.3,link-local-ip=fe80::3",
            "--name", "web", "--ip", "10.0.0.9", "--ip6", "fd00::9",
            "--link-local-ip", "169.254.1.1", "--link-local-ip", "fe80::2", "--mac-address", "02:00:00:00:00:01",
            "--alias", "a", "--network-alias", "b", "-l", "k=v", "--label", "solo", "--", "true", "-d", "--rm",
        )  # fmt: skip
        (created,) = b.asked("POST", "/linkspan/sandboxes")
        assert created.body == {
            "Name": "web",
            "Command": ["true", "-d", "--rm"],
            "Labels": {"k": "v", "solo": ""},
            "Networks": [
                {
                    "Network": "n",
                    "IPAMConfig": {
                        "IPv4Address": "10.0.0.9",
                        "IPv6Address": "fd00::9",
                        "LinkLocalIPs": ["169.254.1.1", "fe80::2"],
                    },
                    "MacAddress": "02:00:00:00:00:01",
                    "Aliases": ["a", "b"],
                },
                {"Network": "m"},
                {
                    "Network": "o",
                    "IPAMConfig": {"IPv4Address": "10.1.0.9", "LinkLocalIPs": ["169.254.1.3", "fe80::3"]},
                    "Aliases": ["x", "y"],
                    "DriverOpts": {"k": "v"},
                    "MacAddress": "02:00:00:00:00:02",
                },
            ],
        }


@isolated
def test_the_program_sees_the_sandbox_and_the_host_does_not() -> None:
    with bench() as b:
        run("ip link add inside type veth peer name outside")
        run(f"nsenter --net={b.netns} ip link add eth7 type veth peer name eth8")
        before = {
            name: Path(f"/etc/{name}").read_text() for name in ("hosts", "resolv.conf") if Path(f"/etc/{name}").exists()
        }
        cgroups = run("grep ' /sys/fs/cgroup' /proc/self/mountinfo | cut -d' ' -f5 | sort")
        script = (
            "stat -L -c %i /proc/self/ns/net; hostname; cat /etc/hosts; ls /sys/class/net | tr '\\n' ' '; echo;"
            "grep ' /sys/fs/cgroup' /proc/self/mountinfo | cut -d' ' -f5 | sort -u"
        )
        done = b.linkspan("run", "--", "sh", "-c", script)
        lines = done.stdout.splitlines()
        assert lines[:3] == [str(os.stat(b.netns).st_ino), "web", "10.9.8.7\tpeer"], done.stderr
        assert lines[3].split() == ["eth7", "eth8", "lo"]
        assert lines[4:] == sorted(set(cgroups.splitlines()))
        assert {name: Path(f"/etc/{name}").read_text() for name in before} == before
        if "resolv.conf" in before:
            assert b.linkspan("run", "--", "cat", "/etc/resolv.conf").stdout == "nameserver 192.0.2.53\n"


@isolated
def test_the_hosts_file_is_seen_to_change() -> None:
    with bench() as b:
        process = b.popen("run", "--", "sh", "-c", "read x; cat /etc/hosts", stdin=subprocess.PIPE)
        wait_for(lambda: b.asked("POST", f"{PATH}/started"), "the program to start")
        with open(b.files / "hosts", "r+") as hosts:
            hosts.write("10.9.8.6\tother\n")
        assert process.communicate("go\n", timeout=DEADLINE_S)[0] == "10.9.8.6\tother\n"


@isolated
def test_mounts_made_on_the_host_appear_inside_but_not_the_other_way() -> None:
    run("mount --make-rshared /")
    with bench() as b:
        point = b.files / "mnt"
        point.mkdir()
        process = b.popen(
            "run", "--", "sh", "-c", f"mount -t tmpfs in /media; read x; ls {point}", stdin=subprocess.PIPE
        )
        wait_for(lambda: b.asked("POST", f"{PATH}/started"), "the program to start")
        run(f"mount -t tmpfs out {point} && touch {point}/mark")
        try:
            assert process.communicate("go\n", timeout=DEADLINE_S)[0] == "mark\n"
            assert " /media " not in Path("/proc/thread-self/mountinfo").read_text()
        finally:
            run(f"umount {point}")


@isolated
def test_a_sandbox_on_the_hosts_network_has_the_hosts_view() -> None:
    with bench(owns_netns=False) as b:
        script = "for n in net mnt uts; do readlink /proc/self/ns/$n; done"
        assert b.linkspan("run", "--net", "host", "--", "sh", "-c", script).stdout == run(script)


@isolated
def test_standard_input_environment_and_directory_reach_the_program() -> None:
    with bench() as b:
        environment = {**os.environ, "KEPT": "k"}
        done = b.linkspan(
            "run", "-i", "-e", "NEW=n=1", "-e", "KEPT", "-w", "/usr", "sh", "-c", "cat; echo $NEW $KEPT; pwd",
            input="text\n", env=environment,
        )  # fmt: skip
        assert done.stdout == "text\nn=1 k\n/usr\n"


@isolated
def test_the_program_starts_with_default_signals() -> None:
    with bench() as b:
        shown = b.linkspan("run", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status").stdout.split()
        # 32 and 33 belong to the C library and cannot be set through it; what they are is inherited.
        assert [int(field, 16) & 0x7FFFFFFF for field in shown[1::2]] == [0, 0]


@isolated
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_shows_in_the_exit_code(number: signal.Signals) -> None:
    with bench() as b:
        process = b.popen("run", "sleep", "60")
        wait_for(lambda: b.asked("POST", f"{PATH}/started"), "the program to start")
        wait_for(lambda: Path(f"/proc/{b.started_pid()}/comm").read_text() == "sleep\n", "sleep to run")
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 128 + number
        assert b.exit_status() == f"{128 + number}\n"
        assert process.stdout is not None
        process.stdout.close()


@isolated
def test_the_terminals_interrupt_reaches_the_program_once() -> None:
    with bench() as b:
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            wait = "while [ ! $n ]; do sleep 0.05; done; sleep 0.3"
            script = f"trap 'echo caught; n=$((n+1))' INT; echo ready; {wait}; exit 4$n"
            command = b.command("run", "sh", "-c", script)
            os.execv(command[0], command)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 41
        os.close(terminal)


@isolated
def test_the_terminals_stop_stops_both_and_continue_resumes_both() -> None:
    with bench() as b:
        # The shell in between has job control, as the user's has: it gets the terminal back when its job stops.
        command = " ".join(b.command("run", "sh", "-c", "'echo started; sleep 1; exit 5'"))
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            os.execv(
                "/bin/bash",
                ["bash", "--norc", "-c", f"set -m; {command}; echo first $?; fg >/dev/null; echo second $?"],
            )
        seen = b""
        while b"started" not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, b"\x1a")
        while b"second" not in seen or not seen.endswith(b"\n"):
            seen += os.read(terminal, 4096)
        os.waitpid(pid, 0)
        os.close(terminal)
        assert b"first 14" in seen  # 128 and SIGTSTP or SIGSTOP
        assert b"second 5" in seen


@isolated
@pytest.mark.parametrize("detach", [[], ["-d"]])
@pytest.mark.parametrize(
    ("command", "code", "problem"),
    [
        (["no-such-program"], 127, 'linkspan: exec "no-such-program": executable file not found in $PATH'),
        (["/no/such/program"], 127, 'linkspan: exec "/no/such/program": no such file or directory'),
        (["/etc/passwd"], 126, 'linkspan: exec "/etc/passwd": permission denied'),
        (["/etc"], 126, 'linkspan: exec "/etc": permission denied'),
        ([""], 127, 'linkspan: exec "": executable file not found in $PATH'),
        (["-w", "/no/such/place", "true"], 126, 'linkspan: chdir to "/no/such/place": No such file or directory'),
    ],
)
def test_a_command_that_cannot_start_leaves_no_sandbox(
    detach: list[str], command: list[str], code: int, problem: str
) -> None:
    with bench() as b:
        done = b.linkspan("run", *detach, *command)
        assert done.returncode == code
        assert done.stdout == ""
        assert done.stderr == f"{problem}\n\nRun 'linkspan run --help' for more information\n"
        assert len(b.asked("DELETE", f"{PATH}?force=1")) == 1
        assert not b.exit_status()


@isolated
@pytest.mark.parametrize("detach", [[], ["-d"]])
def test_nothing_runs_that_the_daemon_does_not_know_of(detach: list[str]) -> None:
    with bench() as b:
        mark = b.files / "mark"
        b.daemon.on("POST", f"{PATH}/started", {"message": "the store is full"}, 500)
        done = b.linkspan("run", *detach, "touch", str(mark))
        assert done.returncode == 125
        assert done.stderr.startswith("linkspan: Error response from daemon: the store is full\n")
        assert not mark.exists()
        assert len(b.asked("DELETE", f"{PATH}?force=1")) == 1


@isolated
def test_a_sandbox_that_cannot_be_entered_or_removed_is_named() -> None:
    with bench() as b:
        netns.delete(b.netns)
        b.daemon.on("DELETE", PATH, {"message": "no"}, 500)
        done = b.linkspan("run", "true")
        assert done.returncode == 125
        assert done.stderr.startswith("linkspan: cannot enter sandbox web: ")
        assert f"sandbox {ID[:12]} is left: Error response from daemon: no" in done.stderr


@isolated
def test_rm_removes_the_sandbox_after_the_program() -> None:
    with bench() as b:
        assert b.linkspan("run", "--rm", "sh", "-c", "exit 3").returncode == 3
        assert [request.method for request in b.daemon.requests] == ["POST", "POST", "DELETE"]


def supervisor_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def memory_kib(pid: int, name: str) -> int:
    line = next(
        line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith(f"{name}:")
    )
    return int(line.split()[1])


@isolated
def test_a_detached_program_runs_under_a_small_supervisor_of_its_own_session() -> None:
    with bench() as b:
        done = b.linkspan("run", "-d", "sh", "-c", "echo out; echo err >&2; exec sleep 60")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{ID}\n", "")
        pid = b.started_pid()
        wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "sleep to run")
        supervisor = supervisor_of(pid)
        try:
            assert b"waiter.py" in wait_for(lambda: Path(f"/proc/{supervisor}/cmdline").read_bytes(), "the supervisor")
            wait_for(lambda: memory_kib(supervisor, "Rss") < SUPERVISOR_MAX_KIB, "the supervisor to be small")
            assert os.getsid(pid) == supervisor
            assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
            assert b.linkspan("logs", "web").stdout == "out\nerr\n"
            assert b.linkspan("logs", "-n", "1", "web").stdout == "err\n"
            # The supervisor outlives the signals that end a session.
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                os.kill(supervisor, number)
        finally:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: b.exit_status() == "137\n", "the exit status")
        wait_for(lambda: not Path(f"/proc/{supervisor}").exists() or is_zombie(supervisor), "the supervisor to end")


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@isolated
def test_a_detached_sandbox_is_removed_by_its_supervisor() -> None:
    with bench() as b:
        assert b.linkspan("run", "-d", "--rm", "sh", "-c", "exit 3").returncode == 0
        wait_for(lambda: b.asked("DELETE", f"{PATH}?force=1"), "the removal")
        assert b.exit_status() == "3\n"


@isolated
def test_logs_follow_until_the_program_ends() -> None:
    with bench() as b:
        assert b.linkspan("run", "-d", "sh", "-c", "echo one; sleep 0.5; echo two").returncode == 0
        running = {**b.sandbox, "State": "running"}
        b.daemon.on("GET", PATH, running)
        process = b.popen("logs", "-f", "web")
        wait_for(b.exit_status, "the program to end")
        b.daemon.on("GET", PATH, {**b.sandbox, "State": "exited"})
        assert process.communicate(timeout=DEADLINE_S)[0] == "one\ntwo\n"


@isolated
def test_logs_of_a_foreground_sandbox_are_explained() -> None:
    with bench() as b:
        done = b.linkspan("logs", "web")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "sandbox web has no log: only the output of run --detach is kept\n"


@isolated
def test_exec_enters_the_sandbox_and_becomes_the_program() -> None:
    with bench() as b:
        script = "stat -L -c %i /proc/self/ns/net; hostname; cat /etc/hosts; echo $X; pwd; exit 9"
        for separator in ([], ["--"]):
            done = b.linkspan("exec", "-e", "X=1", "-w", "/usr", "web", *separator, "sh", "-c", script)
            expected = f"{os.stat(b.netns).st_ino}\nweb\n10.9.8.7\tpeer\n1\n/usr\n"
            assert (done.returncode, done.stdout) == (9, expected)
        assert not b.asked("POST", f"{PATH}/started")


@isolated
def test_exec_says_what_cannot_be_run() -> None:
    with bench() as b:
        done = b.linkspan("exec", "web", "no-such-program")
        assert (done.returncode, done.stderr) == (
            127,
            'linkspan: exec "no-such-program": executable file not found in $PATH\n',
        )
        b.daemon.on("GET", "/linkspan/sandboxes/web", {**b.sandbox, "State": "exited"})
        done = b.linkspan("exec", "web", "true")
        assert (done.returncode, done.stderr) == (1, "Error response from daemon: sandbox web is not running\n")


@isolated
def test_nothing_of_a_run_is_left_in_the_callers_namespaces() -> None:
    with bench() as b:
        before = run("cat /proc/self/mountinfo; hostname; ls -l /proc/self/ns")
        assert b.linkspan("run", "true").returncode == 0
        after = run("cat /proc/self/mountinfo; hostname; ls -l /proc/self/ns")
        assert json.dumps(after.split(" -> ")[1:]) == json.dumps(before.split(" -> ")[1:])
