"""The model's records in the Docker Engine API's shape, and sandboxes in Linkspan's own.

Source: the Engine API reference, version 1.56 (Network, NetworkContainer, EndpointSettings); fields that an older
version does not have are left out for a client that asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, Final

from control.addressing import gateway_for
from control.api.versions import (
    ATTACHABLE_SINCE,
    CONFIGURATION_SINCE,
    CREATED_SINCE,
    ENABLE_IPV4_SINCE,
    INGRESS_SINCE,
    LIST_WITHOUT_CONTAINERS_SINCE,
    OLDEST,
    STATUS_SINCE,
    Version,
)
from control.cluster_spec import INGRESS, ClusterInfo, Difference, NodeInfo
from control.doctor.findings import Finding
from control.model import Endpoint, EndpointState, Network, PoolConfig, Sandbox
from control.sandboxes import SandboxPaths

_UINT64_MAX: Final = (1 << 64) - 1
_NETWORK_FIELDS_SINCE: Final = {
    "Created": CREATED_SINCE,
    "EnableIPv4": ENABLE_IPV4_SINCE,
    "Attachable": ATTACHABLE_SINCE,
    "Ingress": INGRESS_SINCE,
    "ConfigFrom": CONFIGURATION_SINCE,
    "ConfigOnly": CONFIGURATION_SINCE,
}


@dataclass(frozen=True)
class NetworkStatus:
    """What only the running system knows of a network: addresses (used, free) by subnet, and its driver's facts."""

    usage: Mapping[str, tuple[int, int]]
    facts: Mapping[str, str]


def network_summary(
    network: Network, version: Version, endpoints: Iterable[Endpoint] = (), names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One entry of GET /networks; `endpoints` and sandbox `names` by id are shown to clients before 1.28 only."""
    view = _network(network, version)
    if version < LIST_WITHOUT_CONTAINERS_SINCE:
        view["Containers"] = _containers(endpoints, names or {})
    return view


def network_inspect(
    network: Network,
    version: Version,
    endpoints: Iterable[Endpoint],
    names: Mapping[str, str],
    status: NetworkStatus,
    peers: Iterable[NodeInfo] = (),
) -> dict[str, Any]:
    """GET /networks/{id}; `endpoints` are this host's. `Status` has one section more than Docker's, Linkspan's own."""
    view = _network(network, version)
    view["Containers"] = _containers(endpoints, names)
    if shown := [{"Name": node.name, "IP": str(node.address)} for node in peers]:
        view["Peers"] = shown
    if version >= STATUS_SINCE:
        view["Status"] = {
            "IPAM": {
                "Subnets": {
                    subnet: {"IPsInUse": min(used, _UINT64_MAX), "DynamicIPsAvailable": min(free, _UINT64_MAX)}
                    for subnet, (used, free) in status.usage.items()
                }
            },
            "Linkspan": dict(status.facts),
        }
    return view


def sandbox(
    record: Sandbox, paths: SandboxPaths, endpoints: Iterable[Endpoint], networks: Mapping[str, Network]
) -> dict[str, Any]:
    """The sandbox object; `networks` by id. An endpoint whose network is gone by now is left out."""
    return {
        "Id": record.id,
        "Name": record.name,
        "State": record.state.value,
        "Created": timestamp(record.created),
        "Started": timestamp(record.started) if record.started else None,
        "Finished": timestamp(record.finished) if record.finished else None,
        "Command": list(record.command),
        "Labels": record.labels,
        "Pid": record.pid,
        "ExitCode": record.exit_code,
        "OwnsNetns": record.owns_netns,
        "NetnsPath": paths.netns,
        "HostsPath": paths.hosts,
        "ResolvConfPath": paths.resolv_conf,
        "HostnamePath": paths.hostname,
        "ExitStatusPath": paths.exit_status,
        "Networks": {
            networks[endpoint.network_id].name: _endpoint(endpoint, networks[endpoint.network_id], record)
            for endpoint in endpoints
            if endpoint.network_id in networks
        },
    }


def cluster(info: ClusterInfo) -> dict[str, Any]:
    return {
        "Joined": info.is_joined,
        "Cluster": info.cluster,
        "Node": info.node,
        "Advertise": str(info.advertise or ""),
        "Etcd": list(info.etcd),
        "State": info.state,
        "Revision": info.revision,
        "Since": timestamp(info.since) if info.since else None,
    }


def node(info: NodeInfo) -> dict[str, Any]:
    return {
        "Name": info.name,
        "ID": info.id,
        "Address": str(info.address),
        "State": info.state,
        "Since": timestamp(info.since),
        "Self": info.is_self,
        "Networks": info.networks,
    }


def difference(found: Difference) -> dict[str, str]:
    return {"Node": found.node, "Network": found.network, "What": found.what, "Mend": found.mend}


def finding(found: Finding) -> dict[str, str]:
    return {
        "code": found.code,
        "severity": found.severity.value,
        "where": found.where,
        "what": found.what,
        "why": found.why,
        "mend": found.mend,
    }


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC without trailing zeros in the fraction, as Go writes it."""
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "Z"


def _network(network: Network, version: Version) -> dict[str, Any]:
    view: dict[str, Any] = {
        "Name": network.name,
        "Id": network.id,
        "Created": timestamp(network.created),
        "Scope": network.scope,
        "Driver": network.driver,
        "EnableIPv4": network.enable_ipv4,
        "EnableIPv6": network.enable_ipv6,
        "IPAM": {
            "Driver": network.ipam_driver,
            "Options": network.ipam_options,
            "Config": [_pool(pool) for pool in network.pools],
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": network.predefined and network.name == INGRESS,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.config_only,
        "Options": network.options,
        "Labels": network.labels,
    }
    return {name: value for name, value in view.items() if version >= _NETWORK_FIELDS_SINCE.get(name, OLDEST)}


def _pool(pool: PoolConfig) -> dict[str, Any]:
    view: dict[str, Any] = {"Subnet": str(pool.subnet)}
    if pool.ip_range is not None:
        view["IPRange"] = str(pool.ip_range)
    if pool.gateway is not None:
        view["Gateway"] = str(pool.gateway)
    if pool.aux_addresses:
        view["AuxiliaryAddresses"] = {name: str(address) for name, address in pool.aux_addresses.items()}
    return view


def _containers(endpoints: Iterable[Endpoint], names: Mapping[str, str]) -> dict[str, Any]:
    """By sandbox, or as Docker has it for an endpoint whose container is not known: by "ep-" and the endpoint's id."""
    return {
        endpoint.sandbox_id or f"ep-{endpoint.id}": {
            "Name": names.get(endpoint.sandbox_id) or endpoint.sandbox_key.rpartition("/")[2],
            "EndpointID": endpoint.id,
            "MacAddress": endpoint.mac,
            "IPv4Address": str(endpoint.ipv4 or ""),
            "IPv6Address": str(endpoint.ipv6 or ""),
        }
        for endpoint in endpoints
        if not endpoint.is_remote or endpoint.state is EndpointState.JOINED
    }


def _endpoint(endpoint: Endpoint, network: Network, record: Sandbox) -> dict[str, Any]:
    """Docker's EndpointSettings, and the name of the interface."""
    ipv4, ipv6 = endpoint.ipv4, endpoint.ipv6
    link_locals = [str(address) for address in endpoint.link_local_ips]
    return {
        "NetworkID": network.id,
        "EndpointID": endpoint.id,
        "IPAMConfig": {"LinkLocalIPs": link_locals} if link_locals else None,
        "Gateway": _gateway(network, ipv4),
        "IPAddress": str(ipv4.ip) if ipv4 else "",
        "IPPrefixLen": ipv4.network.prefixlen if ipv4 else 0,
        "IPv6Gateway": _gateway(network, ipv6),
        "GlobalIPv6Address": str(ipv6.ip) if ipv6 else "",
        "GlobalIPv6PrefixLen": ipv6.network.prefixlen if ipv6 else 0,
        "MacAddress": endpoint.mac,
        "Aliases": list(endpoint.aliases),
        "DNSNames": list(dict.fromkeys((record.name, *endpoint.aliases))),
        "Links": [f"{name}:{alias}" for name, alias in endpoint.links],
        "DriverOpts": endpoint.driver_options,
        "GwPriority": endpoint.gateway_priority,
        "InterfaceName": endpoint.ifname,
    }


def _gateway(network: Network, interface: IPv4Interface | IPv6Interface | None) -> str:
    return "" if network.internal else str(gateway_for(network, interface) or "")
