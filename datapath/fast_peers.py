"""Endpoints of other nodes (peers) on the fast path: what the programs know of them, and the program on the uplinks.

A packet for a peer leaves in VXLAN from the sender's host end, and one from a peer goes from the uplink straight into
the sandbox (bpf/lib/remote.h, bpf/tc_uplink_in.c). Where both nodes say so it goes without VXLAN (bpf/lib/direct.h).
Programs and maps outlive the process; `start` takes up what is there. A peer that is not known here is reached by the
network's VXLAN device (datapath.vxlan), as are all where programs cannot be had: `problem` then says why, and every
other method does nothing.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from datapath import abi, features, loader
from datapath.attached import Expected
from datapath.hooks import PRIORITY, Attachment, Hooks
from datapath.peer_maps import PeerMaps
from datapath.programs import Programs
from datapath.vxlan import Peer

LOG = logging.getLogger(__name__)

PROGRAM: Final = "ls_uplink_in"
HEARD_OF_S: Final = 5.0
"""How long a new endpoint sends in VXLAN, which is taken from unknown senders too: other nodes hear of it later."""
NO_MAC: Final = bytes(6)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Way:
    """How packets get to another node; all addresses are of one family.

    `local` is this node's address for the cluster, `remote` the other's, `next_hop` a router's or `remote` again.
    `ifindex` is the device's, and `mtu` the longest IP packet that gets there. `mac` is that of the other's device, and
    `local_mac` this one's if both are on one layer 2 segment; NO_MAC otherwise.
    """

    ifindex: int
    mtu: int
    local: Address
    remote: Address
    next_hop: Address
    mac: bytes = NO_MAC
    local_mac: bytes = NO_MAC

    @property
    def is_direct(self) -> bool:
        """Whether packets can be sent there without VXLAN."""
        return NO_MAC not in (self.mac, self.local_mac)

    def record(self) -> abi.Node:
        return abi.Node(**vars(self))


@dataclass
class _Segment:
    """What the maps hold of one network: its VNI, and its peers by MAC."""

    vni: int
    peers: dict[bytes, Peer] = field(default_factory=dict)


class FastPeers:
    """Thread-safe after `start`. Methods raise OSError naming the map or device.

    `ways` are by the node's address, which is a peer's `node`. A peer whose node has none is left to the kernel.
    """

    def __init__(self, programs: Programs, attachment: Literal["auto", "clsact", "tcx"] = "auto") -> None:
        """`auto` means tcx links where the kernel has them (6.6), clsact filters elsewhere."""
        self._programs = programs
        self._wanted = attachment
        self._maps: PeerMaps | None = None
        self._lock = threading.Lock()
        self._segments: dict[int, _Segment] = {}
        self._nodes: dict[Address, tuple[int, Way]] = {}
        self._users: dict[Address, int] = {}
        self._direct: dict[int, dict[Address, abi.Direct]] = {}
        self._listening: dict[int, int] = {}
        self.problem: str | None = "not started"
        self.fallbacks: dict[str, str] = {}
        self.attachment: Attachment = "clsact"

    def start(self, segments: Collection[int]) -> None:
        """Takes up what the maps hold of these segments, makes them forget all others, and runs the program on uplinks.

        Never raises: see `problem`.
        """
        is_tcx = self._wanted == "tcx" or (
            self._wanted == "auto" and features.check("tcx").answer is features.Answer.YES
        )
        self.attachment = "tcx" if is_tcx else "clsact"
        try:
            self._maps = PeerMaps(self._programs.load())
            self.problem = None
            with self._lock:
                self._take_up(segments)
        except (OSError, loader.LoaderError) as error:
            self.problem = self.fallbacks["ebpf"] = str(error)
            if segments:  # else nobody misses them
                LOG.warning("peers on overlay networks are reached by the kernel's own path: %s", error)
            self._retire()

    def synchronize(self, segment: int, vni: int, peers: Iterable[Peer], ways: Mapping[Address, Way]) -> list[str]:
        """Makes the programs know exactly these peers of a segment; returns what it changed, one line each.

        Compares with what it remembers of earlier calls, so only a change costs system calls.
        """
        if self.problem:
            return []
        with self._lock:
            return self._synchronize(segment, vni, {peer.mac: peer for peer in peers if peer.node in ways}, ways)

    def admit(self, segment: int, uplink: int, owners: Mapping[Address, bytes]) -> None:
        """Has exactly these addresses of this node's endpoints take direct packets that come by a device.

        `owners` are the endpoints' MACs. They send such packets too, from HEARD_OF_S later on; an address that was
        there before does not wait again.
        """
        if self.problem:
            return
        with self._lock:
            if self._listening.get(segment) != uplink:
                self._listening[segment] = uplink
                self._run_on(uplink)
                self._clear_uplinks()
            self._admit(segment, owners)

    def refuse(self, segment: int) -> None:
        """Has no endpoint of the segment take or send direct packets."""
        if self.problem:
            return
        with self._lock:
            self._refuse(segment)

    def admits(self, segment: int) -> bool:
        """Whether the segment's endpoints take direct packets: `admit` was called, and the program runs there."""
        index = self._listening.get(segment)
        return not (self.problem or index is None or f"uplink {index}" in self.fallbacks)

    def close(self, segment: int) -> None:
        """Makes the programs forget a segment's peers and VNI, and its endpoints that take direct packets."""
        if self.problem:
            return
        with self._lock:
            self._refuse(segment)
            self._close(segment)

    def differences(self, segment: int, vni: int, peers: Iterable[Peer], ways: Mapping[Address, Way]) -> list[str]:
        """What `synchronize` would have to change, by what the maps themselves hold; changes nothing."""
        if self.problem:
            return []
        maps = self._open_maps()
        with self._lock:
            nodes = maps.nodes()
            held = {key.mac: entry for key, entry in maps.peers().items() if key.segment == segment}
            found = [] if not held or maps.vnis().get(vni) == segment else [f"VNI {vni} is not segment {segment}"]
            wanted = {peer.mac: peer for peer in peers if peer.node in ways}
            for mac in sorted(held.keys() - wanted.keys()):
                found.append(f"peer {mac.hex(':')} should not be there")
            for mac, peer in wanted.items():
                entry = held.get(mac)
                if entry is None:
                    found.append(f"peer {mac.hex(':')} is missing")
                elif entry != _entry(peer, vni, entry.node) or nodes.get(entry.node) != ways[peer.node].record():
                    found.append(f"peer {mac.hex(':')} is sent elsewhere than to {peer.node}, or otherwise")
                for address in peer.addresses:
                    if maps.neighbour(segment, address) != mac:
                        found.append(f"peer {mac.hex(':')} is not answered for at {address}")
        return found

    def uplinks(self) -> set[int]:
        """The ifindexes of the devices that the program runs on."""
        return set() if self.problem else self._hooks.attached()

    def run_again(self) -> None:
        """Runs the program on the uplinks that it is to run on, whoever has taken it off."""
        with self._lock:
            for index in self.uplinks():
                self._run_on(index)

    def attachments(self) -> list[Expected]:
        """What runs at the uplinks' hooks when all is well."""
        return [
            Expected(_name(index), "ingress", PROGRAM, self._programs.id(PROGRAM))
            for index in sorted(self.uplinks())
            if f"uplink {index}" not in self.fallbacks
        ]

    @property
    def _hooks(self) -> Hooks:
        return Hooks(self._programs.bpffs_dir / "uplinks", self.attachment, PRIORITY + 1)

    def _take_up(self, segments: Collection[int]) -> None:
        maps = self._open_maps()
        ways = {index: Way(**vars(node)) for index, node in maps.nodes().items()}
        self._nodes = {way.remote: (index, way) for index, way in ways.items()}
        vnis = {segment: vni for vni, segment in maps.vnis().items()}
        addresses = maps.addresses()
        for key, entry in maps.peers().items():
            if key.segment not in vnis or entry.node not in ways:
                maps.peer_delete(key)  # by a linkspand that died half way
                continue
            known = self._segments.setdefault(key.segment, _Segment(vnis[key.segment]))
            node = ways[entry.node].remote
            known.peers[key.mac] = Peer(
                mac=key.mac,
                addresses=tuple(addresses.get((key.segment, key.mac), ())),
                node=node,
                is_direct=bool(entry.flags & abi.PEER_DIRECT),
            )
            self._users[node] = self._users.get(node, 0) + 1
        for address, taker in maps.direct().items():
            self._direct.setdefault(taker.segment, {})[address] = taker
        for segment in self._direct.keys() - set(segments):
            self._refuse(segment)
        for segment in self._segments.keys() - set(segments):
            self._close(segment)
        for segment in vnis.keys() - self._segments.keys():
            maps.vni_delete(vnis[segment])
        self._release(set(self._nodes))
        for _, way in self._nodes.values():
            self._run_on(way.ifindex)
        self._clear_uplinks()

    def _retire(self) -> None:
        """Detaches what an earlier linkspan has attached: nobody keeps its maps up to date."""
        for index in self._hooks.attached():
            try:
                self._hooks.detach(index, f"ifindex {index}")
            except OSError as error:
                LOG.error("programs of an earlier linkspan may still run on ifindex %d: %s", index, error)

    def _synchronize(
        self, segment: int, vni: int, wanted: Mapping[bytes, Peer], ways: Mapping[Address, Way]
    ) -> list[str]:
        known = self._segments.get(segment)
        if known is not None and known.vni != vni:
            self._close(segment)
            known = None
        before = dict(known.peers) if known is not None else {}
        changed = []
        for mac in before.keys() - wanted.keys():
            self._delete(segment, mac)
            changed.append(f"peer {mac.hex(':')} forgotten")
        for mac, peer in wanted.items():
            if not _is_same(before.get(mac), peer):
                self._put(segment, vni, peer, ways[peer.node])
                changed.append(f"peer {mac.hex(':')} at {peer.node}")
        for node in {peer.node for peer in wanted.values()}:
            if self._nodes[node][1] != ways[node]:
                self._put_way(ways[node])
                changed.append(f"way to {node}")
        if changed:
            self._open_maps().forget()
        return changed

    def _put(self, segment: int, vni: int, peer: Peer, way: Way) -> None:
        """The sender is known before the receiver, as in Accelerator."""
        maps = self._open_maps()
        number = self._put_way(way)
        known = self._segments.get(segment)
        if known is None:
            known = self._segments[segment] = _Segment(vni)
            maps.vni_put(vni, segment)
        before = known.peers.get(peer.mac)
        maps.peer_put(abi.FdbKey(segment, peer.mac), _entry(peer, vni, number))
        known.peers[peer.mac] = peer
        self._users[peer.node] = self._users.get(peer.node, 0) + 1
        for address in peer.addresses:
            maps.neighbour_put(segment, address, peer.mac)
        if before is not None:
            for address in set(before.addresses) - set(peer.addresses):
                maps.neighbour_delete(segment, address)
            self._let_go(before.node)

    def _delete(self, segment: int, mac: bytes) -> None:
        known = self._segments.get(segment)
        peer = known.peers.pop(mac, None) if known is not None else None
        if peer is None:
            return
        maps = self._open_maps()
        for address in peer.addresses:
            maps.neighbour_delete(segment, address)
        maps.peer_delete(abi.FdbKey(segment, mac))
        maps.forget()
        self._let_go(peer.node)

    def _close(self, segment: int) -> None:
        known = self._segments.get(segment)
        if known is None:
            return
        for mac in list(known.peers):
            self._delete(segment, mac)
        self._open_maps().vni_delete(known.vni)
        self._open_maps().forget()
        del self._segments[segment]

    def _admit(self, segment: int, owners: Mapping[Address, bytes]) -> None:
        maps, known = self._open_maps(), self._direct.setdefault(segment, {})
        from_ns = time.monotonic_ns() + int(HEARD_OF_S * 1e9)
        gone = known.keys() - owners.keys()
        new = {address: mac for address, mac in owners.items() if address not in known or known[address].mac != mac}
        for address in gone:
            maps.direct_delete(address)
            del known[address]
        for address, mac in new.items():
            known[address] = abi.Direct(from_ns, segment, mac)
            maps.direct_put(address, known[address])
        if gone or new:
            maps.forget()

    def _refuse(self, segment: int) -> None:
        self._admit(segment, {})
        del self._direct[segment]
        if self._listening.pop(segment, None) is not None:
            self._clear_uplinks()

    def _put_way(self, way: Way) -> int:
        """The node's index. A way that changes is overwritten under programs that may be reading it; its remote address
        is not, so no packet goes to another node."""
        found = self._nodes.get(way.remote)
        if found is not None and found[1] == way:
            return found[0]
        maps = self._open_maps()
        number = found[0] if found is not None else maps.free_node(index for index, _ in self._nodes.values())
        maps.node_put(number, way.record())
        self._nodes[way.remote] = (number, way)
        self._run_on(way.ifindex)
        self._clear_uplinks()
        return number

    def _let_go(self, node: Address) -> None:
        self._users[node] -= 1
        if not self._users[node]:
            self._release({node})
            self._clear_uplinks()

    def _release(self, nodes: Collection[Address]) -> None:
        """Frees the places of those nodes that no peer is on."""
        for node in nodes:
            if not self._users.get(node):
                self._users.pop(node, None)
                number, _ = self._nodes.pop(node)
                self._open_maps().node_delete(number, node)

    def _run_on(self, index: int) -> None:
        try:
            self._hooks.attach(index, _name(index), {"in": (PROGRAM, self._programs[PROGRAM])})
            self.fallbacks.pop(f"uplink {index}", None)
        except OSError as error:
            self.fallbacks[f"uplink {index}"] = str(error)
            LOG.warning("uplink %s has no eBPF program, the kernel takes in what comes there: %s", _name(index), error)

    def _clear_uplinks(self) -> None:
        used = {way.ifindex for _, way in self._nodes.values()} | set(self._listening.values())
        for index in self._hooks.attached() - used:
            self._hooks.detach(index, _name(index))

    def _open_maps(self) -> PeerMaps:
        if self._maps is None:
            raise RuntimeError("the fast peers were not started")
        return self._maps


def _is_same(before: Peer | None, peer: Peer) -> bool:
    """Whether both say the same; the maps keep no order of addresses."""
    return (
        before is not None
        and (before.node, before.is_direct) == (peer.node, peer.is_direct)
        and set(before.addresses) == set(peer.addresses)
    )


def _entry(peer: Peer, vni: int, number: int) -> abi.PeerEntry:
    """Without the link-local address, which says nothing of the network that a packet is of."""
    ip4 = next((address for address in peer.addresses if isinstance(address, IPv4Address)), None)
    ip6 = next((each for each in peer.addresses if isinstance(each, IPv6Address) and not each.is_link_local), None)
    return abi.PeerEntry(vni, number, abi.PEER_DIRECT if peer.is_direct else 0, ip4, ip6)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"ifindex {index}"
