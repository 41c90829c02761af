"""Waits for the main process of a detached sandbox and leaves its exit status where linkspand looks for it.

    python -I -S waiter.py PID STATUS_FILE [SOCKET ID]

A program on its own, started by exec in the process that is PID's parent. It may stay for months, one per detached
sandbox, so it imports nothing that is not built into the interpreter. With SOCKET and ID it then has linkspand remove
the sandbox, for as long as linkspand takes to answer (it may be restarting), RETRY_S at most.
"""

import posix
import sys
import time

RETRY_S = 60
_PERIOD_S = 0.5
_SIGNALLED = 128


def exit_code(status: int) -> int:
    """The exit code a shell would show for a wait status: 128 and the signal's number for a signal."""
    code = posix.waitstatus_to_exitcode(status)
    return code if code >= 0 else _SIGNALLED - code


def write_status(path: str, code: int) -> None:
    """Writes the code, so that a reader finds all of it or nothing; harmless when the sandbox is gone already."""
    partial = f"{path}.new"
    try:
        fd = posix.open(partial, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        return
    try:
        posix.write(fd, b"%d\n" % code)
    finally:
        posix.close(fd)
    posix.replace(partial, path)


def wait(pid: int) -> int:
    """Waits until the child `pid` ends, and returns its exit code."""
    while True:
        try:
            return exit_code(posix.waitpid(pid, 0)[1])
        except InterruptedError:
            continue


def remove(socket_path: str, sandbox_id: str) -> bool:
    """Asks linkspand to remove the sandbox; returns whether it answered."""
    import _socket

    request = f"DELETE /linkspan/sandboxes/{sandbox_id}?force=1 HTTP/1.1\r\nHost: linkspan\r\nConnection: close\r\n\r\n"
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        peer.settimeout(RETRY_S)
        peer.connect(socket_path)
        peer.send(request.encode())
        return bool(peer.recv(64))
    except OSError:
        return False
    finally:
        peer.close()


def main(arguments: list[str]) -> None:
    pid, status_file, *removal = arguments
    write_status(status_file, wait(int(pid)))
    deadline = time.monotonic() + RETRY_S
    while removal and not remove(*removal) and time.monotonic() < deadline:
        time.sleep(_PERIOD_S)


if __name__ == "__main__":
    main(sys.argv[1:])
