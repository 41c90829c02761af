"""The objects of the Container Network Model, their lifecycles, and their stored form.

Network, Endpoint and Sandbox are immutable values: a change makes a new one (`msgspec.structs.replace`) and
the controller is the only one that stores it. Lifecycles are the tables below; `advance` refuses every
transition that is not in them.
"""

from __future__ import annotations

import ipaddress
import socket
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, Any, Final, NewType, TypeVar

import msgspec

from control import decoding

NetworkId = NewType("NetworkId", str)
EndpointId = NewType("EndpointId", str)
SandboxId = NewType("SandboxId", str)

if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Subnet = IPv4Network | IPv6Network
else:
    # msgspec takes one custom type in a union; the common bases of both families are that type.
    Address = ipaddress._BaseAddress
    Subnet = ipaddress._BaseNetwork


class NetworkState(StrEnum):
    CREATING = "creating"
    ACTIVE = "active"
    REMOVING = "removing"


class EndpointState(StrEnum):
    """`created` is a state of endpoints that a container engine owns: addresses, and no sandbox yet or any more."""

    CREATED = "created"
    JOINING = "joining"
    JOINED = "joined"
    LEAVING = "leaving"


class SandboxState(StrEnum):
    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    REMOVING = "removing"


# An object that is not in its settled state when linkspand starts was cut off half-way. The controller
# undoes what was being made and finishes what was being removed.
NETWORK_TRANSITIONS: Final = {
    NetworkState.CREATING: {NetworkState.ACTIVE, NetworkState.REMOVING},
    NetworkState.ACTIVE: {NetworkState.REMOVING},
    NetworkState.REMOVING: set[NetworkState](),
}
ENDPOINT_TRANSITIONS: Final = {
    EndpointState.CREATED: {EndpointState.JOINING, EndpointState.LEAVING},
    EndpointState.JOINING: {EndpointState.JOINED, EndpointState.LEAVING, EndpointState.CREATED},
    EndpointState.JOINED: {EndpointState.LEAVING, EndpointState.CREATED},
    EndpointState.LEAVING: set[EndpointState](),
}
SANDBOX_TRANSITIONS: Final = {
    SandboxState.CREATING: {SandboxState.CREATED, SandboxState.REMOVING},
    SandboxState.CREATED: {SandboxState.RUNNING, SandboxState.EXITED, SandboxState.REMOVING},
    SandboxState.RUNNING: {SandboxState.EXITED, SandboxState.REMOVING},
    SandboxState.EXITED: {SandboxState.RUNNING, SandboxState.REMOVING},
    SandboxState.REMOVING: set[SandboxState](),
}


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet of a network as it was settled: every field the user left out is filled in.

    `ip_range` is None when addresses come from the whole subnet; `gateway` is None only where the driver
    needs none. `pool_id` is empty when addresses are a container engine's to give.
    """

    subnet: Subnet
    ip_range: Subnet | None = None
    gateway: Address | None = None
    aux_addresses: dict[str, Address] = {}
    pool_id: str = ""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A group of endpoints that can talk to each other directly.

    `segment` is the network's number in the datapath's maps, > 0, unique among the networks of this host. `owner` names
    the container engine that made the network and its endpoints through the plugin; it is empty for Linkspan's own.
    A network of scope "global" is the whole cluster's, which gives out its addresses and `vni`, its number on the wire
    (RFC 7348). A `config_only` network is settings for others to be made from: no device, no address taken, no
    endpoint. `config_from` is the name of the one that a network was made from, which stays as long.
    """

    id: NetworkId
    name: str
    driver: str
    state: NetworkState
    created: datetime
    segment: int
    scope: str = "local"
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] = {}
    pools: tuple[PoolConfig, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    predefined: bool = False
    owner: str = ""
    config_only: bool = False
    config_from: str = ""
    vni: int = 0

    @property
    def is_global(self) -> bool:
        return self.scope == "global"


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True):
    """`count` ports of the host in a row, from `host_port`, that stand for those of the endpoint from `port`.

    `host_ip` is None for every address of the host; `protocol` is tcp or udp.
    """

    protocol: str
    port: int
    host_ip: Address | None = None
    host_port: int
    count: int = 1

    def __str__(self) -> str:
        host = "*" if self.host_ip is None else f"[{self.host_ip}]" if self.host_ip.version == 6 else str(self.host_ip)
        return f"{host}:{_span(self.host_port, self.count)}->{_span(self.port, self.count)}/{self.protocol}"


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The place where one sandbox joins one network.

    `slot` indexes the datapath's counters; `shard` is the number of the Linux bridge the host end is a port of.
    `host_ifname` is empty for drivers that make no device. `mac` is six lower-case hex pairs with colons. The sandbox's
    default route goes through the endpoint of the highest `gateway_priority`, the oldest among equals. An endpoint that
    a container engine owns has no `sandbox_id`; `sandbox_key` is the path of the engine's namespace while it is joined,
    and `ifname` the peer's name until the engine moves it there. `links` are (sandbox, alias): names that this sandbox
    alone has for others on the network. `link_local_ips` are its besides the one that follows from its MAC; they are
    not IPAM's, and an engine does not tell those of its endpoints.
    """

    id: EndpointId
    network_id: NetworkId
    sandbox_id: SandboxId
    state: EndpointState
    created: datetime
    slot: int = 0
    shard: int = 0
    ifname: str = ""
    host_ifname: str = ""
    mac: str = ""
    ipv4: IPv4Interface | None = None
    ipv6: IPv6Interface | None = None
    aliases: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    driver_options: dict[str, str] = {}
    gateway_priority: int = 0
    sandbox_key: str = ""
    ports: tuple[PublishedPort, ...] = ()
    link_local_ips: tuple[Address, ...] = ()

    @property
    def is_remote(self) -> bool:
        """Whether a container engine owns the endpoint."""
        return not self.sandbox_id

    @property
    def addresses(self) -> list[IPv4Address | IPv6Address]:
        """Those that it has of its network's subnets."""
        return [interface.ip for interface in (self.ipv4, self.ipv6) if interface is not None]


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """One network stack: a network namespace with its interfaces, routes, hosts and resolver files.

    `pid` is the main process, told apart from a later process of the same number by `pid_start` (clock ticks
    after boot, proc(5) stat field 22). `owns_netns` is False for a sandbox that uses the host's own stack.
    """

    id: SandboxId
    name: str
    state: SandboxState
    created: datetime
    owns_netns: bool = True
    command: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    pid: int | None = None
    pid_start: int | None = None
    started: datetime | None = None
    finished: datetime | None = None
    exit_code: int | None = None


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One `--subnet` with what belongs to it, parsed but not yet checked against anything."""

    subnet: Subnet | None = None
    ip_range: Subnet | None = None
    gateway: Address | None = None
    aux_addresses: dict[str, Address] = {}


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks of `network create`; fields left out are None or empty and are settled by the controller."""

    name: str
    driver: str = "bridge"
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] = {}
    pools: tuple[PoolSpec, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    config_only: bool = False
    config_from: str = ""


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks of `network connect` or of `run --net`."""

    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    mac: str | None = None
    aliases: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    driver_options: dict[str, str] = {}
    gateway_priority: int = 0
    link_local_ips: tuple[Address, ...] = ()


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks of `run`: joined to `networks` (network reference, endpoint) in this order."""

    name: str = ""
    networks: tuple[tuple[str, EndpointSpec], ...] = ()
    command: tuple[str, ...] = ()
    labels: dict[str, str] = {}


S = TypeVar("S", NetworkState, EndpointState, SandboxState)
R = TypeVar("R", Network, Endpoint, Sandbox)


def advance(record: R, state: S, **changes: Any) -> R:
    """Returns `record` in `state` with `changes`; raises ValueError for a transition the lifecycle does not have."""
    table: Any = {
        NetworkState: NETWORK_TRANSITIONS,
        EndpointState: ENDPOINT_TRANSITIONS,
        SandboxState: SANDBOX_TRANSITIONS,
    }[type(state)]
    if state not in table[record.state]:
        raise ValueError(f"{type(record).__name__.lower()} {record.id[:12]} cannot go from {record.state} to {state}")
    return msgspec.structs.replace(record, state=state, **changes)


def waiting_ifname(endpoint_id: str) -> str:
    """What an endpoint's device is called until it is in its sandbox: for an engine, which moves it, and on its way."""
    return f"lp{endpoint_id[:12]}"


def utcnow() -> datetime:
    return datetime.now(UTC)


def _enc_hook(value: Any) -> Any:
    if isinstance(value, (IPv4Address, IPv6Address, IPv4Network, IPv6Network)):
        return str(value)
    raise NotImplementedError(f"cannot store a {type(value).__name__}")


def _ipv4(text: str) -> IPv4Address:
    """IPv4Address(text) in a fraction of its time, which a node spends for each endpoint of a cluster."""
    try:
        return IPv4Address(socket.inet_pton(socket.AF_INET, text))
    except (OSError, TypeError):
        return IPv4Address(text)  # says what is wrong with it


def _ipv6(text: str) -> IPv6Address:
    """As `_ipv4`."""
    try:
        return IPv6Address(socket.inet_pton(socket.AF_INET6, text))
    except (OSError, TypeError):
        return IPv6Address(text)  # has a zone, or says what is wrong with it


_PARSERS: Final[dict[Any, Any]] = {
    IPv4Address: _ipv4,
    IPv6Address: _ipv6,
    IPv4Network: IPv4Network,
    IPv6Network: IPv6Network,
    IPv4Interface: IPv4Interface,
    IPv6Interface: IPv6Interface,
    Address: ip_address,
    Subnet: ip_network,
}


def _dec_hook(type_: Any, value: Any) -> Any:
    parser = _PARSERS.get(type_)
    if parser is None:
        raise NotImplementedError(f"cannot load a {type_}")
    return parser(value)


def to_json(record: msgspec.Struct) -> bytes:
    """The stored form of a record: JSON, addresses in their text form, times as RFC 3339."""
    return msgspec.json.encode(record, enc_hook=_enc_hook)


T = TypeVar("T", bound=msgspec.Struct)


def from_json(type_: type[T], body: bytes | str) -> T:
    """The inverse of `to_json`; raises msgspec.ValidationError for a body of another shape."""
    return decoding.decode(body, type_, _dec_hook)
