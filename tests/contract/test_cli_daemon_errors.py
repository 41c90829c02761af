"""What the command line says when linkspand is away, slow, silent, forbidden or out of its mind; and how it waits."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from control.cli.client import Client, segment
from control.cli.errors import ApiError, CliError
from control.cli.main import main
from tests.cli_fake import FakeDaemon, fake_daemon

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


class Outcome(NamedTuple):
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def linkspan(capsys: pytest.CaptureFixture[str]):
    def run(*args: str) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Outcome(stop.value.code, output.out, output.err)

    return run


def test_a_daemon_that_is_not_there_is_named(linkspan, tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/none.sock"
    expected = f"Cannot connect to linkspand at {host}. Is linkspand running? (systemctl status linkspand)\n"
    assert linkspan("-H", host, "network", "ls") == (1, "", expected)


def test_a_socket_that_nobody_listens_on_is_the_same(linkspan, tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert "Is linkspand running?" in linkspan("--host", f"unix://{path}", "ps").stderr


def test_the_environment_names_the_host(linkspan, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.on("GET", "/networks", [])
    monkeypatch.setenv("LINKSPAN_HOST", daemon.url)
    assert linkspan("network", "ls", "-q") == (0, "", "")


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:2375", "unix:/x", "unix://", "/run/x.sock", "npipe://x"])
def test_hosts_of_other_kinds_are_refused(linkspan, host: str) -> None:
    assert linkspan("-H", host, "network", "ls").stderr == (
        f'invalid host "{host}": linkspand is reached by unix:///path/to/its.sock only\n'
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_who_may_not_use_the_socket_is_told_who_may(linkspan, daemon: FakeDaemon, tmp_path: Path) -> None:
    os.chmod(daemon.socket, 0o600)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o111 != 0o111 and str(directory).startswith("/tmp/"):
            os.chmod(directory, 0o711)
    os.seteuid(NOBODY)
    try:
        outcome = linkspan("-H", daemon.url, "network", "ls")
    finally:
        os.seteuid(0)
    assert outcome.status == 1
    assert outcome.stderr == (
        f"permission denied while trying to connect to linkspand at {daemon.url}: "
        "only root and members of the group linkspan may use it\n"
    )


def test_a_daemon_that_does_not_answer_is_given_up(daemon: FakeDaemon) -> None:
    daemon.on("GET", "/networks", [], delay=1.0)
    with pytest.raises(CliError, match=r"did not answer GET /networks in 0\.1 s"):
        Client(daemon.url, timeout=0.1).get("/networks")


@pytest.mark.parametrize(
    "answer",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", b"HTTP/1.1 abc\r\n\r\n"],
)
def test_an_answer_that_is_no_http_is_an_error(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "raw.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CliError, match=f"error during GET /networks at unix://{path}: "):
            Client(f"unix://{path}").get("/networks")
        thread.join()


def test_an_answer_that_is_no_json_is_an_error(daemon: FakeDaemon) -> None:
    daemon.on("GET", "/networks", b"<html>")
    with pytest.raises(CliError, match="sent an answer that is not JSON"):
        Client(daemon.url).get("/networks")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"message": "no space left"}, "no space left"),
        (b"plain words\n", "503 Service Unavailable: plain words"),
        (b"", "503 Service Unavailable"),
        ([1], "503 Service Unavailable: [1]"),
        ({"error": 1}, '503 Service Unavailable: {"error": 1}'),
    ],
)
def test_a_refusal_shows_the_message_or_all_there_is(daemon: FakeDaemon, body: object, shown: str) -> None:
    daemon.on("GET", "/networks", body, 503)
    with pytest.raises(ApiError) as refusal:
        Client(daemon.url).get("/networks")
    assert refusal.value.message == f"Error response from daemon: {shown}"
    assert refusal.value.status == 503


@pytest.mark.parametrize("name", ["a/../../x", "?all=1", "a b", "é", "%2e", "#x"])
def test_a_name_cannot_become_another_path(linkspan, daemon: FakeDaemon, name: str) -> None:
    linkspan("-H", daemon.url, "network", "inspect", name)
    (request,) = daemon.requests
    assert request.path == f"/networks/{segment(name)}"
    assert re.fullmatch(r"/networks/[^/?#]+", request.path)


def test_a_warning_of_the_daemon_is_shown_beside_the_id(linkspan, daemon: FakeDaemon) -> None:
    daemon.on("POST", "/networks/create", {"Id": "f" * 64, "Warning": "two pools overlap"}, 201)
    assert linkspan("-H", daemon.url, "network", "create", "n") == (
        0,
        "f" * 64 + "\n",
        "WARNING: two pools overlap\n",
    )


def run_on_terminal(daemon: FakeDaemon) -> tuple[str, str]:
    """Lists networks with stderr on a terminal; returns stdout and what the terminal got."""
    main_end, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "control.cli.main", "-H", daemon.url, "network", "ls", "-q"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True,
    )  # fmt: skip
    stdout, _ = process.communicate(timeout=30)
    os.close(terminal)
    drawn = b""
    try:
        while chunk := os.read(main_end, 4096):
            drawn += chunk
    except OSError:  # the end of a terminal that nobody has open any more
        pass
    os.close(main_end)
    return stdout, drawn.decode()


def test_progress_shows_on_a_terminal_after_a_second_and_goes(daemon: FakeDaemon) -> None:
    daemon.on("GET", "/networks", [], delay=1.5)
    stdout, drawn = run_on_terminal(daemon)
    assert stdout == ""
    assert re.search(r"[|/\\-] listing networks \(1s\)", drawn)
    assert drawn.endswith("\r\x1b[K")


def test_a_quick_answer_draws_nothing(daemon: FakeDaemon) -> None:
    daemon.on("GET", "/networks", [])
    assert run_on_terminal(daemon) == ("", "")


def test_a_reader_that_goes_away_ends_the_command_quietly(daemon: FakeDaemon) -> None:
    sample = {"Name": "n", "Id": "f" * 64, "Created": "2024-01-01T00:00:00Z", "Driver": "bridge", "Scope": "local"}
    daemon.on("GET", "/networks", [sample] * 5000)
    command = f"{sys.executable} -m control.cli.main -H {daemon.url} network ls | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("NETWORK ID")
    assert done.stderr == ""
