"""The devices that networks with Linux bridges are to have on this host, as the steps of `BridgeDriver` make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_interface

from control.drivers import inside
from control.drivers.base import Join, Problem
from control.drivers.bridge_names import bridge_mac, bridge_name, trunk_names
from control.drivers.inside import mac_bytes
from control.drivers.options import ICC, MTU, is_on
from control.model import Endpoint, Network
from datapath.expected import Device, Snapshot, differences_in
from datapath.rtnl_read import BridgePort


def problems(snapshot: Snapshot, networks: Sequence[Network], joins: Sequence[Join]) -> Iterator[Problem]:
    """What is not as it is to be, in the namespace of the snapshot and in the sandboxes."""
    for network in networks:
        for each in snapshot.differences(_bridge(network)):
            yield Problem(each.code, bridge_name(network), each.what, network.id)
    for join in joins:
        for device in _host_devices(snapshot, join):
            for each in snapshot.differences(device):
                yield Problem(each.code, device.ifname, each.what, join.endpoint.id)
        if join.netns_path is not None:
            device = _inside(snapshot, join)
            for each in differences_in(join.netns_path, device):
                yield Problem(each.code, f"{device.ifname} in sandbox {join.holder}", each.what, join.endpoint.id)


def _bridge(network: Network) -> Device:
    return Device(
        ifname=bridge_name(network),
        kind="bridge",
        mac=mac_bytes(bridge_mac(network)),
        mtu=int(network.options[MTU]) if MTU in network.options else None,
        addresses=[ip_interface((p.gateway, p.subnet.prefixlen)) for p in network.pools if p.gateway is not None],
        is_ours_alone=True,
    )


def _host_devices(snapshot: Snapshot, join: Join) -> Iterator[Device]:
    """The endpoint's port, and what the bridge with the gateway knows of it; of that one's lack others tell."""
    network, endpoint, mac = join.network, join.endpoint, mac_bytes(join.endpoint.mac)
    root, is_isolated = bridge_name(network), not is_on(network, ICC)
    yield Device(
        ifname=endpoint.host_ifname,
        kind="veth",
        master=bridge_name(network, endpoint.shard),
        mtu=_mtu(snapshot, network, endpoint),
        port=BridgePort(learning=False, unicast_flood=False, isolated=is_isolated),
        fdb=[mac],
    )
    if root in snapshot.links:
        yield Device(ifname=root, neighbours=dict.fromkeys(endpoint.addresses, mac))
    if endpoint.shard:
        up, down = trunk_names(network, endpoint.shard)
        port = BridgePort(learning=True, unicast_flood=True, isolated=is_isolated)
        yield Device(ifname=up, kind="veth", master=root, port=port, fdb=[mac])
        yield Device(ifname=down, kind="veth", master=bridge_name(network, endpoint.shard))


def _inside(snapshot: Snapshot, join: Join) -> Device:
    mtu = _mtu(snapshot, join.network, join.endpoint)
    return inside.expected(join, "veth", mtu=mtu, gateway_mac=mac_bytes(bridge_mac(join.network)))


def _mtu(snapshot: Snapshot, network: Network, endpoint: Endpoint) -> int | None:
    """That of the bridge."""
    bridge = snapshot.links.get(bridge_name(network, endpoint.shard))
    return None if bridge is None else bridge.mtu
