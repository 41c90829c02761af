"""The ways between two network stacks that are compared: each two namespaces, and what lies between them.

The bare veth pair is the floor. The kernel's bridge is what other container engines use, made with ip(8) alone and in a
namespace without linkspand, so that no rule of ours is on its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.world import World

VETH: Final = "bare veth pair"
BRIDGE: Final = "kernel bridge"
ACCEL: Final = "Linkspan"
NO_ACCEL: Final = "Linkspan, accel=off"
METRICS: Final = "http://127.0.0.1:9478/metrics"
FAST_NETWORK, SLOW_NETWORK = "fast", "slow"
ALL: Final = (VETH, BRIDGE, ACCEL, NO_ACCEL)


@dataclass(frozen=True)
class Path:
    """Two network stacks that reach each other; `client` and `server` are their namespaces' paths.

    `server_ifname` is the device that has `server_ip`; `server_world` the server's machine where that is another.
    """

    name: str
    world: World
    client: str
    server: str
    server_ip: str
    server_ifname: str = "eth0"
    server_world: World | None = None

    def at_client(self, *command: str, cpu: int) -> list[str]:
        """The command line that runs a command at the client's end, on one core."""
        return self.world.inside(self.client, "taskset", "--cpu-list", str(cpu), *command)

    def at_server(self, *command: str, cpu: int) -> list[str]:
        return (self.server_world or self.world).inside(self.server, "taskset", "--cpu-list", str(cpu), *command)


def veth(world: World) -> Path:
    """Two namespaces joined by one veth pair."""
    a, b = world.netns("va"), world.netns("vb")
    world.ip(a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
    _address(world, a, b, 10)
    return Path(VETH, world, a, b, "10.10.0.2")


def bridge(world: World) -> Path:
    """Two namespaces on a Linux bridge with default settings, which is in a third."""
    a, b, host = world.netns("ba"), world.netns("bb"), world.netns("bh")
    world.ip(host, "link", "add", "br0", "up", "type", "bridge")
    for port, end in (("p0", a), ("p1", b)):
        world.ip(host, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", end)
        world.ip(host, "link", "set", port, "master", "br0", "up")
    _address(world, a, b, 11)
    return Path(BRIDGE, world, a, b, "10.11.0.2")


def _address(world: World, a: str, b: str, number: int) -> None:
    for end, last in ((a, 1), (b, 2)):
        world.ip(end, "address", "add", f"10.{number}.0.{last}/24", "dev", "eth0")
        world.ip(end, "link", "set", "eth0", "up")


def sandboxes(world: World, name: str, network: str) -> Path:
    """Two sandboxes on a network of linkspand's that is there."""
    a, b = world.sandbox(f"{network}-a", network), world.sandbox(f"{network}-b", network)
    return Path(name, world, a, b, address_of(world, f"{network}-b", network))


def linkspan(world: World, name: str, network: str, options: Mapping[str, str] | None = None) -> Path:
    """Two sandboxes on a network that is made with the options."""
    world.api("POST", "/networks/create", {"Name": network, "Options": options or {}})
    return sandboxes(world, name, network)


def address_of(world: World, sandbox: str, network: str) -> str:
    """The IPv4 address of a sandbox on a network."""
    containers = world.api("GET", f"/networks/{network}")["Containers"].values()
    return next(str(c["IPv4Address"]).partition("/")[0] for c in containers if c["Name"] == sandbox)


def build(world: World, names: Sequence[str] = ALL) -> list[Path]:
    """The paths of these names; linkspand runs in the world."""
    make = {
        VETH: lambda: veth(world),
        BRIDGE: lambda: bridge(world),
        ACCEL: lambda: linkspan(world, ACCEL, FAST_NETWORK),
        NO_ACCEL: lambda: linkspan(world, NO_ACCEL, SLOW_NETWORK, {"linkspan.accel": "off"}),
    }
    return [make[name]() for name in names]


def packets(world: World, network: str) -> dict[str, int]:
    """What the endpoints of a network have sent so far, from /metrics, by what carried it: "fast" is the eBPF programs,
    "slow" the kernel."""
    sent = dict.fromkeys(("fast", "slow"), 0)
    for line in world.run("curl", "-sS", "--fail", METRICS).splitlines():
        name, _, rest = line.partition("{")
        if name == "linkspan_endpoint_packets_total" and f'network="{network}"' in rest and 'direction="out"' in rest:
            labels, _, value = rest.rpartition(" ")
            sent["fast" if 'path="fast"' in labels else "slow"] += int(value)
    return sent
