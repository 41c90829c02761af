"""Linkspan's own API for sandboxes and for its state, under /linkspan/."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from control.api import views
from control.api.handlers import Context, Route, flag, json_response, read_json
from control.api.schema import SandboxCreate, SandboxStarted, sandbox_spec
from control.api.versions import Version
from control.model import Endpoint, Network, SandboxState


class SandboxHandlers:
    """The operations on sandboxes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._controller = context.controller

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/linkspan/status", self.status),
            Route("GET", "/linkspan/sandboxes", self.list_all),
            Route("POST", "/linkspan/sandboxes", self.create),
            Route("GET", "/linkspan/sandboxes/{ref}", self.inspect),
            Route("DELETE", "/linkspan/sandboxes/{ref}", self.remove),
            Route("POST", "/linkspan/sandboxes/{ref}/started", self.started),
        ]

    async def status(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.read(self._controller.status))

    async def list_all(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.read(self._list, flag(request, "all")))

    def _list(self, include_exited: bool) -> list[dict[str, Any]]:
        by_sandbox: dict[str, list[Endpoint]] = {}
        for endpoint in self._controller.endpoints():
            by_sandbox.setdefault(endpoint.sandbox_id, []).append(endpoint)
        networks = self._networks()
        live = {SandboxState.CREATED, SandboxState.RUNNING}
        return [
            views.sandbox(sandbox, self._controller.paths(sandbox), by_sandbox.get(sandbox.id, ()), networks)
            for sandbox in self._controller.sandboxes()
            if include_exited or sandbox.state in live
        ]

    async def inspect(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.read(self._inspect, request.match_info["ref"]))

    def _inspect(self, ref: str) -> dict[str, Any]:
        sandbox = self._controller.sandbox(ref)
        endpoints = self._controller.sandbox_endpoints(sandbox.id)
        return views.sandbox(sandbox, self._controller.paths(sandbox), endpoints, self._networks())

    def _networks(self) -> dict[str, Network]:
        return {network.id: network for network in self._controller.networks()}

    async def create(self, request: web.Request, version: Version) -> web.Response:
        spec = sandbox_spec(await read_json(request, SandboxCreate, self._context.limits))
        sandbox = await self._context.workers.change(self._controller.create_sandbox, spec)
        return json_response(await self._context.workers.read(self._inspect, sandbox.id), 201)

    async def started(self, request: web.Request, version: Version) -> web.Response:
        """The supervisor tells which process is the sandbox's main one; from here on its end is noticed."""
        body = await read_json(request, SandboxStarted, self._context.limits)
        await self._context.watcher.started(request.match_info["ref"], body.pid)
        return web.Response(status=204)

    async def remove(self, request: web.Request, version: Version) -> web.Response:
        await self._context.workers.change(
            self._controller.remove_sandbox, request.match_info["ref"], force=flag(request, "force")
        )
        return web.Response(status=204)
