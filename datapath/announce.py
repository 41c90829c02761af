"""Announcements of where an address is: gratuitous ARP (RFC 826, RFC 5227) and unsolicited neighbour advertisements.

Linux asks for a neighbour once a second. Whoever has asked for one that was not there yet, and waits, goes on at once
when it hears one of these (RFC 4861, 7.2.5).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from datapath.checksum import internet_checksum

_BROADCAST: Final = b"\xff" * 6
_ALL_NODES: Final = IPv6Address("ff02::1")
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
_ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
_ARP_REPLY: Final = 2
_UNHEARD: Final = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN, errno.ENOBUFS)
_NEIGHBOUR_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_LAYER_ADDRESS = 136, 0x20000000, 2


class Announcer:
    """Speaks on the bridges of the network namespace in which it was made. Thread-safe.

    One is made for all networks and kept: to close its socket takes the kernel 10 ms (net/packet/af_packet.c,
    packet_release).
    """

    def __init__(self) -> None:
        """Opens the socket, which hears nothing; needs CAP_NET_RAW. Raises OSError."""
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def announce(self, bridge: str, stations: Iterable[tuple[IPv4Address | IPv6Address, bytes]]) -> None:
        """Tells everybody on the bridge which MAC each address has. Raises OSError.

        The bridge keeps it from ports with neigh_suppress, so it does not go out by a VXLAN device. A bridge that is
        gone or down has nobody who waits, and where there is no room for a packet the next question does as well.
        """
        for address, mac in stations:
            if isinstance(address, IPv4Address):
                protocol, frame = _ETH_P_ARP, _arp(address, mac)
            else:
                protocol, frame = _ETH_P_IPV6, _advertisement(address, mac)
            try:
                self._socket.sendto(frame, (bridge, protocol))
            except OSError as error:
                if error.errno not in _UNHEARD:
                    raise


def _arp(address: IPv4Address, mac: bytes) -> bytes:
    """A reply that nobody asked for, from the address about itself."""
    return (
        struct.pack("!6s6sH", _BROADCAST, mac, _ETH_P_ARP)
        + struct.pack("!HHBBH", 1, _ETH_P_IP, 6, 4, _ARP_REPLY)
        + struct.pack("!6s4s6s4s", mac, address.packed, mac, address.packed)
    )


def _advertisement(address: IPv6Address, mac: bytes) -> bytes:
    """RFC 4861, 4.4: not solicited, takes the place of what was known."""
    option = struct.pack("!BB6s", _TARGET_LINK_LAYER_ADDRESS, 1, mac)
    message = struct.pack("!I16s", _OVERRIDE, address.packed) + option
    length = 4 + len(message)
    pseudo = struct.pack("!16s16sIxxxB", address.packed, _ALL_NODES.packed, length, socket.IPPROTO_ICMPV6)
    checksum = internet_checksum(pseudo + struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, 0) + message)
    return (
        struct.pack("!6s6sH", _ALL_NODES_MAC, mac, _ETH_P_IPV6)
        + struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_ICMPV6, 255)
        + address.packed
        + _ALL_NODES.packed
        + struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, checksum)
        + message
    )
