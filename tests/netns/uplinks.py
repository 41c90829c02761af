"""A host with macvlan devices on one parent, and a machine at the other end of the wire, without linkspand.

    outside eth0 ------------ parent of the host (eth1), with macvlan devices on it in the namespaces a, b, ...

The programs are attached and fed by `Uplinks`; devices, addresses and traffic are the kernel's own.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final, TypeVar

from datapath import abi
from datapath.programs import Programs
from datapath.uplink import Station, Uplinks
from tests.isolated import held_namespace
from tests.traffic import Wire, socket_in

T = TypeVar("T")

PARENT: Final = "eth1"
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
Counts = tuple[dict[int, abi.Counters], dict[int, dict[str, int]]]


class Node:
    """One network namespace, with the device that this suite looks at."""

    def __init__(self, name: str, netns: str, ifname: str, ip4: str, ip6: str) -> None:
        self.name, self.netns, self.ifname, self.ip4, self.ip6 = name, netns, ifname, ip4, ip6

    def command(self, *command: str) -> list[str]:
        return ["nsenter", f"--net={self.netns}", "--", *command]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sh(self, commands: str) -> str:
        return self.run("sh", "-ec", commands).stdout

    def json(self, *command: str) -> Any:
        return json.loads(self.run(*command).stdout or "[]")

    def link(self) -> Any:
        return self.json("ip", "-json", "-d", "-s", "link", "show", "dev", self.ifname)[0]

    @property
    def mac(self) -> str:
        return str(self.link()["address"])

    @property
    def ip6_ll(self) -> str:
        infos = self.json("ip", "-json", "addr", "show", "dev", self.ifname)[0]["addr_info"]
        return str(next(each["local"] for each in infos if each["family"] == "inet6" and each["scope"] == "link"))

    def neighbours(self) -> dict[str, str]:
        """MAC by address, of the neighbours that it has found."""
        return {each["dst"]: each["lladdr"] for each in self.json("ip", "-json", "neigh") if "lladdr" in each}

    def forget_neighbours(self) -> None:
        self.run("ip", "neigh", "flush", "dev", self.ifname)

    def addresses(self) -> tuple[str, str]:
        return self.ip4, self.ip6

    def pings(self, target: str, *args: str, wait_s: float = 3.0) -> bool:
        """Whether `target` answers one echo request in time."""
        scoped = f"{target}%{self.ifname}" if target.startswith("fe80") else target
        return self.run("ping", "-n", "-c1", f"-W{wait_s:g}", *args, scoped, check=False).returncode == 0

    def socket(self, family: int, kind: int, protocol: int = 0) -> Any:
        made = socket_in(self.netns, family, kind, protocol)
        made.settimeout(10)
        return made

    def wire(self, ifname: str = "") -> Wire:
        return Wire(self.netns, ifname or self.ifname)


class World:
    """The host, the outside, and as many stations as a test asks for. A context manager."""

    def __init__(self, directory: Path) -> None:
        """`directory` is where the bpffs is mounted, unless it is there already: see `beside`."""
        self._stack = ExitStack()
        self._thread = self._stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="uplinks"))
        self.directory = directory
        self.bpffs = directory / "bpf"
        self._slots = iter(range(1, 1000))
        tid = self.call(self._move_in)
        self.host = Node("host", f"/proc/{os.getpid()}/task/{tid}/ns/net", PARENT, "192.168.32.2", "fd32::2")
        self.outside = Node("outside", self._namespace(), "eth0", "192.168.32.1", "fd32::1")
        pid = self.outside.netns.split("/")[2]
        self.host.sh(f"ip link add {PARENT} type veth peer name eth0 netns {pid}")
        for node in (self.host, self.outside):
            self._address(node)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextmanager
    def beside(self) -> Iterator[World]:
        """Another host with this one's bpffs, where the programs are compiled already. Leaves nothing there."""
        # A thread starts in the namespaces of the thread that makes it.
        with self.call(World, self.directory) as world:
            yield world
            world.call(world.uplinks().start, {}, {})

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a function on the host."""
        return self._thread.submit(function, *args, **kwargs).result()

    def uplinks(self, **options: Any) -> Uplinks:
        """As a fresh linkspand makes them; not started."""
        programs = Programs(self.bpffs / "linkspan", self.directory)
        self._stack.callback(programs.close)
        return Uplinks(programs, **options)

    def macvlan(self, name: str, mode: str = "bridge", parent: str = PARENT) -> tuple[Node, Station]:
        """A new namespace with a macvlan device; the programs know nothing of it yet."""
        slot = next(self._slots)
        netns = self._namespace()
        node = Node(name, netns, "eth0", f"192.168.32.{10 + slot}", f"fd32::{10 + slot}")
        pid = netns.split("/")[2]
        self.host.sh(f"ip link add link {parent} name mv{slot} netns {pid} type macvlan mode {mode}")
        node.sh(f"ip link set mv{slot} name eth0")
        self._address(node)
        return node, Station(
            slot=slot,
            mac=bytes.fromhex(node.mac.replace(":", "")),
            ip4=IPv4Address(node.ip4),
            ip6=IPv6Address(node.ip6),
            ip6_ll=IPv6Address(node.ip6_ll),
            mode=mode,
        )

    def _address(self, node: Node) -> None:
        node.sh(
            f"ip link set lo up; ip addr add {node.ip4}/24 dev {node.ifname}; ip link set {node.ifname} up;"
            f"ip -6 addr add {node.ip6}/64 dev {node.ifname} nodad"
        )

    def _namespace(self) -> str:
        """A namespace of its own; as on a quiet machine, nothing is sent there by itself but what a test makes."""
        quiet = "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.router_solicitations=0"
        return self._stack.enter_context(held_namespace(quiet))

    def _move_in(self) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        commands = "mount --make-rprivate /; ip link set lo up"
        if not self.bpffs.exists():
            self.bpffs.mkdir()
            commands += f"; mount -t bpf bpf {self.bpffs}"
        commands += "; sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.router_solicitations=0"
        subprocess.run(["sh", "-ec", commands], check=True)
        return threading.get_native_id()


class Lab:
    """Started uplinks on a world's parent, and two bridged stations, a and b."""

    def __init__(self, world: World, *, host_access: bool = True, mode: str = "bridge", **options: Any) -> None:
        self.world, self.host, self.outside = world, world.host, world.outside
        self.stations: dict[Node, Station] = {}
        self.a, self.b = (self.make(name, mode) for name in ("a", "b"))
        self.up = world.uplinks(**options)
        world.call(self.up.start, {PARENT: list(self.stations.values())}, {PARENT: host_access})
        assert (self.up.problem, self.up.fallbacks) == (None, {})

    def make(self, name: str, mode: str = "bridge") -> Node:
        node, station = self.world.macvlan(name, mode)
        self.stations[node] = station
        return node

    def join(self, name: str, mode: str = "bridge") -> Node:
        node = self.make(name, mode)
        self.world.call(self.up.add, PARENT, self.stations[node])
        return node

    def slot(self, node: Node) -> int:
        return self.stations[node].slot

    def counts(self) -> Counts:
        return self.world.call(self.up.counters)

    @contextmanager
    def growth(self) -> Iterator[dict[tuple[str, str], int]]:
        """What has been counted meanwhile, by (station's name, counter or drop reason), without zeros."""
        grown: dict[tuple[str, str], int] = {}
        before = self.counts()
        yield grown
        after = self.counts()
        for node, station in self.stations.items():
            for name, value in vars(after[0][station.slot]).items():
                if value != getattr(before[0][station.slot], name):
                    grown[node.name, name] = value - getattr(before[0][station.slot], name)
            for reason, packets in after[1].get(station.slot, {}).items():
                if packets != before[1].get(station.slot, {}).get(reason, 0):
                    grown[node.name, reason] = packets - before[1].get(station.slot, {}).get(reason, 0)
