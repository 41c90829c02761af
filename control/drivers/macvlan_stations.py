"""What the programs on parents are told of a macvlan endpoint."""

from __future__ import annotations

from control.addressing import link_local
from control.drivers.inside import mac_bytes
from control.drivers.macvlan_options import broadcast_limit, has_host_access, mode_of
from control.model import Endpoint, Network
from datapath.uplink import Station


def station_of(network: Network, endpoint: Endpoint) -> Station:
    return Station(
        slot=endpoint.slot,
        mac=mac_bytes(endpoint.mac),
        ip4=endpoint.ipv4.ip if endpoint.ipv4 else None,
        ip6=endpoint.ipv6.ip if endpoint.ipv6 else None,
        ip6_ll=link_local(endpoint.mac) if endpoint.ipv6 else None,
        link_locals=endpoint.link_local_ips,
        mode=mode_of(network),
        host_access=has_host_access(network),
        is_engines=endpoint.is_remote,
        broadcast_limit=broadcast_limit(network),
        host_ifname=endpoint.host_ifname,
    )
