"""A driver, started without records, on the module's host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.drivers.bench import DRIVERS, Bench, opened
from tests.hosts import Host, host

_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWNET = 0x200, 0x20000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def _no_descriptor_stays_open() -> Iterator[None]:
    """Drivers are never closed, as a process has them to its end; with over 1,024 descriptors it has no select()."""
    yield
    while opened:
        opened.pop().close()


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with host() as made:
        netns_dir = made.run_dir / "netns"
        netns_dir.mkdir()
        yield made


@pytest.fixture(scope="module")
def inside(machine: Host) -> Iterator[ThreadPoolExecutor]:
    """Threads in the host's namespaces, as those of a linkspand there are."""

    def enter() -> None:
        assert _libc.unshare(_CLONE_FS) == 0
        for name, kind in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)):
            fd = os.open(f"/proc/{machine.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                assert _libc.setns(fd, kind) == 0, os.strerror(ctypes.get_errno())
            finally:
                os.close(fd)

    with ThreadPoolExecutor(8, initializer=enter) as pool:
        yield pool


@pytest.fixture(params=DRIVERS)
def bench(request: pytest.FixtureRequest, machine: Host, inside: ThreadPoolExecutor) -> Bench:
    made = Bench(DRIVERS[request.param](machine), machine, inside)
    inside.submit(made.driver.start, [], []).result(60)
    return made
