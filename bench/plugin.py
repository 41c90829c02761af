"""What dockerd waits for: each call of the plugin's protocol on its socket, alone and while others are made."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from bench.joining import timed_ms
from bench.report import Bar, Result, Table
from bench.stats import percentile, single, spread
from bench.turns import before_others
from bench.world import BenchError, World, world

CLIENTS: Final = 10
"""Clients at once; an endpoint each, again and again."""
SUBNET: Final = "10.98.0.0/16"
CALLS: Final = ("CreateEndpoint", "Join", "ProgramExternalConnectivity", "EndpointOperInfo")
CALLS_AT_THE_END: Final = ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint")

Times = dict[str, list[float]]


class Engine:
    """Speaks the network driver's protocol for endpoints on one network, and times every answer, in milliseconds."""

    def __init__(self, machine: World) -> None:
        self._ask = machine.plugin
        self.network_id = secrets.token_hex(32)
        data = [{"AddressSpace": "LocalDefault", "Pool": SUBNET, "Gateway": "10.98.0.1/16"}]
        self.call("CreateNetwork", {"IPv4Data": data, "IPv6Data": [], "Options": {}})

    def call(self, name: str, body: Mapping[str, Any]) -> None:
        """Raises BenchError for an answer that is an error."""
        answer = self._ask("POST", f"/NetworkDriver.{name}", {"NetworkID": self.network_id, **body})
        if answer.get("Err"):
            raise BenchError(f"{name}: {answer['Err']}")

    def live(self, number: int, times: Times) -> None:
        """One endpoint, from its creation to its end, as `docker run` and `docker rm` have it."""
        body = {
            "EndpointID": secrets.token_hex(32),
            "Interface": {"Address": f"10.98.{1 + number // 250}.{1 + number % 250}/16"},
            "SandboxKey": f"/var/run/docker/netns/{number:012x}",
            "Options": {},
        }
        for name in (*CALLS, *CALLS_AT_THE_END):
            times[name].append(timed_ms(partial(self.call, name, body)))


def suite(rounds: int) -> Result:
    """Endpoints one after another, then by many clients at once; in a world of its own."""
    with before_others(), world() as machine:
        machine.start()
        engine = Engine(machine)
        alone: Times = {name: [] for name in (*CALLS, *CALLS_AT_THE_END)}
        for number in range(rounds):
            engine.live(number, alone)
        together: Times = {name: [] for name in alone}

        def client(number: int) -> None:
            for again in range(rounds // CLIENTS):
                engine.live(number * rounds + again, together)

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, range(CLIENTS)))
    return Result(
        [
            Table(
                f"Calls of the plugin's protocol: ms until the answer, from one client and from {CLIENTS} at once",
                ("call", "alone p50", "p99", f"{CLIENTS} clients p50", "p99", "longest"),
                [
                    [name, *(f"{value:.1f}" for value in _figures(alone[name])[:2])]
                    + [f"{value:.1f}" for value in _figures(together[name])]
                    for name in alone
                ],
            )
        ],
        [
            Bar("plugin's Join p50", "<", 10, spread(alone["Join"]), "ms"),
            Bar(
                f"longest answer but one in a hundred, {CLIENTS} clients",
                "<",
                100,
                single(max(percentile(sorted(values), 99) for values in together.values())),
                "ms",
            ),
        ],
        {"alone_ms": alone, "together_ms": together},
    )


def _figures(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return percentile(ordered, 50), percentile(ordered, 99), ordered[-1]
