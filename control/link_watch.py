"""Has the networks follow the host's devices that they are on, when those change, go or come back."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from control.controller import NetworkController
from control.errors import ControlError
from control.workers import Workers
from datapath.link_monitor import LinkChange

LOG = logging.getLogger(__name__)


class Monitor(Protocol):
    """See datapath.link_monitor.LinkMonitor."""

    def fileno(self) -> int: ...

    def changes(self) -> set[LinkChange] | None: ...


class LinkWatcher:
    """Watches the host's devices through a monitor. All methods belong to the event loop's thread.

    The first change begins a time of `settle_s` seconds in which the monitor is not looked at; then all that has
    happened is read and acted upon together. So a storm of changes costs as much as a few do. What cannot be looked at
    is looked at again after `retry_s` seconds.
    """

    def __init__(
        self,
        monitor: Monitor,
        controller: NetworkController,
        workers: Workers,
        *,
        settle_s: float = 0.1,
        retry_s: float = 5.0,
    ) -> None:
        self._monitor = monitor
        self._controller = controller
        self._workers = workers
        self._settle_s = settle_s
        self._retry_s = retry_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _follow(self) -> None:
        while True:
            await self._readable()
            await asyncio.sleep(self._settle_s)
            changes = self._monitor.changes()
            while changes is None or changes:
                try:
                    await self._workers.change(self._controller.links_changed, changes)
                    break
                except ControlError as error:
                    LOG.error("will look at the host's devices again in %g s: %s", self._retry_s, error)
                    await asyncio.sleep(self._retry_s)
                    changes = None

    async def _readable(self) -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._monitor.fileno(), told.set)
        try:
            await told.wait()
        finally:
            loop.remove_reader(self._monitor.fileno())
