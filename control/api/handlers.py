"""What all request handlers share: the objects they work with, worker threads, bodies, answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from control.api import schema
from control.api.events import Broadcaster
from control.api.versions import Version
from control.config import ApiSection
from control.controller import NetworkController
from control.errors import InvalidArgument
from control.metrics import Metrics
from control.watch import ProcessWatcher
from control.workers import Workers

T = TypeVar("T")


@dataclass
class Context:
    """What a request handler may use."""

    controller: NetworkController
    limits: ApiSection
    metrics: Metrics
    watcher: ProcessWatcher
    workers: Workers
    events: Broadcaster = field(default_factory=Broadcaster)


Handler = Callable[[web.Request, Version], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """One operation; `path` without a version, with names in braces as aiohttp has them."""

    method: str
    path: str
    handler: Handler


async def read_json(request: web.Request, type_: type[T], limits: ApiSection) -> T:
    """Returns the request's body as a `type_`.

    Raises InvalidArgument (not JSON, or not of this shape), and what `read_body` raises.
    """
    if request.body_exists:
        written = request.headers.get("Content-Type", "")
        if request.content_type != "application/json" or not written:
            raise InvalidArgument(f"unsupported Content-Type header ({written}): must be 'application/json'")
    return schema.decode(await read_body(request, limits), type_)


async def read_body(request: web.Request, limits: ApiSection) -> bytes:
    """Raises HTTPRequestEntityTooLarge, and HTTPRequestTimeout for a client that does not send the rest."""
    if (request.content_length or 0) > limits.max_body_bytes:
        raise web.HTTPRequestEntityTooLarge(limits.max_body_bytes, request.content_length or 0)
    try:
        async with asyncio.timeout(limits.body_timeout_seconds):
            return await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(
            text=f"the request's body did not arrive within {limits.body_timeout_seconds:g} s"
        ) from error


def flag(request: web.Request, name: str) -> bool:
    """A boolean query parameter as Docker reads it: absent, empty, 0, no, false and none are false."""
    return request.query.get(name, "").strip().lower() not in ("", "0", "no", "false", "none")


def go_bool(request: web.Request, name: str) -> bool:
    """A boolean query parameter as Go's strconv.ParseBool reads it, absent or empty false; raises InvalidArgument."""
    text = request.query.get(name, "")
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("", "0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidArgument(f'invalid value for {name}: {text}: strconv.ParseBool: parsing "{text}": invalid syntax')


def json_response(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body) + b"\n", status=status, content_type="application/json")


def error_response(status: int, message: str) -> web.Response:
    """The Engine's form of an error; what is not valid Unicode in it, such as a name from a path, is replaced."""
    return json_response({"message": message.encode(errors="replace").decode()}, status)
