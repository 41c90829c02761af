"""The real docker client beside ours, in front of one recording daemon: the oracle for `linkspan network`."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from control.cli.main import main
from tests.cli_fake import FakeDaemon, Request

DOCKER = shutil.which("docker")
MINIMUM = (28, 0)


def client_version() -> tuple[int, ...]:
    """The version of the docker client on this machine, empty without one."""
    if DOCKER is None:
        return ()
    text = subprocess.run([DOCKER, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


docker_needed = pytest.mark.skipif(
    client_version() < MINIMUM, reason=f"needs a docker client of version {MINIMUM[0]} or later to compare with"
)


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
        assert DOCKER is not None
        done = subprocess.run(
            [DOCKER, "-H", self.daemon.url, *args], capture_output=True, text=True, input=stdin, timeout=30, check=False
        )
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
