"""A cluster of test hosts (nodes): an underlay, etcd in a namespace of its own on it, and a linkspand on each node.

Every node has its own network, mount and bpffs world, run and state directory; they meet on the underlay's switch, and
nowhere else. What a test does to a node or to etcd, it does through the helpers here and in `tests.underlay`.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from tests.etcd_server import EtcdMember, etcd_cluster
from tests.hosts import Host, wait_for
from tests.leaks import leaks
from tests.traffic import Place, Station
from tests.underlay import UPLINK, Underlay
from tests.waiting import PATIENCE

ETCD: Final = "etcd"
"""The name by which etcd's host is plugged into the underlay."""
PREDEFINED: Final = ("bridge", "host", "none", "ingress")
_FIRST_ETCD: Final = 200
_FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")

Version = Literal[4, 6]


def address_of(number: int, version: Version) -> str:
    """The underlay's addresses: of node n1, n2, ... by number."""
    return f"10.77.0.{number}" if version == 4 else f"fd77::{number}"


def clock(shift_s: int) -> dict[str, str]:
    """The environment in which a linkspand's wall clock is wrong by so much; monotonic clocks stay right."""
    assert _FAKETIME.exists(), "no libfaketime: tools/setup installs the package libfaketime"
    return {
        "LD_PRELOAD": str(_FAKETIME),
        "FAKETIME": f"{shift_s:+d}",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


class Node(Host):
    """A host on the underlay. Its name in the cluster and on the switch is `name`."""

    def __init__(
        self, number: int, underlay: Underlay, version: Version, mtu: int | None = None, clock_shift_s: int = 0
    ) -> None:
        self.number, self.name, self.mtu = number, f"n{number}", mtu
        self._environment = clock(clock_shift_s) if clock_shift_s else {}
        self.advertise = address_of(number, version)
        self._underlay = underlay
        super().__init__()
        self._plug()

    def _plug(self) -> None:
        addresses = (f"{address_of(self.number, 4)}/24", f"{address_of(self.number, 6)}/64")
        self._underlay.plug(self.name, self, *addresses, mtu=self.mtu)

    def power_on(self) -> None:
        super().power_on()
        self._plug()

    def start(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Starts linkspand with the node's clock; where all takes longer, so do leases, unless `args` say a file."""
        if PATIENCE > 1:
            config = self.dir / "patient.toml"
            config.write_text(f"[cluster]\nlease-seconds = {10 * PATIENCE:.0f}\n")
            args = ("--config", str(config), *args)
        return super().start(*args, env={**self._environment, **(env or {})}, **options)

    @property
    def uplink(self) -> Place:
        """The node itself, as an end of traffic on the underlay."""
        return Place(self, self.name, f"/proc/{self.pid}/ns/net", UPLINK)

    def join(
        self, etcd: Sequence[str], *flags: str, name: str = "", advertise: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`linkspan cluster join`, as this node unless a name or address says otherwise."""
        whose = ("--name", name or self.name, "--advertise", advertise or self.advertise)
        return self.linkspan("cluster", "join", "--etcd", ",".join(etcd), *whose, *flags, check=check)

    def cluster_state(self) -> str:
        """What the node says of itself: "synchronized", "waiting for etcd: " and why, "not joined"."""
        return str(self.api("GET", "/linkspan/cluster")["State"])

    def nodes(self) -> dict[str, str]:
        """The state of every node that this one knows of, by name."""
        return {node["Name"]: node["State"] for node in self.api("GET", "/linkspan/cluster/nodes")}

    def networks(self, driver: str = "overlay") -> dict[str, Any]:
        """The networks of a driver that the node lists, by name; the predefined ones left out."""
        found = self.api("GET", "/networks")
        return {each["Name"]: each for each in found if each["Driver"] == driver and each["Name"] not in PREDEFINED}

    def box(self, name: str, network: str, **endpoint: Any) -> Station:
        """A new sandbox on the network; `endpoint` holds the API's settings."""
        self.sandbox(name, network, **endpoint)
        return Station(self, name, network)


class Cluster:
    """The nodes, by index and by iteration, and what they share."""

    def __init__(self, underlay: Underlay, nodes: Sequence[Node], etcd: Sequence[EtcdMember], etcd_host: Host) -> None:
        self.underlay, self.nodes, self.etcd, self.etcd_host = underlay, list(nodes), list(etcd), etcd_host
        self.urls = [member.url for member in etcd]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    def create(self, name: str, *, on: int = 0, **body: Any) -> str:
        """Makes an overlay network on one node, waits until every node lists it, and returns its id."""
        made = self[on].api("POST", "/networks/create", {"Name": name, "Driver": "overlay", **body})
        self.wait(lambda node: name in node.networks(), f"every node to list {name}")
        return str(made["Id"])

    @contextmanager
    def other_etcd(self, name: str, **options: Any) -> Iterator[EtcdMember]:
        """A further etcd on etcd's host, that is no member of the cluster's; `options` are those of `etcd_cluster`."""
        machine, addresses = self.etcd_host, [self.etcd[0].address]
        with etcd_cluster(machine.dir / name, command_prefix=machine.enter(), addresses=addresses, **options) as (
            member,
        ):
            yield member

    def remove(self, name: str, *, on: int = 0) -> None:
        """Removes an overlay network on one node, and waits until no node lists it."""
        self[on].api("DELETE", f"/networks/{name}")
        self.wait(lambda node: name not in node.networks(), f"no node to list {name}")

    def wait(self, claim: Callable[[Node], Any], what: str) -> None:
        """Waits until the claim holds of every node."""
        for node in self:
            wait_for(partial(claim, node), lambda: f"{what}; the log of {node.name}:\n{node.log()}")  # noqa: B023

    def wait_until_synchronized(self) -> None:
        everybody = {node.name: "ready" for node in self}
        self.wait(lambda node: node.cluster_state() == "synchronized", "every node to be synchronized")
        self.wait(lambda node: node.nodes() == everybody, "every node to know the others")

    def clear(self) -> None:
        """Removes every sandbox and every network that is not predefined."""
        for node in self:
            for sandbox in node.api("GET", "/linkspan/sandboxes?all=1"):
                node.api("DELETE", f"/linkspan/sandboxes/{sandbox['Id']}?force=1")
        for name in self[0].networks():
            self.remove(name)
        for node in self:
            for name in (*node.networks("bridge"), *node.networks("macvlan")):
                node.api("DELETE", f"/networks/{name}")

    def leaks(self) -> list[str]:
        """What is left on any node when all is removed that can be, in words."""
        return [f"{node.name}: {leak}" for node in self for leak in leaks(node, ignore={UPLINK})]


@contextmanager
def etcd_host(underlay: Underlay, version: Version, members: int) -> Iterator[tuple[Host, list[EtcdMember]]]:
    """A host on the underlay, called etcd, with so many members of etcd on it, each at an address of its own."""
    with ExitStack() as stack:
        machine = Host(bpffs=False)
        stack.callback(machine.close)
        addresses = [address_of(_FIRST_ETCD + number, version) for number in range(members)]
        underlay.plug(ETCD, machine, *(f"{address}/{24 if version == 4 else 64}" for address in addresses))
        servers = etcd_cluster(machine.dir / "etcd", members, command_prefix=machine.enter(), addresses=addresses)
        yield machine, stack.enter_context(servers)


@contextmanager
def cluster(
    count: int,
    *,
    version: Version = 4,
    members: int = 1,
    joined: bool = True,
    mtus: Mapping[int, int] | None = None,
    clocks: Mapping[int, int] | None = None,
    kind: type[Node] = Node,
) -> Iterator[Cluster]:
    """So many nodes n1, n2, ... with a linkspand on each, joined into one cluster unless told otherwise.

    `version` is that of the addresses that nodes advertise and etcd listens on. `mtus` gives single nodes, by number,
    another uplink; `clocks` a wall clock that is wrong by so many seconds; `kind` is what all nodes are. Nothing may be
    left on a node at the end of a block that does not raise.
    """
    with ExitStack() as stack:
        underlay = Underlay()
        stack.callback(underlay.close)
        machine, etcd = stack.enter_context(etcd_host(underlay, version, members))
        nodes = []
        for number in range(1, count + 1):
            node = kind(number, underlay, version, (mtus or {}).get(number), (clocks or {}).get(number, 0))
            stack.callback(node.close)
            nodes.append(node)
        with ThreadPoolExecutor(count) as pool:  # each compiles its programs
            starts = [pool.submit(node.start) for node in nodes]
        for start in starts:
            start.result()
        made = Cluster(underlay, nodes, etcd, machine)
        if joined:
            for node in nodes:
                node.join(made.urls)
            made.wait_until_synchronized()
        yield made
        if joined:
            made.clear()
        assert made.leaks() == []


class Flow:
    """Echo requests to an address that go on until the block ends, and whether they are answered."""

    def __init__(self, place: Place, address: str, interval_s: float = 0.01) -> None:
        self.way = f"{place.name} to {address}"
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 -- ping writes to it until the end
        self._ping = subprocess.Popen(
            place.command("ping", "-n", f"-i{interval_s * PATIENCE:g}", address), stdout=self._output, text=True
        )

    def __enter__(self) -> Flow:
        self.go_on(1)
        return self

    def answered(self) -> list[int]:
        """The numbers of the requests whose answers have come, from 1 on."""
        written = os.fstat(self._output.fileno()).st_size
        text = os.pread(self._output.fileno(), written, 0)  # leaves alone where ping writes next
        return [int(number) for number in re.findall(rb"icmp_seq=(\d+) ttl=", text)]

    def go_on(self, answers: int) -> None:
        """Waits for so many more answers."""
        goal = len(self.answered()) + answers
        wait_for(lambda: len(self.answered()) >= goal, f"{answers} more answers on the way from {self.way}")

    @property
    def lost(self) -> list[int]:
        """The requests before the last answered one that were not."""
        answered = self.answered()
        return sorted(set(range(1, max(answered) + 1)) - set(answered))

    def __exit__(self, *exc: object) -> None:
        self._ping.kill()
        self._ping.wait()
        self._output.close()


@contextmanager
def unbroken(*ways: tuple[Place, str]) -> Iterator[list[Flow]]:
    """Echo requests on all ways at once while the block runs, not one of which may be lost."""
    with ExitStack() as stack:
        flows = [stack.enter_context(Flow(place, address)) for place, address in ways]
        yield flows
        for flow in flows:
            flow.go_on(3)
            assert flow.lost == [], f"{flow.way}: {flow.lost} of {max(flow.answered())} were not answered"
