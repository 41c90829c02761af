"""A machine of its own for measuring: network, mount and process namespaces with a linkspand in them.

All of it hangs on one process that dies with this one, however this one ends, so nothing can be left behind but a
directory. The machine's own devices, routes, firewall and bpffs are never touched.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeVar

T = TypeVar("T")

BIN: Final = Path(sys.executable).parent
DEADLINE_S: Final = 120.0
_DIE_WITH_ME: Final = ("setpriv", "--pdeathsig", "KILL", "--")
# Orphans of the namespace become children of its first process: who ignores SIGCHLD needs not wait for them.
_FIRST_PROCESS: Final = 'trap "" CHLD; echo; exec sleep infinity'


class BenchError(Exception):
    """A command or a request of the bench failed; the text has its output."""


class ApiError(BenchError):
    """linkspand refused a request."""


def wait_for(claim: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Polls each millisecond until `claim` gives something; raises BenchError after the deadline."""
    end = time.monotonic() + deadline_s
    while not (result := claim()):
        if time.monotonic() > end:
            raise BenchError(f"waited {deadline_s:.0f} s in vain: {what}")
        time.sleep(0.001)
    return result


def output_of(command: Sequence[str], *, timeout_s: float = 120.0, env: Mapping[str, str] | None = None) -> str:
    """What the command prints; raises BenchError with everything it said if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **(env or {})}, check=False
    )
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Api:
    """Requests to linkspand over its unix socket; each thread keeps a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer, None if it is empty. Raises ApiError, and OSError when nobody answers."""
        connection = self._connection()
        payload = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, payload, {"Content-Type": "application/json"} if payload else {})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            self.disconnect()
            raise
        if response.status >= 400:
            raise ApiError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        return json.loads(answer) if answer.strip() else None

    def disconnect(self) -> None:
        """Closes the calling thread's connection; idempotent."""
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._local, "connection"):
            self._local.connection = _UnixConnection(self._path)
        connection: http.client.HTTPConnection = self._local.connection
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("linkspan", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class World:
    """The machine. `dir` holds linkspand's state, run and bpffs directories; `close` removes it."""

    def __init__(self) -> None:
        # A unix socket's path is at most 107 bytes, so the directory's is short.
        self.dir = Path(tempfile.mkdtemp(prefix="lsb", dir="/tmp"))
        self.run_dir, self.state_dir, self.bpffs = self.dir / "run", self.dir / "state", self.dir / "bpf"
        self.config = self.dir / "linkspan.toml"
        self.plugin_socket = self.run_dir / "plugin.sock"
        self.log_path = self.dir / "linkspand.log"
        self._daemon: subprocess.Popen[str] | None = None
        self.api = Api(self.run_dir / "linkspan.sock")
        for directory in (self.run_dir, self.state_dir, self.bpffs):
            directory.mkdir()
        self.config.touch()
        self._holder = subprocess.Popen(
            [
                *(*_DIE_WITH_ME, "unshare", "--net", "--mount", "--propagation", "private"),
                *("--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _FIRST_PROCESS),
            ],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert self._holder.stdout is not None
            if not self._holder.stdout.readline():
                raise BenchError("cannot make namespaces: root is needed")
            self._first_pid = _child(self._holder.pid)
            self.api = Api(self.seen(self.run_dir / "linkspan.sock"))  # on a file system that only this machine mounts
            self.plugin = Api(self.seen(self.plugin_socket))
            self.run("ip", "link", "set", "lo", "up")
            self.run("mount", "-t", "tmpfs", "tmpfs", str(self.run_dir))  # as /run is
            self.run("mount", "-t", "bpf", "bpf", str(self.bpffs))
        except BaseException:
            self.close()
            raise

    # -- commands ------------------------------------------------------------------------------------------------

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` on this machine."""
        proc = f"/proc/{self._holder.pid}/ns"
        return [
            *("nsenter", f"--net={proc}/net", f"--mount={proc}/mnt", f"--pid={proc}/pid_for_children", "--"),
            *command,
        ]

    def inside(self, netns: str, *command: str) -> list[str]:
        """The command line that runs `command` in a namespace whose file only this machine's mounts show.

        It replaces itself by the command, so its process is the command's and dies with this one.
        """
        return [*_DIE_WITH_ME, "nsenter", f"--net={self.seen(netns)}", "--", *command]

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        """Runs a command on this machine and returns what it prints; raises BenchError."""
        return output_of(self.enter(*command), env=env)

    def linkspan(self, *args: str) -> str:
        """Runs the command line client."""
        return self.run(str(BIN / "linkspan"), *args, env=self.env)

    @property
    def env(self) -> dict[str, str]:
        return {"LINKSPAN_HOST": f"unix://{self.run_dir}/linkspan.sock"}

    def netns(self, name: str) -> str:
        """Makes a network namespace, lo up, and returns its path."""
        path = self.dir / f"ns-{name}"
        path.touch()
        self.run("unshare", f"--net={path}", "ip", "link", "set", "lo", "up")
        return str(path)

    def ip(self, netns: str, *args: str) -> None:
        """Runs ip(8) in a namespace; paths of other namespaces mean what they mean on this machine."""
        self.run("nsenter", f"--net={netns}", "--", "ip", *args)

    def seen(self, path: str | Path) -> Path:
        """The file that the path names on this machine, with its mounts, as seen from outside."""
        return Path(f"/proc/{self._first_pid}/root{path}")

    def netns_inodes(self) -> set[int]:
        """What tells the machine's own network namespace and those of its sandboxes from all others."""
        pinned = [self.seen(path) for path in self.dir.glob("ns-*")] + list(self.seen(self.run_dir / "netns").glob("*"))
        return {os.stat(path).st_ino for path in (Path(f"/proc/{self._first_pid}/ns/net"), *pinned)}

    # -- linkspand -----------------------------------------------------------------------------------------------

    def daemon_args(self) -> list[str]:
        """Where this machine's linkspand keeps what it has."""
        return [
            *("--config", str(self.config), "--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)),
            *("--bpffs-dir", str(self.bpffs / "linkspan"), "--plugin-socket", str(self.plugin_socket)),
        ]

    def start(self, deadline_s: float = DEADLINE_S, *, program: Sequence[str] = (str(BIN / "linkspand"),)) -> float:
        """Starts linkspand and returns the seconds from there to its first answer; raises BenchError."""
        begin = time.monotonic()
        with self.log_path.open("a") as log:
            self._daemon = subprocess.Popen(
                self.enter(*program, *self.daemon_args()),
                stdout=log,
                stderr=log,
                text=True,
                process_group=0,  # Ctrl-C is not for it; in the session for its priority, see bench.turns
            )
        wait_for(self._answers, "linkspand to answer", deadline_s)
        took_s = time.monotonic() - begin
        problem = self.api("GET", "/linkspan/status")["fallbacks"].get("ebpf")
        self.api.disconnect()  # this thread's, which may end
        if problem:
            raise BenchError(f"linkspand works without its programs, which is not what is measured: {problem}")
        return took_s

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise BenchError(f"linkspand ended with {self._daemon.returncode}:\n{self.log()}")
        try:
            self.api("GET", "/_ping")
        except json.JSONDecodeError:
            return True  # it answers "OK"
        except OSError:
            return False
        return True

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def daemon_pid(self) -> int:
        """linkspand's process, as seen from outside."""
        assert self._daemon is not None
        return _child(self._daemon.pid)

    def stop(self) -> None:
        """Ends linkspand by SIGTERM; networks and sandboxes stay. Idempotent."""
        self.api.disconnect()
        if self._daemon is not None:
            if self._daemon.poll() is None:
                os.kill(self.daemon_pid, signal.SIGTERM)
            self._daemon.wait(15)
            self._daemon = None

    def sandbox(self, name: str, *networks: str) -> str:
        """Makes a sandbox without a process and returns the path of its namespace, for `inside`."""
        body = {"Name": name, "Networks": [{"Network": network} for network in networks]}
        return str(self.api("POST", "/linkspan/sandboxes", body)["NetnsPath"])

    def kill(self) -> None:
        """Ends every process of the machine, which ends the machine; its directory stays. Idempotent."""
        self.api.disconnect()
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()
        if self._daemon is not None:
            self._daemon.wait(15)
            self._daemon = None

    def close(self) -> None:
        """Ends the machine and removes its directory."""
        self.kill()
        shutil.rmtree(self.dir)


def _child(pid: int) -> int:
    """The one child of a process."""

    def find() -> int | None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    return wait_for(find, f"a child of process {pid}")


@contextmanager
def world() -> Iterator[World]:
    """A machine that is gone at the end of the block."""
    machine = World()
    try:
        yield machine
    finally:
        machine.close()


@contextmanager
def running(command: Sequence[str], stdout: IO[str] | int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended, by SIGKILL if it must be, at the end of the block."""
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
