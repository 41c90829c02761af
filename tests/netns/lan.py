"""A local network that is there already: a switch, one machine on it, and the host under test by its device eth1."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

import pytest

from tests.hosts import Host, host, wait_for
from tests.leaks import leaks, purge
from tests.traffic import Place

PARENT: Final = "eth1"
SUBNETS: Final = (("192.168.32.0/24", "fd00:32::/64"), ("192.168.33.0/24", "fd00:33::/64"))
ROUTER4, ROUTER6 = "192.168.32.1", "fd00:32::1"
HOST4, HOST6 = "192.168.32.10", "fd00:32::10"
Reach = Mapping[tuple[str, str, int], bool]
"""Whether the first can ping the second, by names and IP version."""


@dataclass(frozen=True)
class Node:
    """A place on the network, and its addresses there."""

    place: Place
    ip4: str
    ip6: str

    @property
    def name(self) -> str:
        return self.place.name

    def open_up(self) -> None:
        """Has it take both subnets for its own network, so that it asks for everybody by ARP and ND."""
        for subnet in (each for pair in SUBNETS for each in pair):
            self.place.run("ip", "route", "replace", subnet, "dev", self.place.ifname)


class Lan:
    """The switch, the machine `router` and the host, cabled together."""

    def __init__(self, host: Host) -> None:
        self._machines = [Host(bpffs=False), Host(bpffs=False)]
        self.switch, other = self._machines
        self.switch.run("ip", "link", "add", "br0", "type", "bridge")
        self.switch.run("ip", "link", "set", "br0", "up")
        self._plug_in(host, PARENT, "p0", HOST4, HOST6)
        self._plug_in(other, "eth0", "p1", ROUTER4, ROUTER6)
        for machine, ifname in ((host, PARENT), (other, "eth0")):
            wait_for(lambda m=machine, i=ifname: _is_settled(m, i), f"{ifname} to have its addresses")  # type: ignore[misc]
        self.host = Node(Place(host, "host", f"/proc/{host.pid}/ns/net", PARENT), HOST4, HOST6)
        self.router = Node(Place(host, "router", f"/proc/{other.pid}/ns/net", "eth0"), ROUTER4, ROUTER6)

    def _plug_in(self, machine: Host, ifname: str, port: str, ip4: str, ip6: str) -> None:
        machine.run("ip", "link", "add", ifname, "type", "veth", "peer", "name", port, "netns", str(self.switch.pid))
        self.switch.run("ip", "link", "set", port, "master", "br0", "up")
        machine.run("ip", "addr", "add", f"{ip4}/24", "dev", ifname)
        machine.run("ip", "addr", "add", f"{ip6}/64", "dev", ifname, "nodad")
        machine.run("ip", "link", "set", ifname, "up")

    def unplug_host(self, ifname: str = PARENT) -> None:
        """Takes the host's device away, as when a card is pulled out."""
        self.host.place.host.run("ip", "link", "delete", ifname)

    def plug_in_host(self) -> None:
        """Gives the host a device of the same name again, with its addresses, another MAC and another ifindex."""
        self._plug_in(self.host.place.host, PARENT, "p0", HOST4, HOST6)

    def set_reflective_relay(self, is_on: bool) -> None:
        """Whether the switch sends frames back to the port that they came from (802.1Qbg), as vepa needs."""
        self.switch.run("bridge", "link", "set", "dev", "p0", "hairpin", "on" if is_on else "off")

    def machine(self) -> Host:
        """One more machine, in no way connected, that ends with the network."""
        self._machines.append(Host(bpffs=False))
        return self._machines[-1]

    def close(self) -> None:
        for machine in self._machines:
            machine.close()


def _is_settled(machine: Host, ifname: str) -> bool:
    """Whether the device's own link-local address is past duplicate address detection."""
    (link,) = machine.ip("addr", "show", "dev", ifname)
    return any(a["scope"] == "link" and not a.get("tentative") for a in link["addr_info"])


@contextmanager
def lan(machine: Host) -> Iterator[Lan]:
    made = Lan(machine)
    try:
        yield made
    finally:
        made.close()


def reach(nodes: Sequence[Node]) -> Reach:
    """Who can ping whom: every pair at once, so that those who cannot are waited for together."""
    running = {
        (source.name, target.name, version): subprocess.Popen(
            source.place.command("ping", "-n", "-q", "-c3", "-i0.3", "-W1", target.ip4 if version == 4 else target.ip6),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for source, target in permutations(nodes, 2)
        for version in (4, 6)
    }
    return {pair: ping.wait(30) == 0 for pair, ping in running.items()}


def parent_state(host: Host, ifname: str = PARENT) -> Any:
    """All that could be changed about a device: flags, promiscuity, addresses, MACs it takes, queueing and hooks."""
    (link,) = host.ip("addr", "show", "dev", ifname)
    for info in link["addr_info"]:
        info.pop("valid_life_time"), info.pop("preferred_life_time")
    return link, *(
        json.loads(host.run(*command, "show", "dev", ifname).stdout or "[]")
        for command in (
            ("bridge", "-json", "fdb"), ("ip", "-json", "maddr"), ("tc", "-json", "qdisc"), ("bpftool", "-j", "net"),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def lan_net() -> Iterator[Lan]:
    """The local network, with linkspand on its host."""
    with host() as machine, lan(machine) as made:
        machine.start()
        yield made


@pytest.fixture
def lan_host(net: Lan) -> Iterator[Host]:
    """The host of `net`; the test may leave networks and sandboxes, which are removed, and nothing else."""
    made: Host = net.host.place.host
    before = parent_state(made)
    yield made
    purge(made)
    assert parent_state(made) == before
    assert leaks(made, ignore={PARENT}) == []
