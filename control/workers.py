"""Worker threads for calls that block: the event loop never waits for the kernel, the disk or a lock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

READERS: Final = 4
"""Threads for requests that only look, so that changes which wait for the kernel never hold up a `network ls`."""


class Workers:
    """Two bounded thread pools: one for requests that change something, one for those that only look."""

    def __init__(self, changes: int) -> None:
        self._changes = ThreadPoolExecutor(changes, thread_name_prefix="change")
        self._reads = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._running: set[Future[Any]] = set()

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a change. When the caller is cancelled a change that has not begun is dropped, one that has goes on."""
        return await self._run(self._changes, partial(function, *args, **kwargs))

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(self._reads, partial(function, *args, **kwargs))

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def close(self) -> None:
        """Takes no more work; what has begun goes on, what has not is dropped."""
        for pool in (self._changes, self._reads):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        future = pool.submit(work)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)
