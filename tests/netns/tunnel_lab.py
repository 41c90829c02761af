"""Nodes with an encrypted and a clear VXLAN network, on a switch that sees all that they send.

The switch is the namespace of the test's own thread, which @isolated gives it. VXLAN devices are made by hand, with
`ip`, so the tests need nothing else of Linkspan.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from control.cluster.secrecy import Secrecy, tunnel_address
from datapath import netns
from datapath.wireguard import Tunnels
from tests.isolated import run
from tests.traffic import Wire, socket_in
from tests.waiting import until

HERE: Final = "/proc/thread-self/ns/net"
SECRET, CLEAR = "secret", "clear"
VNIS: Final = {SECRET: 5000, CLEAR: 6000}
SUBNETS: Final = {SECRET: "192.168.5", CLEAR: "192.168.6"}
VXLAN_PORT: Final = 4789
WIREGUARD_PORTS: Final = {51880, 51881}
UNDERLAY_MTU: Final = 1500
DEADLINE_S: Final = 60.0
"""Long, because kernels are tried in an emulated machine."""


@dataclass(frozen=True)
class Record:
    id: int
    name: str
    address: IPv4Address | IPv6Address
    public_keys: tuple[tuple[int, str], ...]


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Node:
    """A host by its device `u` on the underlay; `record` is what the cluster knows of it."""

    def __init__(self, folder: Path, id: int, version: int, clock: Clock) -> None:
        self.id, self.version, self.clock, self.folder = id, version, clock, folder
        self.address = IPv4Address(f"10.9.0.{id}") if version == 4 else IPv6Address(f"fd09::{id}")
        self.port = f"p{id}"
        self.netns = str(folder / f"host{id}")
        netns.create(self.netns)
        run(f"ip link add u netns {self.netns} type veth peer name {self.port}")
        run(f"ip link set {self.port} master br0 up")
        self.run(f"ip addr add {self.address}/{24 if version == 4 else 64} dev u {'' if version == 4 else 'nodad'}")
        self.run("ip link set u up")
        self.keys: tuple[tuple[int, str], ...] = ()
        self.restart()

    def restart(self) -> None:
        """linkspand ends and starts: all that it holds in memory is new."""
        self.tunnels = Tunnels(self.folder / f"node{self.id}" / "wireguard")
        self.secrecy = Secrecy(self.tunnels, self.folder / f"keys{self.id}.json", now=self.clock)
        netns.call(self.netns, lambda: self.secrecy.start(self.id, UNDERLAY_MTU, self.version))

    @property
    def record(self) -> Record:
        return Record(self.id, f"node{self.id}", self.address, self.keys)

    def synchronize(self, nodes: Sequence[Node]) -> float:
        """One round, with what the nodes have published; then it publishes its own keys."""
        wait_s = netns.call(self.netns, lambda: self.secrecy.synchronize([node.record for node in nodes]))
        self.keys = self.secrecy.public_keys
        return wait_s

    def stop(self) -> None:
        netns.call(self.netns, self.secrecy.stop)
        self.keys = ()

    def run(self, command: str) -> str:
        """The output of a shell command on the host."""
        return run(f"nsenter --net={self.netns} sh -c '{command}'")

    def inside(self, command: str) -> str:
        """The output of a shell command in the namespace of the tunnels."""
        return run(f"nsenter --net={self.tunnels.path} sh -c '{command}'")

    def join(self, network: str, others: Sequence[Node]) -> None:
        """Makes the network's VXLAN device, with an address; broadcasts go to the others."""
        is_secret = network == SECRET
        command = (
            f"ip link add {network} netns {self.netns} type vxlan id {VNIS[network]} dstport {VXLAN_PORT} nolearning"
        )
        if is_secret:
            self.inside(f"{command} local {tunnel_address(self.id)}")
        else:
            self.run(f"{command} local {self.address}")
        for other in others:
            target = tunnel_address(other.id) if is_secret else other.address
            self.run(f"bridge fdb append 00:00:00:00:00:00 dev {network} dst {target}")
        self.run(f"ip addr add {self.on(network)}/24 dev {network}; ip link set {network} mtu 1300 up")

    def on(self, network: str) -> str:
        return f"{SUBNETS[network]}.{self.id}"

    def pings(self, other: Node, network: str, count: int = 1) -> bool:
        command = ["ping", "-n", "-q", f"-c{count}", "-i0.1", "-W10", other.on(network)]
        return subprocess.run(["nsenter", f"--net={self.netns}", *command], stdout=subprocess.DEVNULL).returncode == 0

    def listener(self, network: str) -> socket.socket:
        """A socket on port 9 of its address on the network."""
        made = socket_in(self.netns, socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((self.on(network), 9))
        made.settimeout(DEADLINE_S)
        return made

    def mac(self, device: str) -> str:
        return self.run(f"ip -br link show dev {device}").split()[2]

    def taken(self, port: int) -> socket.socket:
        """Somebody else's socket on a UDP port of the host."""
        made = socket_in(self.netns, socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", port))
        return made

    @contextmanager
    def pinging(self, other: Node, network: str) -> Iterator[list[int]]:
        """Pings all the while; afterwards the list has the numbers of the requests that were not answered."""
        lost: list[int] = []
        command = ["nsenter", f"--net={self.netns}", "ping", "-n", "-i0.05", "-O", other.on(network)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
            try:
                yield lost
            finally:
                ping.send_signal(signal.SIGINT)
                output = ping.communicate(timeout=DEADLINE_S)[0]
        answered = {int(number) for number in re.findall(r"bytes from .* icmp_seq=(\d+) ", output)}
        assert len(answered) > 10, output
        lost += sorted(set(range(1, max(answered))) - answered)


@contextmanager
def nodes(folder: Path, count: int = 2, version: int = 4) -> Iterator[list[Node]]:
    """Nodes on one switch, in no network yet; nothing of them is left afterwards."""
    run("ip link add br0 type bridge mcast_snooping 0; ip link set br0 up")
    clock = Clock()
    made: list[Node] = []
    try:
        for id in range(1, count + 1):
            made.append(Node(folder, id, version, clock))
        yield made
    finally:
        for node in made:
            node.stop()
            assert not os.path.exists(node.tunnels.path.parent)
            netns.delete(node.netns)


def settle(members: Sequence[Node]) -> None:
    """Rounds until every node has but one key, the same for all, and packets go by it."""

    def is_settled() -> bool:
        members[0].clock.now_s += 10
        waits = [node.synchronize(members) for node in members]
        return min(waits) > 1 and len({number for node in members for number, _ in node.keys}) == 1 and _is_met(members)

    until(is_settled, DEADLINE_S)


def _is_met(members: Sequence[Node]) -> bool:
    """Whether every node has had a handshake with every other, by `wg`."""
    met = [sum(not line.endswith("\t0") for line in handshakes(node)) for node in members]
    return met == [len(members) - 1] * len(members)


def handshakes(node: Node) -> list[str]:
    """`wg show all latest-handshakes`: device, public key and seconds since 1970 of each peer."""
    return node.inside("wg show all latest-handshakes").splitlines()


@contextmanager
def underlay(members: Sequence[Node]) -> Iterator[list[Packet]]:
    """All that the nodes send meanwhile, complete when the context ends."""
    heard: list[Packet] = []
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(HERE, node.port)) for node in members]
        yield heard
        heard += [Ether(frame) for wire in wires for frame in wire.until_idle()]


def udp_ports(frames: Sequence[Packet]) -> set[int]:
    return {frame[UDP].dport for frame in frames if UDP in frame}


def forged(sender: Node, victim: Node, network: str, marker: bytes, destination: str | None = None) -> Packet:
    """VXLAN in clear, as from `sender`, for the victim's listener on the network."""
    outer = (IP if sender.version == 4 else IPv6)(src=str(sender.address), dst=destination or str(victim.address))
    inner = (
        Ether(src=sender.mac(network), dst=victim.mac(network))
        / IP(src=sender.on(network), dst=victim.on(network))
        / UDP(sport=9, dport=9)
        / Raw(marker)
    )
    header = Ether(src=sender.mac("u"), dst=victim.mac("u")) / outer / UDP(sport=50000, dport=VXLAN_PORT)
    return header / VXLAN(vni=VNIS[network], flags="Instance") / inner
