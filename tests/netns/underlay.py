"""Test hosts that are joined by an underlay: a switch, a router on it, and hosts with or without a VTEP.

Every host is a network namespace with `eth0`. What runs on a node without linkspan is put there by the code under test,
through `Node.call`; oracles and other VTEPs are commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, TypeVar

from datapath import devices, netns, rtnl, vxlan
from datapath.announce import Announcer
from datapath.vxlan_peers import Difference, PeerTable
from tests.hosts import Host, host
from tests.traffic import Place

T = TypeVar("T")
ROUTER4, ROUTER6 = "10.99.0.254", "fd99::fe"
BRIDGE, DEVICE = "lo-0123456789ab", "lx-0123456789ab"
VNI: Final = 4711


class Underlay:
    """A switch with a router on it, in one namespace; nodes are cabled to it as they are asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.switch = stack.enter_context(host(bpffs=False))
        self._count = 0
        for command in (
            "ip link add sw type bridge",
            "ip link set sw up addrgenmode none",
            f"ip addr add {ROUTER4}/24 dev sw",
            f"ip addr add {ROUTER6}/64 dev sw nodad",
        ):
            self.switch.run(*command.split())
        self.switch.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def node(self, *, mtu: int = 1500, is_far: bool = False) -> Node:
        """A host on the switch; or one that is far, behind the router, on a link with this MTU at the router's end."""
        machine = self._stack.enter_context(host(bpffs=False))
        self._count += 1
        number = self._count
        port = f"p{number}"
        self.switch.run(*f"ip link add {port} type veth peer name eth0 netns {machine.pid}".split())
        subnet = number if is_far else 0
        if is_far:
            self.switch.run(*f"ip link set {port} mtu {mtu} up addrgenmode none".split())
            self.switch.run(*f"ip addr add 10.99.{subnet}.254/24 dev {port}".split())
            self.switch.run(*f"ip addr add fd99:{subnet}::fe/64 dev {port} nodad".split())
            self.switch.run(*f"ip addr add fe80::fe/64 dev {port} nodad".split())  # from which it asks for the node
        else:
            self.switch.run(*f"ip link set {port} master sw mtu {mtu} up addrgenmode none".split())
        prefix6 = f"fd99:{subnet}::" if is_far else "fd99::"
        sent = Place(self.switch, f"what node {number} sends", f"/proc/{self.switch.pid}/ns/net", port)
        node = Node(machine, sent, number, mtu, f"10.99.{subnet}.{number}", f"{prefix6}{number:x}")
        for command in (
            f"ip link set eth0 mtu {mtu} up addrgenmode none",
            f"ip addr add {node.ip4}/24 dev eth0",
            f"ip addr add {node.ip6}/64 dev eth0 nodad",
            f"ip route add default via 10.99.{subnet}.254",
            f"ip route add default via {prefix6}fe",
        ):
            machine.run(*command.split())
        return node

    def segment(self, version: int = 4, **node: Any) -> Segment:
        """The overlay on one more node, over this version of IP; the rest are the arguments of `node`."""
        return Segment(self._stack, self.node(**node), version)


class Node:
    """A host on the underlay; `sent` is the switch's end of its cable, which takes in what the node sends."""

    def __init__(self, machine: Host, sent: Place, number: int, mtu: int, ip4: str, ip6: str) -> None:
        self.host, self.sent, self.number, self.mtu, self.ip4, self.ip6 = machine, sent, number, mtu, ip4, ip6
        self.uplink = Place(machine, f"node {number}", f"/proc/{machine.pid}/ns/net", "eth0")

    def address(self, version: int) -> IPv4Address | IPv6Address:
        return ip_address(self.ip4 if version == 4 else self.ip6)

    def call(self, function: Callable[[], T]) -> T:
        """Runs `function` in the node's network namespace."""
        return netns.call(f"/proc/{self.host.pid}/ns/net", function)

    def run(self, command: str, check: bool = True) -> str:
        return self.host.run(*command.split(), check=check).stdout

    def shown(self, command: str) -> Any:
        """What a command says in JSON."""
        return json.loads(self.run(command) or "[]")


class Sandbox(Place):
    """A sandbox on a node's bridge; the number settles its MAC and addresses."""

    def __init__(self, machine: Host, number: int) -> None:
        super().__init__(machine, f"sandbox {number}", f"/proc/{machine.pid}/ns/net", "eth0")
        self.number = number

    def peer(self, node: IPv4Address | IPv6Address) -> vxlan.Peer:
        """What other nodes are told of it."""
        return peer(self.number, node)


def sandbox_mac(number: int) -> bytes:
    return bytes.fromhex("02420a08") + number.to_bytes(2)


def sandbox_addresses(number: int) -> tuple[IPv4Address, IPv6Address, IPv6Address]:
    """IPv4, IPv6, and the link-local one that RFC 4291 makes of the MAC."""
    return (
        IPv4Address("10.8.0.0") + number,
        IPv6Address("fd08::") + number,
        IPv6Address("fe80::42:aff:fe08:0") + number,
    )


def peer(number: int, node: IPv4Address | IPv6Address) -> vxlan.Peer:
    return vxlan.Peer(mac=sandbox_mac(number), addresses=sandbox_addresses(number), node=node)


class Segment:
    """A node's part of the overlay network as linkspan makes it: a bridge, the VXLAN device, ports of sandboxes."""

    def __init__(self, stack: ExitStack, node: Node, version: int) -> None:
        self._stack, self.node = stack, node
        mtu = node.mtu - vxlan.OVERHEAD_BYTES[version]
        self.vtep = vxlan.Vtep(ifname=DEVICE, bridge=BRIDGE, vni=VNI, local=node.address(version), mtu=mtu)
        node.call(self._make)
        announcer = node.call(Announcer)
        stack.callback(announcer.close)
        self.peers = PeerTable(self.vtep, announcer)

    def _make(self) -> None:
        devices.add_bridge(BRIDGE, mac=f"02:4c:00:00:00:{self.node.number:02x}", mtu=self.vtep.mtu, ipv6=True)
        vxlan.add(self.vtep)

    def change(self, added: Iterable[vxlan.Peer] = (), removed: Iterable[vxlan.Peer] = ()) -> list[Difference]:
        return self.node.call(lambda: self.peers.change(added, removed))

    def sandbox(self, number: int) -> Sandbox:
        """Made as the bridge driver makes an endpoint."""
        machine = self._stack.enter_context(host(bpffs=False))
        made = Sandbox(machine, number)
        mac, port = sandbox_mac(number), f"ls{number}"

        def join() -> None:
            with netns.opened(f"/proc/{machine.pid}/ns/net") as inside, rtnl.Rtnl() as netlink:
                netlink.apply(
                    [
                        rtnl.veth_add(
                            port,
                            master=devices.need_ifindex(BRIDGE),
                            peer_ifname="eth0",
                            peer_netns_fd=inside,
                            peer_mac=mac,
                            mtu=self.vtep.mtu,
                        )
                    ]
                )
                index = devices.need_ifindex(port)
                netlink.apply(
                    [
                        rtnl.bridge_port(index, port, learning=False, unicast_flood=False, isolated=False),
                        rtnl.fdb_add(index, port, mac),
                        rtnl.link_no_auto_address(index, port),
                        rtnl.link_up(index, port),
                    ]
                )

        self.node.call(join)
        ip4, ip6, link_local = sandbox_addresses(number)
        machine.run("ip", "link", "set", "eth0", "addrgenmode", "none", "up")
        machine.run("ip", "addr", "add", f"{ip4}/16", "dev", "eth0")
        machine.run("ip", "addr", "add", f"{ip6}/64", "dev", "eth0", "nodad")
        machine.run("ip", "addr", "add", f"{link_local}/64", "dev", "eth0", "nodad")
        self.node.call(lambda: devices.take_note_of_carrier(port))
        return made


@contextmanager
def world() -> Iterator[Underlay]:
    with ExitStack() as stack:
        yield Underlay(stack)
