"""A real Docker Engine on a machine of its own, which leaves nothing behind.

dockerd, its containerd and its containers live in the machine's network and mount namespaces. /run is a file system of
the machine's own, so the engine has its socket, its plugins' sockets and its files at their usual places, and any
number of engines run side by side. The containers' cgroups have a parent of the engine's own, which tells its processes
from all others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from tests.docker.image import NAME, root_filesystem

SOCKET: Final = Path("/run/docker.sock")
PLUGIN_SOCKET: Final = Path("/run/docker/plugins/linkspan.sock")
CLIENTS: Final = tuple(
    dict.fromkeys(
        path for path in (shutil.which("docker", path="/usr/bin"), shutil.which("docker")) if path is not None
    )
)
"""The docker clients on this machine: the distribution's, and the one that a user gets, if that is another."""
_DATA: Final = "/run/docker-data"
_PID_FILE: Final = Path("/run/docker.pid")
_CONTAINERD_PID_FILE: Final = Path("/run/docker/containerd/containerd.pid")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_DEADLINE_S: Final = 120.0
_ANSWER_S: Final = 20.0


class Machine(Protocol):
    """Where an engine runs: network and mount namespaces that end when their last process does."""

    dir: Path

    def enter(self, *command: str) -> list[str]:
        """The command line that runs a command there."""
        ...

    def seen(self, path: Path) -> Path:
        """A path there, as this process sees it."""
        ...


class DockerError(Exception):
    """A docker command failed, or dockerd did; the text has what they said."""


class Engine:
    """dockerd on a machine; it does not run until `start`. `client` is the docker program that `docker` calls."""

    def __init__(self, machine: Machine, client: str = "docker") -> None:
        self._machine = machine
        self.client = client
        self.log_path = machine.dir / "dockerd.log"
        self.cgroup = machine.dir.name
        self._daemon: subprocess.Popen[bytes] | None = None
        self._flags: tuple[str, ...] = ()
        self._call("mount", "-t", "tmpfs", "tmpfs", "/run")
        self._call("mkdir", "-p", str(PLUGIN_SOCKET.parent), "/etc/docker")
        self._call("mount", "-t", "tmpfs", "tmpfs", "/etc/docker")  # dockerd keeps a key there, wherever its data are

    # -- dockerd -------------------------------------------------------------------------------------------------

    def start(self, *flags: str, wait: bool = True) -> None:
        """Starts dockerd with these flags besides those that keep it on its machine, and waits until it answers."""
        self._flags = flags
        command = self._machine.enter(
            "dockerd",
            *("--data-root", _DATA, "--storage-driver", "overlay2", "--init"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self.cgroup}"),
            *flags,
        )
        with self.log_path.open("ab") as log:
            self._daemon = subprocess.Popen(command, stdout=log, stderr=log, env=self._env(), start_new_session=True)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until dockerd answers."""
        _poll(self._answers, lambda: f"dockerd does not answer; its log:\n{self.log()}")

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise DockerError(f"dockerd ended with {self._daemon.returncode}:\n{self.log()}")
        try:
            return self.docker("version", check=False, timeout_s=_ANSWER_S).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def import_image(self) -> None:
        """Makes the image that `image.NAME` names."""
        self.docker("import", "-c", 'CMD ["sh"]', "-", NAME, stdin=root_filesystem())

    def restart(self, *, live_restore: bool | None = None) -> None:
        """Ends dockerd in an orderly way and starts it again; with `live_restore` None as it was started before."""
        self.terminate()
        flags = self._flags
        if live_restore is not None:
            flags = (*(flag for flag in flags if flag != "--live-restore"), *(["--live-restore"] * live_restore))
        self.start(*flags)

    def terminate(self) -> None:
        """Ends dockerd alone, by SIGTERM: containers end with it unless it runs with --live-restore. Idempotent."""
        self._end("TERM")

    def kill(self) -> None:
        """Ends dockerd alone, by SIGKILL: its containers go on. Idempotent."""
        self._end("KILL")

    def _end(self, signal_name: str) -> None:
        if self._daemon is None:
            return
        if self._daemon.poll() is None:
            if self._machine.seen(_PID_FILE).exists():
                self._call("sh", "-c", f"kill -{signal_name} $(cat {_PID_FILE})")
            else:  # it has not come as far
                self._daemon.kill()
        self._daemon.wait(_DEADLINE_S)
        self._daemon = None
        # containerd ends with dockerd, but its number stays taken until the machine's first process has seen that.
        for path in (_PID_FILE, _CONTAINERD_PID_FILE):
            self._machine.seen(path).unlink(missing_ok=True)

    def log(self, last_lines: int = 40) -> str:
        """The end of what dockerd and containerd have written."""
        text = self.log_path.read_text() if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-last_lines:])

    # -- clients -------------------------------------------------------------------------------------------------

    def docker(
        self, *args: str, check: bool = True, stdin: bytes | None = None, timeout_s: float = 60.0, client: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs the docker client on the machine; with `check`, raises DockerError with what it said if it fails."""
        done = subprocess.run(
            self.command(*args, client=client), capture_output=True, input=stdin, timeout=timeout_s, env=self._env()
        )
        result = subprocess.CompletedProcess(args, done.returncode, done.stdout.decode(), done.stderr.decode())
        if check and result.returncode:
            raise DockerError(f"docker {' '.join(args)}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def command(self, *args: str, client: str = "") -> list[str]:
        """The command line of a docker command, to be run from here."""
        return self._machine.enter(client or self.client, *args)

    def inspect(self, name: str, kind: str = "container") -> Any:
        """The parsed output of `docker inspect`; raises DockerError when there is no such object."""
        return json.loads(self.docker("inspect", "--type", kind, name).stdout)[0]

    def _env(self) -> dict[str, str]:
        """No settings of the user's: neither another engine nor a proxy nor credentials."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")}
        return {**kept, "DOCKER_CONFIG": str(self._machine.dir / "docker-client")}

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends dockerd and everything it started, and removes their cgroups. Idempotent."""
        try:
            self.kill()
        finally:
            self._end_containers()

    def processes(self) -> list[int]:
        """Those in the engine's containers, as this process numbers them."""
        found: set[int] = set()
        for directory in self._cgroups():
            with suppress(FileNotFoundError, NotADirectoryError):
                found.update(map(int, (directory / "cgroup.procs").read_text().split()))
        return sorted(found)

    def _end_containers(self) -> None:
        def are_gone() -> bool:
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for directory in self._cgroups():
                with suppress(OSError):  # a process in it is still ending
                    directory.rmdir()
            return not self._cgroups()

        _poll(are_gone, lambda: f"cgroups do not go: {self._cgroups()}, processes {self.processes()}")

    def _cgroups(self) -> list[Path]:
        """The engine's cgroups in every hierarchy, children first; see cgroups(7)."""
        tops = [*_CGROUPS.glob(self.cgroup), *_CGROUPS.glob(f"*/{self.cgroup}")]
        return [Path(path) for top in tops for path, _, _ in os.walk(top, topdown=False)]

    def _call(self, *command: str) -> None:
        done = subprocess.run(self._machine.enter(*command), capture_output=True, text=True)
        if done.returncode:
            raise DockerError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")


def _poll(claim: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not claim():
        if time.monotonic() > end:
            raise DockerError(what())
        time.sleep(0.02)


@contextmanager
def engine(machine: Machine, *flags: str, client: str = "docker") -> Iterator[Engine]:
    """A running engine with the image `image.NAME`, gone at the end of the block."""
    made = Engine(machine, client)
    try:
        made.start(*flags)
        made.import_image()
        yield made
    finally:
        made.stop()
