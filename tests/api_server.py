"""The real API server on a unix socket, in a thread of this process, and a client that owes nothing to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from control.api.handlers import Context
from control.api.server import bind_unix, build_app, serve
from control.config import ApiSection
from control.controller import NetworkController
from control.metrics import Metrics
from control.watch import ProcessWatcher
from control.workers import Workers

DEADLINE_SECONDS = 20.0


@dataclass(frozen=True)
class Reply:
    """One answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The text of an error; fails unless the body is exactly {"message": text}."""
        document = self.json
        assert document.keys() == {"message"}, document
        assert isinstance(document["message"], str)
        return document["message"]


class UnixConnection(http.client.HTTPConnection):
    """The standard library's HTTP client over a unix socket."""

    def __init__(self, path: Path, timeout: float = DEADLINE_SECONDS) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    path: Path,
    method: str,
    target: str,
    body: Any = None,
    *,
    raw: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = DEADLINE_SECONDS,
) -> Reply:
    """Sends one request on a connection of its own; `body` goes as JSON, `raw` as it is."""
    connection = UnixConnection(path, timeout)
    try:
        sent = dict(headers or {})
        if body is not None:
            raw = json.dumps(body).encode()
        if raw is not None:
            sent.setdefault("Content-Type", "application/json")
        connection.request(method, target, raw, sent)
        response = connection.getresponse()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


class ApiServer:
    """A context manager that starts `controller` and serves it on `socket_path` until the block ends."""

    def __init__(self, controller: NetworkController, socket_path: Path, limits: ApiSection | None = None) -> None:
        self.controller = controller
        self.socket_path = socket_path
        self.limits = limits or ApiSection()
        self.metrics = Metrics()
        self.context: Context | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="api-server")
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.metrics.watch(self.controller)
        self.controller.start()
        self._thread.start()
        assert self._ready.wait(DEADLINE_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()
        self.controller.stop()

    def ask(self, method: str, target: str, body: Any = None, **kwargs: Any) -> Reply:
        return ask(self.socket_path, method, target, body, **kwargs)

    async def _serve(self) -> None:
        workers = Workers(self.limits.workers)
        watcher = ProcessWatcher(self.controller, workers)
        self.context = context = Context(self.controller, self.limits, self.metrics, watcher, workers)
        await watcher.start()
        context.events.start(self.controller.subscribe)
        with bind_unix(self.socket_path, "no-such-group") as sock:
            runner = await serve(build_app(context), sock, self.limits)
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()
        await watcher.close()
        workers.close()
