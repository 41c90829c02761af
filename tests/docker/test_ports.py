"""`docker run -p` on a Linkspan network: for other machines and for the host, without a process or a rule a port."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

from tests.docker.image import NAME
from tests.docker.lab import SLEEP, Container, Lab
from tests.netns.outside import HOST4, HOST6, OUTSIDE4, OUTSIDE6
from tests.traffic import Place, family

MAPS: Final = ("published4", "translated4", "published6", "translated6")
REFUSED_S: Final = 0.5


@pytest.fixture(scope="module")
def front(lab: Lab) -> Iterator[str]:
    lab.network("front", "--ipv6", "--subnet", "10.91.0.0/24", "--subnet", "fd00:91::/64")
    yield "front"
    lab.docker("network", "rm", "front")


@pytest.fixture(scope="module")
def here(lab: Lab) -> Place:
    """The host itself."""
    return Place(lab.host, "host", f"/proc/{lab.host.pid}/ns/net", "lo")


class Published(NamedTuple):
    """What reaches a container by a port of the host."""

    server: Container
    port: int
    kind: socket.SocketKind

    def peer(self, client: Place, address: str, host_port: int, timeout_s: float = 5.0) -> str | None:
        """Who the server sees when the client asks at this address, None when the question does not come through."""
        with self.server.socket(family(address), self.kind) as there, client.socket(family(address), self.kind) as here:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            there.bind(("::" if ":" in address else "0.0.0.0", self.port))
            there.settimeout(timeout_s)
            here.settimeout(timeout_s)
            if self.kind is socket.SOCK_STREAM:
                there.listen()
            try:
                here.connect((address, host_port))
                here.sendall(b"question")
                if self.kind is socket.SOCK_STREAM:
                    connection, sender = there.accept()
                    with connection:
                        assert connection.recv(100) == b"question"
                        connection.sendall(b"answer")
                else:
                    data, sender = there.recvfrom(100)
                    assert data == b"question"
                    there.sendto(b"answer", sender)
                assert here.recv(100) == b"answer"
            except OSError:
                return None
            return str(sender[0])


def tcp(server: Container, port: int = 80) -> Published:
    return Published(server, port, socket.SOCK_STREAM)


def udp(server: Container, port: int = 80) -> Published:
    return Published(server, port, socket.SOCK_DGRAM)


def elements(lab: Lab) -> list[Any]:
    """The elements of all maps of published ports: nft's (key, value)."""
    found = []
    for name in MAPS:
        listing = json.loads(lab.host.run("nft", "-j", "list", "map", "inet", "linkspan", name).stdout)
        found += next(item["map"].get("elem", []) for item in listing["nftables"] if "map" in item)
    return found


def rules(lab: Lab) -> int:
    """How many rules there are in the host's firewall, whoever made them."""
    listing = json.loads(lab.host.run("nft", "-j", "list", "ruleset").stdout)
    return sum("rule" in item for item in listing["nftables"])


def processes(lab: Lab) -> set[str]:
    """The names of all processes in the host's network namespace."""
    inodes = lab.host.run(
        "sh", "-c", "for p in /proc/[0-9]*; do echo $(readlink $p/ns/net) $(cat $p/comm 2>/dev/null); done"
    )
    own = lab.host.run("readlink", "/proc/self/ns/net").stdout.strip()
    lines = (line.split(maxsplit=1) for line in inodes.stdout.splitlines())
    return {fields[1] for fields in lines if len(fields) == 2 and fields[0] == own}


def test_a_port_is_there_for_other_machines_and_for_the_host(lab: Lab, front: str, here: Place) -> None:
    web = tcp(lab.run("web", front, "-p", "8080:80"))
    assert web.peer(lab.outside, HOST4, 8080) == OUTSIDE4
    assert web.peer(lab.outside, HOST6, 8080) == OUTSIDE6
    for address in (HOST4, HOST6, "127.0.0.1", "10.91.0.1"):
        assert web.peer(here, address, 8080) is not None, address
    neighbour = lab.run("neighbour", front)
    assert web.peer(neighbour, HOST4, 8080) is not None
    assert web.peer(neighbour, web.server.ip4, 80) == neighbour.ip4
    assert web.peer(web.server, HOST4, 8080) is not None
    lab.remove("web", "neighbour")


def test_a_port_can_be_of_udp(lab: Lab, front: str, here: Place) -> None:
    name = udp(lab.run("name", front, "-p", "5353:53/udp"), 53)
    assert name.peer(lab.outside, HOST4, 5353) == OUTSIDE4
    assert name.peer(lab.outside, HOST6, 5353) == OUTSIDE6
    assert name.peer(here, HOST4, 5353) is not None
    assert name.peer(here, "127.0.0.1", 5353) is not None
    assert tcp(name.server, 53).peer(lab.outside, HOST4, 5353, REFUSED_S) is None
    lab.remove("name")


def test_one_number_can_be_a_port_of_both_protocols(lab: Lab, front: str) -> None:
    server = lab.run("dual", front, "-p", "5300:53/udp", "-p", "5300:53/tcp")
    assert udp(server, 53).peer(lab.outside, HOST4, 5300) == OUTSIDE4
    assert tcp(server, 53).peer(lab.outside, HOST4, 5300) == OUTSIDE4
    lab.remove("dual")


@pytest.mark.parametrize(
    ("address", "others"),
    [(HOST4, ("127.0.0.1", "10.91.0.1", HOST6)), (f"[{HOST6}]", (HOST4, "127.0.0.1"))],
    ids=["ipv4", "ipv6"],
)
def test_a_port_can_be_of_one_address(lab: Lab, front: str, here: Place, address: str, others: tuple[str, ...]) -> None:
    web = tcp(lab.run("web", front, "-p", f"{address}:8082:80"))
    own = address.strip("[]")
    assert web.peer(lab.outside, own, 8082) in (OUTSIDE4, OUTSIDE6)
    assert web.peer(here, own, 8082) is not None
    for other in others:
        assert web.peer(here, other, 8082, REFUSED_S) is None
    lab.remove("web")


def test_a_port_can_be_for_the_host_alone(lab: Lab, front: str, here: Place) -> None:
    web = tcp(lab.run("web", front, "-p", "127.0.0.1:8083:80"))
    assert web.peer(here, "127.0.0.1", 8083) is not None
    assert web.peer(lab.outside, HOST4, 8083, REFUSED_S) is None
    assert web.peer(here, HOST4, 8083, REFUSED_S) is None
    lab.remove("web")


def test_a_range_is_one_element(lab: Lab, front: str, here: Place) -> None:
    before, rules_before = elements(lab), rules(lab)
    server = lab.run("many", front, "-p", "8090-8099:8090-8099")
    assert len(elements(lab)) - len(before) == 2  # one a family
    assert rules(lab) == rules_before
    for port in (8090, 8095, 8099):
        assert tcp(server, port).peer(lab.outside, HOST4, port) == OUTSIDE4
        assert tcp(server, port).peer(lab.outside, HOST6, port) == OUTSIDE6
        assert tcp(server, port).peer(here, "127.0.0.1", port) is not None
    assert tcp(server, 8100).peer(lab.outside, HOST4, 8100, REFUSED_S) is None
    lab.remove("many")
    assert elements(lab) == before


def test_a_range_can_be_moved(lab: Lab, front: str) -> None:
    server = lab.run("moved", front, "-p", "8190-8192:90-92")
    for number in range(3):
        assert tcp(server, 90 + number).peer(lab.outside, HOST4, 8190 + number) == OUTSIDE4
    lab.remove("moved")


def test_ports_cost_neither_rules_nor_processes(lab: Lab, front: str) -> None:
    rules_before = rules(lab)
    for number in range(3):
        lab.run(f"cheap-{number}", front, "-p", f"{8200 + number}:80", "-p", f"{8300 + number}:81/udp")
    assert len(elements(lab)) == 3 * 2 * 2  # of both protocols, in both families
    assert rules(lab) == rules_before
    assert "docker-proxy" not in processes(lab)
    assert {"dockerd", "linkspand"} <= processes(lab)
    lab.remove(*(f"cheap-{number}" for number in range(3)))
    assert elements(lab) == []


@pytest.mark.parametrize("publish", ["80", "8400-8410:80"], ids=["any", "one-of-a-range"])
def test_a_port_is_chosen(lab: Lab, front: str, publish: str) -> None:
    servers = [lab.run(f"chosen-{number}", front, "-p", publish) for number in range(2)]
    chosen = {(value[0], key[2]) for key, value in _concatenations(lab) if ":" not in value[0]}
    assert {address for address, _ in chosen} == {server.ip4 for server in servers}
    assert len({port for _, port in chosen}) == 2
    for server in servers:
        (port,) = (port for address, port in chosen if address == server.ip4)
        assert publish == "80" or 8400 <= port <= 8410
        assert tcp(server).peer(lab.outside, HOST4, port) == OUTSIDE4
    lab.remove(*(server.name for server in servers))


def _concatenations(lab: Lab) -> list[tuple[list[Any], list[Any]]]:
    """The elements of the maps that change ports: [address, protocol, port] to [address, port]."""
    return [(key["concat"], value["concat"]) for key, value in elements(lab) if "concat" in value]


def test_a_port_of_another_container_is_refused_and_named(lab: Lab, front: str) -> None:
    holder = lab.run("holder", front, "-p", "8500-8509:80-89")
    before = (elements(lab), lab.joins())
    sandbox = lab.engine.inspect("holder")["NetworkSettings"]["SandboxID"]
    for publish in ("8500:80", "8505:1000", "8495-8500:80-85", f"{HOST4}:8509:80", "127.0.0.1:8509:80"):
        done = lab.docker("run", "-d", "--name", "late", "--network", front, "-p", publish, NAME, *SLEEP, check=False)
        assert done.returncode == 125, publish
        assert sandbox[:12] in done.stderr, done.stderr
        assert front in done.stderr or lab.engine.inspect(front, "network")["Id"][:12] in done.stderr
        assert (elements(lab), lab.joins()) == before
        lab.remove("late")
    assert udp(lab.run("udp", front, "-p", "8500:80/udp")).peer(lab.outside, HOST4, 8500) == OUTSIDE4
    lab.remove("udp")
    assert tcp(holder).peer(lab.outside, HOST4, 8500) == OUTSIDE4
    lab.assert_agreement()
    lab.remove("holder")
    assert tcp(lab.run("late", front, "-p", "8500:80")).peer(lab.outside, HOST4, 8500) == OUTSIDE4
    lab.remove("late")


def test_a_port_of_a_process_is_refused_and_the_process_named(lab: Lab, front: str) -> None:
    with lab.host.popen("iperf3", "-s", "-p", "8600", "--forceflush", stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        while "listening" not in program.stdout.readline():
            assert program.poll() is None
        done = lab.docker("run", "-d", "--name", "late", "--network", front, "-p", "8600:80", NAME, *SLEEP, check=False)
        assert done.returncode == 125
        assert "8600" in done.stderr
        assert "iperf3" in done.stderr
        assert str(program.pid) in done.stderr
        program.kill()
    assert elements(lab) == []
    lab.docker("start", "late")
    assert tcp(Container(lab, "late")).peer(lab.outside, HOST4, 8600) == OUTSIDE4
    lab.remove("late")


def test_a_published_port_is_not_to_be_had_by_processes(lab: Lab, front: str, here: Place) -> None:
    lab.run("owner", front, "-p", "8700:80")
    for address in ("0.0.0.0", "::", HOST4, "127.0.0.1"):
        with here.socket(family(address), socket.SOCK_STREAM) as thief, pytest.raises(OSError, match="in use"):
            thief.bind((address, 8700))
    lab.docker("stop", "-t0", "owner")
    with here.socket(socket.AF_INET, socket.SOCK_STREAM) as heir:
        heir.bind(("0.0.0.0", 8700))
    assert elements(lab) == []
    lab.docker("start", "owner")
    assert tcp(Container(lab, "owner")).peer(lab.outside, HOST4, 8700) == OUTSIDE4
    lab.remove("owner")


def test_a_port_of_docker_is_not_linkspans_and_the_other_way_round(lab: Lab, front: str) -> None:
    lab.run("theirs", "bridge", "-p", "8800:80")
    done = lab.docker("run", "-d", "--name", "late", "--network", front, "-p", "8800:80", NAME, *SLEEP, check=False)
    assert done.returncode == 125
    assert "8800" in done.stderr
    lab.remove("late", "theirs")
    ours = lab.run("ours", front, "-p", "8800:80")
    run = ("run", "-d", "--name", "late", "-p", "8800:80", NAME, *SLEEP)
    done = lab.docker(*run, check=False)
    assert done.returncode == 125
    assert "8800" in done.stderr
    assert tcp(ours).peer(lab.outside, HOST4, 8800) == OUTSIDE4
    lab.remove("late", "ours")


def test_a_port_moves_with_the_networks_of_its_container(lab: Lab, front: str) -> None:
    lab.network("back", "--subnet", "10.92.0.0/24")
    lab.run("mover", front, "-p", "8900:80")
    lab.docker("network", "connect", "back", "mover")
    lab.docker("network", "disconnect", front, "mover")
    mover = Container(lab, "mover")
    assert tcp(mover).peer(lab.outside, HOST4, 8900) == OUTSIDE4
    lab.docker("network", "disconnect", "back", "mover")
    assert elements(lab) == []
    lab.remove("mover")
    lab.docker("network", "rm", "back")


@pytest.mark.parametrize("publish", ["203.0.113.99:9000:80", "9000:80/sctp"])
def test_ports_that_cannot_be_are_refused(lab: Lab, front: str, publish: str) -> None:
    before = (elements(lab), lab.joins())
    done = lab.docker("run", "-d", "--name", "never", "--network", front, "-p", publish, NAME, *SLEEP, check=False)
    assert done.returncode == 125
    assert publish.split(":")[0] in done.stderr or "sctp" in done.stderr
    assert (elements(lab), lab.joins()) == before
    lab.remove("never")


def test_an_internal_network_publishes_nothing(lab: Lab, here: Place) -> None:
    lab.network("closed", "--internal", "--subnet", "10.93.0.0/24")
    closed = tcp(lab.run("closed", "closed", "-p", "9100:80"))
    assert closed.peer(lab.outside, HOST4, 9100, REFUSED_S) is None
    lab.remove("closed")
    lab.docker("network", "rm", "closed")
