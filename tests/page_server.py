"""The web page of a controller that a test has, on a loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from aiohttp import web

from control.api.server import serve
from control.config import ApiSection, MetricsSection
from control.controller import NetworkController
from control.metrics.access import Access
from control.web.page import add_page
from tests.api_server import DEADLINE_SECONDS


@contextmanager
def page_server(
    controller: NetworkController, sock: socket.socket, section: MetricsSection | None = None
) -> Iterator[str]:
    """Serves on a bound socket until the block ends, to whom the section says; yields the page's URL."""
    access = Access(section or MetricsSection())
    started, done = threading.Event(), threading.Event()

    async def run() -> None:
        with ThreadPoolExecutor(1) as reader:
            app = web.Application()
            add_page(app, controller, reader, access)
            runner = await serve(app, sock, ApiSection(stop_timeout_seconds=1))
            started.set()
            await asyncio.get_running_loop().run_in_executor(None, done.wait)
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(DEADLINE_SECONDS)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
    finally:
        done.set()
        thread.join(DEADLINE_SECONDS)
