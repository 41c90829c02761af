"""Notices the end of sandboxes' main processes, through pidfds on the event loop.

A pidfd (pidfd_open(2), Linux 5.3) becomes readable when its process ends, whoever its parent is, and never stands for a
later process of the same number. The exit code comes from the process's supervisor, which writes it to the sandbox's
exit status file just after; when no code appears within STATUS_DEADLINE_S the supervisor is gone too, and the code
stays unknown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from typing import Any, Final

from control.controller import NetworkController
from control.errors import ControlError, InvalidArgument, NotFound
from control.model import Sandbox, SandboxState
from control.sandboxes import is_running
from control.workers import Workers

LOG = logging.getLogger(__name__)

STATUS_DEADLINE_S: Final = 2.0
_STATUS_POLL_S: Final = 0.01


class ProcessWatcher:
    """Watches the main process of every running sandbox. All methods belong to the event loop's thread.

    An end that cannot be recorded, as on a full disk, is tried again every `retry_s` seconds.
    """

    def __init__(self, controller: NetworkController, workers: Workers, *, retry_s: float = 5.0) -> None:
        self._controller = controller
        self._workers = workers
        self._retry_s = retry_s
        self._pidfds: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Takes up the sandboxes that the records hold as running; those whose process is gone by now have exited."""
        for sandbox in self._controller.sandboxes():
            if sandbox.state is SandboxState.RUNNING and sandbox.pid is not None:
                pidfd = _open(sandbox.pid)
                if pidfd is not None and is_running(sandbox):
                    self._watch(sandbox, pidfd)
                else:
                    if pidfd is not None:
                        os.close(pidfd)
                    self._ended(sandbox)

    async def started(self, ref: str, pid: int) -> None:
        """Records `pid` as the main process of the sandbox and watches it.

        The pidfd is opened first, so that what is watched is what the caller named, even if it ends meanwhile. Raises
        InvalidArgument when there is no such process, and what `mark_started` raises. Goes on when its caller is
        cancelled: a process that is recorded as running is watched.
        """
        await asyncio.shield(self._spawn(self._started(ref, pid)))

    async def _started(self, ref: str, pid: int) -> None:
        pidfd = _open(pid)
        if pidfd is None:
            raise InvalidArgument(f"sandbox {ref}: there is no process {pid}")
        try:
            sandbox = await self._workers.change(self._controller.mark_started, ref, pid)
        except BaseException:
            os.close(pidfd)
            raise
        self._watch(sandbox, pidfd)

    async def close(self) -> None:
        """Stops watching; the processes go on. Ends whose exit code is still awaited are taken up at the next start."""
        loop = asyncio.get_running_loop()
        for pidfd in self._pidfds.values():
            loop.remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _watch(self, sandbox: Sandbox, pidfd: int) -> None:
        self._forget(sandbox.id)
        self._pidfds[sandbox.id] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._on_readable, sandbox, pidfd)

    def _on_readable(self, sandbox: Sandbox, pidfd: int) -> None:
        self._forget(sandbox.id)
        self._ended(sandbox)

    def _forget(self, sandbox_id: str) -> None:
        pidfd = self._pidfds.pop(sandbox_id, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _ended(self, sandbox: Sandbox) -> None:
        self._spawn(self._settle(sandbox))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(self, sandbox: Sandbox) -> None:
        read, deadline = self._controller.read_exit_status, time.monotonic() + STATUS_DEADLINE_S
        while (exit_code := read(sandbox)) is None and time.monotonic() < deadline:  # noqa: ASYNC110 - it is a file
            await asyncio.sleep(_STATUS_POLL_S)
        while True:
            try:
                await self._workers.change(self._controller.mark_exited, sandbox.id, exit_code)
            except NotFound:
                return  # removed while its process was ending
            except ControlError as error:
                LOG.error("cannot record the end of sandbox %s, will try again: %s", sandbox.name, error)
                await asyncio.sleep(self._retry_s)
            else:
                return


def _open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
