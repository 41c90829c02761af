"""Runs a test in network and mount namespaces of its own, which end with it."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final

import pytest

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def held_namespace(setup: str) -> Iterator[str]:
    """The path of a network namespace that the shell commands `setup` have prepared; it ends with the block."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", f"{setup}; echo; exec sleep infinity"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield f"/proc/{holder.pid}/ns/net"
        finally:
            holder.kill()


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Moves the test to a thread with a network namespace (lo up) and a mount namespace (private) of its own.

    Processes and threads that the test starts are in them too. /sys goes on showing the devices outside.
    """

    @functools.wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        failure: list[BaseException] = []

        def body() -> None:
            try:
                if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) < 0:
                    raise OSError(ctypes.get_errno(), "unshare")
                run("mount --make-rprivate /")
                run("ip link set lo up")
                test(*args, **kwargs)
            except BaseException as error:
                failure.append(error)

        thread = Thread(target=body, name="isolated")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    return wrapper


def run(command: str, **kwargs: Any) -> str:
    """The output of a shell command, which must succeed."""
    result = subprocess.run(command, shell=True, text=True, capture_output=True, **kwargs)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return str(result.stdout)
