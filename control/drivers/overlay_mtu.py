"""Whether what an overlay network takes fits the underlay, with its outer headers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from control.drivers.base import Problem
from control.drivers.options import MTU
from control.model import Address, Network
from datapath import devices
from datapath.fast_peers import Way


def problems(
    network: Network, address: Address, overhead: Callable[[int], int], ways: Collection[Way]
) -> Iterator[Problem]:
    """`address` is this node's, `ways` lead to the others; `overhead` is in bytes, on an underlay of some MTU."""
    mtu, ifname = int(network.options[MTU]), devices.holder(address)
    if ifname is None:
        yield Problem("underlay-gone", str(address), "no device has this node's address", mend=f"add {address} again")
        return
    there = devices.mtu(ifname)
    needed = mtu + overhead(there)
    if there < needed:
        what = f"its MTU of {there} is less than the {needed} that network {network.name} takes"
        yield Problem("mtu-underlay", ifname, what, mend=f"ip link set {ifname} mtu {needed}")
        return
    for way in sorted(ways, key=lambda each: str(each.remote)):
        if way.mtu < needed:
            what = f"packets of at most {way.mtu} bytes get there, and network {network.name} sends up to {needed}"
            mend = f"raise the MTU on the way, or make the network with -o {MTU}={mtu - (needed - way.mtu)}"
            yield Problem("mtu-path", f"node {way.remote}", what, mend=mend)
