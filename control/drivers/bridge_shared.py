"""What all networks with Linux bridges on a host share, as their records want it: firewall, published ports, gateways
that the programs answer for."""

from __future__ import annotations

from collections.abc import Sequence

from control.drivers.bridge_names import OVERLAY, bridge_mac, bridge_name
from control.drivers.inside import mac_bytes
from control.drivers.options import ICC, MASQUERADE, is_on
from control.model import Address, Endpoint, Network, NetworkId
from control.ports import published_at
from datapath import nft


def bridged(networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> tuple[list[Network], list[Endpoint]]:
    """Those that have Linux bridges on this host, whichever driver makes them, with their endpoints."""
    used = {endpoint.network_id for endpoint in endpoints}
    here = [
        network
        for network in networks
        if network.driver == "bridge" or (network.driver == OVERLAY and network.id in used)
    ]
    ids = {network.id for network in here}
    return here, [endpoint for endpoint in endpoints if endpoint.network_id in ids]


def gateways(networks: Sequence[Network]) -> dict[tuple[int, Address], bytes]:
    """Their MACs by segment and address."""
    return {
        (network.segment, pool.gateway): mac_bytes(bridge_mac(network))
        for network in networks
        for pool in network.pools
        if pool.gateway is not None
    }


def policies(
    networks: Sequence[Network], endpoints: Sequence[Endpoint], *, default_masquerade: bool
) -> list[nft.Policy]:
    by_network = shards(networks, endpoints)
    return [policy(each, sorted(by_network[each.id]), default_masquerade=default_masquerade) for each in networks]


def policy(network: Network, numbers: Sequence[int], *, default_masquerade: bool) -> nft.Policy:
    """Of a network with these shards."""
    return nft.Policy(
        bridges=[bridge_name(network, shard) for shard in numbers],
        subnets=[pool.subnet for pool in network.pools],
        connected=is_on(network, ICC),
        internal=network.internal,
        masquerade=is_on(network, MASQUERADE, default_masquerade),
    )


def shards(networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> dict[NetworkId, set[int]]:
    """The shards that each network has."""
    found = {network.id: {0} for network in networks}
    for endpoint in endpoints:
        found[endpoint.network_id].add(endpoint.shard)
    return found


def publications(endpoints: Sequence[Endpoint]) -> list[nft.Publication]:
    """A published port for each family that its endpoint has, unless it is for one address of the host."""
    return [
        nft.Publication(
            protocol="udp" if port.protocol == "udp" else "tcp",
            address=address,
            port=port.port,
            host_ip=host_ip,
            host_port=port.host_port,
            count=port.count,
        )
        for endpoint in endpoints
        for port in endpoint.ports
        for address in endpoint.addresses
        if (host_ip := published_at(port)) is None or host_ip.version == address.version
    ]
