"""A host without a kernel on which linkspand can fail and start anew, and its plugin socket as dockerd uses it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.client
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from control.api.server import bind_unix, serve
from control.config import ApiSection
from control.controller import NetworkController
from control.deps import Deps
from control.errors import StoreError
from control.ipam.pools import PoolIpam
from control.metrics import Metrics
from control.model import Subnet
from control.plan import Step
from control.plugin.ipam import IpamDriver
from control.plugin.network import NetworkDriver
from control.plugin.server import build_plugin_app
from control.store.base import Change
from control.workers import Workers
from tests.api_server import DEADLINE_SECONDS, Reply, UnixConnection
from tests.fakes import FakeDriver, FakeFiles, FakeHost, FakeNone, FakePorts
from tests.memory_store import MemoryStore

MIMETYPE: Final = "application/vnd.docker.plugins.v1.2+json"
GATEWAY: Final = {"RequestAddressType": "com.docker.network.gateway"}
ENDPOINT_MAC: Final = "com.docker.network.endpoint.macaddress"
PORT_MAP: Final = "com.docker.network.portmap"
GENERIC: Final = "com.docker.network.generic"


class Crash(BaseException):
    """linkspand is killed: nothing that it would do on an error is done."""


class FragileStore(MemoryStore):
    """Outlives the linkspand that closes it. `failing` are the writes to be refused, counted from `arm`, or `crashing`
    those at which linkspand dies, with the change stored or not."""

    def __init__(self) -> None:
        super().__init__()
        self.arm()

    def arm(self, failing: Iterable[int] = (), crashing: int | None = None, stores_first: bool = False) -> None:
        self.writes = 0
        self.failing, self.crashing, self._stores_first = failing, crashing, stores_first

    def write(self, changes: Iterable[Change]) -> None:
        number, self.writes = self.writes, self.writes + 1
        if number in self.failing:
            raise StoreError("no space left on device")
        if number == self.crashing and not self._stores_first:
            raise Crash
        super().write(changes)
        if number == self.crashing:
            raise Crash

    def close(self) -> None:
        pass

    def contents(self) -> dict[tuple[str, str], bytes]:
        return {
            (kind, id_): body
            for kind in ("network", "endpoint", "sandbox", "pool", "lease", "meta")
            for id_, body in self.read(kind)
        }


class StrictPorts(FakePorts):
    """As the kernel: a port that is held cannot be held again, not at an address that includes or is in the other."""

    def hold(
        self,
        protocol: str,
        host_ip: IPv4Address | IPv6Address | None,
        first: int,
        count: int = 1,
        *,
        v4: bool = True,
        v6: bool = True,
    ) -> None:
        for held_protocol, held_ip, number in self.held:
            everywhere = ("None", "0.0.0.0", "::")
            meet = host_ip is None or held_ip in everywhere or str(host_ip) in (*everywhere, held_ip)
            if held_protocol == protocol and first <= number < first + count and meet:
                raise OSError(errno.EADDRINUSE, f"port {number}/{protocol} is published already")
        super().hold(protocol, host_ip, first, count, v4=v4, v6=v6)


@dataclass
class Host:
    """What a linkspand finds and leaves: store, kernel, ports, routes.

    A step whose (phase, name) is in `failing` is refused by the kernel; at one in `crashing` linkspand dies. Phases and
    names are those of `control.plan`; `steps` are those that were tried.
    """

    run_dir: Path
    driver: FakeDriver = field(default_factory=FakeDriver)
    store: FragileStore = field(default_factory=FragileStore)
    ports: StrictPorts = field(default_factory=StrictPorts)
    routes: list[Subnet] = field(default_factory=list)
    failing: set[tuple[str, str]] = field(default_factory=set)
    crashing: set[tuple[str, str]] = field(default_factory=set)
    steps: list[tuple[str, str]] = field(default_factory=list)
    controller: NetworkController = field(init=False)

    def __post_init__(self) -> None:
        self._build()

    def _build(self) -> None:
        self.controller = NetworkController(
            Deps(
                store=self.store,
                ipam=PoolIpam(),
                drivers={each.name: each for each in (self.driver, FakeHost(), FakeNone())},
                files=FakeFiles(self.run_dir),
                ports=self.ports,
                routed_networks=lambda: list(self.routes),
                observe=self._observe,
            )
        )

    def boot(self) -> NetworkController:
        """Starts the first linkspand, or another one after it."""
        self.controller.stop()
        taken, self.ports = self.ports.taken, StrictPorts()
        self.ports.taken = taken
        self._build()
        self.controller.start()
        return self.controller

    def _observe(self, phase: str, step: Step) -> None:
        at = (phase, step.name)
        self.steps.append(at)
        if at in self.crashing:
            raise Crash
        if at in self.failing:
            raise OSError(errno.EBUSY, "Device or resource busy")

    def state(self) -> dict[str, Any]:
        """All that a call can change."""
        return {
            "store": self.store.contents(),
            "networks": sorted(self.controller.networks(), key=lambda network: network.id),
            "endpoints": sorted(self.controller.endpoints(), key=lambda endpoint: endpoint.id),
            "kernel": (set(self.driver.networks), set(self.driver.endpoints), set(self.driver.published)),
            "ports": set(self.ports.held),
        }


class PluginServer:
    """A context manager that starts linkspand on `host` and serves its plugin socket until the block ends."""

    def __init__(self, host: Host, limits: ApiSection | None = None) -> None:
        self.host = host
        self.path = host.run_dir / "plugin.sock"
        self.limits = limits or ApiSection()
        self.metrics = Metrics()
        self._connection = UnixConnection(self.path)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="plugin-server")
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.host.boot()
        self._thread.start()
        assert self._ready.wait(DEADLINE_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._connection.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()
        self.host.controller.stop()

    def post(self, method: str, body: Any = None, *, raw: bytes | None = None, **headers: str) -> Reply:
        """One call as dockerd makes it, on a connection that is kept: no Content-Type, an empty Host."""
        if raw is None:
            raw = b"" if body is None else json.dumps(body).encode() + b"\n"
        connection = self._connection
        try:
            connection.putrequest("POST", f"/{method}", skip_host=True, skip_accept_encoding=True)
            sent = {
                "Host": "",
                "User-Agent": "Go-http-client/1.1",
                "Content-Length": str(len(raw)),
                "Accept": MIMETYPE,
                "Accept-Encoding": "gzip",
            }
            for name, text in {**sent, **headers}.items():
                connection.putheader(name.replace("_", "-"), text)
            connection.endheaders(raw)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    def call(self, method: str, body: Any = None) -> Any:
        """The answer to a call that must succeed."""
        reply = self.post(method, body)
        assert reply.status == 200, reply.body
        document = reply.json
        assert not document.keys() & {"Err", "Error"}, document
        return document

    def refusal(self, method: str, body: Any = None) -> str:
        """The text of a call that must be refused, as the protocol has it: with status 200, in the right key alone."""
        reply = self.post(method, body)
        assert reply.status == 200, reply.body
        key = "Error" if method.startswith("IpamDriver.") else "Err"
        document = reply.json
        assert document.keys() == {key}, document
        assert document[key]
        return str(document[key])

    async def _serve(self) -> None:
        workers = Workers(self.limits.workers)
        controller = self.host.controller
        routes = [*NetworkDriver(controller).routes(), *IpamDriver(controller).routes()]
        app = build_plugin_app(routes, workers=workers, limits=self.limits, metrics=self.metrics)
        with bind_unix(self.path, None) as sock:
            runner = await serve(app, sock, self.limits)
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()
        workers.close()


def ident(name: object) -> str:
    """A NetworkID or EndpointID: 64 hex digits."""
    return hashlib.sha256(repr(name).encode()).hexdigest()


NET: Final = ident("network")
EP: Final = ident("endpoint")
KEY: Final = "/var/run/docker/netns/1a2b3c4d5e6f"


def network(network_id: str = NET, *subnets: str, internal: bool = False, **generic: str) -> dict[str, Any]:
    """CreateNetwork; the gateway is the first address of each subnet. `_` in a generic option's name stands for `.`."""
    data: dict[int, list[dict[str, str]]] = {4: [], 6: []}
    for subnet in subnets or ("10.9.0.0/16",):
        base, _, length = subnet.partition("/")
        gateway = f"{base}1" if ":" in base else f"{base.rpartition('.')[0]}.1"
        pool = {"AddressSpace": "docker", "Gateway": f"{gateway}/{length}", "Pool": subnet}
        data[6 if ":" in base else 4].append(pool)
    options: dict[str, Any] = {
        "com.docker.network.enable_ipv6": bool(data[6]),
        GENERIC: {name.replace("_", "."): text for name, text in generic.items()},
    }
    if internal:
        options["com.docker.network.internal"] = True
    return {"NetworkID": network_id, "Options": options, "IPv4Data": data[4], "IPv6Data": data[6]}


def endpoint(endpoint_id: str = EP, network_id: str = NET, v4: str = "10.9.0.2/16", v6: str = "", mac: str = "") -> Any:
    """CreateEndpoint."""
    return {
        "NetworkID": network_id,
        "EndpointID": endpoint_id,
        "Interface": {"Address": v4, "AddressIPv6": v6, "MacAddress": mac},
        "Options": {"com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}], PORT_MAP: []},
    }


def ids(endpoint_id: str = EP, network_id: str = NET, **more: Any) -> dict[str, Any]:
    """Any other call about an endpoint."""
    return {"NetworkID": network_id, "EndpointID": endpoint_id, **more}


def join(endpoint_id: str = EP, network_id: str = NET, key: str = KEY) -> dict[str, Any]:
    return ids(endpoint_id, network_id, SandboxKey=key, Options={PORT_MAP: []})


def port(number: int, host_port: int = 0, host_port_end: int | None = None, host_ip: str = "", proto: int = 6) -> Any:
    """One entry of the port map."""
    end = host_port if host_port_end is None else host_port_end
    return {"Proto": proto, "IP": "", "Port": number, "HostIP": host_ip, "HostPort": host_port, "HostPortEnd": end}


def publish(*bindings: Any, endpoint_id: str = EP, network_id: str = NET) -> dict[str, Any]:
    """ProgramExternalConnectivity."""
    return ids(endpoint_id, network_id, Options={PORT_MAP: list(bindings)})


def joined(plugin: PluginServer, *bindings: Any) -> None:
    """Has the network NET with the joined endpoint EP, which publishes `bindings`."""
    plugin.call("NetworkDriver.CreateNetwork", network())
    plugin.call("NetworkDriver.CreateEndpoint", endpoint())
    plugin.call("NetworkDriver.Join", join())
    if bindings:
        plugin.call("NetworkDriver.ProgramExternalConnectivity", publish(*bindings))


def refused(plugin: PluginServer, method: str, body: Any, says: str) -> None:
    """Expects a refusal that says so and changes nothing."""
    before = plugin.host.state()
    assert says in plugin.refusal(method, body)
    assert plugin.host.state() == before
