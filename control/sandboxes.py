"""Sandboxes on this host: their namespaces, the files that name resolution in them reads, and their processes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from control.hosts import LOCALHOST
from control.model import Sandbox
from control.plan import Step
from datapath import netns

_OWN_NETNS: Final = "/proc/self/ns/net"


@dataclass(frozen=True)
class SandboxPaths:
    """Where a sandbox's namespace and files are. `exit_status` is written by whoever supervises its main process."""

    netns: str
    hosts: str
    resolv_conf: str
    hostname: str
    exit_status: str


class SandboxFiles:
    """Makes and removes what a sandbox is made of, under `<run dir>/netns/<id>` and `<run dir>/sandboxes/<id>/`."""

    def __init__(self, run_dir: Path, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._netns_dir = run_dir / "netns"
        self._files_dir = run_dir / "sandboxes"
        self._resolv_conf = resolv_conf

    def start(self, known: Iterable[str]) -> None:
        """Prepares the directories and removes what belongs to none of the `known` sandbox ids."""
        self._files_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        netns.prepare_directory(str(self._netns_dir))
        keep = set(known)
        for entry in self._netns_dir.iterdir():
            if entry.name not in keep:
                netns.delete(str(entry))
        for entry in self._files_dir.iterdir():
            if entry.name not in keep:
                shutil.rmtree(entry)

    def netns_path(self, sandbox_id: str) -> str:
        """Where the namespace is of a sandbox that has one of its own."""
        return f"{self._netns_dir}/{sandbox_id}"

    def paths(self, sandbox: Sandbox) -> SandboxPaths:
        files = f"{self._files_dir}/{sandbox.id}"
        return SandboxPaths(
            netns=self.netns_path(sandbox.id) if sandbox.owns_netns else _OWN_NETNS,
            hosts=f"{files}/hosts",
            resolv_conf=f"{files}/resolv.conf",
            hostname=f"{files}/hostname",
            exit_status=f"{files}/exit-status",
        )

    def steps(self, sandbox: Sandbox) -> Sequence[Step]:
        paths = self.paths(sandbox)
        short = sandbox.id[:12]
        steps = [
            Step(
                f"write the files of sandbox {short}",
                lambda: self._write_files(sandbox),
                lambda: self._remove_files(sandbox),
                kind="files",
            )
        ]
        if sandbox.owns_netns:
            steps.append(
                Step(
                    f"create the network namespace of sandbox {short}",
                    lambda: netns.create(paths.netns),
                    lambda: netns.delete(paths.netns),
                    kind="netns",
                )
            )
        return steps

    def is_intact(self, sandbox: Sandbox) -> bool:
        paths = self.paths(sandbox)
        return os.path.exists(paths.hosts) and (not sandbox.owns_netns or netns.is_netns(paths.netns))

    def write_hosts(self, sandbox: Sandbox, text: str) -> None:
        """Writes /etc/hosts in place, because the file may be bind-mounted; does nothing for a sandbox that is gone."""
        body = text.encode()
        try:
            fd = os.open(self._files_dir / sandbox.id / "hosts", os.O_WRONLY)
        except FileNotFoundError:
            return
        try:
            os.pwrite(fd, body, 0)
            os.ftruncate(fd, len(body))
        finally:
            os.close(fd)

    def read_exit_status(self, sandbox: Sandbox) -> int | None:
        """What the supervisor wrote, or None as long as it has not."""
        try:
            return int(Path(self.paths(sandbox).exit_status).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _write_files(self, sandbox: Sandbox) -> None:
        paths = self.paths(sandbox)
        files = self._files_dir / sandbox.id
        files.mkdir(mode=0o755, exist_ok=True)
        if not os.path.exists(paths.hosts):
            Path(paths.hosts).write_text(LOCALHOST)
        Path(paths.hostname).write_text(f"{sandbox.name}\n")
        Path(paths.resolv_conf).write_text(self._resolver(sandbox))

    def _remove_files(self, sandbox: Sandbox) -> None:
        """Out of sight first: the supervisor of a process that was just killed may be writing how it ended."""
        gone = self._files_dir / f"{sandbox.id}.gone"
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._files_dir / sandbox.id, gone)
        for _ in range(10):
            shutil.rmtree(gone, ignore_errors=True)
            if not gone.exists():
                return
        raise OSError(errno.ENOTEMPTY, f"{gone} is written to while it is being removed")

    def _resolver(self, sandbox: Sandbox) -> str:
        """The host's resolver file, without the name servers on loopback that a namespace of its own does not reach."""
        try:
            lines = self._resolv_conf.read_text().splitlines()
        except OSError:
            return ""
        if sandbox.owns_netns:
            lines = [line for line in lines if not _is_loopback_nameserver(line)]
        return "".join(f"{line}\n" for line in lines)


def _is_loopback_nameserver(line: str) -> bool:
    words = line.split()
    if len(words) < 2 or words[0] != "nameserver":
        return False
    try:
        return ip_address(words[1].partition("%")[0]).is_loopback
    except ValueError:
        return False


def process_start(pid: int) -> int | None:
    """When the process started, in clock ticks after boot (proc(5), stat, field 22); None when there is no such
    process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_running(sandbox: Sandbox) -> bool:
    """Whether the sandbox's main process is alive, and not another one with its number."""
    if sandbox.pid is None or sandbox.pid_start is None:
        return False
    return process_start(sandbox.pid) == sandbox.pid_start


def kill_processes(sandbox: Sandbox, netns_path: str) -> None:
    """Ends the main process and everything else that lives in the sandbox's namespace, by SIGKILL."""
    if sandbox.pid is not None:
        _kill(sandbox.pid, lambda: is_running(sandbox))
    if sandbox.owns_netns and netns.is_netns(netns_path):
        inode = netns.inode(netns_path)
        for pid in netns.pids_in(inode):
            _kill(pid, partial(_lives_in, pid, inode))


def _lives_in(pid: int, inode: int) -> bool:
    """Whether the process is in that namespace; one that is ending is in none."""
    try:
        return netns.inode(f"/proc/{pid}/ns/net") == inode
    except OSError:
        return False


def _kill(pid: int, is_still_meant: Callable[[], bool]) -> None:
    """Kills through a pidfd, which cannot hit another process that got the number meanwhile."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if is_still_meant():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):
        pass
    finally:
        os.close(pidfd)
