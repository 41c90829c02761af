"""Serves the page and its data on the metrics' port, to whoever may read the metrics.

The page draws what names say, and names may be chosen by those whom the host does not trust. So they come as JSON and
are set as text, and the browser is told to run, load and send to nothing but what is served here: Content Security
Policy Level 3 (W3C).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from control.api.stats import document
from control.controller import NetworkController
from control.metrics.access import Access, Handler

_STATIC: Final = Path(__file__).parent / "static"
_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/rates.js": ("rates.js", "text/javascript"),
    "/topology.js": ("topology.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def add_page(app: web.Application, controller: NetworkController, reader: Executor, access: Access) -> None:
    """Adds the page to an application: `/`, its parts, and `/stats`, the document that it draws.

    All are for GET and HEAD alone, and for those that `access` lets through. `reader` reads the counters, so that the
    loop never waits for them.
    """
    for path, (name, content_type) in _FILES.items():
        app.router.add_get(path, access.guard(_file((_STATIC / name).read_bytes(), content_type)))

    async def stats(request: web.Request) -> web.Response:
        body = await asyncio.get_running_loop().run_in_executor(reader, _stats, controller)
        return web.Response(body=body, content_type="application/json", headers=_HEADERS)

    app.router.add_get("/stats", access.guard(stats))


def _file(body: bytes, content_type: str) -> Handler:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return serve


def _stats(controller: NetworkController) -> bytes:
    return msgspec.json.encode(document(controller))
