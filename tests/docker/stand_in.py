"""A plugin that says yes to everything and does nothing: what Docker asks while linkspand is away is lost.

With nobody there Docker asks again for 15 s a call, and then goes on without an answer. This is the same in no time.
"""

from __future__ import annotations

import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread


class _Yes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # without connections that are kept open, on which it would answer for ever

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def address_string(self) -> str:
        return "dockerd"  # a unix socket's peer has no address

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextmanager
def stand_in(path: Path) -> Iterator[None]:
    """Listens at `path` while the block runs."""
    path.unlink(missing_ok=True)
    with _Server(str(path), _Yes) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()
