"""The web page of a controller that a test has, on a loop of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from aiohttp import web

from control.config import MetricsSection
from control.controller import NetworkController
from control.metrics.access import Access
from control.web.page import add_page
from tests.served import served


@contextmanager
def page_server(
    controller: NetworkController, sock: socket.socket, section: MetricsSection | None = None
) -> Iterator[str]:
    """Serves on a bound socket until the block ends, to whom the section says; yields the page's URL."""
    access = Access(section or MetricsSection())

    def build(reader: Executor) -> web.Application:
        app = web.Application()
        add_page(app, controller, reader, access)
        return app

    with served(build, sock) as port:
        yield f"http://127.0.0.1:{port}/"
