"""What Docker clients ask of an engine before and around networks: /_ping, /version, /info and /events.

Answers are honest: fields of `docker info` that speak of containers count sandboxes, those of images and storage are
empty. Source: the Engine API reference, version 1.51, section System.
"""

from __future__ import annotations

import asyncio
import os
import platform
import threading
from typing import Any

import msgspec
from aiohttp import web

from control.api import events, filters
from control.api.handlers import Context, Route, json_response
from control.api.versions import NEWEST, OLDEST, Version
from control.errors import InvalidArgument
from control.metrics import release
from control.model import SandboxState, utcnow

_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}


class SystemHandlers:
    """The operations on the engine as a whole."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._controller = context.controller

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_ping", self.ping),
            Route("HEAD", "/_ping", self.ping),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/events", self.events),
        ]

    async def ping(self, request: web.Request, version: Version) -> web.Response:
        """Answers on the loop itself: it says that linkspand serves, even when every worker waits for the kernel."""
        return web.Response(text="OK", headers=_NO_CACHE | {"Docker-Experimental": "false", "Swarm": "inactive"})

    async def version(self, request: web.Request, version: Version) -> web.Response:
        facts = {
            "Version": release(),
            "ApiVersion": str(NEWEST),
            "MinAPIVersion": str(OLDEST),
            "Os": "linux",
            "Arch": _arch(),
            "KernelVersion": platform.release(),
        }
        component = {
            "Name": "linkspand",
            "Version": release(),
            "Details": facts | {"Python": platform.python_version()},
        }
        return json_response({"Platform": {"Name": "Linkspan"}, "Components": [component]} | facts)

    async def info(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.read(self._info))

    def _info(self) -> dict[str, Any]:
        states = [sandbox.state for sandbox in self._controller.sandboxes()]
        running = states.count(SandboxState.RUNNING)
        status = self._controller.status()
        return {
            "ID": _machine_id(),
            "Name": platform.node(),
            "ServerVersion": release(),
            "Containers": len(states),
            "ContainersRunning": running,
            "ContainersPaused": 0,
            "ContainersStopped": len(states) - running,
            "Images": 0,
            "Driver": "",
            "DriverStatus": [],
            "Plugins": {"Volume": [], "Network": sorted(status["drivers"]), "Authorization": None, "Log": []},
            "OperatingSystem": _operating_system(),
            "OSType": "linux",
            "Architecture": platform.machine(),
            "KernelVersion": platform.release(),
            "NCPU": os.cpu_count() or 1,
            "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": threading.active_count(),
            "NEventsListener": self._context.events.readers,
            "SystemTime": utcnow().isoformat(),
            "Labels": [],
            "ExperimentalBuild": False,
            "Debug": False,
            "LiveRestoreEnabled": True,
            "Swarm": {"LocalNodeState": "inactive", "ControlAvailable": False, "NodeID": "", "NodeAddr": ""},
            "SecurityOptions": [],
            "Runtimes": {},
            "DefaultRuntime": "",
            "Warnings": [f"WARNING: {feature}: {why}" for feature, why in status["fallbacks"].items()],
        }

    async def events(self, request: web.Request, version: Version) -> web.StreamResponse:
        """Streams JSON lines until the client goes, `until` comes or linkspand stops."""
        wanted = filters.parse(request.query.get("filters", ""), events.KEYS)
        now = utcnow()
        since, until = (
            filters.timestamp(text, now) if (text := request.query.get(name, "")) else None
            for name in ("since", "until")
        )
        if since is not None and until is not None and until < since:
            raise InvalidArgument("`since` time is after the `until` time")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        with self._context.events.reader(
            since
        ) as reader:  # before the client sees an answer, so that it misses nothing
            await response.prepare(request)
            while (event := await reader.next(until)) is not None:
                message = events.view(event)
                if events.accepts(wanted, message):
                    await self._write(request, response, msgspec.json.encode(message) + b"\n")
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, line: bytes) -> None:
        try:
            async with asyncio.timeout(self._context.limits.body_timeout_seconds):
                await response.write(line)
        except TimeoutError as error:
            if request.transport is not None:
                request.transport.abort()  # a close would wait for the reader
            raise ConnectionAbortedError("a reader of /events takes nothing") from error


def _arch() -> str:
    """The machine's name as Go and Docker have it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _machine_id() -> str:
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
