"""The docker clients of this machine, in front of linkspand, and beside our own in front of a recording daemon."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from control.cli.main import main
from tests.cli_fake import FakeDaemon, Request

MINIMUM = (28, 0)
NONE_FOUND: Final = "there is no docker command on this machine: run tools/setup, or apt-get install docker.io"


class DockerClient(NamedTuple):
    """One docker command; sorted by version."""

    version: tuple[int, ...]
    path: str

    def __str__(self) -> str:
        return f"docker-{'.'.join(map(str, self.version))}"


def _found() -> list[DockerClient]:
    """Every different docker command, the newest first: that of PATH, the administrator's, and the distribution's."""
    paths = {shutil.which("docker", path=path) for path in (None, "/usr/local/bin", "/usr/bin")}
    real = {str(Path(path).resolve()) for path in paths if path is not None}
    return sorted((DockerClient(_version(path), path) for path in real), reverse=True)


def _version(path: str) -> tuple[int, ...]:
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


CLIENTS: Final = _found()
NEWEST_CLIENT: Final = CLIENTS[0] if CLIENTS else DockerClient((), "")

docker_needed = pytest.mark.skipif(
    NEWEST_CLIENT.version < MINIMUM, reason=f"needs a docker client of version {MINIMUM[0]} or later to compare with"
)


class Docker:
    """A docker command in front of an engine, without the settings of whoever runs the tests; `home` is its HOME."""

    def __init__(self, client: DockerClient, host: str, home: Path) -> None:
        self.client = client
        self._host = host
        self._home = home

    def __call__(
        self, *words: str, status: int = 0, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs it; fails unless it exits with `status`."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def command(self, *words: str) -> list[str]:
        return [self.client.path, "-H", self._host, *words]

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self._home), "PATH": "/usr/bin:/bin"}


class Outcome(NamedTuple):
    status: int
    stdout: str
    stderr: str
    requests: list[Request]


class Pair:
    """The two clients in front of one daemon."""

    def __init__(self, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.daemon = daemon
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def docker(self, *args: str, stdin: str = "") -> Outcome:
        command = [NEWEST_CLIENT.path, "-H", self.daemon.url, *args]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=30, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr, self.daemon.asked())

    def ours(self, *args: str, stdin: str = "") -> Outcome:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stop:
            main(["-H", self.daemon.url, *args])
        output = self._capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Outcome(stop.value.code, output.out, output.err, self.daemon.asked())

    def assert_same(self, *args: str, stdin: str = "") -> None:
        """Fails unless both send the same requests, print the same, and exit alike."""
        theirs = self.docker(*args, stdin=stdin)
        ours = self.ours(*args, stdin=stdin)
        # 28.x says "exit status 1" below the errors of several removals: no news to anyone.
        wanted = theirs._replace(stderr=renamed(theirs.stderr.removesuffix("exit status 1\n")))
        sent = [[comparable(request) for request in outcome.requests] for outcome in (ours, wanted)]
        pairs: list[tuple[Any, Any]] = [(ours.status, wanted.status), (ours.stdout, wanted.stdout)]
        pairs += [(ours.stderr, wanted.stderr), (sent[0], sent[1])]
        for name, (found, expected) in zip(Outcome._fields, pairs, strict=True):
            assert found == expected, f"{name} of {args}:\nours   {found!r}\ndocker {expected!r}"


def renamed(text: str) -> str:
    """Docker's text as ours has it: the program's name is all that differs."""
    return re.sub(r"(?<!com\.)\bdocker\b(?!-a-|\.com)", "linkspan", text)


def comparable(request: Request) -> Request:
    """Leaves out what docker's client sends only because Go cannot leave it out: empty answers of the server."""
    body = request.body
    if request.path.endswith("/connect"):
        outputs = {"NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "IPv6Gateway"}
        outputs |= {"GlobalIPv6Address", "GlobalIPv6PrefixLen", "DNSNames"}
        config = {key: value for key, value in body["EndpointConfig"].items() if key not in outputs}
        body = {**body, "EndpointConfig": config}
    if request.path == "/networks/create":
        # docker's order is that of a Go map: none.
        pools = sorted(body["IPAM"]["Config"], key=lambda entry: str(entry["Subnet"]))
        body = {**body, "IPAM": {**body["IPAM"], "Config": pools}}
    return Request(request.method, request.path, body)
