"""Network namespaces as pinned files, as `ip netns` makes them.

setns(2) and unshare(2) move the calling thread for good. All functions but `enter` do that in a thread of their own,
so the caller's namespace never changes. A path names the file that the namespace is bind-mounted on. Refusals are
OSError with what was tried.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from errno import EINVAL, ENOTEMPTY, EPERM
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from datapath._native import ffi, lib

if TYPE_CHECKING:
    from datapath._native import CData

StrPath = str | os.PathLike[str]
T = TypeVar("T")


def create(path: StrPath) -> None:
    """Makes a network namespace with `lo` up and pins it at `path`, whose directory exists.

    Changes nothing when there is one already; an ordinary file left over at `path` is mounted upon.
    """
    raw = _encode(path)
    try:
        os.close(os.open(raw, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
        is_new = True
    except FileExistsError:
        if is_netns(path):
            return
        is_new = False
    except OSError as error:
        raise OSError(error.errno, f"create network namespace {os.fspath(path)}: {error.strerror}") from error
    step = ffi.new("char **")
    result = lib.ls_netns_create(raw, step)
    if result < 0:
        if is_new:
            os.unlink(raw)
        raise _error(result, "create", path, step)


def delete(path: StrPath) -> None:
    """Unmounts and removes the file; harmless when it is not mounted or not there.

    The namespace ends with the last process, socket or other mount that uses it.
    """
    _unmount(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(error.errno, f"delete network namespace {os.fspath(path)}: {error.strerror}") from error


def prepare_directory(path: StrPath) -> None:
    """Makes the directory, and a shared mount of it, for namespaces to be pinned in; idempotent.

    Sharing lets a pin's removal reach the mount namespaces that were made while it was there; otherwise they would
    keep the namespace alive.
    """
    raw = _encode(path)
    os.makedirs(raw, mode=0o755, exist_ok=True)
    step = ffi.new("char **")
    result = lib.ls_netns_prepare_directory(raw, step)
    if result < 0:
        raise OSError(-result, f"prepare {os.fspath(path)}: {ffi.string(step[0]).decode()}: {_reason(result)}")


def release_directory(path: StrPath) -> None:
    """Undoes `prepare_directory`; harmless when that was not done. Raises OSError when something is pinned in it."""
    try:
        if os.listdir(path):
            raise OSError(ENOTEMPTY, f"{os.fspath(path)} still has network namespaces pinned in it")
        _unmount(path)
        os.rmdir(path)
    except FileNotFoundError:
        return


def is_netns(path: StrPath) -> bool:
    """Whether a network namespace is pinned at `path`."""
    return lib.ls_netns_check(_encode(path)) > 0


def inode(path: StrPath) -> int:
    """The namespace's identity, as in /proc/<pid>/ns/net; raises OSError(EINVAL) when `path` is something else."""
    info = os.stat(path)
    if not is_netns(path):
        raise OSError(EINVAL, f"{os.fspath(path)} is no network namespace")
    return info.st_ino


def pids_in(netns_inode: int) -> list[int]:
    """The processes whose main thread is in the namespace of this inode, as far as /proc shows them."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry.name}/ns/net").st_ino == netns_inode:
                    found.append(int(entry.name))
    return found


def open_socket(path: StrPath | None, family: int, type: int, protocol: int = 0) -> int:
    """Opens a socket inside the namespace (None: the caller's) and returns its descriptor, usable from any thread."""
    if path is None:
        return socket.socket(family, type, protocol).detach()
    step = ffi.new("char **")
    result = lib.ls_netns_open_socket(_encode(path), family, type, protocol, step)
    if result < 0:
        raise _error(result, "open a socket in", path, step)
    return result


def enter(path: StrPath) -> None:
    """Moves the calling thread into the namespace for good; for a process about to exec."""
    step = ffi.new("char **")
    result = lib.ls_netns_enter(_encode(path), step)
    if result < 0:
        raise _error(result, "enter", path, step)


@contextlib.contextmanager
def opened(path: StrPath | None) -> Iterator[int | None]:
    """A descriptor of the namespace meanwhile, for the kernel to find it by; None for the caller's own.

    Raises OSError.
    """
    if path is None:
        yield None
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def call(path: StrPath | None, function: Callable[[], T]) -> T:
    """Runs `function` in a thread inside the namespace (None: a new one that ends with it).

    Returns or raises as `function` does. Processes started by `function` are in the namespace too.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            if path is None:
                result = lib.ls_netns_unshare()
                if result < 0:
                    raise OSError(-result, f"unshare(CLONE_NEWNET): {os.strerror(-result)}")
            else:
                enter(path)
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = Thread(target=body, name="netns-call")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _unmount(path: StrPath) -> None:
    result = lib.ls_netns_unmount(_encode(path))
    if result < 0:
        raise OSError(-result, f"umount {os.fspath(path)}: {_reason(result)}")


def _error(result: int, action: str, path: StrPath, step: CData) -> OSError:
    failed = ffi.string(step[0]).decode()
    return OSError(-result, f"{action} network namespace {os.fspath(path)}: {failed}: {_reason(result)}")


def _reason(result: int) -> str:
    return os.strerror(-result) + ("; needs root, or CAP_SYS_ADMIN" if result == -EPERM else "")


def _encode(path: StrPath) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"a path cannot hold a NUL character: {path!r}")
    return raw
