"""The watcher of the host's devices on a real event loop: storms are read once, and nothing that was told is lost."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import cast

import pytest

from control import daemon
from control.controller import NetworkController
from control.errors import DatapathFailed
from control.link_watch import LinkWatcher
from control.workers import Workers
from datapath.link_monitor import LinkChange

ONE, OTHER = LinkChange(7, "eth1", False), LinkChange(7, "eth1", True)
SETTLE_S = 0.05


class FakeMonitor:
    """Readable by a pipe as long as there is something to tell; counts how often it is read."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._told: set[LinkChange] | None = set()
        self.reads = 0

    def fileno(self) -> int:
        return self._read

    def tell(self, change: LinkChange | None) -> None:
        self._told = None if change is None or self._told is None else self._told | {change}
        os.write(self._write, b"x")

    def changes(self) -> set[LinkChange] | None:
        self.reads += 1
        os.read(self._read, 1 << 16)
        told, self._told = self._told, set()
        return told

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class FakeController:
    """Notes what it is told; raises what is in `failures`, and waits for `gate`."""

    def __init__(self) -> None:
        self.told: list[set[LinkChange] | None] = []
        self.failures: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def links_changed(self, changes: set[LinkChange] | None) -> None:
        self.told.append(changes)
        assert self.gate.wait(10)
        if self.failures:
            raise self.failures.pop()


@pytest.fixture
def monitor() -> Iterator[FakeMonitor]:
    made = FakeMonitor()
    yield made
    made.close()


@pytest.fixture
def controller() -> FakeController:
    return FakeController()


def watched(
    monitor: FakeMonitor, controller: FakeController, body: Callable[[], Awaitable[None]], settle_s: float = SETTLE_S
) -> None:
    """Runs `body` while a watcher works."""

    async def run() -> None:
        workers = Workers(1)
        watcher = LinkWatcher(monitor, cast(NetworkController, controller), workers, settle_s=settle_s, retry_s=0.01)
        watcher.start()
        try:
            await body()
        finally:
            controller.gate.set()
            await watcher.close()
            await watcher.close()
            workers.close()

    asyncio.run(run())


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - the fakes tell nobody
            await asyncio.sleep(0.001)


def test_a_storm_is_read_once_and_acted_upon_once(monitor: FakeMonitor, controller: FakeController) -> None:
    async def body() -> None:
        for number in range(1000):
            monitor.tell(LinkChange(number, f"v{number}", False))
            await asyncio.sleep(0)
        await until(lambda: bool(controller.told))
        monitor.tell(ONE)
        await until(lambda: len(controller.told) == 2)

    watched(monitor, controller, body, settle_s=1)
    assert controller.told == [{LinkChange(number, f"v{number}", False) for number in range(1000)}, {ONE}]
    assert monitor.reads == 2


def test_what_comes_while_the_controller_works_is_told_next(monitor: FakeMonitor, controller: FakeController) -> None:
    async def body() -> None:
        controller.gate.clear()
        monitor.tell(ONE)
        await until(lambda: bool(controller.told))
        monitor.tell(OTHER)
        controller.gate.set()
        await until(lambda: len(controller.told) == 2)

    watched(monitor, controller, body)
    assert controller.told == [{ONE}, {OTHER}]


def test_an_overrun_has_everything_looked_at(monitor: FakeMonitor, controller: FakeController) -> None:
    async def body() -> None:
        monitor.tell(ONE)
        monitor.tell(None)
        await until(lambda: bool(controller.told))

    watched(monitor, controller, body)
    assert controller.told == [None]


def test_messages_that_tell_of_no_device_are_not_acted_upon(monitor: FakeMonitor, controller: FakeController) -> None:
    async def body() -> None:
        os.write(monitor._write, b"x")
        await until(lambda: monitor.reads == 1)
        monitor.tell(ONE)
        await until(lambda: bool(controller.told))

    watched(monitor, controller, body)
    assert controller.told == [{ONE}]


def test_what_failed_is_done_again_for_all_devices(
    monitor: FakeMonitor, controller: FakeController, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        controller.failures = [DatapathFailed("no memory"), DatapathFailed("no memory")]
        monitor.tell(ONE)
        await until(lambda: len(controller.told) == 3)
        monitor.tell(OTHER)
        await until(lambda: len(controller.told) == 4)

    watched(monitor, controller, body)
    assert controller.told == [{ONE}, None, None, {OTHER}]
    assert caplog.text.count("will look at the host's devices again in 0.01 s: no memory") == 2


def test_without_changes_nothing_is_read(monitor: FakeMonitor, controller: FakeController) -> None:
    async def body() -> None:
        await asyncio.sleep(0)

    watched(monitor, controller, body)
    assert (monitor.reads, controller.told) == (0, [])


def test_linkspand_goes_on_where_devices_cannot_be_watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise OSError(23, "Too many open files in system")

    async def body() -> None:
        async with AsyncExitStack() as stack:
            assert daemon._monitor_links(stack) is None

    monkeypatch.setattr(daemon, "LinkMonitor", refuse)
    asyncio.run(body())
    assert "cannot watch the host's devices" in caplog.text
