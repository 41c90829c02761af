"""etcd for tests: one member or several, on free ports, in a folder that the test throws away.

`etcdctl` looks into it without Linkspan: it is the oracle of what was written.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.certificates import Certificate
from tests.waiting import PATIENCE, until

START_S: Final = 30
# Below the ports that the kernel gives to clients (ip_local_port_range), so none of these is in its way.
_PORTS: Final = range(20_000, 32_000)


@dataclass
class EtcdMember:
    """One etcd. `url` is for clients. `prefix` is a command that runs another, as `nsenter … --`: for an etcd in a
    network namespace. With `tls`, only clients with a certificate of the same authority get in."""

    name: str
    folder: Path
    address: str
    client_port: int
    peer_port: int
    prefix: tuple[str, ...] = ()
    tls: Certificate | None = None
    extra_args: tuple[str, ...] = ()
    initial_cluster: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{_host(self.address)}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://{_host(self.address)}:{self.peer_port}"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self, *, wait: bool = True, extra_args: Sequence[str] = ()) -> None:
        """Starts it with what it has in its folder; `wait`: until it answers, for which it needs a leader."""
        assert not self.is_running, f"{self.name} runs"
        command = [
            *self.prefix, "etcd", "--name", self.name, "--data-dir", str(self.folder / self.name),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", self.initial_cluster or f"{self.name}={self.peer_url}",
            "--logger", "zap", "--log-level", "warn",
            *self.extra_args, *extra_args,
        ]  # fmt: skip
        if self.tls:
            command += ["--client-cert-auth", "--trusted-ca-file", str(self.tls.cacert)]
            command += ["--cert-file", str(self.tls.cert), "--key-file", str(self.tls.key)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until it answers."""

        def answers() -> bool:
            assert self.is_running, f"{self.name} ended:\n{self.log.read_text()[-2000:]}"
            return self.run("endpoint", "health", check=False).returncode == 0

        until(answers, START_S)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends it and waits for its end; harmless when it does not run."""
        if self._process is None:
            return
        if self.is_running:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
        self._process.wait(START_S * PATIENCE)
        self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    # -- etcdctl -------------------------------------------------------------------------------------------------

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`etcdctl ARGS` at this member."""
        command = [*self.prefix, "etcdctl", "--endpoints", self.url]
        if self.tls:
            command += ["--cacert", str(self.tls.cacert), "--cert", str(self.tls.cert), "--key", str(self.tls.key)]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(
            [*command, *args], env=environment, capture_output=True, text=True, check=check, timeout=START_S * PATIENCE
        )

    def keys(self, prefix: str = "/") -> list[str]:
        return [line for line in self.run("get", "--prefix", "--keys-only", prefix).stdout.splitlines() if line]

    def get(self, key: str) -> str | None:
        """The value, without the line's end; None for a key that is not there."""
        lines = self.run("get", key).stdout.split("\n", 1)
        return lines[1].rstrip("\n") if len(lines) > 1 else None

    def put(self, key: str, value: str) -> None:
        self.run("put", key, value)

    def status(self) -> dict[str, Any]:
        """`etcdctl endpoint status`: the leader's and its own member id, the revision in the header, the size."""
        status: dict[str, Any] = json.loads(self.run("endpoint", "status", "-w", "json").stdout)[0]["Status"]
        return status

    @property
    def revision(self) -> int:
        return int(self.status()["header"]["revision"])

    def compact(self) -> None:
        """Forgets all that is older than now."""
        self.run("compact", str(self.revision))


def leader(members: Sequence[EtcdMember]) -> EtcdMember:
    """The member that leads the others; asked of each, as one that just started may know of none."""
    for member in members:
        if member.is_running:
            status = member.status()
            if status["leader"] == status["header"]["member_id"]:
                return member
    raise AssertionError("no member leads")


@contextmanager
def etcd_cluster(
    folder: Path,
    members: int = 1,
    *,
    tls: Certificate | None = None,
    command_prefix: Sequence[str] = (),
    addresses: Sequence[str] = ("127.0.0.1",),
    extra_args: Sequence[str] = (),
) -> Iterator[list[EtcdMember]]:
    """Runs a cluster whose members all answer, and ends it; `addresses` are taken in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        EtcdMember(
            name=f"etcd{number}",
            folder=folder,
            address=addresses[number % len(addresses)],
            client_port=free_port(),
            peer_port=free_port(),
            prefix=tuple(command_prefix),
            tls=tls,
            extra_args=tuple(extra_args),
        )
        for number in range(members)
    ]
    together = ",".join(f"{member.name}={member.peer_url}" for member in made)
    with ExitStack() as stack:
        for member in made:
            member.initial_cluster = together
            stack.callback(member.stop, signal.SIGKILL)
            member.start(wait=False)
        for member in made:
            member.wait()
        yield made


def free_port() -> int:
    """A TCP port that nobody listens at in this namespace."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
