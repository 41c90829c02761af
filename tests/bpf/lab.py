"""A place to run the endpoint programs on packets: namespaces of its own, the loaded programs, a few endpoints.

The kernel runs a program on a packet without anyone sending it (BPF_PROG_TEST_RUN) and returns the verdict and the
packet as the program left it. A packet has at least 14 bytes there, and fits a page.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from scapy.packet import Packet

from datapath import abi, bpf, loader, progrun
from datapath.maps import Maps
from tests.isolated import run

T = TypeVar("T")

UNSPEC, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_*, as unsigned
SEGMENT: Final = 9
OTHER_SEGMENT: Final = 10

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_TAGS: Final = (b"\x81\x00", b"\x88\xa8")

Counts = tuple[dict[int, abi.Counters], dict[int, dict[str, int]]]


@dataclass(frozen=True)
class Host:
    """An endpoint as the tests speak of it. `ll4` and `ll6` are link-local addresses that it was given; `mtu` is its
    host end's."""

    name: str
    slot: int
    mac: str
    ip4: str
    ip6: str
    ip6_ll: str
    segment: int = SEGMENT
    is_fast: bool = True
    mtu: int = 1500
    ll4: str = ""
    ll6: str = ""
    is_engines: bool = False

    @property
    def mac_bytes(self) -> bytes:
        return bytes.fromhex(self.mac.replace(":", ""))

    @property
    def ifname(self) -> str:
        return f"host-{self.name}"

    def record(self) -> abi.Endpoint:
        return abi.Endpoint(
            segment=self.segment,
            slot=self.slot,
            ip4=IPv4Address(self.ip4) if self.ip4 else None,
            mac=self.mac_bytes,
            flags=(abi.EP_FAST if self.is_fast else 0) | (abi.EP_ENGINE if self.is_engines else 0),
            ip6=IPv6Address(self.ip6) if self.ip6 else None,
            ip6_ll=IPv6Address(self.ip6_ll) if self.ip6_ll else None,
        )

    def neighbours(self, *, is_fast: bool) -> dict[IPv4Address | IPv6Address, abi.Neighbour]:
        """What the maps say of the endpoint's addresses; nobody is answered for the link-local ones of a slow one."""
        given = dict.fromkeys((self.ip4, self.ip6, self.ip6_ll), 0)
        given |= dict.fromkeys((self.ll4, self.ll6), 0 if is_fast else abi.NEIGH_SILENT)
        return {ip_address(text): abi.Neighbour(self.mac_bytes, flags) for text, flags in given.items() if text}


A = Host(
    "a",
    1,
    "02:42:0a:09:00:01",
    "10.9.0.1",
    "fd09::1",
    "fe80::42:aff:fe09:1",
    mtu=9000,
    ll4="169.254.7.1",
    ll6="fe80::7:1",
)
B = Host("b", 2, "02:42:0a:09:00:02", "10.9.0.2", "fd09::2", "fe80::42:aff:fe09:2", ll4="169.254.7.2", ll6="fe80::7:2")
# Not for the fast path; same addresses on another segment; without any address; a container engine's.
SLOW = Host(
    "slow",
    3,
    "02:42:0a:09:00:03",
    "10.9.0.3",
    "fd09::3",
    "fe80::42:aff:fe09:3",
    is_fast=False,
    ll4="169.254.7.3",
    ll6="fe80::7:3",
)
OTHER = Host("other", 4, "02:42:0a:09:00:05", "10.9.0.1", "fd09::1", "fe80::42:aff:fe09:5", segment=OTHER_SEGMENT)
BARE = Host("bare", 5, "02:42:0a:09:00:06", "", "", "")
ENGINES = Host("engines", 6, "02:42:0a:09:00:07", "10.9.0.7", "fd09::7", "fe80::42:aff:fe09:7", is_engines=True)
HOSTS: Final = (A, B, SLOW, OTHER, BARE, ENGINES)
STRANGER: Final = "stranger"  # a device that the maps do not know

# Known neighbours without an endpoint: the gateway, which is a router.
GATEWAY_MAC, GATEWAY4, GATEWAY6 = "02:42:0a:09:ff:fe", "10.9.255.254", "fd09::ffff"
GONE_MAC, UNKNOWN4, UNKNOWN6 = "02:42:0a:09:00:63", "10.9.0.99", "fd09::99"


@dataclass(frozen=True)
class Outcome:
    """What became of one packet: "kernel", "fast" or "drop" with its reason; `receiver` got it on the fast path."""

    verdict: str
    reason: str | None
    receiver: str | None
    packet: bytes


class Lab:
    """Loads the programs once; every run starts from the same maps. Close it."""

    def __init__(self, directory: Path) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lab")
        self.directory = directory
        self._wires: dict[tuple[Host, bool], socket.socket] = {}
        self.call(self._set_up)

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a function in the lab's namespaces."""
        return self._thread.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        self.maps.close()
        for wire in self._wires.values():
            wire.close()
        for fd in self.programs.values():
            os.close(fd)
        self._thread.shutdown()

    def reset(self) -> None:
        """Back to the first state: hosts, neighbours, all counters zero."""
        for host in HOSTS:
            self.maps.clear_slot(host.slot)
            self.maps.endpoint_put(self.ifindex[host.ifname], host.record())
            if host.is_fast:
                self.maps.fdb_put(host.segment, host.mac_bytes, abi.FdbEntry(self.ifindex[host.ifname], host.slot))
        neighbours = {
            address: neighbour
            for host in (A, B, SLOW)
            for address, neighbour in host.neighbours(is_fast=host.is_fast).items()
        }
        for address, neighbour in neighbours.items():
            self.maps.neighbour_put(SEGMENT, address, neighbour)
        for gateway in (IPv4Address(GATEWAY4), IPv6Address(GATEWAY6)):
            mac = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
            self.maps.neighbour_put(SEGMENT, gateway, abi.Neighbour(mac, abi.NEIGH_ROUTER))
        self.maps.keep_only(
            ifindexes={self.ifindex[host.ifname] for host in HOSTS},
            fdb={(host.segment, host.mac_bytes) for host in HOSTS if host.is_fast},
            neighbours={
                *((SEGMENT, address) for address in neighbours),
                (SEGMENT, IPv4Address(GATEWAY4)),
                (SEGMENT, IPv6Address(GATEWAY6)),
            },
        )
        drops = self.maps.table("ep_drops")
        for key, _ in list(drops.items()):
            drops.delete(key)

    def run(self, program: str, packet: Packet | bytes, ifname: str, **context: int) -> progrun.Outcome:
        return self.call(progrun.run, self.programs[program], bytes(packet), ifindex=self.ifindex[ifname], **context)

    def send(self, packet: Packet | bytes, source: Host = A, **context: int) -> Outcome:
        """Runs ls_ep_out on a packet that `source` sends, and holds the counters against the verdict."""
        before = self._counts()
        result = self.run("ls_ep_out", packet, source.ifname, **context)
        outcome = _outcome(source, before, self._counts(), context.get("gso_segs", 0) or 1, result.data_out)
        assert result.retval == {"kernel": UNSPEC, "fast": REDIRECT, "drop": SHOT}[outcome.verdict]
        return outcome

    def transmit(self, packet: Packet | bytes, header: bytes = b"", source: Host = A) -> Outcome:
        """Sends a packet through the device of `source`; `header` is a struct virtio_net_hdr, if any.

        What the program did to the packet stays unseen.
        """
        frame = bytes(packet)
        before = self._counts()
        self._wire(source, bool(header)).send(header + frame)
        deadline = time.monotonic() + 5
        while (after := self._counts()) == before:
            assert time.monotonic() < deadline, "the program has not seen the packet"
        # The kernel keeps the outer tag beside the packet and out of its length.
        counted = frame[4:] if frame[12:14] in _TAGS else frame
        return _outcome(source, before, after, 1, counted)

    def judge(self, frame: bytes, source: Host = A) -> tuple[str, str | None]:
        """Verdict and reason of any frame from 14 bytes on.

        Kernels from 6.18 on refuse test runs of cut IP headers, and all refuse one of an Ethernet header alone.
        """
        try:
            outcome = self.send(frame, source)
        except OSError as error:
            if error.errno != errno.EINVAL or len(frame) >= 54:
                raise
            outcome = self.transmit(frame, source=source)
        return outcome.verdict, outcome.reason

    def _wire(self, source: Host, has_header: bool) -> socket.socket:
        """A socket for each kind, kept: closing one takes the kernel 10 ms and more."""
        if (source, has_header) not in self._wires:
            wire = self.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
            wire.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, has_header)
            wire.bind((f"end-{source.name}", 0))
            self._wires[source, has_header] = wire
        return self._wires[source, has_header]

    def set_mtu(self, host: Host, mtu: int) -> None:
        """Of both ends; to be called in the lab's namespaces."""
        for ifname in (host.ifname, f"end-{host.name}"):
            run(f"ip link set {ifname} mtu {mtu}")

    def _counts(self) -> Counts:
        return self.maps.counters(), self.maps.drops()

    def _set_up(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        run("mount --make-rprivate /")
        bpffs = self.directory / "bpf"
        bpffs.mkdir()
        run(f"mount -t bpf bpf {bpffs}")
        # No packet but the tests' own.
        run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
        for host in HOSTS:
            run(f"ip link add {host.ifname} mtu {host.mtu} type veth peer name end-{host.name} mtu {host.mtu}")
            run(f"ip link set {host.ifname} up && ip link set end-{host.name} up")
        run(f"ip link add {STRANGER} type veth peer name end-{STRANGER}")
        names = [*(host.ifname for host in HOSTS), STRANGER]
        self.ifindex = {name: int(run(f"ip -o link show {name}").split(":")[0]) for name in names}
        self.loaded = loader.load(str(bpffs / "linkspan"), run_dir=str(self.directory), timeout_s=600)
        self.maps = Maps.open(self.loaded.maps)
        self.programs = {name: bpf.obj_get(path) for name, path in self.loaded.programs.items()}
        # Programs remember flows by CPU.
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
        for host in HOSTS:
            run(f"tc qdisc add dev {host.ifname} clsact")
            run(f"tc filter add dev {host.ifname} ingress bpf da pinned {self.loaded.programs['ls_ep_out']}")


def _outcome(source: Host, before: Counts, after: Counts, wire_packets: int, packet: bytes) -> Outcome:
    """The one verdict that the counters agree on."""
    changes = {
        (slot, field): value - getattr(before[0][slot], field)
        for slot, counters in after[0].items()
        for field, value in vars(counters).items()
        if value != getattr(before[0][slot], field)
    }
    drops = {
        (slot, reason): packets - before[1].get(slot, {}).get(reason, 0)
        for slot, by_reason in after[1].items()
        for reason, packets in by_reason.items()
        if packets != before[1].get(slot, {}).get(reason, 0)
    }
    if drops:
        [(slot, reason)] = drops
        assert (changes, drops) == ({}, {(source.slot, reason): 1})
        return Outcome("drop", reason, None, packet)
    receivers = [slot for slot, field in changes if field == "in_fast_packets"]
    path = "fast" if receivers else "slow"
    wanted = {
        (source.slot, f"out_{path}_packets"): wire_packets,
        (source.slot, f"out_{path}_bytes"): len(packet),
    }
    for slot in receivers:
        wanted |= {(slot, "in_fast_packets"): wire_packets, (slot, "in_fast_bytes"): len(packet)}
    assert changes == wanted
    if not receivers:
        return Outcome("kernel", None, None, packet)
    [name] = [host.name for host in HOSTS if [host.slot] == receivers]
    return Outcome("fast", None, name, packet)
