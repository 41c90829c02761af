"""What the options of a macvlan network say, and which values they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from control.drivers.macvlan_parents import PARENT, is_isolated
from control.drivers.options import (
    ACCEL,
    IFACE_PREFIX,
    MTU,
    Check,
    check_boolean,
    check_ifname,
    check_mtu,
    check_prefix,
    check_rate,
    is_on,
)
from control.errors import InvalidArgument
from control.model import Network, NetworkSpec
from datapath import rtnl
from datapath.switch import Hook

MODE: Final = "macvlan_mode"
CONFLICT_CHECK: Final = "linkspan.conflict_check"
HOST_ACCESS: Final = "linkspan.host_access"
BROADCAST_LIMIT: Final = "linkspan.broadcast_limit"
DEVICE: Final = "linkspan.macvlan_device"
PARENT_HOOK: Final = "linkspan.parent_hook"
PASSTHRU: Final = "passthru"
MACVLAN, VETH = "macvlan", "veth"
DEFAULT_BROADCAST_LIMIT: Final = 100
"""Packets a second. Address resolution needs a few now and then; 500 endpoints get a copy of each."""


def _check_parent(option: str, value: str) -> None:
    if value:
        check_ifname(option, value)


def _one_of(*values: str) -> Check:
    def check(option: str, value: str) -> None:
        if value not in values:
            raise InvalidArgument(f"invalid value {value!r} for option {option}: use one of {', '.join(values)}")

    return check


def _check_mode(option: str, value: str) -> None:
    if value:
        _one_of(*sorted(rtnl.MACVLAN_MODES))(option, value)


CHECKS: Final[Mapping[str, Check]] = {
    PARENT: _check_parent,
    MODE: _check_mode,
    ACCEL: check_boolean,
    CONFLICT_CHECK: check_boolean,
    HOST_ACCESS: check_boolean,
    BROADCAST_LIMIT: check_rate,
    DEVICE: _one_of(MACVLAN, VETH),
    PARENT_HOOK: _one_of("tc", "xdp"),
    MTU: check_mtu,
    IFACE_PREFIX: check_prefix,
}
"""All options that there are."""


def mode_of(network: Network | NetworkSpec) -> str:
    """The macvlan mode, `bridge` unless the network says otherwise."""
    return network.options.get(MODE) or "bridge"


def is_switched(network: Network | NetworkSpec) -> bool:
    """Whether the network's endpoints are veth pairs."""
    return network.options.get(DEVICE) == VETH


def parent_hook(network: Network) -> Hook:
    """What takes packets for veth pairs from the wire."""
    return "xdp" if network.options.get(PARENT_HOOK) == "xdp" else "tc"


def is_checked(network: Network) -> bool:
    """Whether addresses are looked for before they are given out. On an isolated parent IPAM knows everybody."""
    return not is_isolated(network) and is_on(network, CONFLICT_CHECK)


def has_host_access(network: Network | NetworkSpec) -> bool:
    """Whether the host and the network's endpoints reach each other; in bridge mode unless it is turned off.

    An isolated parent has no address of the host's.
    """
    return bool(network.options.get(PARENT)) and is_on(network, HOST_ACCESS, mode_of(network) == "bridge")


def broadcast_limit(network: Network) -> int:
    """Packets a second that an endpoint may send to everybody; 0 for no limit."""
    return int(network.options.get(BROADCAST_LIMIT, DEFAULT_BROADCAST_LIMIT))
