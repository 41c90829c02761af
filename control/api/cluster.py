"""Linkspan's own API for this host's membership in a cluster, under /linkspan/cluster."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from control.api import views
from control.api.handlers import Context, Route, flag, json_response, read_json
from control.api.schema import ClusterJoin, cluster_spec
from control.api.versions import Version
from control.cluster_spec import ClusterSpec, require_certificates


class ClusterHandlers:
    """The operations on the cluster, as this node sees and changes it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._controller = context.controller

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/linkspan/cluster", self.inspect),
            Route("GET", "/linkspan/cluster/nodes", self.list_nodes),
            Route("POST", "/linkspan/cluster/join", self.join),
            Route("POST", "/linkspan/cluster/leave", self.leave),
            Route("GET", "/linkspan/cluster/check", self.check),
            Route("POST", "/linkspan/cluster/mend", self.mend),
        ]

    async def inspect(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.read(self._inspect))

    def _inspect(self) -> dict[str, Any]:
        return views.cluster(self._controller.cluster.info())

    async def list_nodes(self, request: web.Request, version: Version) -> web.Response:
        nodes = await self._context.workers.read(self._controller.cluster.nodes)
        return json_response([views.node(node) for node in nodes])

    async def join(self, request: web.Request, version: Version) -> web.Response:
        spec = cluster_spec(await read_json(request, ClusterJoin, self._context.limits))
        return json_response(await self._context.workers.change(self._join, spec))

    def _join(self, spec: ClusterSpec) -> dict[str, Any]:
        require_certificates(spec)
        self._controller.cluster.join(spec)
        return self._inspect()

    async def leave(self, request: web.Request, version: Version) -> web.Response:
        await self._context.workers.change(self._controller.cluster.leave, force=flag(request, "force"))
        return web.Response(status=204)

    async def check(self, request: web.Request, version: Version) -> web.Response:
        """Runs with the changes: it may wait for etcd, and so must not hold up those who only look at what is known."""
        found = await self._context.workers.change(self._controller.cluster.check)
        return json_response([views.difference(each) for each in found])

    async def mend(self, request: web.Request, version: Version) -> web.Response:
        found = await self._context.workers.change(self._controller.cluster.mend)
        return json_response([views.difference(each) for each in found])
