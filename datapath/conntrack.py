"""Ends UDP flows that the connection tracking remembers, through ctnetlink.

NAT is settled by a flow's first packet. A UDP flow has no end but silence, so a client that goes on sending would reach
the endpoint that had a port before, or the host, for ever. Functions act on the calling thread's network namespace.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def forget_udp_past(
    address: IPv4Address | IPv6Address, host_ip: IPv4Address | IPv6Address | None, host_ports: range
) -> None:
    """Ends UDP flows to `host_ports` of the host that go elsewhere than to `address`: to its own sockets, for example.

    `host_ip` is the address that they were sent to; None or the unspecified one means every address of this host.
    Flows that are only passing through the host are left alone. Raises OSError.
    """
    anywhere = host_ip is None or host_ip.is_unspecified
    with _tracker(address.version) as tracker:
        for original, reply in list(_udp_flows(tracker, address.version, host_ports)):
            sent_to = ip_address(original.daddr)
            is_ours = _is_local(sent_to) if anywhere else sent_to == host_ip
            if is_ours and ip_address(reply.saddr) != address:
                _forget(tracker, original)


def forget_udp_to(address: IPv4Address | IPv6Address, host_ports: range) -> None:
    """Ends UDP flows to `host_ports` of the host that were handed on to `address`. Raises OSError."""
    with _tracker(address.version) as tracker:
        for original, reply in list(_udp_flows(tracker, address.version, host_ports)):
            if original.daddr != reply.saddr and ip_address(reply.saddr) == address:
                _forget(tracker, original)


@contextmanager
def _tracker(version: int) -> Iterator[Any]:
    try:
        with NFCTSocket(_FAMILIES[version]) as tracker:
            yield tracker
    except Pyroute2Error as error:
        raise OSError(error.code, f"cannot end the UDP flows of a published port: {error.args[1]}") from error


def _udp_flows(tracker: Any, version: int, ports: range) -> Iterator[tuple[NFCTAttrTuple, NFCTAttrTuple]]:
    """The tuples (original, reply) of flows that were begun to one of the ports; the kernel looks for a single one."""
    family = _FAMILIES[version]
    single = {"dport": ports[0]} if len(ports) == 1 else {}
    wanted = NFCTAttrTuple(family=family, proto=socket.IPPROTO_UDP, **single)
    for message in tracker.dump(tuple_orig=wanted):
        original, reply = (
            NFCTAttrTuple.from_netlink(family, message.get_attr(name)) for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")
        )
        if original.dport in ports:
            yield original, reply


def _forget(tracker: Any, flow: NFCTAttrTuple) -> None:
    try:
        tracker.entry("del", tuple_orig=flow)
    except Pyroute2Error as error:
        if error.code != errno.ENOENT:  # it may have ended by itself
            raise


def _is_local(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host has the address: else nothing can be bound to it."""
    with socket.socket(_FAMILIES[address.version], socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
