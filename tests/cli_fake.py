"""A daemon of canned answers: it speaks HTTP on a unix socket and records every request it gets.

Both the real docker client and ours talk to it, so that what they send and print can be laid side by side.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

API_VERSION = "1.50"


@dataclass
class Request:
    """One request as it came in; `path` has no version prefix, `body` is parsed JSON or None."""

    method: str
    path: str
    body: Any


@dataclass
class Answer:
    """What to answer; `body` is encoded as JSON unless it is bytes; `delay` is in seconds."""

    status: int = 200
    body: Any = b""
    delay: float = 0.0


@dataclass
class FakeDaemon:
    """Answers by (method, path without version and query); anything else gets 404 like Docker's."""

    socket: Path
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def on(self, method: str, path: str, body: Any = b"", status: int = 200, delay: float = 0.0) -> None:
        self.answers[method, path] = Answer(status, body, delay)

    def asked(self) -> list[Request]:
        """The requests so far without the client's ping; forgets them."""
        seen = [request for request in self.requests if request.path != "/_ping"]
        self.requests.clear()
        return seen


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    daemon: FakeDaemon

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = re.sub(r"^/v1\.\d+(?=/)", "", self.path)
        self.daemon.requests.append(Request(self.command, path, json.loads(raw) if raw else None))
        bare = path.split("?")[0]
        if bare == "/_ping":
            answer = Answer(200, b"OK")
        else:
            missing = {"message": f"page not found: {bare}"}
            answer = self.daemon.answers.get((self.command, bare), Answer(404, missing))
        if answer.delay:
            threading.Event().wait(answer.delay)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        try:
            self.send_response(answer.status)
            self.send_header("Api-Version", API_VERSION)
            self.send_header("Content-Type", "application/json" if body else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except BrokenPipeError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_DELETE = _serve


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


@contextmanager
def fake_daemon(directory: Path) -> Iterator[FakeDaemon]:
    """A running daemon whose socket lies in `directory`; stopped and joined at the end."""
    daemon = FakeDaemon(directory / "fake.sock")
    handler = type("Handler", (_Handler,), {"daemon": daemon})
    with _Server(str(daemon.socket), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield daemon
        finally:
            server.shutdown()
            thread.join()
