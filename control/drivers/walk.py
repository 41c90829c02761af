"""One frame on its way from an endpoint: what is told of it, step by step, and where it ends.

Drivers follow the frame (`Driver.trace`) and tell here; what programs decide comes from the programs (datapath.trace),
what the kernel does from the kernel (datapath.kernel_path, datapath.nft_walk).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from control.model import Endpoint, Network
from datapath.abi import DropReason
from datapath.frames import Protocol, mac_of
from datapath.kernel_path import device
from datapath.trace import Decision, Run

HOST: Final = "host"
KERNEL: Final = "kernel"

Outcome = Literal["delivered", "answered", "dropped", "sent", "lost", "unknown"]
Path = Literal["fast", "slow", ""]
Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Step:
    """One thing that happens to the frame: where, at which device, by which program or the kernel, in words.

    `decision` is a word for programs that read: a label of `datapath.abi.Told`, or what the kernel did.
    """

    place: str
    device: str
    by: str
    decision: str
    text: str


@dataclass(frozen=True)
class End:
    """Where the frame ends, as far as this host can know. `path` is the one that it took there."""

    outcome: Outcome
    path: Path
    text: str


@dataclass(frozen=True)
class Names:
    """What messages call what the programs know by numbers: endpoints, and nodes by address."""

    endpoints: Sequence[Endpoint]
    networks: Mapping[str, Network]
    sandboxes: Mapping[str, str]
    nodes: Mapping[Address, str]

    def of(self, endpoint: Endpoint) -> str:
        name = self.sandboxes.get(endpoint.sandbox_id) or endpoint.sandbox_key.rpartition("/")[2]
        return name or f"endpoint {endpoint.id[:12]}"

    def find(self, matches: Callable[[Endpoint], bool]) -> Endpoint | None:
        return next((endpoint for endpoint in self.endpoints if matches(endpoint)), None)

    def node(self, address: Address) -> str:
        return f"{self.nodes[address]} ({address})" if address in self.nodes else str(address)


@dataclass
class Walk:
    """A frame of an endpoint, or from outside of this host for one.

    `source` and `destination` are the addresses in it, the first perhaps forged; `origin` is the sender's outside.
    `answer` is the MAC that a question was given.
    """

    network: Network
    endpoint: Endpoint
    netns_path: str
    names: Names
    frame: bytes
    source: Address
    destination: Address
    protocol: Protocol
    port: int
    is_question: bool = False
    origin: Address | None = None
    steps: list[Step] = field(default_factory=list)
    end: End | None = None
    answer: bytes | None = None

    @property
    def mac(self) -> bytes:
        """The frame's destination."""
        return self.frame[:6]

    @property
    def sender(self) -> str:
        return self.names.of(self.endpoint)

    @property
    def inside(self) -> str:
        return f"sandbox {self.sender}"

    def say(self, by: str, where: str, decision: str, text: str, place: str = HOST) -> None:
        self.steps.append(Step(place, where, by, decision, text))

    def finish(self, outcome: Outcome, path: Path, text: str) -> None:
        self.end = End(outcome, path, text)

    def holder(self, mac: bytes) -> Endpoint | None:
        """The endpoint of this host with a MAC on the network."""
        text = mac.hex(":")
        return self.names.find(lambda each: each.network_id == self.network.id and each.mac == text)

    def tell(self, program: str, where: str, run: Run) -> None:
        """Takes what a program did into the steps, in words; a drop is the end."""
        for decision in run.decisions:
            self.say(program, where, decision.what, self.words(decision))
        self.frame = run.packet if run.action == "redirect" else self.frame
        dropped = run.operand("drop")
        if dropped is not None:
            self.finish("dropped", "", f"{program} on {where} drops it: {_DROPS[DropReason(dropped).label]}")
        elif run.action == "drop":
            self.finish("dropped", "", f"{program} on {where} ends it")

    def deliver(self, host_end: int, path: Path) -> None:
        """The end at the endpoint behind a host end, if the device is there."""
        found = device(host_end)
        if found is None:
            self.finish("dropped", path, f"there is no device with ifindex {host_end} any more: the kernel drops it")
            return
        endpoint = self.names.find(lambda each: each.host_ifname == found.ifname)
        if endpoint is None:
            self.finish("delivered", path, f"comes out of the other end of {found.ifname}, which is no endpoint's")
            return
        self.arrive(endpoint, path)

    def arrive(self, endpoint: Endpoint, path: Path) -> None:
        whose = f"{endpoint.ifname} of {self.names.of(endpoint)}"
        self.finish("delivered", path, f"arrives at {whose} ({path} path)")

    def words(self, decision: Decision) -> str:
        what, operand = decision.what, decision.operand
        if what == "drop":
            return f"dropped: {_DROPS[DropReason(operand).label]}"
        if what in ("sender", "station"):
            endpoint = self.names.find(lambda each: each.slot == operand)
            whose = self.names.of(endpoint) if endpoint else f"slot {operand}"
            return _WORDS[what].format(whose)
        if what == "fdb":
            return f"fdb: {self.mac.hex(':')} is {self._behind(operand)}"
        if what in _AT_DEVICE:
            found = device(operand)
            return _WORDS[what].format(found.ifname if found else f"ifindex {operand}, which is gone")
        return _WORDS[what].format(operand)

    def _behind(self, ifindex: int) -> str:
        found = device(ifindex)
        name = found.ifname if found else f"ifindex {ifindex}, which is gone"
        endpoint = self.names.find(lambda each: found is not None and each.host_ifname == found.ifname)
        return f"{self.names.of(endpoint)} on {name}" if endpoint else f"on {name}"


def is_for(endpoint: Endpoint, address: Address) -> bool:
    return address in (*endpoint.addresses, *endpoint.link_local_ips)


def macs(endpoint: Endpoint) -> bytes:
    return mac_of(endpoint.mac)


_AT_DEVICE: Final = frozenset(
    {
        "redirect",
        "redirect_in",
        "redirect_peer",
        "redirect_neigh",
        "copy",
        "copy_in",
        "no_endpoint",
        "not_connected",
        "too_long",
        "host",
        "wire",
    }
)
_WORDS: Final = {
    "redirect": "bpf_redirect: out by {}",
    "redirect_in": "bpf_redirect: in at {}, as if it had come from the wire",
    "redirect_peer": "bpf_redirect_peer: out of the other end of {}",
    "redirect_neigh": "bpf_redirect_neigh: out by {}, with the MAC that the kernel has for the next hop",
    "copy": "a copy goes out by {}",
    "copy_in": "a copy comes in at {}",
    "no_endpoint": "the maps know of no endpoint behind {}: left to the kernel",
    "sender": "source MAC and addresses are {}'s",
    "not_connected": "endpoints of this network do not exchange packets with each other (behind {})",
    "no_fdb": "fdb: no other endpoint of this host has the destination MAC",
    "too_long": "longer than the MTU of {}: left to the kernel",
    "answered": "neigh: the address is known, the question becomes the answer",
    "not_answered": "neigh: nobody is known who has the address, so all are asked",
    "peer": "peers: the destination MAC is on another node, number {} of nodes",
    "no_peer": "peers: no endpoint of another node has the destination MAC",
    "no_way": "nodes: no way to node number {} is known: left to the kernel",
    "way_too_small": "does not fit the way to the node, whose MTU is {}: left to the kernel",
    "vxlan": "outer headers for VNI {} are put before it",
    "direct": "as it is, without VXLAN, to the MAC of node number {}",
    "host": "for the host, which is reached by way of {}'s ingress",
    "wire": "for what is at the other end of {}'s wire",
    "station": "for {}",
    "no_tunnel": "not VXLAN, or such as the kernel has to look at",
    "segment": "vnis: the network's segment is {}",
    "no_segment": "vnis: no network here has VNI {}",
    "node": "node_by_ip: from node number {}",
    "no_node": "node_by_ip: from no node that is known, or for another address than that knows",
    "from_peer": "peers: the sender is an endpoint of node number {}",
    "from_nobody": "peers: the sender is no endpoint that is known: left to the kernel",
    "taker": "direct: the destination takes packets without VXLAN, on segment {}",
    "no_taker": "direct: no endpoint here takes packets for the destination without VXLAN",
}
_DROPS: Final = {
    "none": "no reason",
    "malformed": "a header that the packet promises is not all there (malformed)",
    "spoofed_mac": "the source MAC is not the endpoint's (spoofed_mac)",
    "spoofed_ip4": "the IPv4 source is not the endpoint's (spoofed_ip4)",
    "spoofed_ip6": "the IPv6 source is not the endpoint's (spoofed_ip6)",
    "spoofed_arp": "the sender in the ARP packet is not the endpoint (spoofed_arp)",
    "spoofed_nd": "the sender of the neighbour discovery message is not the endpoint (spoofed_nd)",
    "too_deep": "more tags, extension headers or options than are looked through (too_deep)",
    "storm": "more broadcasts than the endpoint may send in a second (storm)",
    "spoofed_peer": "it came from a node that its sender is not on (spoofed_peer)",
}
