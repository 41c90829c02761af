"""The lab's A on an overlay network, with two endpoints of other nodes: one is reached by IPv4, the other by IPv6."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from datapath import abi
from datapath.peer_maps import PeerMaps
from tests.bpf.lab import SEGMENT, STRANGER, A, Host, Lab
from tests.bpf.parents import Seen
from tests.isolated import run

VNI: Final = 0x123456
UPLINK: Final = STRANGER
MTU: Final = 1500


@dataclass(frozen=True)
class Node:
    """Another node, and this one's address for it."""

    number: int
    local: str
    remote: str
    mac: str

    @property
    def overhead(self) -> int:
        return 70 if ":" in self.remote else 50


NODE4: Final = Node(5, "192.0.2.1", "192.0.2.9", "02:00:00:00:00:99")
NODE6: Final = Node(6, "2001:db8::1", "2001:db8::9", "02:00:00:00:00:98")
NODES: Final = (NODE4, NODE6)
PEER4: Final = Host("peer4", 0, "02:42:0a:09:00:21", "10.9.0.33", "fd09::21", "fe80::42:aff:fe09:21")
PEER6: Final = Host("peer6", 0, "02:42:0a:09:00:22", "10.9.0.34", "fd09::22", "fe80::42:aff:fe09:22")
PEERS: Final = {PEER4: NODE4, PEER6: NODE6}


class OverlayLab:
    def __init__(self, lab: Lab) -> None:
        self.lab, self.maps, self.peers = lab, lab.maps, PeerMaps(lab.maps)
        self.uplink = lab.ifindex[UPLINK]
        self.uplink_mac = lab.call(run, f"ip -o link show {UPLINK}").split("link/ether ")[1].split()[0]
        self.maps.endpoint_put(lab.ifindex[A.ifname], replace(A.record(), flags=abi.EP_FAST | abi.EP_OVERLAY))
        for node in NODES:
            self.put_node(node)
        self.peers.vni_put(VNI, SEGMENT)
        for peer, node in PEERS.items():
            self.peers.peer_put(abi.FdbKey(SEGMENT, peer.mac_bytes), abi.PeerEntry(VNI, node.number))
            for text in (peer.ip4, peer.ip6, peer.ip6_ll):
                self.peers.neighbour_put(SEGMENT, ip_address(text), peer.mac_bytes)
        self.peers.forget()

    def put_node(self, node: Node, *, mtu: int = MTU, is_known: bool = True, mac: bytes | None = None) -> None:
        local, remote = ip_address(node.local), ip_address(node.remote)
        macs = _bytes(node.mac) if mac is None else mac, _bytes(self.uplink_mac)
        self.peers.node_put(node.number, abi.Node(self.uplink if is_known else 0, mtu, local, remote, remote, *macs))
        self.peers.forget()

    def put_direct(self, *, wait_s: float = 0) -> None:
        """A sends without VXLAN `wait_s` from now on, both peers' nodes take it, and A takes it from them."""
        for peer, node in PEERS.items():
            addresses: Any = ip_address(peer.ip4), ip_address(peer.ip6)
            entry = abi.PeerEntry(VNI, node.number, abi.PEER_DIRECT, *addresses)
            self.peers.peer_put(abi.FdbKey(SEGMENT, peer.mac_bytes), entry)
        for text in (A.ip4, A.ip6):
            entry = abi.Direct(time.monotonic_ns() + int(wait_s * 1e9), SEGMENT, A.mac_bytes)
            self.peers.direct_put(ip_address(text), entry)
        self.peers.forget()

    def close(self) -> None:
        for key in self.peers.peers():
            self.peers.peer_delete(key)
        for address in self.peers.direct():
            self.peers.direct_delete(address)
        for node in NODES:
            self.peers.node_delete(node.number, ip_address(node.remote))
        self.peers.vni_delete(VNI)

    def out(self, packet: Packet | bytes, **context: int) -> Seen:
        return self._run("ls_ep_out", packet, A.ifname, context)

    def into(self, packet: Packet | bytes, **context: int) -> Seen:
        return self._run("ls_uplink_in", packet, UPLINK, context)

    def wrap(self, inner: Packet | bytes, node: Node = NODE4, vni: int = VNI, **fields: Any) -> Packet:
        """What the node sends of a packet; `fields` are the outer IP header's."""
        ip = IP if ":" not in node.remote else IPv6
        outer = Ether(dst=self.uplink_mac, src=node.mac) / ip(src=node.remote, dst=node.local, **fields)
        return outer / UDP(sport=50000, dport=4789, chksum=0) / VXLAN(vni=vni, flags=8) / inner

    def _run(self, program: str, packet: Packet | bytes, ifname: str, context: dict[str, int]) -> Seen:
        before = self._counts()
        result = self.lab.run(program, packet, ifname, **context)
        after = self._counts()
        grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
        return Seen(result.retval, result.data_out, grown)

    def _counts(self) -> dict[tuple[int, str], int]:
        counts = {
            (slot, name): value for slot, each in self.maps.counters().items() for name, value in vars(each).items()
        }
        return counts | {(slot, name): n for slot, each in self.maps.drops().items() for name, n in each.items()}


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
