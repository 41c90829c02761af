"""An HTTP application that a test has, on a loop and in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from aiohttp import web

from control.api.server import serve
from control.config import ApiSection
from tests.api_server import DEADLINE_SECONDS


@contextmanager
def served(
    build: Callable[[Executor], web.Application], sock: socket.socket, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serves what `build` makes, with a thread for what blocks, on a bound socket until the block ends; yields its
    port."""
    started, done = threading.Event(), threading.Event()

    async def run() -> None:
        with ThreadPoolExecutor(1) as blocking:
            runner = await serve(build(blocking), sock, ApiSection(stop_timeout_seconds=1), tls)
            started.set()
            await asyncio.get_running_loop().run_in_executor(None, done.wait)
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(DEADLINE_SECONDS)
        yield int(sock.getsockname()[1])
    finally:
        done.set()
        thread.join(DEADLINE_SECONDS)
