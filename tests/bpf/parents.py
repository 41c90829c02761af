"""The programs of a macvlan parent, run on packets: the lab's hosts A, B and SLOW are stations on one device."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from scapy.packet import Packet

from datapath import abi
from tests.bpf.lab import SHOT, SLOW, UNSPEC, A, B, Host, Lab
from tests.bpf.model import judge
from tests.isolated import run

PARENT: Final = "parent0"
FOREIGN: Final = "02:42:0a:09:00:63"


@dataclass(frozen=True)
class Seen:
    """What became of a packet. `counted` is what the counters and drops of slots have grown by."""

    retval: int
    packet: bytes
    counted: dict[tuple[int, str], int]


class ParentLab:
    """A, B and SLOW as bridged stations of a host; SLOW may not reach it."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.maps = lab, lab.maps
        self._wires: dict[str, socket.socket] = {}
        self.index, self.host_mac = lab.call(self._set_up)

    def close(self) -> None:
        self.clear()
        for wire in self._wires.values():
            wire.close()
        self.lab.call(run, f"ip link delete {PARENT}")
        del self.lab.ifindex[PARENT]

    def clear(self) -> None:
        for segment, address in self.maps.neighbours():
            if segment == self.segment:
                self.maps.neighbour_delete(segment, address)
        for key in self.maps.stations():
            self.maps.station_delete(key.ifindex, key.mac)
        self.maps.parent_delete(self.index)

    def reset(self) -> None:
        self.lab.reset()
        self.clear()
        self.set_parent()
        self.maps.clear_slot(0)
        for host in (A, B, SLOW):
            self.maps.clear_slot(host.slot)
            self.add(host, access=host is not SLOW)

    @property
    def segment(self) -> int:
        return abi.PARENT_SEGMENT | self.index

    def set_parent(self, *, host_access: bool = True) -> None:
        mac = bytes.fromhex(self.host_mac.replace(":", ""))
        self.maps.parent_put(self.index, abi.Parent(self.segment, mac, abi.PARENT_HOST if host_access else 0))

    def add(self, host: Host, *, access: bool = True, bridged: bool = True) -> None:
        record = host.record()
        flags = record.flags & abi.EP_ENGINE | (abi.EP_FAST if access else 0) | (abi.EP_BRIDGED if bridged else 0)
        self.maps.station_put(self.index, replace(record, segment=self.segment, flags=flags))
        for address, neighbour in host.neighbours(is_fast=access).items():
            if access or neighbour.flags:
                self.maps.neighbour_put(self.segment, address, neighbour)

    def out(self, packet: Packet | bytes, **context: int) -> Seen:
        return self.run("ls_parent_out", packet, **context)

    def into(self, packet: Packet | bytes, **context: int) -> Seen:
        return self.run("ls_parent_in", packet, **context)

    def run(self, program: str, packet: Packet | bytes, ifname: str = PARENT, **context: int) -> Seen:
        before = self._counts()
        result = self.lab.run(program, packet, ifname, **context)
        return Seen(result.retval, result.data_out, _grown(before, self._counts()))

    def judge(self, program: str, frame: bytes) -> Seen:
        """Any frame from 14 bytes on. What the kernel takes for no test run (see Lab.judge) is sent by a device."""
        try:
            return self.run(program, frame)
        except OSError as error:
            if error.errno != errno.EINVAL or len(frame) >= 54:
                raise
        before = self._counts()
        with suppress(OSError):  # ENOBUFS: the program at the egress has dropped it
            self._wire(PARENT if program == "ls_parent_out" else f"end-{PARENT}").send(frame)
        deadline = time.monotonic() + 5
        while not (counted := _grown(before, self._counts())):
            assert time.monotonic() < deadline, "the program has not seen the packet"
        dropped = not any(name.endswith("_packets") for _, name in counted)
        return Seen(SHOT if dropped else UNSPEC, frame, counted)

    def check(self, program: str, frame: bytes) -> None:
        """Holds the verdict on a frame of A against the model of ls_ep_out, which is as strict."""
        seen, (_, reason) = self.judge(program, frame), judge(frame)
        assert seen.packet == frame
        if reason:
            assert (seen.retval, seen.counted) == (SHOT, {(A.slot, reason): 1})
        else:
            assert seen.retval == UNSPEC
            assert seen.counted[A.slot, "out_slow_packets"] == 1

    def _wire(self, ifname: str) -> socket.socket:
        if ifname not in self._wires:
            wire = self.lab.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
            wire.bind((ifname, 0))
            self._wires[ifname] = wire
        return self._wires[ifname]

    def _counts(self) -> dict[tuple[int, str], int]:
        counts = {
            (slot, name): value for slot, each in self.maps.counters().items() for name, value in vars(each).items()
        }
        return counts | {(slot, name): n for slot, each in self.maps.drops().items() for name, n in each.items()}

    def _set_up(self) -> tuple[int, str]:
        run(f"ip link add {PARENT} mtu 9000 type veth peer name end-{PARENT} mtu 9000")
        run(f"ip link set {PARENT} up && ip link set end-{PARENT} up")
        run(f"tc qdisc add dev {PARENT} clsact")
        for hook, name in (("egress", "ls_parent_out"), ("ingress", "ls_parent_in")):
            run(f"tc filter add dev {PARENT} {hook} bpf da pinned {self.lab.loaded.programs[name]}")
        index, mac = run(f"ip -o link show {PARENT}").split(":", 1)
        self.lab.ifindex[PARENT] = int(index)
        return int(index), mac.split("link/ether ")[1].split()[0]


def _grown(before: dict[tuple[int, str], int], after: dict[tuple[int, str], int]) -> dict[tuple[int, str], int]:
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


def counted(host: Host, path: str, packet: Packet | bytes, packets: int = 1) -> dict[tuple[int, str], int]:
    """The counters' growth by one packet, `path` being as in "out_fast"."""
    return {(host.slot, f"{path}_packets"): packets, (host.slot, f"{path}_bytes"): len(packet)}
