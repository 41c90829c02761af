"""Test hosts: a network, mount and bpffs world of its own for each, with a linkspand in it, and nothing left after.

A host is a process that holds a private network and mount namespace; commands enter it with nsenter. So any number of
hosts, and of pytest workers, run side by side, and the machine's own devices, routes and firewall are never touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.api_server import Reply, ask
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DEADLINE_S = 60.0 * PATIENCE


def wait_for(claim: Callable[[], Any], what: str | Callable[[], str], deadline_s: float = DEADLINE_S) -> Any:
    """Polls until `claim` is true and returns what it gave; fails the test with `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        result = claim()
        if result:
            return result
        if time.monotonic() > end:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {deadline_s:.0f} s in vain: {said}")
        time.sleep(0.02)


class Host:
    """One machine on its own. `dir` holds its state, run and config directories; bpffs is in its mount namespace."""

    def __init__(self, *, bpffs: bool = True) -> None:
        # Short, because a unix socket's path is at most 107 bytes.
        self.dir = Path(tempfile.mkdtemp(prefix="lsh", dir="/tmp"))
        self.state_dir, self.run_dir = self.dir / "state", self.dir / "run"
        self.bpffs = self.dir / "bpf"
        for directory in (self.state_dir, self.run_dir, self.bpffs):
            directory.mkdir()
        self.socket = self.run_dir / "linkspan.sock"
        self.plugin_socket = self.run_dir / "plugin.sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        self.log_path = self.dir / "linkspand.log"
        self._has_bpffs = bpffs
        self._boot()

    def _boot(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self._holder.stdout.close()
        self.run("ip", "link", "set", "lo", "up")
        if self._has_bpffs:
            self.run("mount", "-t", "bpf", "bpf", str(self.bpffs))

    # -- commands ------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._holder.pid

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` on this host."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt", "--", *command]

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host and returns its output; its errors are in the exception."""
        done = subprocess.run(
            self.enter(*command), capture_output=True, text=True, timeout=options.pop("timeout", DEADLINE_S), **options
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def seen(self, path: Path) -> Path:
        """A path on the host, as this process sees it through the host's mounts (proc(5), root)."""
        return Path(f"/proc/{self.pid}/root", *path.parts[1:])

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.enter(*command), text=True, **options)

    def ip(self, *args: str) -> Any:
        """The parsed output of `ip -json`."""
        return json.loads(self.run("ip", "-json", "-d", *args).stdout or "[]")

    # -- linkspan ------------------------------------------------------------------------------------------------

    def daemon_command(self, *args: str, program: Sequence[str] = ()) -> list[str]:
        return self.enter(
            *(program or [str(BIN / "linkspand")]),
            "--state-dir", str(self.state_dir),
            "--run-dir", str(self.run_dir),
            "--bpffs-dir", str(self.bpffs / "linkspan"),
            "--plugin-socket", str(self.plugin_socket),
            *args,
        )  # fmt: skip

    def start(
        self, *args: str, program: Sequence[str] = (), env: Mapping[str, str] | None = None, wait: bool = True
    ) -> subprocess.Popen[bytes]:
        """Starts linkspand and waits until it answers."""
        with self.log_path.open("ab") as log:
            self._daemon = subprocess.Popen(
                self.daemon_command(*args, program=program), stderr=log, stdout=log, env={**os.environ, **(env or {})}
            )
        if wait:
            wait_for(self._answers, lambda: f"linkspand to answer; its log:\n{self.log()}")
        return self._daemon

    def _answers(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.poll() is None, f"linkspand ended with {self._daemon.returncode}:\n{self.log()}"
        try:
            return self.ask("GET", "/_ping").status == 200
        except OSError:
            return False

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Ends linkspand; networks and sandboxes stay."""
        if self._daemon is not None:
            if self._daemon.poll() is None:
                self._daemon.send_signal(signal_number)
            self._daemon.wait(15 * PATIENCE)
            self._daemon = None

    @property
    def daemon_pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    def linkspan(self, *args: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs the command line client on the host."""
        return self.run(*self.cli(*args), check=check, **options)

    def cli(self, *args: str) -> list[str]:
        """The command line of the client, to be run on the host."""
        return [str(BIN / "linkspan"), "-H", f"unix://{self.socket}", *args]

    def sandbox(self, name: str, *networks: str, **options: str) -> str:
        """Makes a sandbox without a process and returns the path of its namespace."""
        body = {
            "Name": name,
            "Networks": [{"Network": network, **options} for network in networks],
        }
        return str(self.api("POST", "/linkspan/sandboxes", body)["NetnsPath"])

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Calls the API through curl, which knows nothing of our client."""
        command = [
            "curl",
            "-sS",
            "--fail-with-body",
            "-X",
            method,
            "--unix-socket",
            str(self.socket),
            f"http://l{path}",
        ]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        output = self.run(*command).stdout
        return json.loads(output) if output.strip() else None

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Reply:
        """Calls the API from this process and returns the answer, whatever its status."""
        return ask(self.socket, method, path, body, **options)

    def inside(self, netns: str, *command: str) -> list[str]:
        """The command line that runs a command in a sandbox's namespace, whose file only this host's mounts show."""
        return self.enter("nsenter", f"--net={netns}", "--", *command)

    # -- the end -------------------------------------------------------------------------------------------------

    def leftovers(self) -> list[str]:
        """What linkspan has made on this host and not removed: devices, pins, tables, namespaces, records."""
        links = [link["ifname"] for link in self.ip("link") if link["ifname"] not in ("lo", "linkspan0")]
        pinned = [
            str(path)
            for path in map(
                Path, self.run("find", str(self.run_dir / "netns"), "-type", "f", check=False).stdout.split()
            )
        ]
        return links + pinned

    def power_off(self) -> None:
        """Ends everything on the host at once, as a cut cable does: processes, namespaces, programs, devices.

        What is on disk stays: `state_dir` and the log.
        """
        self.stop(signal.SIGKILL)
        self.end_processes()
        self._holder.kill()
        self._holder.wait()

    def power_on(self) -> None:
        """Starts a host that was powered off, without linkspand; its run directory is empty, as /run is then."""
        shutil.rmtree(self.run_dir)
        self.run_dir.mkdir()
        self._boot()

    def close(self) -> None:
        """Ends the daemon and everything on the host, and removes its files."""
        self.power_off()
        shutil.rmtree(self.dir)

    def end_processes(self) -> None:
        """Kills everything that runs on the host, the sandboxes' processes included."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self) -> list[int]:
        """Those in the host's mount namespace, and those in namespaces made from it, which show its directory."""
        inode, mark, found = os.stat(f"/proc/{self.pid}/ns/mnt").st_ino, f" {self.dir}/", []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) not in (self.pid, os.getpid()):
                with suppress(OSError):
                    is_here = os.stat(f"/proc/{entry.name}/ns/mnt").st_ino == inode
                    if is_here or mark in Path(entry, "mountinfo").read_text(errors="replace"):
                        found.append(int(entry.name))
        return found


@contextmanager
def host(**options: Any) -> Iterator[Host]:
    machine = Host(**options)
    try:
        yield machine
    finally:
        machine.close()
