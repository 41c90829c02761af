"""Two nodes on one underlay, with endpoints of one overlay network on each, without linkspand.

    sandbox a -- veth -- node 1, up0 ------------ up0, node 2 -- veth -- sandbox b

Devices, addresses and traffic are the kernel's own: on each node a bridge with the host ends and a VXLAN device as
ports, and FDB entries for the other's endpoints, made with ip(8) and bridge(8). The programs are attached and fed by
`Accelerator` and `FastPeers`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from datapath import abi, loader
from datapath.accel import Accelerator, Port
from datapath.fast_peers import FastPeers, Way
from datapath.vxlan import Peer
from tests.isolated import held_namespace
from tests.netns.uplinks import Node as Stack
from tests.traffic import tcp_pair

T = TypeVar("T")

VNI: Final = 4711
SEGMENT: Final = 7
UNDERLAY: Final = "up0"
OFFLOADS: Final = "tx {0} rx {0} tso {0} gso {0} gro {0} sg {0}"
OVERHEAD: Final = {4: 50, 6: 70}
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
_QUIET: Final = (
    "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.router_solicitations=0"
    " net.ipv6.conf.all.disable_ipv6=0; ip link set lo up"
)
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Endpoint(Stack):
    """A sandbox, with what the programs of its own node and of the other are to know of it."""

    def __init__(self, netns: str, number: int) -> None:
        super().__init__(f"e{number}", netns, "eth0", f"10.77.0.{number}", f"fd77::{number}")
        self.slot = number
        self.host_ifname = f"ls{number}"

    @property
    def mac_bytes(self) -> bytes:
        return bytes.fromhex(self.mac.replace(":", ""))

    def port(self) -> Port:
        return Port(
            ifname=self.host_ifname,
            segment=SEGMENT,
            slot=self.slot,
            mac=self.mac_bytes,
            ip4=ip_address(self.ip4),  # type: ignore[arg-type]
            ip6=IPv6Address(self.ip6),
            ip6_ll=IPv6Address(self.ip6_ll),
            is_connected=True,
            is_overlay=True,
        )

    def peer(self, node: str, *, is_direct: bool = False) -> Peer:
        addresses = tuple(ip_address(text) for text in (self.ip4, self.ip6, self.ip6_ll))
        return Peer(self.mac_bytes, addresses, ip_address(node), is_direct=is_direct)

    def owned(self) -> dict[IPv4Address | IPv6Address, bytes]:
        return {ip_address(text): self.mac_bytes for text in (self.ip4, self.ip6)}


class Machine:
    """One node: a network namespace and a bpffs directory of its own."""

    def __init__(self, name: str, directory: Path, number: int) -> None:
        self.name, self.number, self.directory = name, number, directory
        self.bpffs = directory / "bpf" / name
        self._stack = ExitStack()
        self._thread = self._stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix=name))
        tid = self._thread.submit(self._move_in).result()
        self.stack = Stack(
            name, f"/proc/{os.getpid()}/task/{tid}/ns/net", UNDERLAY, f"10.0.0.{number}", f"fd00::{number}"
        )
        self.endpoints: list[Endpoint] = []

    def close(self) -> None:
        self._stack.close()

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return self._thread.submit(function, *args, **kwargs).result()

    def sh(self, commands: str) -> str:
        return self.stack.sh(commands)

    def load(self, attachment: Literal["clsact", "tcx"] = "tcx", ports: Literal["clsact", "tcx"] = "clsact") -> None:
        """The programs, as a fresh linkspand has them; nothing is started."""
        self.accel = Accelerator(self.bpffs, self.directory, ports)
        self._stack.callback(self.accel.programs.close)
        self.peers = FastPeers(self.accel.programs, attachment)
        self.call(loader.load, str(self.bpffs), run_dir=str(self.directory), timeout_s=600)

    def endpoint(self, number: int, mtu: int) -> Endpoint:
        netns = self.namespace()
        made = Endpoint(netns, number)
        pid = netns.split("/")[2]
        self.sh(
            f"ip link add ls{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pid};"
            f"ip link set ls{number} up; ip link set ls{number} master br0;"
            f"bridge link set dev ls{number} learning off"
        )
        made.sh(
            f"ip link set eth0 address 02:4e:00:00:00:{number:02x} up; ip addr add {made.ip4}/24 dev eth0;"
            f"ip -6 addr add {made.ip6}/64 dev eth0 nodad"
        )
        self.sh(f"bridge fdb replace {made.mac} dev ls{number} master static")
        self.endpoints.append(made)
        return made

    def namespace(self) -> str:
        return self._stack.enter_context(held_namespace(_QUIET))

    def _move_in(self) -> int:
        if _libc.unshare(_CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["sh", "-ec", _QUIET], check=True)
        return threading.get_native_id()


class Overlay:
    """Two machines, `one` with the endpoint `a` and `two` with `b`, over an underlay of IP `version`."""

    def __init__(self, directory: Path, version: int = 4, underlay_mtu: int = 1500) -> None:
        self.version = version
        self.direct: set[Machine] = set()
        self._stack = ExitStack()
        mounted = self._stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="overlay"))
        # A thread starts in the namespaces of the thread that makes it.
        self.one, self.two = mounted.submit(self._machines, directory).result()
        self.one.sh(f"ip link add {UNDERLAY} type veth peer name {UNDERLAY} netns {self.two.stack.netns.split('/')[4]}")
        for machine in self.machines:
            self._build(machine, underlay_mtu)
        self.a, self.b = self.join(self.one, 1), self.join(self.two, 2)

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def machines(self) -> tuple[Machine, Machine]:
        return self.one, self.two

    def other(self, machine: Machine) -> Machine:
        return self.two if machine is self.one else self.one

    def address(self, machine: Machine) -> str:
        return machine.stack.ip4 if self.version == 4 else machine.stack.ip6

    def join(self, machine: Machine, number: int) -> Endpoint:
        """An endpoint more, for which both kernels have all entries; the programs know nothing of it yet."""
        made = machine.endpoint(number, self.mtu)
        self.other(machine).sh(
            f"bridge fdb replace {made.mac} dev vx0 master static;"
            f"bridge fdb replace {made.mac} dev vx0 dst {self.address(machine)} self static"
        )
        return made

    def way(self, machine: Machine) -> Way:
        """From a machine to the other one."""
        there = ip_address(self.address(self.other(machine)))
        link = machine.stack.link()
        macs = (bytes.fromhex(each.stack.mac.replace(":", "")) for each in (self.other(machine), machine))
        return Way(link["ifindex"], link["mtu"], ip_address(self.address(machine)), there, there, *macs)

    def accelerate(self, *machines: Machine, **options: Any) -> None:
        """Programs on these machines (both if none is named), which know of all endpoints."""
        for machine in machines or self.machines:
            machine.load(**options)
            machine.call(machine.accel.start, [each.port() for each in machine.endpoints])
            machine.call(machine.peers.start, [SEGMENT])
            self.synchronize(machine)
            assert (machine.accel.problem, machine.peers.problem, machine.peers.fallbacks) == (None, None, {})

    def synchronize(self, machine: Machine) -> list[str]:
        other = self.other(machine)
        way = self.way(machine)
        peers = [each.peer(self.address(other), is_direct=other in self.direct) for each in other.endpoints]
        return machine.call(machine.peers.synchronize, SEGMENT, VNI, peers, {way.remote: way})

    def make_direct(self, machine: Machine, *, takes: bool = True) -> None:
        """The machine's endpoints take packets without VXLAN, or do not, and both machines' programs know it."""
        if takes:
            uplink = machine.stack.link()["ifindex"]
            owners = {address: mac for each in machine.endpoints for address, mac in each.owned().items()}
            machine.call(machine.peers.admit, SEGMENT, uplink, owners)
            self.direct.add(machine)
        else:
            machine.call(machine.peers.refuse, SEGMENT)
            self.direct.discard(machine)
        self.synchronize(self.other(machine))

    def _machines(self, directory: Path) -> tuple[Machine, Machine]:
        if _libc.unshare(_CLONE_NEWNS) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        bpffs = directory / "bpf"
        bpffs.mkdir(exist_ok=True)
        subprocess.run(["sh", "-ec", f"mount --make-rprivate /; mount -t bpf bpf {bpffs}"], check=True)
        made = Machine("one", directory, 1), Machine("two", directory, 2)
        for machine in made:
            self._stack.callback(machine.close)
        return made

    def _build(self, machine: Machine, underlay_mtu: int) -> None:
        here, there = self.address(machine), self.address(self.other(machine))
        self.mtu = underlay_mtu - OVERHEAD[self.version]
        checksums = "" if self.version == 4 else "udp6zerocsumtx udp6zerocsumrx"
        machine.sh(
            f"ip addr add {machine.stack.ip4}/24 dev {UNDERLAY};"
            f"ip -6 addr add {machine.stack.ip6}/64 dev {UNDERLAY} nodad; ip link set {UNDERLAY} mtu {underlay_mtu} up;"
            f"ip link add br0 mtu {self.mtu} type bridge mcast_snooping 0; ip link set br0 up;"
            f"ip link add vx0 mtu {self.mtu} type vxlan id {VNI} dstport 4789 local {here} nolearning {checksums};"
            f"ip link set vx0 master br0 up; bridge fdb append 00:00:00:00:00:00 dev vx0 dst {there}"
        )

    @contextmanager
    def growth(self) -> Iterator[dict[tuple[str, str], int]]:
        """What the programs have counted meanwhile, by (endpoint's name, counter or drop reason), without zeros."""
        grown: dict[tuple[str, str], int] = {}
        before = self._counts()
        yield grown
        for key, value in self._counts().items():
            if value != before.get(key, 0):
                grown[key] = value - before.get(key, 0)

    def _counts(self) -> dict[tuple[str, str], int]:
        counts: dict[tuple[str, str], int] = {}
        for machine in self.machines:
            counters, drops = machine.call(machine.accel.counters)
            for each in machine.endpoints:
                values: Mapping[str, int] = vars(counters.get(each.slot, abi.Counters(*[0] * 8)))
                counts |= {(each.name, name): value for name, value in values.items()}
                counts |= {(each.name, reason): packets for reason, packets in drops.get(each.slot, {}).items()}
        return counts


def carried(grown: dict[tuple[str, str], int], endpoint: Endpoint) -> dict[str, int]:
    """Packets by direction and path."""
    return {name: n for (who, name), n in grown.items() if who == endpoint.name and name.endswith("_packets")}


def addresses(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.ip4, endpoint.ip6


def carry(client: Endpoint, server: Endpoint, address: str, data: bytes) -> None:
    """One connection takes the data there and back, and they arrive as they were."""
    with tcp_pair(client, server, address) as ends:  # type: ignore[arg-type]
        for sender, receiver in (ends, ends[::-1]):
            thread = threading.Thread(target=sender.sendall, args=(data,))
            thread.start()
            got = bytearray()
            while len(got) < len(data):
                got += receiver.recv(1 << 20)
            thread.join()
            assert got == data


def took_the_fast_path(overlay: Overlay, grown: dict[tuple[str, str], int]) -> None:
    """Expects that the programs carried the packets at both ends, but for a few."""
    for endpoint in (overlay.a, overlay.b):
        packets = carried(grown, endpoint)
        assert packets["out_fast_packets"] > 20
        assert packets["in_fast_packets"] > 20
        assert sum(n for name, n in packets.items() if "slow" in name) <= 4, packets
