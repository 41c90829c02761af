"""What the kernel says of its WireGuard devices, in messages that pyroute2 packs."""

from __future__ import annotations

import socket
from base64 import b64encode
from ipaddress import IPv4Address, ip_address

from pyroute2.netlink.generic.wireguard import wgmsg

from datapath import wireguard
from datapath.wireguard import Peer

KEYS = [b64encode(bytes([number]) * 32).decode() for number in range(6)]


class Link(dict):
    def get_attr(self, name):
        return {"IFLA_MTU": 1440}[name]


def message(*peers):
    made = wgmsg()
    made["header"]["type"] = 30
    made["attrs"] = [
        ["WGDEVICE_A_PRIVATE_KEY", KEYS[0]],
        ["WGDEVICE_A_PUBLIC_KEY", KEYS[1]],
        ["WGDEVICE_A_LISTEN_PORT", 51880],
        ["WGDEVICE_A_PEERS", [{"attrs": peer} for peer in peers]],
    ]
    made.encode()
    decoded = wgmsg(made.data)
    decoded.decode()
    return decoded


def part(key, allowed=(), endpoint=None, handshake_s=None):
    """A peer, or with neither endpoint nor handshake the rest of one that the message before began."""
    attrs = [["WGPEER_A_PUBLIC_KEY", key]]
    if handshake_s is not None:
        attrs.append(["WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": handshake_s, "tv_nsec": 0}])
    if endpoint is not None:
        attrs.append(["WGPEER_A_ENDPOINT", {"addr": endpoint, "port": 51881}])
    addresses = []
    for text in allowed:
        address, _, length = text.partition("/")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        values = (
            ["WGALLOWEDIP_A_FAMILY", family],
            ["WGALLOWEDIP_A_IPADDR", packed],
            ["WGALLOWEDIP_A_CIDR_MASK", int(length)],
        )
        addresses.append({"attrs": [*values]})
    return [*attrs, ["WGPEER_A_ALLOWEDIPS", addresses]]


def found(*messages):
    return wireguard._found(Link(flags=1), messages)


def peer(key, endpoint, address):
    return Peer(key, ip_address(endpoint), 51881, IPv4Address(address))


def test_a_device_is_read_as_it_is():
    device = found(
        message(
            part(KEYS[2], ["100.64.0.2/32"], "192.0.2.2", 0), part(KEYS[3], ["100.64.0.3/32"], "2001:db8::3", 1_700_000)
        )
    )
    assert (device.private_key, device.public_key, device.port) == (KEYS[0], KEYS[1], 51880)
    assert (device.mtu, device.is_up) == (1440, True)
    assert device.peers == {peer(KEYS[2], "192.0.2.2", "100.64.0.2"), peer(KEYS[3], "2001:db8::3", "100.64.0.3")}
    assert device.keys == {KEYS[2], KEYS[3]}
    assert device.handshakes == {KEYS[3]}
    assert KEYS[0] not in repr(device)


def test_a_peer_may_go_on_in_the_next_message():
    device = found(
        message(part(KEYS[2], ["100.64.0.2/32"], "192.0.2.2", 5), part(KEYS[3], [], "192.0.2.3", 7)),
        message(part(KEYS[3], ["100.64.0.3/32"]), part(KEYS[4], ["100.64.0.4/32"], "192.0.2.4", 0)),
    )
    assert device.peers == {peer(KEYS[n], f"192.0.2.{n}", f"100.64.0.{n}") for n in (2, 3, 4)}
    assert device.handshakes == {KEYS[2], KEYS[3]}


def test_peers_that_are_not_ours_are_known_by_their_keys_alone():
    device = found(
        message(
            part(KEYS[2], ["100.64.0.2/32"], None, 0),
            part(KEYS[3], ["100.64.0.3/32", "10.0.0.0/8"], "192.0.2.3", 0),
            part(KEYS[4], ["0.0.0.0/0"], "192.0.2.4", 0),
            part(KEYS[5], ["::/0"], "192.0.2.5", 0),
        )
    )
    assert device.peers == frozenset()
    assert device.keys == set(KEYS[2:])
