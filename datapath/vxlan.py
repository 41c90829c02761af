"""VXLAN devices: an overlay network's way to the endpoints of other nodes, as a port of the network's bridge (RFC 7348)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True)
class Peer:
    """An endpoint of another node.

    `addresses` are all that it answers for, its IPv6 link-local one included; `node` is where its packets are sent.
    """

    mac: bytes
    addresses: tuple[IPv4Address | IPv6Address, ...]
    node: IPv4Address | IPv6Address
