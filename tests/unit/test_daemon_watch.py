"""The process watcher on a real event loop and real processes, over a controller without a kernel."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control.controller import NetworkController
from control.errors import Exhausted
from control.model import SandboxSpec, SandboxState
from control.store.base import Change
from control.watch import ProcessWatcher
from control.workers import Workers
from tests.fakes import fake_controller
from tests.memory_store import MemoryStore


class RefusingStore(MemoryStore):
    """Takes `space` writes more, and all of them when that is None."""

    space: int | None = None

    def write(self, changes: Iterable[Change]) -> None:
        if self.space == 0:
            raise Exhausted("no space left")
        if self.space is not None:
            self.space -= 1
        super().write(changes)


@pytest.fixture
def store() -> RefusingStore:
    return RefusingStore()


@pytest.fixture
def controller(tmp_path: Path, store: RefusingStore) -> Iterator[NetworkController]:
    controller = fake_controller(tmp_path, store=store)
    controller.start()
    controller.create_sandbox(SandboxSpec(name="box"))
    yield controller
    controller.stop()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def watched(controller: NetworkController, work: Callable[[ProcessWatcher], Coroutine[Any, Any, None]]) -> None:
    """Runs `work` with a watcher."""

    async def body() -> None:
        workers = Workers(2)
        watcher = ProcessWatcher(controller, workers, retry_s=0.01)
        try:
            await watcher.start()
            await work(watcher)
        finally:
            await watcher.close()
            workers.close()

    asyncio.run(body())


async def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def end(controller: NetworkController, process: subprocess.Popen[bytes], code: int) -> None:
    """Ends the process, and writes its exit status as a supervisor does."""
    process.kill()
    process.wait()
    Path(controller.paths(controller.sandbox("box")).exit_status).write_text(f"{code}\n")


def has_exited(controller: NetworkController) -> bool:
    box = controller.sandbox("box")
    return box.state is SandboxState.EXITED and not controller.sandbox_endpoints(box.id)


def test_the_end_of_a_process_is_noticed_with_its_exit_code(
    controller: NetworkController, process: subprocess.Popen[bytes]
) -> None:
    async def work(watcher: ProcessWatcher) -> None:
        await watcher.started("box", process.pid)
        assert controller.sandbox("box").state is SandboxState.RUNNING
        end(controller, process, 7)
        await until(lambda: has_exited(controller))

    watched(controller, work)
    assert controller.sandbox("box").exit_code == 7


def test_a_process_that_ended_unwatched_is_noticed_at_start(
    controller: NetworkController, process: subprocess.Popen[bytes]
) -> None:
    async def take_up(watcher: ProcessWatcher) -> None:
        await watcher.started("box", process.pid)

    watched(controller, take_up)
    assert controller.sandbox("box").state is SandboxState.RUNNING
    end(controller, process, 3)

    async def notice(watcher: ProcessWatcher) -> None:
        await until(lambda: has_exited(controller))

    watched(controller, notice)
    assert controller.sandbox("box").exit_code == 3


@pytest.mark.parametrize("space", [0, 1, 2])
def test_an_end_that_the_store_refuses_is_recorded_when_it_takes_it(
    controller: NetworkController,
    store: RefusingStore,
    process: subprocess.Popen[bytes],
    caplog: pytest.LogCaptureFixture,
    space: int,
) -> None:
    async def work(watcher: ProcessWatcher) -> None:
        await watcher.started("box", process.pid)
        store.space = space
        end(controller, process, 0)
        await until(lambda: "cannot record the end of sandbox box, will try again: no space left" in caplog.text)
        assert not has_exited(controller)
        store.space = None
        await until(lambda: has_exited(controller))

    watched(controller, work)


def test_a_sandbox_that_is_removed_while_its_process_ends_is_no_error(
    controller: NetworkController, process: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(watcher: ProcessWatcher) -> None:
        await watcher.started("box", process.pid)
        controller.remove_sandbox("box", force=True)
        await until(lambda: not (watcher._pidfds or watcher._tasks))

    watched(controller, work)
    assert process.wait(10) == -9
    assert "ERROR" not in caplog.text
