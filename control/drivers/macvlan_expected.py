"""The devices that macvlan endpoints are to have on this host, as the steps of `MacvlanDriver` make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from control.drivers import inside
from control.drivers.base import Join, Problem
from control.drivers.macvlan_options import MACVLAN, PASSTHRU, VETH, is_switched, mode_of
from control.drivers.macvlan_veth import bridge_of
from control.drivers.options import MTU
from datapath.expected import Device, Snapshot, differences_in
from datapath.rtnl_read import BridgePort


def problems(snapshot: Snapshot, joins: Sequence[Join]) -> Iterator[Problem]:
    """What is not as it is to be, in the namespace of the snapshot and in the sandboxes."""
    for join in joins:
        if is_switched(join.network):
            device = _host_end(join)
            for each in snapshot.differences(device):
                yield Problem(each.code, device.ifname, each.what, join.endpoint.id)
        if join.netns_path is not None:
            device = _inside(join)
            for each in differences_in(join.netns_path, device):
                yield Problem(each.code, f"{device.ifname} in sandbox {join.holder}", each.what, join.endpoint.id)


def _host_end(join: Join) -> Device:
    port = BridgePort(learning=False, unicast_flood=False, isolated=True)
    return Device(ifname=join.endpoint.host_ifname, kind="veth", master=bridge_of(join.network), port=port)


def _inside(join: Join) -> Device:
    network = join.network
    mtu = int(network.options[MTU]) if MTU in network.options else None
    device = inside.expected(join, VETH if is_switched(network) else MACVLAN, mtu=mtu)
    # In passthru the MAC is the parent's, whatever that is.
    return replace(device, mac=None) if mode_of(network) == PASSTHRU else device
