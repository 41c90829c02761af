"""A DHCP server that does as it is told, whose frames scapy makes and takes apart: on fake wires, or on real ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from scapy.layers.dhcp import BOOTP, DHCP, DHCPTypes
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from datapath.dhcp import DhcpClient
from tests.traffic import BROADCAST, Wire

SERVER_MAC: Final = "02:00:00:00:67:67"


@dataclass
class Said:
    """A client's message: its type, the address that it is about, and what the frame says besides."""

    kind: str
    address: str
    mac: str
    frame: Any
    options: dict[str, Any]


@dataclass
class Server:
    """Lends the addresses of `pool` by MAC. `heard` is all that clients said.

    `is_silent`: it hears and does not answer. `is_deaf_to_flags`: it answers the client's MAC alone, though that asks
    for broadcasts. `refuses`: it answers requests with a NAK. `offers`: an address that it offers instead of one from
    the pool. `garbage` comes before every answer. `extra` are the options of its answers. `elapsed_s`: how long clients
    on fake wires have waited in vain.
    """

    ip: str = "192.168.32.1"
    network: str = "192.168.32."
    pool: list[int] = field(default_factory=lambda: list(range(100, 120)))
    lease_s: int = 120
    mac: str = SERVER_MAC
    is_silent: bool = False
    is_deaf_to_flags: bool = False
    refuses: bool = False
    offers: str = ""
    garbage: list[bytes] = field(default_factory=list)
    extra: list[Any] = field(default_factory=lambda: [("subnet_mask", "255.255.255.0"), ("router", "192.168.32.1")])
    leases: dict[str, str] = field(default_factory=dict)
    declined: set[str] = field(default_factory=set)
    heard: list[Said] = field(default_factory=list)
    elapsed_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kinds(self) -> list[str]:
        return [each.kind for each in self.heard]

    def answers(self, frame: bytes) -> list[bytes]:
        """What comes back for one frame. Thread-safe."""
        with self._lock:
            return self._answers(frame)

    def _answers(self, frame: bytes) -> list[bytes]:
        packet = Ether(frame)
        if DHCP not in packet or packet[BOOTP].op != 1:
            return []
        options = {each[0]: each[1] for each in packet[DHCP].options if isinstance(each, tuple)}
        kind = DHCPTypes[options["message-type"]]
        mac = packet[BOOTP].chaddr[:6].hex(":")
        asked = options.get("requested_addr") or packet[BOOTP].ciaddr
        self.heard.append(Said(kind, asked, mac, packet, options))
        if kind == "release" and self.leases.get(mac) == asked:
            del self.leases[mac]
        if kind == "decline":
            self.leases.pop(mac, None)
            self.declined.add(asked)
        if self.is_silent or kind not in ("discover", "request"):
            return []
        return [*self.garbage, *self._answer(packet, kind, mac, asked, options)]

    def _answer(self, packet: Any, kind: str, mac: str, asked: str, options: dict[str, Any]) -> list[bytes]:
        if kind == "discover":
            address = self.offers or self.leases.get(mac) or self._free(asked)
            return [self.say(packet, "offer", address)] if address else []
        if options.get("server_id", self.ip) != self.ip:
            return []
        others = {address for holder, address in self.leases.items() if holder != mac}
        if self.refuses or asked in self.declined or asked in others:
            return [self.say(packet, "nak", "0.0.0.0")]
        self.leases[mac] = asked
        return [self.say(packet, "ack", asked)]

    def _free(self, asked: str) -> str | None:
        taken = {*self.leases.values(), *self.declined}
        free = [address for number in self.pool if (address := f"{self.network}{number}") not in taken]
        return asked if asked in free else next(iter(free), None)

    def say(self, packet: Any, kind: str, address: str, **changed: Any) -> bytes:
        """An answer to the packet."""
        question = packet[BOOTP]
        times = [] if kind == "nak" else [("lease_time", self.lease_s), *self.extra]
        if self.is_deaf_to_flags:
            question.ciaddr = address
        to = question.ciaddr if question.ciaddr != "0.0.0.0" and kind != "nak" else "255.255.255.255"
        reply = (
            Ether(src=self.mac, dst=BROADCAST if to == "255.255.255.255" else packet.src)
            / IP(src=self.ip, dst=to)
            / UDP(sport=67, dport=68)
            / BOOTP(
                op=2,
                xid=question.xid,
                flags=question.flags,
                ciaddr=question.ciaddr,
                yiaddr=address,
                chaddr=question.chaddr,
            )
            / DHCP(options=[("message-type", kind), ("server_id", self.ip), *times, "end"])
        )
        return bytes(reply)

    # -- wires ---------------------------------------------------------------------------------------------------

    def client(self) -> DhcpClient:
        """A client that talks to this server, and for which time passes only while it waits in vain."""
        return DhcpClient(
            self.open_wire,
            now=lambda: self.elapsed_s,
            sleep=self.pass_time,
            jitter=lambda low, high: (low + high) / 2,
        )

    def pass_time(self, seconds: float) -> None:
        self.elapsed_s += seconds

    def open_wire(self, ifname: str, mac: bytes, xid: int) -> FakeWire:
        """As `datapath.dhcp.PacketWire`."""
        return FakeWire(self)

    @contextmanager
    def serving(self, netns: str, ifname: str) -> Iterator[Self]:
        """Answers on a device, in a thread."""
        is_over = threading.Event()

        def serve(wire: Wire) -> None:
            while not is_over.is_set():
                frame = wire.receive(0.05)
                for answer in self.answers(frame) if frame is not None else ():
                    wire.send(answer)

        with Wire(netns, ifname) as wire:
            thread = threading.Thread(target=serve, args=(wire,))
            thread.start()
            try:
                yield self
            finally:
                is_over.set()
                thread.join()


class FakeWire:
    """Answers are there at once; where there are none, the time to wait for them passes at once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def send(self, frame: bytes) -> None:
        for answer in self._server.answers(frame):
            self._frames.put(answer)

    def receive(self, within_s: float) -> tuple[bytes, bool] | None:
        try:
            return self._frames.get_nowait(), True
        except queue.Empty:
            self._server.pass_time(within_s)
            return None
