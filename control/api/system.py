"""What Docker clients ask of an engine before and around networks: /_ping, /version, /info and /events.

Answers are honest: fields of `docker info` that speak of containers count sandboxes, those of images and storage are
empty. Source: the Engine API reference, version 1.56, section System.
"""

from __future__ import annotations

import asyncio
import os
import platform
import threading
from typing import Any, Final

from aiohttp import web

from control.api import events, filters
from control.api.handlers import Context, Route, json_response
from control.api.versions import (
    COMPONENTS_SINCE,
    INFO_WITHOUT_BRIDGE_NF_SINCE,
    MIN_VERSION_SINCE,
    NEWEST,
    OLDEST,
    WARNINGS_SINCE,
    Version,
)
from control.errors import InvalidArgument
from control.metrics import release
from control.model import SandboxState, utcnow

_FIELDS_SINCE: Final = {
    "MinAPIVersion": MIN_VERSION_SINCE,
    "Platform": COMPONENTS_SINCE,
    "Components": COMPONENTS_SINCE,
    "Warnings": WARNINGS_SINCE,
}
_FIELDS_UNTIL: Final = {
    "BridgeNfIptables": INFO_WITHOUT_BRIDGE_NF_SINCE,
    "BridgeNfIp6tables": INFO_WITHOUT_BRIDGE_NF_SINCE,
}
_NEVER: Final = Version(NEWEST.major + 1, 0)
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
        view = {"Platform": {"Name": "Linkspan"}, "Components": [component]} | facts
        return json_response(_known(view, version))

    async def info(self, request: web.Request, version: Version) -> web.Response:
        return json_response(_known(await self._context.workers.read(self._info), version))

    def _info(self) -> dict[str, Any]:
        states = [sandbox.state for sandbox in self._controller.sandboxes()]
        running = states.count(SandboxState.RUNNING)
        status = self._controller.status()
        return {
            "ID": _read("/etc/machine-id"),
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
            **_host_abilities(),
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
            raise InvalidArgument(
                f"`since` time ({request.query['since']}) cannot be after `until` time ({request.query['until']})"
            )
        content_type = events.content_type(request.headers.get("Accept", ""), version)
        response = web.StreamResponse(headers={"Content-Type": content_type})
        with self._context.events.reader(
            since
        ) as reader:  # before the client sees an answer, so that it misses nothing
            await response.prepare(request)
            while (event := await reader.next(until)) is not None:
                message = events.view(event, version)
                if events.accepts(wanted, message, version):
                    await self._write(request, response, events.encode(message, content_type))
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, line: bytes) -> None:
        try:
            async with asyncio.timeout(self._context.limits.body_timeout_seconds):
                await response.write(line)
        except TimeoutError as error:
            if request.transport is not None:
                request.transport.abort()  # a close would wait for the reader
            raise ConnectionAbortedError("a reader of /events takes nothing") from error


def _known(view: dict[str, Any], version: Version) -> dict[str, Any]:
    """The answer without the fields that `version` does not know yet, or no more."""
    return {
        name: value
        for name, value in view.items()
        if _FIELDS_SINCE.get(name, OLDEST) <= version < _FIELDS_UNTIL.get(name, _NEVER)
    }


def _host_abilities() -> dict[str, bool]:
    """What clients warn of when it is false or missing: cgroup controllers, and forwarding.

    Linkspan's bridges do without bridge-nf-call-*, so that nothing is wrong whether that is on or off.
    """
    controllers = _cgroup_controllers()
    return {
        "MemoryLimit": "memory" in controllers,
        "SwapLimit": "memory" in controllers,
        "OomKillDisable": "memory" in controllers,
        "CpuCfsPeriod": "cpu" in controllers,
        "CpuCfsQuota": "cpu" in controllers,
        "CPUShares": "cpu" in controllers,
        "CPUSet": "cpuset" in controllers,
        "PidsLimit": "pids" in controllers,
        "IPv4Forwarding": _read("/proc/sys/net/ipv4/ip_forward") == "1",
        "BridgeNfIptables": True,
        "BridgeNfIp6tables": True,
    }


def _cgroup_controllers() -> set[str]:
    """Those that are enabled, of either version of cgroups; cgroups(7)."""
    rows = [line.split() for line in _read("/proc/cgroups").splitlines() if not line.startswith("#")]
    return {row[0] for row in rows if row[3] == "1"} | set(_read("/sys/fs/cgroup/cgroup.controllers").split())


def _arch() -> str:
    """The machine's name as Go and Docker have it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _read(path: str) -> str:
    """The file's text, empty when there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
