"""The HTTP servers of linkspand: the API on a unix socket, the metrics on a TCP port.

Every answer that is not a success is {"message": ...}; every request is timed; nothing that a client sends, and no
fault of ours, reaches it as a stack trace.
"""

from __future__ import annotations

import grp
import logging
import os
import secrets
import socket
import ssl
import stat
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from control.api.cluster import ClusterHandlers
from control.api.doctor import DoctorHandlers
from control.api.handlers import Context, Route, error_response
from control.api.networks import NetworkHandlers
from control.api.sandboxes import SandboxHandlers
from control.api.stats import StatsHandlers
from control.api.system import SystemHandlers
from control.api.trace import TraceHandlers
from control.api.versions import NEWEST, Version, negotiate
from control.config import ApiSection
from control.errors import ControlError
from control.metrics import release

LOG = logging.getLogger(__name__)

_LINGER_SECONDS: Final = 1.0
"""How long the rest of a refused body is read, so that the client gets to see the answer."""
_BACKLOG: Final = 512
_OUR_FAULT: Final = frozenset({500, 504})
"""Statuses of errors that are logged whole and counted; a full pool (503), say, is for the client to deal with."""

_ENGINE: Final = "ask Docker's own engine, which uses Linkspan's networks too (docker network create -d linkspan)"
_INSTEAD: Final = {
    "containers": "run processes with `linkspan run`, list, enter and remove them with `linkspan ps`, `exec` and `rm`",
    "exec": "run commands in a sandbox with `linkspan exec`",
    **dict.fromkeys(("auth", "build", "commit", "debug", "distribution", "grpc", "images", "plugins"), _ENGINE),
    **dict.fromkeys(("configs", "nodes", "secrets", "services", "session", "swarm", "system", "tasks"), _ENGINE),
    "volumes": _ENGINE,
}
"""What to do instead of Docker's other operations, by the first element of their paths."""


class ListenError(Exception):
    """A socket cannot be listened on; the text names it and says why."""


def build_app(context: Context) -> web.Application:
    """Returns the application that serves every route, with and without a version in its path."""
    app = web.Application(client_max_size=context.limits.max_body_bytes)
    routes = [
        *SystemHandlers(context).routes(),
        *NetworkHandlers(context).routes(),
        *SandboxHandlers(context).routes(),
        *ClusterHandlers(context).routes(),
        *TraceHandlers(context).routes(),
        *StatsHandlers(context).routes(),
        *DoctorHandlers(context).routes(),
        Route("*", "/{elsewhere:(?s:.*)}", _elsewhere),  # last: the first that fits is taken
    ]
    for prefix in ("/v{version:[0-9.]+}", ""):
        for route in routes:
            # As in Docker a reference may hold anything, so that what does not exist is a network not found.
            path = prefix + route.path.replace("/networks/{ref}", "/networks/{ref:(?s:.+)}")
            app.router.add_route(route.method, path, _entry(route, context))
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(lambda _: _end_streams(context))
    return app


async def _end_streams(context: Context) -> None:
    context.events.close()


def _entry(route: Route, context: Context) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Returns the route's handler for aiohttp: with the version settled, errors answered and the time taken."""
    metrics = context.metrics

    async def entry(request: web.Request) -> web.StreamResponse:
        begin = time.monotonic()
        response: web.StreamResponse
        try:
            response = await route.handler(request, negotiate(request.match_info.get("version")))
        except ControlError as error:
            if error.http_status in _OUR_FAULT:
                LOG.error("%s %s failed", request.method, request.path, exc_info=error)
                metrics.work.errors.labels(type(error).__name__).inc()
            response = error_response(error.http_status, str(error))
        except web.HTTPRequestEntityTooLarge:
            limit = context.limits.max_body_bytes
            response = error_response(413, f"the request's body is over the limit of {limit} bytes")
        except web.HTTPException as error:
            response = error_response(error.status, error.text or error.reason)
        except Exception as error:
            is_gone = request.transport is None or request.transport.is_closing()
            if isinstance(error, ConnectionError) and is_gone:
                raise  # nobody to answer, and nothing of ours is wrong
            reference = secrets.token_hex(4)
            LOG.exception("%s %s failed unexpectedly, reference %s", request.method, request.path, reference)
            metrics.work.errors.labels("unexpected").inc()
            response = error_response(500, f"internal error: look for {reference} in linkspand's log")
        metrics.work.request(route.path, route.method, response.status, time.monotonic() - begin, request.path)
        return response

    return entry


async def _elsewhere(request: web.Request, version: Version) -> web.Response:
    """Docker's client tries the kinds of objects one after the other, as long as it reads "not supported"."""
    first = request.match_info["elsewhere"].partition("/")[0]
    if first in _INSTEAD:
        text = f"linkspand serves Docker's network API only, /{first} is not supported: {_INSTEAD[first]}"
        return error_response(501, text)
    return error_response(404, "page not found")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = f"linkspand/{release()} (linux)"
    response.headers["Api-Version"] = str(NEWEST)
    response.headers["Ostype"] = "linux"
    response.headers["Docker-Experimental"] = "false"


class _OneLine(logging.Filter):
    """Malformed HTTP is a client's fault: said in one line, without a stack trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.msg, record.args = "malformed HTTP request: %s", (" ".join(str(record.exc_info[1].message).split()),)
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.exc_info = record.exc_text = None
        return True


_HTTP_LOG: Final = logging.getLogger("control.api.http")
_HTTP_LOG.addFilter(_OneLine())


async def serve(
    app: web.Application, sock: socket.socket, limits: ApiSection, tls: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Serves `app` on a bound socket until the runner's `cleanup`.

    A connection is closed when a request's head does not arrive whole within the idle time-out, or when it idles as
    long. A handler is cancelled when its client goes away: what had not begun is dropped, what runs in a worker goes
    on.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_HTTP_LOG,
        keepalive_timeout=limits.idle_timeout_seconds,
        lingering_time=_LINGER_SECONDS,
        shutdown_timeout=limits.stop_timeout_seconds
        / 2,  # aiohttp waits so long for handlers to end, and again after a cancel
        handler_cancellation=True,
        auto_decompress=False,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock, backlog=_BACKLOG, ssl_context=tls).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def bind_unix(path: Path, group: str | None) -> socket.socket:
    """Returns a socket that listens at `path` for root and `group`, for root alone when there is none or no such group.

    Replaces a socket file that nobody serves. Raises ListenError when somebody does, naming the process, or when the
    path cannot be used. Permissions are set before the socket listens, so there is no moment when others could connect;
    who connects from then on waits until it is served.
    """
    try:
        remove_stale_socket(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.bind(str(path))
            os.chmod(path, 0o600)
            if group is not None:
                _admit(path, group)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    return sock


def _admit(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        os.chmod(path, 0o660)
    except KeyError:
        LOG.warning('there is no group "%s": only root can use %s', group, path)


def bind_tcp(host: str, port: int) -> socket.socket:
    """Returns a TCP socket bound at an IP address and port; raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another address with --metrics-listen"
        ) from error
    return sock


def remove_stale_socket(path: Path) -> None:
    """Removes a socket file that nobody serves; raises ListenError when somebody does, or when it is no socket."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ListenError(f"cannot listen on {path}: there is a file that is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    raise ListenError(
        f"cannot listen on {path}: process {pid} serves it already; "
        "stop that one, or use another --run-dir or --plugin-socket"
    )
