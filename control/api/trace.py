"""Linkspan's own API for following one packet, under /linkspan/trace."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from control.api.handlers import Context, Route, json_response
from control.api.versions import Version
from control.errors import InvalidArgument
from control.tracing import TraceRequest


class TraceHandlers:
    """The one operation: it changes nothing, and so is a GET."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [Route("GET", "/linkspan/trace", self.trace)]

    async def trace(self, request: web.Request, version: Version) -> web.Response:
        """Query: from, to, and where they are not the usual proto, port, from_mac, from_ip. Runs with the changes: the
        first one compiles, and so must not hold up those who only look."""
        query = request.query
        for name in ("from", "to"):
            if not query.get(name):
                raise InvalidArgument(f"a trace needs the parameter {name}: a sandbox or an address")
        asked = TraceRequest(
            source=query["from"],
            destination=query["to"],
            protocol=query.get("proto") or "icmp",
            port=_port(query.get("port", "")),
            mac=query.get("from_mac", ""),
            ip=query.get("from_ip", ""),
        )
        return json_response(await self._context.workers.change(self._trace, asked))

    def _trace(self, asked: TraceRequest) -> dict[str, Any]:
        return asdict(self._context.controller.tracing.trace(asked))


def _port(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 5):
        raise InvalidArgument(f"invalid port {text!r}: ports are 1 to 65535")
    return int(text or 0)
