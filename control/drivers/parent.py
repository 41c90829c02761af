"""Which devices of a host can be the parent of a macvlan network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from control.drivers.base import Problem
from control.drivers.options import MTU
from control.errors import Conflict, Forbidden, InvalidArgument, NotFound
from control.model import Network, NetworkSpec
from datapath import features, parents
from datapath.parents import Parent

_MACVLANS: Final = ("macvlan", "macvtap")


def usable_parent(ifname: str) -> Parent:
    """The device that endpoints would be on, or that a sub-interface will be made on.

    Raises NotFound, InvalidArgument, Conflict for a device that cannot be a parent.
    """
    found = parents.look(ifname)
    if found is None:
        return _lower_of_missing(ifname)
    if found.ifname != ifname:
        raise InvalidArgument(f"parent {ifname} is another name of device {found.ifname}: use that")
    if found.is_loopback:
        raise InvalidArgument(f"parent {ifname} is the loopback: no other machine is reached by it")
    if found.kind in _MACVLANS:
        raise InvalidArgument(f"parent {ifname} is a {found.kind} device itself: use the device that it is on")
    if not found.is_ethernet:
        raise InvalidArgument(f"parent {ifname} is no Ethernet device: macvlan needs MAC addresses")
    if ifname in found.marks:
        raise InvalidArgument(f"parent {ifname} is the isolated parent of another network: it goes with that")
    if found.master:
        raise Conflict(f"parent {ifname} is a port of another device (a bridge or bond): use that as the parent")
    return found


def _lower_of_missing(ifname: str) -> Parent:
    named = parents.split_vlan(ifname)
    if named is None:
        raise NotFound(f"parent {ifname} does not exist on this host: `ip link` shows the devices that do")
    lower, vlan_id = named
    if not 1 <= vlan_id <= parents.MAX_VLAN_ID:
        raise InvalidArgument(f"parent {ifname}: {vlan_id} is no VLAN id, which goes from 1 to {parents.MAX_VLAN_ID}")
    found = parents.look(lower)
    if found is None:
        raise NotFound(f"parent {ifname} does not exist on this host, nor does {lower}, which it would be made on")
    if found.is_loopback or not found.is_ethernet:
        raise InvalidArgument(f"parent {ifname} cannot be made: {lower} is no Ethernet device")
    if not found.is_up:
        raise Conflict(f"parent {ifname} cannot be made: {lower} is down; set it up first")
    supported = features.check("vlan")
    if supported.answer is features.Answer.NO:
        raise Forbidden(
            f"parent {ifname} cannot be made: this kernel has no 802.1Q sub-interfaces ({supported.reason})"
        )
    return found


def check_mtu_of_parent(spec: NetworkSpec, parent: Parent) -> None:
    if int(spec.options.get(MTU, "0")) > parent.mtu:
        raise InvalidArgument(
            f"option {MTU}={spec.options[MTU]} is more than the MTU of the parent {parent.ifname}: {parent.mtu} bytes"
        )


def mtu_problems(network: Network, parent: Parent | None) -> Iterator[Problem]:
    """Whether the parent takes the network's largest packets; it may have changed since they were made."""
    mtu = int(network.options.get(MTU, "0"))
    if parent is not None and mtu > parent.mtu:
        what = f"its MTU of {parent.mtu} is less than network {network.name}'s of {mtu}"
        yield Problem("mtu-parent", parent.ifname, what, mend=f"ip link set {parent.ifname} mtu {mtu}")
