"""linkspand as a process, with a controller that needs no kernel: readiness, socket, signals, refusals to start."""

from __future__ import annotations

import grp
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api_server import DEADLINE_SECONDS, ask
from tests.waiting import until

# argv[1] says how the fake behaves: "" well, "stuck": changes never end, else: that text is its start's error.
PROGRAM = """
import sys, threading
from control import daemon
from control.errors import StoreError
from tests.fakes import FakeDriver, fake_controller

mood = sys.argv.pop(1)
driver = FakeDriver()

def build(config):
    if mood not in ("", "stuck"):
        raise StoreError(mood)
    controller = fake_controller(config.run_dir, driver)
    if mood == "stuck":
        start = controller.start
        def start_and_stick():
            start()
            driver.gate = threading.Event()
        controller.start = start_and_stick
    return controller

daemon.build_controller = build
daemon.require_capabilities = lambda: None
sys.exit(daemon.main())
"""

OWN_GROUP = grp.getgrgid(os.getgid()).gr_name


class Daemon:
    """One linkspand under test; `log` is its stderr so far, complete once it has ended."""

    def __init__(self, directory: Path, *flags: str, mood: str = "", env: dict[str, str] | None = None) -> None:
        self.socket_path = directory / "run" / "linkspan.sock"
        self._log_path = directory / f"log-{time.monotonic_ns()}"
        words = [sys.executable, "-c", PROGRAM, mood, f"--run-dir={directory}/run", f"--state-dir={directory}/state"]
        words += [f"--plugin-socket={directory}/plugin.sock", "--metrics-listen=off"]
        words += [f"--group={OWN_GROUP}"]  # the last of a flag counts
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, *flags], stderr=log, env=os.environ | (env or {}), cwd=Path(__file__).parents[2]
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def ready(self) -> Daemon:
        until(lambda: "is ready on" in self.log or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        return self

    def ended(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Daemon] = []

    def start(*flags: str, **kwargs: object) -> Daemon:
        daemon = Daemon(tmp_path, *flags, **kwargs)  # type: ignore[arg-type]
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        daemon.process.kill()
        daemon.process.wait()


def test_systemd_is_told_when_it_serves_and_when_it_stops(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(DEADLINE_SECONDS)
        channel.bind(str(tmp_path / "notify"))
        daemon = start(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert channel.recv(100).decode().splitlines() == ["READY=1", f"MAINPID={daemon.process.pid}"]
        assert ask(daemon.socket_path, "GET", "/_ping").status == 200
        daemon.process.terminate()
        assert channel.recv(100) == b"STOPPING=1"
    assert daemon.ended() == 0
    assert not daemon.socket_path.exists()


def test_an_abstract_notify_socket_is_understood(start: Start) -> None:
    name = f"linkspan-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(DEADLINE_SECONDS)
        channel.bind(f"\0{name}")
        start(env={"NOTIFY_SOCKET": f"@{name}"})
        assert channel.recv(100).startswith(b"READY=1")


def test_the_socket_is_for_root_and_its_group(start: Start) -> None:
    daemon = start(f"--group={OWN_GROUP}").ready()
    found = daemon.socket_path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())
    assert stat.S_IMODE(daemon.socket_path.parent.stat().st_mode) == 0o711
    assert stat.S_IMODE((daemon.socket_path.parents[1] / "state").stat().st_mode) == 0o700


def test_without_the_group_the_socket_is_for_root_alone_with_a_warning(start: Start) -> None:
    daemon = start("--group=no-such-group").ready()
    assert stat.S_IMODE(daemon.socket_path.stat().st_mode) == 0o600
    assert 'there is no group "no-such-group": only root can use' in daemon.log


def test_the_socket_of_a_dead_daemon_is_replaced(start: Start) -> None:
    first = start().ready()
    first.process.kill()
    first.process.wait()
    assert first.socket_path.is_socket()
    second = start().ready()
    assert ask(second.socket_path, "GET", "/_ping").status == 200


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(start: Start) -> None:
    first = start().ready()
    second = start()
    assert second.ended() == 1
    assert f"belongs to another linkspand, process {first.process.pid}" in second.log
    assert len(second.log.splitlines()) == 1
    assert ask(first.socket_path, "GET", "/_ping").status == 200


def test_a_state_directory_serves_one_daemon(start: Start, tmp_path: Path) -> None:
    first = start().ready()
    second = start(f"--run-dir={tmp_path}/run2")
    assert second.ended() == 1
    assert f"{tmp_path}/state belongs to another linkspand, process {first.process.pid}" in second.log


@pytest.mark.parametrize("name", ["run/linkspan.sock", "plugin.sock"])
def test_a_socket_that_somebody_else_serves_is_left_alone(start: Start, tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / name
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        daemon = start()
        assert daemon.ended() == 1
        assert f"cannot listen on {path}: process {os.getpid()} serves it already" in daemon.log
        assert path.is_socket()


def test_a_file_in_the_sockets_place_is_left_alone(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "linkspan.sock").write_text("precious")
    daemon = start()
    assert daemon.ended() == 1
    assert "there is a file that is not a socket" in daemon.log
    assert (tmp_path / "run" / "linkspan.sock").read_text() == "precious"


def test_a_directory_that_cannot_be_made_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    daemon = start(f"--state-dir={tmp_path}/file/state")
    assert daemon.ended() == 1
    assert f"cannot use {tmp_path}/file/state: Not a directory" in daemon.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_politely(start: Start, number: signal.Signals) -> None:
    daemon = start().ready()
    daemon.process.send_signal(number)
    assert daemon.ended() == 0
    assert "networks and sandboxes go on" in daemon.log


def test_a_hangup_stops_nothing(start: Start) -> None:
    daemon = start().ready()
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "takes a restart" in daemon.log)
    assert ask(daemon.socket_path, "GET", "/_ping").status == 200


def stuck(start: Start) -> tuple[Daemon, socket.socket]:
    """A daemon in the midst of a change that never ends, and the connection that asked for it."""
    daemon = start(mood="stuck").ready()
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    asking.connect(str(daemon.socket_path))
    body = b'{"Name":"blue"}'
    head = f"POST /networks/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    asking.sendall(head.encode() + b"\r\n\r\n" + body)
    until(lambda: any(n["Name"] == "blue" for n in ask(daemon.socket_path, "GET", "/networks").json))
    return daemon, asking


def test_a_change_that_never_ends_delays_a_stop_by_five_seconds_at_most(start: Start) -> None:
    daemon, asking = stuck(start)
    with asking:
        begin = time.monotonic()
        daemon.process.terminate()
        assert daemon.ended() == 0
        assert time.monotonic() - begin < 8  # what the machine's load adds, included


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    daemon, asking = stuck(start)
    with asking:
        daemon.process.terminate()
        until(lambda: "stopping" in daemon.log)
        begin = time.monotonic()
        daemon.process.terminate()
        assert daemon.ended() == 1
        assert time.monotonic() - begin < 4.5  # less than the five seconds that it would wait


def test_open_event_streams_do_not_delay_a_stop(start: Start) -> None:
    daemon = start().ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as reader:
        reader.settimeout(DEADLINE_SECONDS)
        reader.connect(str(daemon.socket_path))
        reader.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert reader.recv(4096).startswith(b"HTTP/1.1 200")
        begin = time.monotonic()
        daemon.process.terminate()
        assert daemon.ended() == 0
        assert time.monotonic() - begin < 4.5  # less than the five seconds that it would wait


def test_what_keeps_it_from_starting_is_one_clear_line(start: Start) -> None:
    daemon = start(mood="state file /x is damaged: restore a copy in its place")
    assert daemon.ended() == 1
    assert len(daemon.log.splitlines()) == 1
    assert "CRITICAL linkspand: state file /x is damaged: restore a copy in its place" in daemon.log


def test_a_configuration_that_cannot_be_used_is_status_2(start: Start, tmp_path: Path) -> None:
    daemon = start(f"--config={tmp_path}/nosuch.toml")
    assert daemon.ended() == 2
    assert daemon.log == f"linkspand: cannot read {tmp_path}/nosuch.toml: No such file or directory\n"


def test_an_unknown_flag_is_status_2(start: Start) -> None:
    daemon = start("--no-such-flag")
    assert daemon.ended() == 2
    assert "--no-such-flag" in daemon.log


def test_metrics_are_served_where_they_were_asked_for(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start(f"--metrics-listen=127.0.0.1:{port}").ready()
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    assert b"linkspan_build_info" in received


def test_a_metrics_port_that_is_taken_is_named(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = start(f"--metrics-listen=127.0.0.1:{port}")
        assert daemon.ended() == 1
        assert f"cannot serve metrics on 127.0.0.1:{port}: Address already in use" in daemon.log


def test_under_the_journal_lines_carry_their_priority(tmp_path: Path) -> None:
    log = tmp_path / "journal"
    log.touch()
    found = log.stat()
    program = [sys.executable, "-c", PROGRAM, "no", f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}/state"]
    program.append(f"--group={OWN_GROUP}")
    environment = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    with log.open("ab") as stream:
        status = subprocess.run(
            program, stderr=stream, env=environment, cwd=Path(__file__).parents[2], check=False
        ).returncode
    assert status == 1
    assert log.read_text() == "<2>linkspand: no\n"


def test_missing_capabilities_are_named_before_anything_is_touched(tmp_path: Path) -> None:
    drop = ["setpriv", "--bounding-set=-net_admin,-sys_admin"] if os.geteuid() == 0 else []
    program = [sys.executable, "-m", "control.daemon", f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}/state"]
    done = subprocess.run([*drop, *program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 1
    assert "linkspand needs CAP_NET_ADMIN and CAP_SYS_ADMIN" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_it_stays_under_60_mb_with_everything_imported_that_a_real_one_has(start: Start) -> None:
    daemon = start().ready()
    for number in range(50):
        ask(daemon.socket_path, "POST", "/networks/create", {"Name": f"net{number}", "IPAM": {"Config": []}})
        ask(daemon.socket_path, "GET", "/networks")
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    resident_kib = int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])
    assert resident_kib < 60 * 1024
    assert "LLVM" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()
