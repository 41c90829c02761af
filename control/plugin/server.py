"""The plugin socket: HTTP POST for every call, JSON both ways, whatever the headers say.

What is refused is answered with status 200 and a text, under the key that the protocol has for it; status 400 is for
what is no message of the protocol. Source: moby, docs/extend/plugin_api.md, and pkg/plugins/client.go (a transport
error is repeated for 30 s, any other status than 200 is not).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from aiohttp import web

from control.api.handlers import read_body
from control.config import ApiSection
from control.errors import ControlError, DatapathFailed, StoreError
from control.metrics import Metrics
from control.plugin.schema import MalformedMessage, decode
from control.workers import Workers

LOG = logging.getLogger(__name__)

_CONTENT_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"

M = TypeVar("M")


@dataclass(frozen=True)
class Route(Generic[M]):
    """One call of a protocol; `handler` blocks, and returns the answer."""

    name: str
    message: type[M]
    handler: Callable[[M], dict[str, Any]]

    @property
    def error_key(self) -> str:
        return "Error" if self.name.startswith("IpamDriver.") else "Err"


def build_plugin_app(
    routes: Sequence[Route[Any]], *, workers: Workers, limits: ApiSection, metrics: Metrics
) -> web.Application:
    """Returns the application that serves the calls in `workers`."""
    app = web.Application(client_max_size=limits.max_body_bytes)
    for route in routes:
        app.router.add_post(f"/{route.name}", _entry(route, workers, limits, metrics))
    app.router.add_route("*", "/{elsewhere:(?s:.*)}", _elsewhere)
    return app


async def _elsewhere(request: web.Request) -> web.Response:
    """The engine takes 404 for a method that the plugin has no use for."""
    path = request.path.encode(errors="replace").decode()
    return _answer({"Err": f"{request.method} {path} is not implemented by linkspan"}, 404)


def _entry(
    route: Route[Any], workers: Workers, limits: ApiSection, metrics: Metrics
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def entry(request: web.Request) -> web.Response:
        begin = time.monotonic()
        status = 200
        try:
            message = decode(await read_body(request, limits), route.message)
            answer = await workers.change(route.handler, message)
        except MalformedMessage as error:
            status, answer = 400, _failure(route, str(error))
        except web.HTTPException as error:
            status, answer = error.status, _failure(route, error.text or error.reason)
        except ControlError as error:
            if isinstance(error, DatapathFailed | StoreError):
                LOG.error("%s failed", route.name, exc_info=error)
                metrics.work.errors.labels(type(error).__name__).inc()
            else:
                LOG.info("%s refused: %s", route.name, error)
            answer = {route.error_key: str(error)}
        except Exception:
            reference = secrets.token_hex(4)
            LOG.exception("%s failed unexpectedly, reference %s", route.name, reference)
            metrics.work.errors.labels("unexpected").inc()
            status, answer = 500, _failure(route, f"internal error: look for {reference} in linkspand's log")
        metrics.work.request(f"/{route.name}", "POST", status, time.monotonic() - begin, f"/{route.name}")
        return _answer(answer, status)

    return entry


def _failure(route: Route[Any], text: str) -> dict[str, Any]:
    """With another status than 200 the engine looks for "Err", whichever protocol it is."""
    return {route.error_key: text, "Err": text}


def _answer(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type=_CONTENT_TYPE)
