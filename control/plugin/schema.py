"""Messages of Docker's remote driver and IPAM protocols: their shape, and their way into the control plane's terms.

Unknown fields are ignored, `null` and empty mean absent. Source: moby, libnetwork/drivers/remote/api/api.go,
libnetwork/ipams/remote/api/api.go and libnetwork/types/types.go; labels from libnetwork/netlabel/labels.go.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, Final, TypeVar

import msgspec

from control import decoding
from control.errors import InvalidArgument
from control.model import Address, NetworkSpec, PoolSpec, Subnet
from control.ports import PortWish

GENERIC: Final = "com.docker.network.generic"
INTERNAL: Final = "com.docker.network.internal"
ENABLE_IPV6: Final = "com.docker.network.enable_ipv6"
PORT_MAP: Final = "com.docker.network.portmap"
REQUEST_TYPE: Final = "RequestAddressType"
GATEWAY: Final = "com.docker.network.gateway"
ENDPOINT_MAC: Final = "com.docker.network.endpoint.macaddress"
DRIVER: Final = "linkspan.driver"
NAME: Final = "linkspan.name"
_ENGINES_OWN: Final = "com.docker.network."
_PROTOCOLS: Final = {6: "tcp", 17: "udp", 132: "sctp"}
_ID: Final = re.compile(r"[0-9a-f]{64}")
_CIDR: Final = re.compile(r"[0-9a-fA-F:.]+/[0-9]{1,3}")

Options = dict[str, Any]
T = TypeVar("T")


class MalformedMessage(InvalidArgument):
    """The message is not one of the protocol's."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    pass


class Nothing(_Message, frozen=True, kw_only=True):
    """The body of calls that have none."""


class IPAMData(_Message, frozen=True, kw_only=True):
    """A subnet of a network; `gateway` and auxiliary addresses with its prefix length."""

    pool: str | None = None
    gateway: str | None = None
    aux_addresses: dict[str, str] | None = None


class NetworkMessage(_Message, frozen=True, kw_only=True):
    """CreateNetwork, and with the id alone DeleteNetwork."""

    network_id: str = msgspec.field(name="NetworkID")
    options: Options | None = None
    ipv4_data: list[IPAMData] | None = msgspec.field(name="IPv4Data", default=None)
    ipv6_data: list[IPAMData] | None = msgspec.field(name="IPv6Data", default=None)


class EndpointInterface(_Message, frozen=True, kw_only=True):
    address: str | None = None
    address_ipv6: str | None = msgspec.field(name="AddressIPv6", default=None)
    mac_address: str | None = None


class EndpointMessage(_Message, frozen=True, kw_only=True):
    """All calls about an endpoint; which fields there are depends on the call."""

    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")
    interface: EndpointInterface | None = None
    sandbox_key: str | None = None
    options: Options | None = None


class PoolRequest(_Message, frozen=True, kw_only=True):
    address_space: str | None = None
    pool: str | None = None
    sub_pool: str | None = None
    options: dict[str, str] | None = None
    v6: bool = False


class PoolMessage(_Message, frozen=True, kw_only=True):
    """ReleasePool, RequestAddress and ReleaseAddress."""

    pool_id: str = msgspec.field(name="PoolID")
    address: str | None = None
    options: dict[str, str] | None = None


class PortBinding(_Message, frozen=True, kw_only=True):
    """An entry of the port map; `proto` is the IP protocol's number."""

    proto: int
    port: int
    host_ip: str | None = msgspec.field(name="HostIP", default=None)
    host_port: int = 0
    host_port_end: int = 0


def decode(body: bytes, type_: type[T]) -> T:
    """The message; an empty body is one without fields. Raises MalformedMessage."""
    try:
        body.decode()  # msgspec does not look into fields that it skips
        return decoding.decode(body.strip() or b"{}", type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"malformed request: {error}") from error


def checked_id(what: str, text: str) -> str:
    """A NetworkID or EndpointID, which devices are named by; raises MalformedMessage."""
    if not _ID.fullmatch(text):
        raise MalformedMessage(f"malformed request: {what} {text[:80]!r} is not 64 hex digits")
    return text


def network_spec(message: NetworkMessage) -> NetworkSpec:
    """What CreateNetwork asks for; raises InvalidArgument."""
    options = message.options or {}
    generic = _strings(options.get(GENERIC) or {}, GENERIC)
    driver = generic.pop(DRIVER, "bridge")
    name = generic.pop(NAME, f"docker-{message.network_id[:12]}")
    pools = [
        pool
        for version, data in ((4, message.ipv4_data), (6, message.ipv6_data))
        for each in data or ()
        if (pool := _pool_spec(each, version)) is not None
    ]
    return NetworkSpec(
        name=name,
        driver=driver,
        internal=_flag(options, INTERNAL),
        enable_ipv4=bool(message.ipv4_data),
        enable_ipv6=_flag(options, ENABLE_IPV6) or bool(message.ipv6_data),
        pools=tuple(pools),
        options=generic,
    )


def endpoint_options(message: EndpointMessage) -> dict[str, str]:
    """The options that are meant for the driver; the engine's own are left out."""
    own = {key: value for key, value in (message.options or {}).items() if not key.startswith(_ENGINES_OWN)}
    return _strings(own, "the endpoint's options")


def port_wishes(message: EndpointMessage) -> list[PortWish]:
    """The port map of an endpoint; raises MalformedMessage, InvalidArgument."""
    try:
        bindings = decoding.convert((message.options or {}).get(PORT_MAP) or [], list[PortBinding])
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"malformed request: {PORT_MAP}: {error}") from error
    wishes = []
    for binding in bindings:
        host_ip = address(binding.host_ip, "HostIP")
        assert host_ip is None or isinstance(host_ip, ipaddress.IPv4Address | ipaddress.IPv6Address)
        wishes.append(
            PortWish(
                protocol=_PROTOCOLS.get(binding.proto, f"protocol {binding.proto}"),
                port=binding.port,
                host_ip=host_ip,
                host_port=binding.host_port,
                host_port_end=binding.host_port_end,
            )
        )
    return wishes


def address(text: str | None, what: str) -> Address | None:
    """An IP address; raises InvalidArgument."""
    if not text:
        return None
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidArgument(f"invalid {what} {text[:80]!r}: it is not an IP address") from None
    if parsed.version == 6 and "%" in text:
        raise InvalidArgument(f"invalid {what} {text[:80]!r}: an address with a zone belongs to one host alone")
    return parsed


def subnet(text: str | None, what: str) -> Subnet | None:
    """A subnet in CIDR notation without host bits; raises InvalidArgument."""
    if not text:
        return None
    try:
        if not _CIDR.fullmatch(text):
            raise ValueError
        return ipaddress.ip_network(text)
    except ValueError:
        raise InvalidArgument(f"invalid {what} {text[:80]!r}: it is not a subnet in CIDR notation") from None


def interface_v4(text: str | None) -> IPv4Interface | None:
    """An address with its prefix length; raises InvalidArgument."""
    parsed = _interface(text, 4)
    return parsed if isinstance(parsed, IPv4Interface) else None


def interface_v6(text: str | None) -> IPv6Interface | None:
    """As `interface_v4`."""
    parsed = _interface(text, 6)
    return parsed if isinstance(parsed, IPv6Interface) else None


def _interface(text: str | None, version: int) -> IPv4Interface | IPv6Interface | None:
    if not text:
        return None
    try:
        if not _CIDR.fullmatch(text):
            raise ValueError
        parsed = ipaddress.ip_interface(text)
        if parsed.version != version:
            raise ValueError
    except ValueError:
        raise InvalidArgument(
            f"invalid address {text[:80]!r}: it is not an IPv{version} address with its prefix"
        ) from None
    return parsed


def _pool_spec(data: IPAMData, version: int) -> PoolSpec | None:
    net = subnet(data.pool, "pool")
    if net is None:
        return None
    if net.version != version:
        raise InvalidArgument(f"invalid pool {net}: it is not an IPv{version} subnet")
    if not net.prefixlen:
        raise InvalidArgument(
            f"invalid pool {net}: it is every network there is; use an IPAM driver that gives addresses"
        )
    named = {"gateway": data.gateway, **(data.aux_addresses or {})}
    parsed = {name: _interface(text, version) for name, text in named.items()}
    for name, interface in parsed.items():
        if interface is not None and interface.ip not in net:
            raise InvalidArgument(f"invalid address {interface.ip} ({name}): it is not in subnet {net}")
    gateway = parsed.pop("gateway")
    return PoolSpec(
        subnet=net,
        gateway=None if gateway is None else gateway.ip,
        aux_addresses={name: interface.ip for name, interface in parsed.items() if interface is not None},
    )


def _strings(options: Any, what: str) -> dict[str, str]:
    if not isinstance(options, Mapping) or not all(isinstance(value, str) for value in options.values()):
        raise MalformedMessage(f"malformed request: {what} must map names to texts")
    return dict(options)


def _flag(options: Options, name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise MalformedMessage(f"malformed request: {name} must be true or false")
    return value
