"""rtnetlink requests attribute by attribute as pyroute2 packs them, and acknowledgements as the kernel sends them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Any

import pytest
from pyroute2.netlink import NLA_F_NESTED, nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELLINKPROP,
    RTM_DELNEIGH,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWLINKPROP,
    RTM_NEWNEIGH,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWTFILTER,
    RTM_SETLINK,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from datapath import rtnl

REQUEST, ACK, REPLACE, EXCL, CREATE = 1, 4, 0x100, 0x200, 0x400
MAC, MAC_TEXT = bytes.fromhex("0242ac120002"), "02:42:ac:12:00:02"
CLSACT_HANDLE, CLSACT_PARENT, BLOCK_MAGIC = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFFF
ALL_PROTOCOLS = 0x0003
Attributes = Sequence[tuple[Any, ...]]


class blockmsg(nlmsg):  # type: ignore[misc]
    """A tcmsg with two attributes that pyroute2 does not know (linux/rtnetlink.h).

    No subclass of pyroute2's tcmsg: a message class hands its compiled attributes to its subclasses once it was used.
    """

    fields = tcmsg.fields
    nla_map = (
        ("TCA_UNSPEC", "none"),
        ("TCA_KIND", "asciiz"),
        *((f"TCA_UNUSED{number}", "none") for number in range(2, 13)),
        ("TCA_INGRESS_BLOCK", "uint32"),
        ("TCA_EGRESS_BLOCK", "uint32"),
    )


def nested(name: str, *attributes: tuple[Any, ...]) -> tuple[Any, ...]:
    return name, {"attrs": list(attributes)}, NLA_F_NESTED


def pyroute2_packs(kind: int, flags: int, message: Any, fields: Mapping[str, Any], attributes: Attributes) -> bytes:
    made = message()
    for name, value in fields.items():
        made[name] = value
    made["attrs"] = list(attributes)
    made["header"]["type"] = kind
    made["header"]["flags"] = REQUEST | ACK | flags
    made["header"]["sequence_number"] = 7
    made.encode()
    return bytes(made.data)


CASES: dict[str, tuple[rtnl.Request, int, int, Any, Mapping[str, Any], Attributes]] = {
    "veth": (
        rtnl.veth_add("ls01", master=7, peer_ifname="eth0", peer_netns_fd=9, peer_mac=MAC, mtu=1500),
        RTM_NEWLINK,
        CREATE | EXCL,
        ifinfmsg,
        {},
        [
            ("IFLA_IFNAME", "ls01"),
            ("IFLA_MTU", 1500),
            ("IFLA_MASTER", 7),
            nested(
                "IFLA_LINKINFO",
                ("IFLA_INFO_KIND", "veth"),
                nested(
                    "IFLA_INFO_DATA",
                    nested(
                        "VETH_INFO_PEER",
                        ("IFLA_IFNAME", "eth0"),
                        ("IFLA_ADDRESS", MAC_TEXT),
                        ("IFLA_MTU", 1500),
                        ("IFLA_NET_NS_FD", 9),
                    ),
                ),
            ),
        ],
    ),
    **{
        f"macvlan {mode}{' in another namespace' if elsewhere else ''}": (
            rtnl.macvlan_add(
                "eth0", lower=7, mode=mode, mac=MAC, mtu=1400 if elsewhere else None, netns_fd=9 if elsewhere else None
            ),
            RTM_NEWLINK,
            CREATE | EXCL,
            ifinfmsg,
            {},
            [
                ("IFLA_IFNAME", "eth0"),
                ("IFLA_ADDRESS", MAC_TEXT),
                *([("IFLA_MTU", 1400)] if elsewhere else []),
                ("IFLA_LINK", 7),
                *([("IFLA_NET_NS_FD", 9)] if elsewhere else []),
                nested(
                    "IFLA_LINKINFO",
                    ("IFLA_INFO_KIND", "macvlan"),
                    nested("IFLA_INFO_DATA", ("IFLA_MACVLAN_MODE", mode)),
                ),
            ],
        )
        for mode in ("private", "vepa", "bridge", "passthru")
        for elsewhere in (False, True)
    },
    "VLAN": (
        rtnl.vlan_add("eth1.4094", lower=7, vlan_id=4094),
        RTM_NEWLINK,
        CREATE | EXCL,
        ifinfmsg,
        {},
        [
            ("IFLA_IFNAME", "eth1.4094"),
            ("IFLA_LINK", 7),
            nested("IFLA_LINKINFO", ("IFLA_INFO_KIND", "vlan"), nested("IFLA_INFO_DATA", ("IFLA_VLAN_ID", 4094))),
        ],
    ),
    "link of a kind": (
        rtnl.link_add("lm-1", "dummy", mtu=9000),
        RTM_NEWLINK,
        CREATE | EXCL,
        ifinfmsg,
        {},
        [("IFLA_IFNAME", "lm-1"), ("IFLA_MTU", 9000), nested("IFLA_LINKINFO", ("IFLA_INFO_KIND", "dummy"))],
    ),
    **{
        f"altname{'' if is_new else ' deleted'}": (
            rtnl.altname_add("eth1.50", "lm-1") if is_new else rtnl.altname_delete("eth1.50", "lm-1"),
            RTM_NEWLINKPROP if is_new else RTM_DELLINKPROP,
            CREATE | EXCL if is_new else 0,
            ifinfmsg,
            {},
            [("IFLA_IFNAME", "eth1.50"), nested("IFLA_PROP_LIST", ("IFLA_ALT_IFNAME", "lm-1"))],
        )
        for is_new in (True, False)
    },
    "link delete": (rtnl.link_delete("ls01"), RTM_DELLINK, 0, ifinfmsg, {}, [("IFLA_IFNAME", "ls01")]),
    "link up": (rtnl.link_up(5, "x"), RTM_NEWLINK, 0, ifinfmsg, {"index": 5, "flags": 1, "change": 1}, []),
    "master": (rtnl.link_master(5, "x", 7), RTM_SETLINK, 0, ifinfmsg, {"index": 5}, [("IFLA_MASTER", 7)]),
    "MTU and MAC": (
        rtnl.link_restore(5, "x", mtu=1400, mac=MAC),
        RTM_SETLINK,
        0,
        ifinfmsg,
        {"index": 5},
        [("IFLA_MTU", 1400), ("IFLA_ADDRESS", MAC.hex(":"))],
    ),
    "another name": (
        rtnl.link_rename(5, "x", "eth0"),
        RTM_SETLINK,
        0,
        ifinfmsg,
        {"index": 5},
        [("IFLA_IFNAME", "eth0")],
    ),
    "no address of its own": (
        rtnl.link_no_auto_address(5, "x"),
        RTM_SETLINK,
        0,
        ifinfmsg,
        {"index": 5},
        [nested("IFLA_AF_SPEC", nested("AF_INET6", ("IFLA_INET6_ADDR_GEN_MODE", 1)))],
    ),
    "bridge port": (
        rtnl.bridge_port(5, "x", learning=False, unicast_flood=True, isolated=True),
        RTM_SETLINK,
        0,
        ifinfmsg,
        {"family": socket.AF_BRIDGE, "index": 5},
        [
            nested(
                "IFLA_PROTINFO",
                ("IFLA_BRPORT_LEARNING", 0),
                ("IFLA_BRPORT_UNICAST_FLOOD", 1),
                ("IFLA_BRPORT_ISOLATED", 1),
            )
        ],
    ),
    "FDB entry": (
        rtnl.fdb_add(5, "x", MAC),
        RTM_NEWNEIGH,
        CREATE | REPLACE,
        ndmsg,
        {"family": socket.AF_BRIDGE, "ifindex": 5, "state": 0x40, "flags": 4},
        [("NDA_LLADDR", MAC_TEXT)],
    ),
    "FDB entry deleted": (
        rtnl.fdb_delete(5, "x", MAC),
        RTM_DELNEIGH,
        0,
        ndmsg,
        {"family": socket.AF_BRIDGE, "ifindex": 5, "state": 0x40, "flags": 4},
        [("NDA_LLADDR", MAC_TEXT)],
    ),
    **{
        f"MAC filter {what}": (
            request,
            kind,
            flags,
            ndmsg,
            {"family": socket.AF_BRIDGE, "ifindex": 5, "state": 0x80, "flags": 2},
            [("NDA_LLADDR", MAC_TEXT)],
        )
        for what, request, kind, flags in (
            ("added to", rtnl.mac_filter_add(5, "x", MAC), RTM_NEWNEIGH, CREATE | EXCL),
            ("taken from", rtnl.mac_filter_delete(5, "x", MAC), RTM_DELNEIGH, 0),
        )
    },
    "IPv4 neighbour": (
        rtnl.neighbour_add(5, "x", IPv4Address("10.0.0.1"), MAC),
        RTM_NEWNEIGH,
        CREATE | REPLACE,
        ndmsg,
        {"family": socket.AF_INET, "ifindex": 5, "state": 0x80},
        [("NDA_DST", "10.0.0.1"), ("NDA_LLADDR", MAC_TEXT)],
    ),
    "IPv6 neighbour": (
        rtnl.neighbour_add(5, "x", IPv6Address("fd00::1"), MAC),
        RTM_NEWNEIGH,
        CREATE | REPLACE,
        ndmsg,
        {"family": socket.AF_INET6, "ifindex": 5, "state": 0x80},
        [("NDA_DST", "fd00::1"), ("NDA_LLADDR", MAC_TEXT)],
    ),
    "neighbour deleted": (
        rtnl.neighbour_delete(5, "x", IPv6Address("fd00::1")),
        RTM_DELNEIGH,
        0,
        ndmsg,
        {"family": socket.AF_INET6, "ifindex": 5, "state": 0x80},
        [("NDA_DST", "fd00::1")],
    ),
    "IPv4 address": (
        rtnl.addr_add(5, "x", ip_interface("10.1.2.3/22")),
        RTM_NEWADDR,
        CREATE | EXCL,
        ifaddrmsg,
        {"family": socket.AF_INET, "prefixlen": 22, "index": 5},
        [("IFA_LOCAL", "10.1.2.3"), ("IFA_ADDRESS", "10.1.2.3")],
    ),
    "IPv6 address": (
        rtnl.addr_add(5, "x", ip_interface("fd00::3/64")),
        RTM_NEWADDR,
        CREATE | EXCL,
        ifaddrmsg,
        {"family": socket.AF_INET6, "prefixlen": 64, "flags": 2, "index": 5},
        [("IFA_LOCAL", "fd00::3"), ("IFA_ADDRESS", "fd00::3")],
    ),
    "link-local address": (
        rtnl.addr_add(5, "x", ip_interface("fe80::3/64")),
        RTM_NEWADDR,
        CREATE | EXCL,
        ifaddrmsg,
        {"family": socket.AF_INET6, "prefixlen": 64, "flags": 2, "scope": 253, "index": 5},
        [("IFA_LOCAL", "fe80::3"), ("IFA_ADDRESS", "fe80::3")],
    ),
    "IPv4 default route": (
        rtnl.default_route_add(5, "x", IPv4Address("10.0.0.1").packed),
        RTM_NEWROUTE,
        CREATE | REPLACE,
        rtmsg,
        {"family": socket.AF_INET, "table": 254, "proto": 3, "type": 1},
        [("RTA_GATEWAY", "10.0.0.1"), ("RTA_OIF", 5)],
    ),
    "IPv6 default route": (
        rtnl.default_route_add(5, "x", IPv6Address("fd00::1").packed),
        RTM_NEWROUTE,
        CREATE | REPLACE,
        rtmsg,
        {"family": socket.AF_INET6, "table": 254, "proto": 3, "type": 1},
        [("RTA_GATEWAY", "fd00::1"), ("RTA_OIF", 5)],
    ),
    "default route unless there is one": (
        rtnl.default_route_add(5, "x", IPv4Address("10.0.0.1").packed, replace=False),
        RTM_NEWROUTE,
        CREATE | EXCL,
        rtmsg,
        {"family": socket.AF_INET, "table": 254, "proto": 3, "type": 1},
        [("RTA_GATEWAY", "10.0.0.1"), ("RTA_OIF", 5)],
    ),
    "clsact": (
        rtnl.clsact_add(5, "x", 11, 12),
        RTM_NEWQDISC,
        CREATE | EXCL,
        blockmsg,
        {"index": 5, "handle": CLSACT_HANDLE, "parent": CLSACT_PARENT},
        [("TCA_KIND", "clsact"), ("TCA_INGRESS_BLOCK", 11), ("TCA_EGRESS_BLOCK", 12)],
    ),
    "clsact deleted": (
        rtnl.clsact_delete(5, "x"),
        RTM_DELQDISC,
        0,
        tcmsg,
        {"index": 5, "handle": CLSACT_HANDLE, "parent": CLSACT_PARENT},
        [],
    ),
    **{
        f"program, {'replaced' if replace else 'new'}": (
            rtnl.block_program(11, 8, "ls_ep_out", replace=replace),
            RTM_NEWTFILTER,
            CREATE | (REPLACE if replace else EXCL),
            tcmsg,
            {
                "index": BLOCK_MAGIC - 2**32,
                "handle": 1,
                "parent": 11,
                "info": 1 << 16 | socket.htons(ALL_PROTOCOLS),
            },
            [
                ("TCA_KIND", "bpf"),
                nested("TCA_OPTIONS", ("TCA_BPF_FD", 8), ("TCA_BPF_NAME", "ls_ep_out"), ("TCA_BPF_FLAGS", 1)),
            ],
        )
        for replace in (False, True)
    },
    "block cleared": (
        rtnl.block_clear(11),
        RTM_DELTFILTER,
        0,
        tcmsg,
        {"index": BLOCK_MAGIC - 2**32, "parent": 11},
        [],
    ),
}


def pyroute2_reads(message: Any, data: bytes) -> Any:
    """Fields and attributes, without NLA_F_NESTED, which pyroute2 does not set on attributes within attributes."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [(name, plain(each)) for name, each, *_ in value] if isinstance(value, list) else value

    read = message(data)
    read.decode()
    return plain(read.getvalue())


@pytest.mark.parametrize("case", CASES)
def test_requests_are_those_that_pyroute2_packs(case: str) -> None:
    request, kind, flags, message, fields, attributes = CASES[case]
    ours, theirs = rtnl._pack(request, 7), pyroute2_packs(kind, flags, message, fields, attributes)
    assert pyroute2_reads(message, ours) == pyroute2_reads(message, theirs)
    assert len(ours) == len(theirs)
    if str(attributes).count("'attrs'") <= 1:
        assert ours == theirs


def test_every_request_is_compared_with_pyroute2() -> None:
    makers = {
        name for name, value in vars(rtnl).items() if getattr(value, "__annotations__", {}).get("return") == "Request"
    }
    compared = {
        "veth_add", "macvlan_add", "vlan_add", "link_add", "altname_add", "altname_delete", "link_delete", "link_up",
        "link_master", "link_rename", "link_restore", "link_no_auto_address", "bridge_port", "fdb_add",
        "mac_filter_add", "mac_filter_delete", "fdb_delete", "neighbour_add", "neighbour_delete", "addr_add",
        "default_route_add", "clsact_add", "clsact_delete", "block_program", "block_clear",
    }  # fmt: skip
    assert makers == compared


def error_message(sequence: int, code: int, explanation: str = "", *, capped: bool = True) -> bytes:
    """An acknowledgement as netlink(7) has it; the echo of the request is its header alone when capped."""
    echo = struct.pack("=IHHII", 16, 0, 0, sequence, 0)
    tlvs = b""
    if explanation:
        # A TLV of another kind first: NLMSGERR_ATTR_OFFS.
        text = explanation.encode() + b"\0"
        tlvs = struct.pack("=HHI", 8, 2, 0) + struct.pack("=HH", len(text) + 4, 1) + text + b"\0" * (-len(text) % 4)
    flags = (0x100 if capped else 0) | (0x200 if tlvs else 0)
    body = struct.pack("=i", -code) + echo + tlvs
    return struct.pack("=IHHII", 16 + len(body), 2, flags, sequence, 0) + body


def test_acknowledgements_are_told_apart_with_their_explanations() -> None:
    datagram = error_message(1, 0) + error_message(2, errno.EEXIST) + error_message(3, errno.EINVAL, "No such thing")
    assert list(rtnl._acks(datagram)) == [(1, 0, ""), (2, errno.EEXIST, ""), (3, errno.EINVAL, "No such thing")]


def test_other_messages_and_odd_ends_are_passed_over() -> None:
    other = struct.pack("=IHHII", 20, 3, 0, 9, 0) + b"\0" * 4
    assert list(rtnl._acks(other + error_message(5, errno.EPERM) + b"\1\2\3")) == [(5, errno.EPERM, "")]


@pytest.mark.parametrize("tlvs", [b"", b"\1", b"\0\0\1\0", struct.pack("=HH", 3, 1), struct.pack("=HHI", 8, 9, 1)])
def test_an_explanation_that_is_none_is_empty(tlvs: bytes) -> None:
    assert rtnl._explanation(tlvs) == ""


@pytest.mark.parametrize("length", range(9))
def test_attributes_are_padded_to_four_bytes_and_say_their_own_length(length: int) -> None:
    made = rtnl.attr(3, b"x" * length)
    assert len(made) % 4 == 0
    assert struct.unpack_from("=HH", made) == (length + 4, 3)
    assert made[4 : 4 + length] == b"x" * length


def answer(kind: int, sequence: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def asked(kernel: Sequence[bytes]) -> tuple[rtnl.Rtnl, socket.socket]:
    """A socket that gets these datagrams for its questions, and the end to close."""
    netlink = rtnl.Rtnl()
    netlink.close()
    netlink._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for datagram in kernel:
        there.send(datagram)
    return netlink, there


QUERY = rtnl.Request("list things", 30, 0, b"\0" * 12, frozenset({errno.ENOENT}))
DONE, INTERRUPTED = 3, 0x10


def test_a_dump_that_was_interrupted_is_begun_again() -> None:
    netlink, there = asked(
        [
            answer(28, 1, b"old1") + answer(28, 1, b"old2", INTERRUPTED),
            answer(DONE, 1, b"\0" * 4),
            answer(28, 1, b"late"),
            answer(28, 2, b"new1"),
            answer(28, 2, b"new2") + answer(DONE, 2, b"\0" * 4),
        ]
    )
    with netlink, there:
        assert netlink.dump(QUERY) == [b"new1", b"new2"]


def test_a_question_about_one_thing_has_one_answer_or_none() -> None:
    netlink, there = asked([answer(28, 1, b"this"), error_message(2, errno.ENOENT), error_message(3, errno.EPERM)])
    with netlink, there:
        assert netlink.get(QUERY) == b"this"
        assert netlink.get(QUERY) is None
        with pytest.raises(rtnl.NetlinkError, match="cannot list things: Operation not permitted"):
            netlink.get(QUERY)
