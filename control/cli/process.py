"""Starts a sandbox's main process and looks after it: in the foreground, or by a supervisor that stays behind."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from control.cli import waiter
from control.cli.enter import View, enter
from control.cli.errors import NOT_EXECUTABLE, NOT_FOUND, USAGE, CliError

_READY: Final = b"ready\n"
_GO: Final = b"go"
# Python ignores these for itself; a program expects them as they are by default.
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
_FROM_TERMINAL: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_LEFT_ALONE: Final = {
    *(signal.SIGKILL, signal.SIGSTOP, *_FROM_TERMINAL),
    # Faults and limits of the supervisor itself.
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS),
    *(signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ),
}


@dataclass(frozen=True)
class Program:
    """A command with its environment and, unless it is empty, its working directory."""

    command: Sequence[str]
    environment: dict[str, str]
    directory: str = ""

    def exec(self) -> NoReturn:
        """Replaces this process; raises CliError with Docker's exit status if that cannot be done."""
        name = self.command[0]
        try:
            if self.directory:
                os.chdir(self.directory)
        except OSError as error:
            raise CliError(f'linkspan: chdir to "{self.directory}": {error.strerror}', NOT_EXECUTABLE) from error
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        try:
            if not name:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            os.execvpe(name, list(self.command), self.environment)
        except OSError as error:
            is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            reason = (error.strerror or "").lower()
            if is_missing and "/" not in name:
                reason = "executable file not found in $PATH"
            raise CliError(f'linkspan: exec "{name}": {reason}', NOT_FOUND if is_missing else NOT_EXECUTABLE) from error


def spawn(view: View, program: Program, announce: Callable[[int], None]) -> int:
    """Starts the program in the sandbox and returns its pid once it runs; raises CliError if it cannot.

    `announce` is called with the pid when the process is in the sandbox and before the program is in it: when it
    fails, nothing of the program has run.
    """
    report_read, report_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(report_read)
        os.close(go_write)
        _become(view, program, report_write, go_read)
    os.close(report_write)
    os.close(go_read)
    with open(report_read, "rb") as report, open(go_write, "wb", buffering=0) as go:
        try:
            first = report.readline()
            if first == _READY:
                announce(pid)
                go.write(_GO)
                first = report.readline()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    if first:
        os.waitpid(pid, 0)
        status, _, text = first.decode(errors="replace").rstrip("\n").partition(" ")
        raise CliError(text, int(status))
    return pid


def _become(view: View, program: Program, report: int, go: int) -> NoReturn:
    """The child's side of `spawn`: reports "ready", waits to be let go, execs; or reports an exit status and why."""
    try:
        enter(view)
        os.write(report, _READY)
        if os.read(go, len(_GO)) == _GO:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            program.exec()
    except CliError as error:
        os.write(report, f"{error.exit_status} {error.message}\n".encode())
    except OSError as error:
        os.write(report, f"{USAGE} linkspan: cannot enter sandbox {view.name}: {error.strerror}\n".encode())
    finally:
        os._exit(USAGE)


def run_foreground(view: View, program: Program, announce: Callable[[int], None], status_file: str) -> int:
    """Runs the program on this terminal until it ends, and returns its exit code; raises CliError if it cannot start.

    Signals sent to this process go on to the program. Those from the terminal reach it without our help, and stop
    us when they stop it.
    """
    signals = signal.valid_signals() - _LEFT_ALONE
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = spawn(view, program, announce)
    while True:
        info = signal.sigwaitinfo(signals)
        if info.si_signo != signal.SIGCHLD:
            # A code above 0 is the kernel's: the terminal signals its whole foreground process group.
            if info.si_code <= 0:
                os.kill(pid, info.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if not ended:
            continue
        if os.WIFSTOPPED(status):
            if os.WSTOPSIG(status) in _FROM_TERMINAL:
                os.kill(os.getpid(), signal.SIGSTOP)
            continue
        code = waiter.exit_code(status)
        waiter.write_status(status_file, code)
        return code


def run_detached(
    view: View, program: Program, announce: Callable[[int], None], status_file: str, removal: Sequence[str] = ()
) -> None:
    """Runs the program under a supervisor that outlives us, its output in `log_path(status_file)`.

    Returns once the program runs; raises CliError if it cannot. `removal` is handed to `waiter`.
    """
    report_read, report_write = os.pipe()
    if os.fork() == 0:
        os.close(report_read)
        _supervise(view, program, announce, status_file, removal, report_write)
    os.close(report_write)
    with open(report_read, "rb") as report:
        problem = report.read()
    if problem:
        status, _, text = problem.decode(errors="replace").partition(" ")
        raise CliError(text, int(status))


def _supervise(
    view: View,
    program: Program,
    announce: Callable[[int], None],
    status_file: str,
    removal: Sequence[str],
    report: int,
) -> NoReturn:
    try:
        os.setsid()
        _redirect(log_path(status_file))
        pid = spawn(view, program, announce)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            # Whoever ends the sandbox ends its program; the supervisor stays to tell how.
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        program_file = str(Path(waiter.__file__))
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", program_file, str(pid), status_file, *removal], {})
    except CliError as error:
        os.write(report, f"{error.exit_status} {error.message}".encode())
    except OSError as error:
        os.write(report, f"{USAGE} linkspan: cannot start a supervisor: {error.strerror}".encode())
    finally:
        os._exit(USAGE)


def log_path(status_file: str) -> str:
    """Where a detached sandbox's output goes: beside its exit status, on the run directory's file system."""
    return str(Path(status_file).with_name("output.log"))


def _redirect(log: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    with suppress(OSError):
        os.close(null)
        os.close(output)
