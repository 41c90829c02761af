"""Nodes of a cluster, for measuring: machines of their own on one underlay, etcd beside them, hosts without linkspan.

The underlay is a switch, a Linux bridge in a namespace. All of it dies with this process, however that ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from bench.paths import Path, address_of
from bench.world import DEADLINE_S, World, output_of, wait_for, world
from tests.etcd_server import EtcdMember, etcd_cluster

HOST: Final = "/proc/1/ns/net"
"""The namespace of a machine itself, as its processes see it."""
UPLINK: Final = "eth0"
_VXLAN_OVERHEAD_BYTES: Final = 50
_SUBNET: Final = "10.77.0"
_ETCD, _FIRST_PLAIN = 200, 100


class Nodes:
    """The nodes n1, n2, ... by index and iteration, joined into one cluster; see `nodes`."""

    def __init__(self, outside: World, members: list[World]) -> None:
        self._outside = outside
        self._members = members
        self._switch = outside.netns("switch")
        outside.ip(self._switch, "link", "add", "br0", "up", "type", "bridge")
        self.etcd: EtcdMember | None = None
        for number, member in enumerate(members, start=1):
            self._plug(member, HOST, number)

    def __iter__(self) -> Iterator[World]:
        return iter(self._members)

    @property
    def machines(self) -> list[World]:
        """The nodes, and the machine that has the switch, etcd and the plain hosts."""
        return [self._outside, *self._members]

    @staticmethod
    def address_of(number: int) -> str:
        """The underlay's address of a node, by number from 1 on."""
        return f"{_SUBNET}.{number}"

    def __getitem__(self, index: int) -> World:
        return self._members[index]

    def _plug(self, machine: World, netns: str, number: int) -> None:
        """Gives the namespace the device eth0 with the address `number`, and the switch a port."""
        port = f"p{number}"
        # From outside of all machines, whose mounts do not show each other's namespaces.
        link = ("link", "add", port, "type", "veth", "peer", "name", UPLINK, "netns", str(machine.seen(netns)))
        output_of(["nsenter", f"--net={self._outside.seen(self._switch)}", "--", "ip", *link])
        self._outside.ip(self._switch, "link", "set", "dev", port, "master", "br0", "up")
        machine.ip(netns, "address", "add", f"{_SUBNET}.{number}/24", "dev", UPLINK)
        machine.ip(netns, "link", "set", "dev", UPLINK, "up")

    # -- the cluster ---------------------------------------------------------------------------------------------

    @contextmanager
    def serving_etcd(self) -> Iterator[EtcdMember]:
        """Runs etcd at the switch."""
        netns = self._outside.netns("etcd")
        self._plug(self._outside, netns, _ETCD)
        prefix, folder = self._outside.inside(netns), self._outside.dir / "etcd"
        with etcd_cluster(folder, command_prefix=prefix, addresses=[f"{_SUBNET}.{_ETCD}"]) as (member,):
            self.etcd = member
            yield member

    def start(self) -> None:
        """Starts a linkspand on each node, all at once."""
        with ThreadPoolExecutor(len(self._members)) as pool:  # the cores are shared by their compilers
            list(pool.map(lambda member: member.start(len(self._members) * DEADLINE_S), self._members))

    def join_command(self, number: int) -> list[str]:
        """What linkspan is told to make a node, by number from 1 on, one of the cluster."""
        assert self.etcd is not None
        whose = ["--advertise", self.address_of(number), "--name", f"n{number}"]
        return ["cluster", "join", "--etcd", self.etcd.url, *whose]

    def wait_until_all_know(self, network: str) -> None:
        """Waits until every node lists the network."""
        for member in self._members:
            wait_for(
                lambda: any(each["Name"] == network for each in member.api("GET", "/networks")),  # noqa: B023
                f"all nodes to know {network}",
            )

    def create(self, network: str, options: Mapping[str, str] | None = None, **body: Any) -> None:
        """Makes an overlay network on the first node, and waits until all know it."""
        self[0].api(
            "POST", "/networks/create", {"Name": network, "Driver": "overlay", "Options": options or {}, **body}
        )
        self.wait_until_all_know(network)

    # -- paths from one host to another --------------------------------------------------------------------------

    def sandboxes(self, name: str, network: str) -> Path:
        """Two sandboxes on an overlay network that is there, on the first node and on the second."""
        a, b = (member.sandbox(f"{network}-{end}", network) for member, end in zip(self, "ab", strict=False))
        return Path(name, self[0], a, b, address_of(self[1], f"{network}-b", network), server_world=self[1])

    def plain_hosts(self) -> list[str]:
        """Two hosts at the switch without linkspan: their namespaces, of the machine `outside`."""
        made = []
        for number in (_FIRST_PLAIN, _FIRST_PLAIN + 1):
            netns = self._outside.netns(f"plain{number}")
            self._plug(self._outside, netns, number)
            made.append(netns)
        return made

    def underlay(self, name: str, hosts: list[str]) -> Path:
        """From one plain host to the other."""
        return Path(name, self._outside, hosts[0], hosts[1], f"{_SUBNET}.{_FIRST_PLAIN + 1}")

    def kernel_vxlan(self, name: str, hosts: list[str]) -> Path:
        """A namespace on each plain host, on a bridge with a VXLAN device to the other."""
        ends = []
        for own, (host, other) in enumerate(zip(hosts, (1, 0), strict=True)):
            end = self._outside.netns(f"kernel{own}")
            local, remote = (f"{_SUBNET}.{_FIRST_PLAIN + number}" for number in (own, other))
            ip = self._outside.ip
            ip(host, "link", "add", "br0", "up", "type", "bridge")
            tunnel = ("type", "vxlan", "id", "42", "dstport", "4789", "local", local, "remote", remote)
            ip(host, "link", "add", "vx0", *tunnel)
            ip(host, "link", "add", "port0", "type", "veth", "peer", "name", "eth0", "netns", end)
            for port in ("vx0", "port0"):
                ip(host, "link", "set", "dev", port, "master", "br0", "up")
            ip(end, "link", "set", "dev", "eth0", "mtu", str(1500 - _VXLAN_OVERHEAD_BYTES), "up")
            ip(end, "address", "add", f"10.42.0.{1 + own}/24", "dev", "eth0")
            ends.append(end)
        return Path(name, self._outside, ends[0], ends[1], "10.42.0.2")

    def kill(self, number: int) -> None:
        """Takes a node away, with everything on it, as if its power were cut."""
        self._members.pop(number - 1).kill()


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """So many nodes and an etcd, gone at the end; no linkspand runs yet."""
    with ExitStack() as stack:
        outside = stack.enter_context(world())
        made = Nodes(outside, [stack.enter_context(world()) for _ in range(count)])
        stack.enter_context(made.serving_etcd())
        yield made


@contextmanager
def joined_nodes(count: int) -> Iterator[Nodes]:
    """So many nodes with a linkspand on each, joined into a cluster; gone at the end."""
    with nodes(count) as made:
        made.start()
        for number, member in enumerate(made, start=1):
            member.linkspan(*made.join_command(number))
        yield made
