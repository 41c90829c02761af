"""Puts the firewall back when somebody else has flushed it.

Without the table, networks are no longer isolated from each other, nothing is masqueraded, and no port published.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from control.controller import NetworkController
from control.errors import ControlError
from control.workers import Workers

LOG = logging.getLogger(__name__)


class Monitor(Protocol):
    """See datapath.nft_monitor.TableMonitor."""

    def fileno(self) -> int: ...

    def was_deleted(self) -> bool: ...


class FirewallWatcher:
    """Watches the table through a monitor. All methods belong to the event loop's thread.

    What cannot be put back is tried again every `retry_s` seconds.
    """

    def __init__(
        self, monitor: Monitor, controller: NetworkController, workers: Workers, *, retry_s: float = 5.0
    ) -> None:
        self._monitor = monitor
        self._controller = controller
        self._workers = workers
        self._retry_s = retry_s
        self._is_deleted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._on_readable)
        self._task = asyncio.create_task(self._restore())

    async def close(self) -> None:
        """Idempotent."""
        if self._task is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _on_readable(self) -> None:
        if self._monitor.was_deleted():
            self._is_deleted.set()

    async def _restore(self) -> None:
        while True:
            await self._is_deleted.wait()
            self._is_deleted.clear()
            LOG.warning("somebody else has deleted the firewall's table: putting it back")
            try:
                await self._workers.change(self._controller.restore_firewall)
            except ControlError as error:
                LOG.error("will try again in %g s: %s", self._retry_s, error)
                await asyncio.sleep(self._retry_s)
                self._is_deleted.set()
