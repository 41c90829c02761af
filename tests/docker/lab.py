"""A Docker host: dockerd and linkspand, its plugin, side by side, and one more machine at the end of a cable."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.docker.engine import CLIENTS, PLUGIN_SOCKET, Engine
from tests.docker.image import NAME
from tests.hosts import Host, host
from tests.netns.outside import outside
from tests.traffic import Place

SLEEP: Final = ("sleep", "100000")
METRICS: Final = "http://127.0.0.1:9478/metrics"


class Container(Place):
    """A running container on `network`, or on its only one, as a namespace that this machine's programs run in.

    `on` is what Docker says about it there.
    """

    def __init__(self, lab: Lab, name: str, network: str | None = None) -> None:
        facts = lab.engine.inspect(name)
        self._lab = lab
        networks: dict[str, Any] = facts["NetworkSettings"]["Networks"]
        self.on: Any = networks[network or next(iter(networks))]
        netns = f"/proc/{facts['State']['Pid']}/ns/net"
        links = json.loads(lab.host.run("nsenter", f"--net={netns}", "ip", "-json", "address").stdout)
        (ifname,) = (
            link["ifname"]
            for link in links
            if self.on["IPAddress"] in (address.get("local") for address in link["addr_info"])
        )
        super().__init__(lab.host, name, netns, ifname)

    @property
    def endpoint_id(self) -> str:
        return str(self.on["EndpointID"])

    def exec(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs one of the container's own programs in it: with its files and Docker's name server."""
        return self._lab.docker("exec", self.name, *command, check=check)

    def resolves(self, name: str) -> list[str]:
        """The addresses that the container's resolver finds for a name; none when there is no such name."""
        lines = self.exec("nslookup", name, check=False).stdout.splitlines()
        return sorted(line.split()[-1] for line in lines[2:] if line.startswith("Address"))


class Names(NamedTuple):
    """What Docker has, by name."""

    containers: frozenset[str]
    networks: frozenset[str]


class Lab:
    """The host with its `engine`, and the machine `outside`, which is the host's default router."""

    def __init__(self, machine: Host, engine: Engine, outside: Place) -> None:
        self.host, self.engine, self.outside = machine, engine, outside
        self.docker = engine.docker

    # -- making --------------------------------------------------------------------------------------------------

    def network(self, name: str, *args: str) -> Any:
        """Makes a Linkspan network and returns what Docker shows of it."""
        self.docker("network", "create", "-d", "linkspan", *args, name)
        return self.engine.inspect(name, "network")

    def run(self, name: str, network: str, *args: str, command: tuple[str, ...] = SLEEP) -> Container:
        """Starts a container on a network; `args` are of `docker run`."""
        self.docker("run", "-d", "--name", name, "--network", network, *args, NAME, *command)
        return Container(self, name, network)

    def remove(self, *names: str) -> None:
        """Removes containers, running or not."""
        self.docker("rm", "-f", *names)

    def clear(self) -> None:
        """Removes all containers, and all networks that can be removed, by docker."""
        if containers := self.docker("ps", "-aq").stdout.split():
            self.remove(*containers)
        self.docker("network", "prune", "-f")

    def names(self) -> Names:
        """Of all containers and networks."""
        lists = (("ps", "-a", "--format", "{{.Names}}"), ("network", "ls", "--format", "{{.Name}}"))
        return Names(*(frozenset(self.docker(*args).stdout.split()) for args in lists))

    # -- looking -------------------------------------------------------------------------------------------------

    def linkspan_network(self, network_id: str) -> Any:
        """What linkspand shows of the network with Docker's id."""
        return self.host.api("GET", f"/networks/{network_id}")

    def packets(self, *containers: Container) -> dict[str, int]:
        """The packets that these have sent and received so far by path, fast or slow, from /metrics."""
        ids = {container.endpoint_id[:12] for container in containers}
        counted = dict.fromkeys(("fast", "slow"), 0)
        for metric in text_string_to_metric_families(self.host.run("curl", "-sS", "--fail", METRICS).stdout):
            for sample in metric.samples:
                if sample.name == "linkspan_endpoint_packets_total" and sample.labels["endpoint"] in ids:
                    counted[sample.labels["path"]] += int(sample.value)
        return counted

    def joins(self) -> dict[tuple[str, str], tuple[str, str, str]]:
        """What Docker knows of the running containers on Linkspan's networks: MAC, IPv4 and IPv6 by the ids of network
        and endpoint."""
        found = {}
        for network_id in self.network_ids():
            for endpoint in self.engine.inspect(network_id, "network")["Containers"].values():
                found[network_id, endpoint["EndpointID"]] = _facts(endpoint)
        return found

    def network_ids(self) -> list[str]:
        """Those of Linkspan's networks that Docker has."""
        return self.docker("network", "ls", "-q", "--no-trunc", "--filter", "driver=linkspan").stdout.split()

    def linkspan_joins(self) -> dict[tuple[str, str], tuple[str, str, str]]:
        """The same as linkspand knows them."""
        return {
            (network["Id"], endpoint["EndpointID"]): _facts(endpoint)
            for network in self.host.api("GET", "/networks")
            if network["Name"] not in ("bridge", "host", "none")
            for endpoint in self.linkspan_network(network["Id"])["Containers"].values()
        }

    def assert_agreement(self) -> None:
        """Fails unless Docker, linkspand and the kernel hold the same networks and endpoints."""
        docker = self.joins()
        assert self.linkspan_joins() == docker
        networks = {network["Id"] for network in self.host.api("GET", "/networks")}
        assert networks >= set(self.network_ids())
        ports = {link["ifname"]: link.get("master") for link in self.host.ip("link")}
        expected = {f"ls{endpoint[:12]}": f"br-{network[:12]}" for network, endpoint in docker}
        assert {name: master for name, master in ports.items() if name.startswith("ls")} == expected
        bridges = {name for name in ports if name.startswith("br-")}
        assert bridges == {f"br-{network[:12]}" for network in self.network_ids()}


def _facts(endpoint: Any) -> tuple[str, str, str]:
    return endpoint["MacAddress"], endpoint["IPv4Address"], endpoint["IPv6Address"]


@contextmanager
def bare_lab(client: str = CLIENTS[0] if CLIENTS else "docker") -> Iterator[Lab]:
    """A host on which neither dockerd nor linkspand runs yet, gone at the end of the block."""
    with ExitStack() as stack:
        machine = stack.enter_context(host())
        machine.plugin_socket = PLUGIN_SOCKET
        other = stack.enter_context(outside(machine))
        engine = Engine(machine, client)
        stack.callback(engine.stop)
        yield Lab(machine, engine, other)


@contextmanager
def lab(*flags: str, linkspan: bool = True) -> Iterator[Lab]:
    """A Docker host with these flags of dockerd's, gone at the end of the block; linkspand runs on it if asked for."""
    with bare_lab() as made:
        if linkspan:
            made.host.start()
        made.engine.start(*flags)
        made.engine.import_image()
        yield made
