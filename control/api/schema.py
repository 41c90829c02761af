"""Request bodies: their shape, with the Docker Engine API's field names, and their way into the model's specs.

Decoding follows the Engine: unknown fields are ignored, those of versions later than the client's among them, and
`null` means absent. What cannot be right whatever the state of the host is refused here, all faults of one body
together; what depends on other objects is the controller's to judge. Source: the Engine API reference, version 1.56
(NetworkCreate, EndpointSettings, IPAMConfig).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, TypeVar

import msgspec

from control import decoding
from control.api.versions import (
    ATTACHABLE_SINCE,
    CONFIGURATION_SINCE,
    DRIVER_OPTS_SINCE,
    ENABLE_IPV4_SINCE,
    GW_PRIORITY_SINCE,
    INGRESS_SINCE,
    MAC_ADDRESS_SINCE,
    NEWEST,
    SCOPE_SINCE,
    Version,
)
from control.cluster_spec import DEFAULT_CLUSTER, ClusterSpec, parse_spec
from control.errors import Forbidden, InvalidArgument, NotFound
from control.model import Address, EndpointSpec, NetworkSpec, PoolSpec, SandboxSpec, Subnet

ALIAS_MAX_CHARS: Final = 253
"""The longest name of a host; RFC 1035, section 2.3.4, as text."""

PID_MAX: Final = 1 << 22
"""PID_MAX_LIMIT of 64-bit kernels; proc(5), /proc/sys/kernel/pid_max."""

_RESERVED_NAMES: Final = frozenset({"default"})
"""Docker's word for the network that a container joins when none is named."""

_ALIAS = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_CIDR = re.compile(r"[0-9a-fA-F:.]+/[0-9]{1,3}")

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)
StringMap = dict[str, str]


class _Body(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    pass


class IPAMConfig(_Body, frozen=True, kw_only=True):
    subnet: str | None = None
    ip_range: str | None = msgspec.field(name="IPRange", default=None)
    gateway: str | None = None
    auxiliary_addresses: StringMap | None = None


class IPAM(_Body, frozen=True, kw_only=True):
    driver: str | None = None
    options: StringMap | None = None
    config: list[IPAMConfig] | None = None


class ConfigReference(_Body, frozen=True, kw_only=True):
    network: str | None = None


class NetworkCreate(_Body, frozen=True, kw_only=True):
    """The body of POST /networks/create. `CheckDuplicate` is ignored: names are unique always."""

    name: str | None = None
    driver: str | None = None
    scope: str | None = None
    enable_ipv4: bool | None = msgspec.field(name="EnableIPv4", default=None)
    enable_ipv6: bool | None = msgspec.field(name="EnableIPv6", default=None)
    ipam: IPAM | None = msgspec.field(name="IPAM", default=None)
    internal: bool | None = None
    attachable: bool | None = None
    ingress: bool | None = None
    config_only: bool | None = None
    config_from: ConfigReference | None = None
    options: StringMap | None = None
    labels: StringMap | None = None


class EndpointIPAMConfig(_Body, frozen=True, kw_only=True):
    ipv4_address: str | None = msgspec.field(name="IPv4Address", default=None)
    ipv6_address: str | None = msgspec.field(name="IPv6Address", default=None)
    link_local_ips: list[str] | None = msgspec.field(name="LinkLocalIPs", default=None)


class EndpointSettings(_Body, frozen=True, kw_only=True):
    """What a client may say of an endpoint; the operational fields that Docker clients send along are ignored."""

    ipam_config: EndpointIPAMConfig | None = msgspec.field(name="IPAMConfig", default=None)
    links: list[str] | None = None
    aliases: list[str] | None = None
    driver_opts: StringMap | None = None
    gw_priority: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    mac_address: str | None = None


class NetworkConnect(_Body, frozen=True, kw_only=True):
    container: str | None = None
    endpoint_config: EndpointSettings | None = None


class NetworkDisconnect(_Body, frozen=True, kw_only=True):
    container: str | None = None
    force: bool | None = None


class SandboxNetwork(EndpointSettings, frozen=True, kw_only=True):
    """One network to join at creation: the endpoint's settings and the network they are for."""

    network: str | None = None


class SandboxCreate(_Body, frozen=True, kw_only=True):
    """The body of POST /linkspan/sandboxes."""

    name: str | None = None
    networks: list[SandboxNetwork] | None = None
    command: list[str] | None = None
    labels: StringMap | None = None


class SandboxStarted(_Body, frozen=True, kw_only=True):
    pid: Annotated[int, msgspec.Meta(ge=1, le=PID_MAX)]


class ClusterJoin(_Body, frozen=True, kw_only=True):
    """The body of POST /linkspan/cluster/join; paths are the daemon's host's."""

    etcd: list[str] | None = None
    name: str | None = None
    advertise: str | None = None
    cluster: str | None = None
    ca_cert: str | None = msgspec.field(name="CACert", default=None)
    cert: str | None = None
    key: str | None = None


def decode(body: bytes, type_: type[T]) -> T:
    """Returns the body as a `type_`; raises InvalidArgument that says what is wrong with the JSON and where."""
    if not body.strip():
        raise InvalidArgument("invalid JSON: got EOF while reading request body")
    try:
        body.decode()  # msgspec does not look into fields that it skips
        return decoding.decode(body, type_)
    except msgspec.DecodeError as error:
        if "trailing characters" in str(error):
            raise InvalidArgument("unexpected content after JSON") from error
        raise InvalidArgument(f"invalid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"invalid JSON: not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidArgument("invalid JSON: nested too deeply") from error


_CREATE_SINCE: Final = {
    "attachable": ATTACHABLE_SINCE,
    "ingress": INGRESS_SINCE,
    "scope": SCOPE_SINCE,
    "config_only": CONFIGURATION_SINCE,
    "config_from": CONFIGURATION_SINCE,
    "enable_ipv4": ENABLE_IPV4_SINCE,
}
_ENDPOINT_SINCE: Final = {
    "driver_opts": DRIVER_OPTS_SINCE,
    "mac_address": MAC_ADDRESS_SINCE,
    "gw_priority": GW_PRIORITY_SINCE,
}


def _as_of(version: Version, body: B, since: Mapping[str, Version]) -> B:
    """Returns the body without the fields that `version` does not know yet."""
    unknown = [name for name, first in since.items() if version < first]
    return msgspec.structs.replace(body, **dict.fromkeys(unknown)) if unknown else body


def network_spec(body: NetworkCreate, version: Version = NEWEST) -> NetworkSpec:
    """Returns what the body asks for, as a client of `version` means it.

    Raises InvalidArgument, which names every fault of its addresses; Forbidden for what needs a Swarm; NotFound for an
    IPAM driver.
    """
    body = _as_of(version, body, _CREATE_SINCE)
    name = body.name or ""
    if name in _RESERVED_NAMES:
        raise Forbidden(f"operation is not permitted on predefined {name} network: choose another name")
    config_from = (body.config_from and body.config_from.network) or ""
    if body.config_only:
        _check_configuration(body, config_from)
    elif config_from:
        _check_configured(body)
    _check_scope(name, body.scope or "", body.driver or "bridge")
    if body.ingress and body.driver == "overlay":
        raise Forbidden("every cluster has its one ingress network already: leave out --ingress")
    if body.ingress:
        raise Forbidden("Ingress network can only be global scope network: linkspan has no Swarm routing mesh")
    ipam = body.ipam or IPAM()
    if ipam.driver not in (None, "", "default", "dhcp"):
        raise NotFound(
            f'could not find plugin "{ipam.driver}": plugin "{ipam.driver}" not found; IPAM drivers are default, dhcp'
        )
    faults: list[str] = []
    pools = tuple(pool for config in ipam.config or () if (pool := _pool_spec(config, faults)) is not None)
    if faults:
        raise InvalidArgument("invalid network config:\n" + "\n".join(faults))
    return NetworkSpec(
        name=name,
        driver=body.driver or "bridge",
        internal=bool(body.internal),
        attachable=bool(body.attachable),
        enable_ipv4=body.enable_ipv4 is not False,
        enable_ipv6=bool(body.enable_ipv6),
        ipam_driver=ipam.driver or "default",
        ipam_options=ipam.options or {},
        pools=pools,
        options=body.options or {},
        labels=body.labels or {},
        config_only=bool(body.config_only),
        config_from=config_from,
    )


def _check_scope(name: str, scope: str, driver: str) -> None:
    """Raises Forbidden for a Swarm's scope, InvalidArgument for one that networks of the driver do not have."""
    if scope == "swarm":
        raise Forbidden(
            "cannot create a swarm scoped network when swarm is not active: overlay networks of linkspan are global"
        )
    if scope not in ("", "local", "global"):
        raise InvalidArgument(f'network {name}: there is no scope "{scope}": networks are local or global')
    if scope and (scope == "global") != (driver == "overlay"):
        has = "global" if driver == "overlay" else "local"
        raise InvalidArgument(f"network {name}: networks of the driver {driver} are {has}: leave out the scope {scope}")


def _check_configuration(body: NetworkCreate, config_from: str) -> None:
    """Raises Forbidden for what a configuration network cannot say of those that are made from it."""
    if body.ingress or body.internal or body.attachable or body.scope:
        raise Forbidden(
            "configuration network can only contain network specific fields. Network operator fields like "
            "[ ingress | internal | attachable | scope ] are not supported."
        )
    if config_from:
        raise Forbidden("a configuration network cannot depend on another configuration network")


def _check_configured(body: NetworkCreate) -> None:
    """Raises Forbidden for what is the configuration network's to say."""
    ipam = body.ipam or IPAM()
    is_other_ipam = ipam.driver not in (None, "", "default")
    if is_other_ipam or ipam.options or ipam.config or body.labels or body.enable_ipv6 or body.enable_ipv4 is False:
        raise Forbidden(
            "user-specified configurations are not supported if the network depends on a configuration network"
        )
    if body.options:
        raise Forbidden("network driver options are not supported if the network depends on a configuration network")


def endpoint_spec(body: EndpointSettings | None, version: Version = NEWEST) -> EndpointSpec:
    """Returns what the settings ask for, as a client of `version` means it.

    Raises InvalidArgument, which names every fault.
    """
    if body is None:
        return EndpointSpec()
    body = _as_of(version, body, _ENDPOINT_SINCE)
    faults: list[str] = []
    ipam = body.ipam_config or EndpointIPAMConfig()
    ipv4 = _address(ipam.ipv4_address, "IPv4 address", faults)
    ipv6 = _address(ipam.ipv6_address, "IPv6 address", faults)
    if ipv4 is not None and not isinstance(ipv4, ipaddress.IPv4Address):
        faults.append(f"invalid IPv4 address: {ipv4}")
    if ipv6 is not None and not isinstance(ipv6, ipaddress.IPv6Address):
        faults.append(f"invalid IPv6 address: {ipv6}")
    link_locals = [ip for text in ipam.link_local_ips or () if (ip := _link_local(text, faults)) is not None]
    faults += [f"link-local IP address {ip} is given twice" for ip, count in Counter(link_locals).items() if count > 1]
    links = [link for text in body.links or () if (link := _link(text, faults)) is not None]
    for alias in (*(body.aliases or ()), *(alias for _, alias in links)):
        if len(alias) > ALIAS_MAX_CHARS or not _ALIAS.fullmatch(alias):
            faults.append(
                f"invalid alias {alias[:32]!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-], at most {ALIAS_MAX_CHARS} characters"
            )
    if faults:
        raise InvalidArgument("invalid endpoint settings:\n" + "\n".join(faults))
    assert ipv4 is None or isinstance(ipv4, ipaddress.IPv4Address)
    assert ipv6 is None or isinstance(ipv6, ipaddress.IPv6Address)
    return EndpointSpec(
        ipv4=ipv4,
        ipv6=ipv6,
        mac=body.mac_address or None,
        aliases=tuple(dict.fromkeys(body.aliases or ())),
        links=tuple(dict.fromkeys(links)),
        driver_options=body.driver_opts or {},
        gateway_priority=body.gw_priority or 0,
        link_local_ips=tuple(link_locals),
    )


def sandbox_spec(body: SandboxCreate) -> SandboxSpec:
    """Returns what the body asks for; raises InvalidArgument."""
    joins = [(network.network or "", endpoint_spec(network)) for network in body.networks or ()]
    if any(not name for name, _ in joins):
        raise InvalidArgument("invalid sandbox: an entry of Networks names no Network")
    return SandboxSpec(
        name=body.name or "",
        networks=tuple(joins),
        command=tuple(body.command or ()),
        labels=body.labels or {},
    )


def cluster_spec(body: ClusterJoin) -> ClusterSpec:
    """Returns what the body asks for; raises InvalidOption."""
    return parse_spec(
        etcd=body.etcd or (),
        name=body.name or "",
        advertise=body.advertise or "",
        cluster=body.cluster or DEFAULT_CLUSTER,
        cacert=body.ca_cert or "",
        cert=body.cert or "",
        key=body.key or "",
    )


def _pool_spec(config: IPAMConfig, faults: list[str]) -> PoolSpec | None:
    """Returns None for an entry that says nothing, as some clients send; adds to `faults` what is wrong."""
    if not (config.subnet or config.ip_range or config.gateway or config.auxiliary_addresses):
        return None
    pool = PoolSpec(
        subnet=_subnet(config.subnet or "", "subnet", faults),
        ip_range=_subnet(config.ip_range, "ip-range", faults) if config.ip_range else None,
        gateway=_address(config.gateway, "gateway", faults),
        aux_addresses={
            name: address
            for name, text in (config.auxiliary_addresses or {}).items()
            if (address := _address(text, f"auxiliary address {name}", faults)) is not None
        },
    )
    if pool.subnet is not None:
        faults += _outside(pool, pool.subnet)
    return pool


def _outside(pool: PoolSpec, subnet: Subnet) -> Iterator[str]:
    """What of the pool does not lie in its subnet, in Docker's words."""
    if (part := pool.ip_range) is not None:
        if part.version != subnet.version:
            yield f"invalid ip-range {part}: parent subnet is an IPv{subnet.version} block"
        elif part.prefixlen < subnet.prefixlen:
            yield f"invalid ip-range {part}: CIDR block is bigger than its parent subnet {subnet}"
        elif not part.overlaps(subnet):
            yield f"invalid ip-range {part}: parent subnet {subnet} doesn't contain ip-range"
    named = {"gateway": pool.gateway, **{f"auxiliary address {name}": a for name, a in pool.aux_addresses.items()}}
    for what, address in named.items():
        if address is None:
            continue
        if address.version != subnet.version:
            yield f"invalid {what} {address}: parent subnet is an IPv{subnet.version} block"
        elif address not in subnet:
            yield f"invalid {what} {address}: parent subnet {subnet} doesn't contain this address"


def _link(text: str, faults: list[str]) -> tuple[str, str] | None:
    """(container, alias) of "container:alias"; of a container alone the name is the alias, as in Docker."""
    name, separator, alias = text.partition(":")
    if not name or (separator and not alias) or ":" in alias:
        faults.append(f"invalid format for links: {text[:64]}")
        return None
    return name, alias or name


def _subnet(text: str, what: str, faults: list[str]) -> Subnet | None:
    try:
        if not _CIDR.fullmatch(text):
            raise ValueError
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        faults.append(f"invalid {what} {text}: invalid CIDR block notation")
        return None
    if ipaddress.ip_interface(text).ip != network.network_address:
        faults.append(f"invalid {what} {text}: it should be {network}")
    return network


def _address(text: str | None, what: str, faults: list[str]) -> Address | None:
    if not text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        faults.append(f"invalid {what}: {text}")
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        faults.append(f"invalid {what}: {text}: an address with a zone belongs to one host alone")
        return None
    return address


def _link_local(text: str, faults: list[str]) -> Address | None:
    """An address of 169.254.0.0/16 or fe80::/10; one that is IPv4-mapped counts as IPv4, as with Docker."""
    address = _address(text, "link-local IP address", faults)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not text or (address is not None and not address.is_link_local):
        faults.append(f"invalid link local IP address: {text}")
        return None
    return address


def required(field: str, value: str | None) -> str:
    """Returns `value`; raises InvalidArgument when the body has no such field or an empty one."""
    if not value:
        raise InvalidArgument(f"invalid request: {field} is missing")
    return value
