"""Docker's Engine API for networks.

Source: the Engine API reference, version 1.56, section Network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from control.api import filters, views
from control.api.handlers import Context, Route, flag, go_bool, json_response, read_json
from control.api.schema import NetworkConnect, NetworkCreate, NetworkDisconnect, endpoint_spec, network_spec, required
from control.api.versions import INSPECT_SCOPE_SINCE, PRUNE_SINCE, Version
from control.errors import InvalidArgument, NotFound
from control.events import Event
from control.model import Endpoint, Network, utcnow

_RECLAIMED: Final = {"reclaimed": "0"}
"""Bytes on disk, of which networks take none."""


class NetworkHandlers:
    """The operations on networks."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._controller = context.controller

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/networks", self.list_all),
            Route("GET", "/networks/", self.list_all),
            Route("POST", "/networks/create", self.create),
            Route("POST", "/networks/prune", self.prune),
            Route("GET", "/networks/{ref}", self.inspect),
            Route("DELETE", "/networks/{ref}", self.remove),
            Route("POST", "/networks/{ref}/connect", self.connect),
            Route("POST", "/networks/{ref}/disconnect", self.disconnect),
        ]

    async def list_all(self, request: web.Request, version: Version) -> web.Response:
        wanted = filters.parse(request.query.get("filters", ""), filters.LIST_KEYS)
        return json_response(await self._context.workers.read(self._list, wanted, version))

    def _list(self, wanted: filters.Filters, version: Version) -> list[dict[str, object]]:
        by_network: dict[str, list[Endpoint]] = {}
        for endpoint in self._controller.endpoints():
            by_network.setdefault(endpoint.network_id, []).append(endpoint)
        accept = filters.list_filter(wanted, by_network)
        names = self._sandbox_names()
        return [
            views.network_summary(network, version, by_network.get(network.id, ()), names)
            for network in self._controller.networks()
            if accept(network)
        ]

    async def inspect(self, request: web.Request, version: Version) -> web.Response:
        """`verbose` adds nothing: it asks for a Swarm's peers and services."""
        go_bool(request, "verbose")
        scope = request.query.get("scope", "") if version >= INSPECT_SCOPE_SINCE else ""
        return json_response(await self._context.workers.read(self._inspect, request.match_info["ref"], scope, version))

    def _inspect(self, ref: str, scope: str, version: Version) -> dict[str, object]:
        network = self._controller.network(ref)
        if scope and network.scope != scope:
            raise NotFound(f"network {ref} not found")
        status = views.NetworkStatus(self._controller.pool_usage(network), self._controller.network_info(network))
        endpoints = self._controller.network_endpoints(network.id)
        peers = self._controller.cluster.peers(network.id) if network.scope == "global" else ()
        return views.network_inspect(network, version, endpoints, self._sandbox_names(), status, peers)

    async def create(self, request: web.Request, version: Version) -> web.Response:
        spec = network_spec(await read_json(request, NetworkCreate, self._context.limits), version)
        network, warnings = await self._context.workers.change(self._controller.create_network, spec)
        return json_response({"Id": network.id, "Warning": "; ".join(warnings)}, 201)

    async def remove(self, request: web.Request, version: Version) -> web.Response:
        """`force` is Linkspan's own: it removes also what belongs to a container engine, for when that is gone."""
        ref, force = request.match_info["ref"], flag(request, "force")
        await self._context.workers.change(self._controller.remove_network, ref, force=force)
        return web.Response(status=204)

    async def connect(self, request: web.Request, version: Version) -> web.Response:
        body = await read_json(request, NetworkConnect, self._context.limits)
        container, spec = required("Container", body.container), endpoint_spec(body.endpoint_config, version)
        await self._context.workers.change(self._controller.connect, request.match_info["ref"], container, spec)
        return web.Response()

    async def disconnect(self, request: web.Request, version: Version) -> web.Response:
        body = await read_json(request, NetworkDisconnect, self._context.limits)
        container = required("Container", body.container)
        await self._context.workers.change(
            self._controller.disconnect, request.match_info["ref"], container, force=bool(body.force)
        )
        return web.Response()

    async def prune(self, request: web.Request, version: Version) -> web.Response:
        if version < PRUNE_SINCE:
            raise InvalidArgument(f"POST /networks/prune requires minimum API version {PRUNE_SINCE}")
        wanted = filters.parse(request.query.get("filters", ""), filters.PRUNE_KEYS)
        goes = filters.prune_filter(wanted, utcnow())

        def keep(network: Network) -> bool:
            return not goes(network)

        removed = await self._context.workers.change(self._controller.prune_networks, keep)
        self._context.events.publish(Event("network", "prune", "", _RECLAIMED))
        return json_response({"NetworksDeleted": removed})

    def _sandbox_names(self) -> Mapping[str, str]:
        return {sandbox.id: sandbox.name for sandbox in self._controller.sandboxes()}
