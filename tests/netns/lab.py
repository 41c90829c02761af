"""A network with three sandboxes on it, for suites that send packets between them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.hosts import Host
from tests.traffic import Station


class Lab:
    """The network `name` with the sandboxes `a`, `b` and `c`, made when first asked for; `body` is the API's."""

    def __init__(self, host: Host, name: str, *, accel: str = "on", **body: Any) -> None:
        self.host, self.name, self.is_fast = host, name, accel == "on"
        options = {"linkspan.accel": accel, **body.pop("Options", {})}
        self.id: str = host.api("POST", "/networks/create", {"Name": name, "Options": options, **body})["Id"]

    def join(self, name: str, **endpoint: Any) -> Station:
        """Makes the sandbox `<network>-<name>`; `endpoint` holds the API's settings."""
        self.host.sandbox(f"{self.name}-{name}", self.name, **endpoint)
        return Station(self.host, f"{self.name}-{name}")

    @cached_property
    def a(self) -> Station:
        return self.join("a")

    @cached_property
    def b(self) -> Station:
        return self.join("b")

    @cached_property
    def c(self) -> Station:
        return self.join("c")

    @cached_property
    def bridge(self) -> str:
        return f"br-{self.id[:12]}"

    def frame(self, payload: bytes, destination: str | None = None) -> Packet:
        """A UDP packet from a, to b unless `destination` says otherwise."""
        return (
            Ether(src=self.a.mac, dst=destination or self.b.mac)
            / IP(src=self.a.ip4, dst=self.b.ip4)
            / UDP(dport=9)
            / Raw(payload)
        )
