"""What live views show, in one document: networks, their endpoints and what those have sent, the cluster's nodes.

Everything in it counts from an endpoint's join on; whoever wants rates takes the document twice.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from control.api.handlers import Context, Route, json_response
from control.api.versions import Version
from control.controller import NetworkController
from control.drivers.base import EndpointCounters
from control.errors import Forbidden
from control.model import Endpoint, Network, SandboxId
from datapath.latency import SCHEMA, Histogram

_TALLIES: Final = tuple(name for name in EndpointCounters.__struct_fields__ if name != "drops")


class StatsHandlers:
    """The one operation that live views ask for again and again."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [Route("GET", "/linkspan/stats", self.stats)]

    async def stats(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.read(document, self._context.controller))


def document(controller: NetworkController) -> dict[str, Any]:
    """Returns the document, ready for JSON; blocks for as long as the counters take to be read.

    `at` is the wall clock in seconds when the counters had been read; `monotonic` another one that is never set, for
    differences. Configuration-only networks, which no packet can be on, are left out; `nodes` of a network are those
    with endpoints on it, where it is a cluster's. `counters` are null for an endpoint whose packets the driver does not
    see. Docs: docs/views.md.
    """
    counts = controller.counted()
    counted = {endpoint.id: counters for _, endpoint, _, counters in counts.endpoints}
    moment = {"at": time.time(), "monotonic": time.monotonic()}
    names = {sandbox.id: sandbox.name for sandbox in controller.sandboxes()}
    return {
        **moment,
        "host": platform.node(),
        "latency_schema": SCHEMA,
        "networks": [
            {
                **_network(network),
                "nodes": [node.name for node in controller.cluster.peers(network.id)] if network.is_global else [],
                "endpoints": [
                    _endpoint(endpoint, names, counted.get(endpoint.id))
                    | {
                        "latency": {
                            kind: _latency(found)
                            for kind, found in counts.endpoint_latencies(endpoint.id).items()
                            if found.buckets  # the first sample may be on its way
                        }
                    }
                    for endpoint in controller.network_endpoints(network.id)
                ],
            }
            for network in sorted(controller.networks(), key=lambda network: network.name)
            if not network.config_only
        ],
        "nodes": _nodes(controller),
        "fallbacks": controller.status()["fallbacks"],
    }


def _nodes(controller: NetworkController) -> list[dict[str, Any]]:
    try:
        nodes = controller.cluster.nodes()
    except Forbidden:  # in no cluster
        return []
    return [
        {"name": node.name, "address": str(node.address), "state": node.state, "self": node.is_self} for node in nodes
    ]


def _network(network: Network) -> dict[str, str]:
    return {"id": network.id, "name": network.name, "driver": network.driver, "scope": network.scope}


def _latency(found: Histogram) -> dict[str, Any]:
    return {
        "count": found.count,
        "seconds": found.total_seconds,
        "p50": found.quantile(0.5),
        "p99": found.quantile(0.99),
        "buckets": found.buckets,
    }


def _endpoint(endpoint: Endpoint, names: Mapping[SandboxId, str], counted: EndpointCounters | None) -> dict[str, Any]:
    """`sandbox` tells which endpoints are one sandbox's; of a container engine's only the last part of its namespace's
    path is known, which then is its name as well."""
    engine_key = endpoint.sandbox_key.rpartition("/")[2]
    return {
        "id": endpoint.id,
        "sandbox": endpoint.sandbox_id or engine_key,
        "name": names.get(endpoint.sandbox_id, engine_key),
        "ipv4": str(endpoint.ipv4.ip) if endpoint.ipv4 else "",
        "ipv6": str(endpoint.ipv6.ip) if endpoint.ipv6 else "",
        "mac": endpoint.mac,
        "counters": None if counted is None else {tally: getattr(counted, tally) for tally in _TALLIES},
        "drops": {} if counted is None else {reason: count for reason, count in counted.drops.items() if count},
    }
