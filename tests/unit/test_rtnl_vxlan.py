"""Requests about VXLAN peers, attribute by attribute as pyroute2 packs them, and answers as it packs them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from datapath import rtnl, rtnl_vxlan
from tests.unit.test_rtnl import CREATE, MAC, MAC_TEXT, REPLACE, Attributes, pyroute2_packs

APPEND, SELF, EXT_LEARNED, PERMANENT, NOBODY = 0x800, 0x02, 0x10, 0x80, "00:00:00:00:00:00"
NODE4, NODE6 = IPv4Address("10.99.0.2"), IPv6Address("fd99::2")
BRIDGE_FAMILY = {"family": socket.AF_BRIDGE, "ifindex": 9}

CASES: dict[str, tuple[rtnl.Request, int, int, Mapping[str, Any], Attributes]] = {
    "node of a MAC": (
        rtnl_vxlan.fdb_replace(9, "lx", MAC, NODE4.packed),
        RTM_NEWNEIGH,
        CREATE | REPLACE,
        {**BRIDGE_FAMILY, "state": PERMANENT, "flags": SELF},
        [("NDA_LLADDR", MAC_TEXT), ("NDA_DST", str(NODE4))],
    ),
    "no node of a MAC": (
        rtnl_vxlan.fdb_delete(9, "lx", MAC),
        RTM_DELNEIGH,
        0,
        {**BRIDGE_FAMILY, "state": PERMANENT, "flags": SELF},
        [("NDA_LLADDR", MAC_TEXT)],
    ),
    "broadcasts": (
        rtnl_vxlan.broadcast_add(9, "lx", NODE6.packed),
        RTM_NEWNEIGH,
        CREATE | APPEND,
        {**BRIDGE_FAMILY, "state": PERMANENT, "flags": SELF},
        [("NDA_LLADDR", NOBODY), ("NDA_DST", str(NODE6))],
    ),
    "no broadcasts": (
        rtnl_vxlan.broadcast_delete(9, "lx", NODE4.packed),
        RTM_DELNEIGH,
        0,
        {**BRIDGE_FAMILY, "state": PERMANENT, "flags": SELF},
        [("NDA_LLADDR", NOBODY), ("NDA_DST", str(NODE4))],
    ),
    "peer": (
        rtnl_vxlan.peer_neighbour_replace(7, "lo", NODE6.packed, MAC),
        RTM_NEWNEIGH,
        CREATE | REPLACE,
        {"family": socket.AF_INET6, "ifindex": 7, "state": PERMANENT, "flags": EXT_LEARNED},
        [("NDA_DST", str(NODE6)), ("NDA_LLADDR", MAC_TEXT)],
    ),
    "no peer": (
        rtnl_vxlan.neighbour_delete(7, "lo", NODE4.packed),
        RTM_DELNEIGH,
        0,
        {"family": socket.AF_INET, "ifindex": 7},
        [("NDA_DST", str(NODE4))],
    ),
    "one neighbour": (
        rtnl_vxlan.neighbour_get(7, "lo", NODE4.packed),
        RTM_GETNEIGH,
        0,
        {"family": socket.AF_INET, "ifindex": 7},
        [("NDA_DST", str(NODE4))],
    ),
    "all of an FDB": (rtnl_vxlan.fdb_dump(9, "lx"), RTM_GETNEIGH, 0, BRIDGE_FAMILY, []),
    "all neighbours": (
        rtnl_vxlan.neighbours_dump(7, "lo", socket.AF_INET6),
        RTM_GETNEIGH,
        0,
        {"family": socket.AF_INET6},
        [("NDA_IFINDEX", 7)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_requests_are_those_that_pyroute2_packs(case: str) -> None:
    request, kind, flags, fields, attributes = CASES[case]
    assert rtnl._pack(request, 7) == pyroute2_packs(kind, flags, ndmsg, fields, attributes)


@pytest.mark.parametrize(
    ("attributes", "mac", "destination"),
    [
        ([], b"", b""),
        ([("NDA_LLADDR", MAC_TEXT)], MAC, b""),
        ([("NDA_DST", str(NODE6)), ("NDA_IFINDEX", 3), ("NDA_LLADDR", MAC_TEXT)], MAC, NODE6.packed),
        ([("NDA_LLADDR", MAC_TEXT), ("NDA_VLAN", 1), ("NDA_DST", str(NODE4)), ("NDA_PROBES", 0)], MAC, NODE4.packed),
    ],
)
def test_answers_are_read_whatever_else_they_say(attributes: Attributes, mac: bytes, destination: bytes) -> None:
    fields = {"family": socket.AF_INET, "ifindex": 7, "state": PERMANENT, "flags": EXT_LEARNED}
    body = pyroute2_packs(RTM_NEWNEIGH, 0, ndmsg, fields, attributes)[16:]
    for odd_end in (b"", b"\0", b"\0\0\0\0", b"\3\0\1\0"):
        assert rtnl_vxlan.entry(body + odd_end) == (7, PERMANENT, EXT_LEARNED, mac, destination)


def test_errors_name_peer_node_and_device() -> None:
    said = [request.what for request, *_ in CASES.values()]
    assert said[0] == f"send what is for {MAC_TEXT} from lx to 10.99.0.2"
    assert said[4] == "add the peer fd99::2 to lo"
