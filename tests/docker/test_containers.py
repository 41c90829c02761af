"""Containers of a real engine on Linkspan networks: how they are attached, whom they reach, and by which path."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.docker.image import NAME
from tests.docker.lab import SLEEP, Container, Lab
from tests.netns.outside import HOST4, HOST6, OUTSIDE4, OUTSIDE6
from tests.traffic import family, iperf3, settled, udp_echo

TIMES = 50
CHATTER = 20


@pytest.fixture(scope="module")
def fast(lab: Lab) -> Iterator[str]:
    """A network with both families and subnets that are known."""
    lab.network("fast", "--ipv6", "--subnet", "10.81.0.0/24", "--subnet", "fd00:81::/64")
    yield "fast"
    lab.docker("network", "rm", "fast")


@pytest.fixture(scope="module")
def pair(lab: Lab, fast: str) -> Iterator[tuple[Container, Container]]:
    names = ("left", "right")
    yield lab.run("left", fast), lab.run("right", fast, "--network-alias", "db", "--hostname", "r")
    lab.remove(*names)


def assert_as_inspected(container: Container) -> None:
    """What is inside is what Docker says."""
    assert container.mac == container.on["MacAddress"]
    expected = [f"{container.on['IPAddress']}/{container.on['IPPrefixLen']}"]
    if container.on["GlobalIPv6Address"]:
        expected.append(f"{container.on['GlobalIPv6Address']}/{container.on['GlobalIPv6PrefixLen']}")
    assert container.addresses() == expected
    assert (container.gateway() or "") == container.on["Gateway"]
    assert (container.gateway(6) or "") == container.on["IPv6Gateway"]


def test_inside_is_what_docker_says(lab: Lab, pair: tuple[Container, Container]) -> None:
    for container in pair:
        assert_as_inspected(container)
        assert container.ifname == "eth0"
    lab.assert_agreement()


@pytest.mark.parametrize("version", [4, 6])
def test_containers_reach_each_other_on_the_fast_path(
    lab: Lab, pair: tuple[Container, Container], version: int
) -> None:
    left, right = pair
    address = right.ip4 if version == 4 else right.ip6
    assert left.pings(address)  # neighbours are known from now on
    before = settled(lambda: lab.packets(left, right), "the containers to be quiet")
    udp_echo(left, right, address, b"to and fro", times=TIMES)
    after = lab.packets(left, right)
    # Each datagram is counted as it leaves and as it arrives; IPv6 says something about itself now and then.
    assert after["fast"] - before["fast"] >= 4 * TIMES
    assert after["slow"] - before["slow"] < CHATTER


def test_a_stream_takes_the_fast_path(lab: Lab, pair: tuple[Container, Container]) -> None:
    left, right = pair
    before = lab.packets(left, right)
    report = iperf3(left, right, right.ip4, "-n", "20M")
    after = lab.packets(left, right)
    assert report["end"]["sum_received"]["bytes"] > 10e6
    assert after["fast"] - before["fast"] > 100
    assert after["slow"] - before["slow"] < CHATTER


def test_names_and_aliases_are_found_by_docker(pair: tuple[Container, Container]) -> None:
    left, right = pair
    assert "nameserver 127.0.0.11" in left.exec("cat", "/etc/resolv.conf").stdout
    for name in ("right", "db", right.on["Aliases"][-1]):
        assert right.ip4 in left.resolves(name), name
    assert left.resolves("nobody") == []
    assert left.exec("ping", "-c1", "-W5", "db").returncode == 0
    assert right.exec("ping", "-c1", "-W5", "left").returncode == 0


def test_containers_reach_their_gateway(pair: tuple[Container, Container]) -> None:
    left, _ = pair
    assert left.default_route() == ("10.81.0.1", "eth0")
    assert left.pings("10.81.0.1")
    assert left.pings(str(left.gateway(6)))


@pytest.mark.parametrize(("target", "seen"), [(OUTSIDE4, HOST4), (OUTSIDE6, HOST6)], ids=["ipv4", "ipv6"])
def test_the_outside_sees_the_host(lab: Lab, pair: tuple[Container, Container], target: str, seen: str) -> None:
    left, _ = pair
    with lab.outside.socket(family(target), socket.SOCK_DGRAM) as there:
        there.bind((target, 0))
        with left.socket(family(target), socket.SOCK_DGRAM) as here:
            here.sendto(b"question", there.getsockname())
            data, sender = there.recvfrom(100)
            assert (data, sender[0]) == (b"question", seen)
            there.sendto(b"answer", sender)
            assert here.recv(100) == b"answer"


def test_the_host_reaches_containers(lab: Lab, pair: tuple[Container, Container]) -> None:
    for container in pair:
        lab.host.run("ping", "-n", "-c1", "-W5", container.ip4)
        lab.host.run("ping", "-n", "-c1", "-W5", container.ip6)


def test_an_address_and_a_mac_can_be_asked_for(lab: Lab, fast: str) -> None:
    wanted = ("--ip", "10.81.0.77", "--ip6", "fd00:81::77", "--mac-address", "02:42:c0:a8:00:77")
    container = lab.run("wanted", fast, *wanted)
    assert (container.ip4, container.ip6, container.mac) == ("10.81.0.77", "fd00:81::77", "02:42:c0:a8:00:77")
    assert_as_inspected(container)
    lab.assert_agreement()
    lab.docker("restart", "-t0", "wanted")
    container = Container(lab, "wanted")
    assert (container.ip4, container.ip6, container.mac) == ("10.81.0.77", "fd00:81::77", "02:42:c0:a8:00:77")
    lab.remove("wanted")


def test_a_container_is_on_two_networks(lab: Lab, pair: tuple[Container, Container], fast: str) -> None:
    lab.network("second", "--subnet", "10.82.0.0/24")
    there = lab.run("there", "second")
    lab.run("between", fast)
    lab.docker("network", "connect", "--ip", "10.82.0.9", "--alias", "twin", "second", "between")
    on_fast, on_second = Container(lab, "between", fast), Container(lab, "between", "second")
    assert on_second.ip4 == "10.82.0.9"
    assert {on_fast.ifname, on_second.ifname} == {"eth0", "eth1"}
    assert on_fast.mac == on_fast.on["MacAddress"]
    assert on_second.mac == on_second.on["MacAddress"]
    assert on_fast.pings(pair[0].ip4)
    assert on_fast.pings(there.ip4)
    assert on_fast.pings(OUTSIDE4)
    assert there.resolves("twin") == ["10.82.0.9"]
    assert not there.pings(pair[0].ip4, wait_s=0.5)
    lab.assert_agreement()
    lab.docker("network", "disconnect", "second", "between")
    assert not on_fast.pings(there.ip4, wait_s=0.5)
    assert on_fast.pings(pair[0].ip4)
    assert on_fast.pings(OUTSIDE4)
    lab.assert_agreement()
    lab.remove("between", "there")
    lab.docker("network", "rm", "second")


def test_the_default_route_moves_to_the_network_that_is_left(lab: Lab, fast: str) -> None:
    lab.network("third", "--subnet", "10.85.0.0/24")
    lab.run("mover", fast)
    lab.docker("network", "connect", "third", "mover")
    lab.docker("network", "disconnect", fast, "mover")
    mover = Container(lab, "mover")
    assert mover.default_route() == ("10.85.0.1", mover.ifname)
    assert mover.pings(OUTSIDE4)
    lab.docker("network", "connect", fast, "mover")
    lab.assert_agreement()
    lab.remove("mover")
    lab.docker("network", "rm", "third")


def test_a_running_container_leaves_and_comes_back(lab: Lab, pair: tuple[Container, Container], fast: str) -> None:
    lab.run("guest", fast)
    for _ in range(3):
        lab.docker("network", "disconnect", fast, "guest")
        lab.assert_agreement()
        lab.docker("network", "connect", fast, "guest")
        guest = Container(lab, "guest")
        assert_as_inspected(guest)
        assert guest.pings(pair[0].ip4)
        lab.assert_agreement()
    lab.remove("guest")


def test_stop_start_and_restart(lab: Lab, pair: tuple[Container, Container], fast: str) -> None:
    address = lab.run("again", fast).on["IPAddress"]
    lab.docker("stop", "-t0", "again")
    lab.assert_agreement()
    assert not pair[0].pings(address, wait_s=0.5)
    for command in ("start", "restart"):
        lab.docker(command, *(["-t0"] if command == "restart" else []), "again")
        again = Container(lab, "again")
        assert_as_inspected(again)
        assert again.pings(pair[0].ip4)
        assert pair[0].pings(again.ip4)
        lab.assert_agreement()
    lab.docker("kill", "again")
    lab.assert_agreement()
    lab.docker("start", "again")
    assert Container(lab, "again").pings(pair[1].ip4)
    lab.remove("again")
    lab.assert_agreement()


def test_a_container_that_ends_by_itself_leaves_nothing(lab: Lab, fast: str) -> None:
    before = lab.joins()
    lab.docker("run", "--rm", "--network", fast, NAME, "true")
    done = lab.docker("run", "--rm", "--network", fast, NAME, "no-such-program", check=False)
    assert done.returncode == 127
    assert lab.joins() == before
    lab.assert_agreement()


def test_an_internal_network_does_not_reach_out(lab: Lab) -> None:
    lab.network("inside", "--internal", "--ipv6", "--subnet", "10.83.0.0/24", "--subnet", "fd00:83::/64")
    one, other = (lab.run(f"inside-{number}", "inside") for number in range(2))
    assert one.pings(other.ip4)
    assert one.pings(other.ip6)
    assert one.default_route() is None
    assert one.default_route(6) is None
    assert not one.pings(OUTSIDE4, wait_s=0.5)
    one.run("ip", "route", "add", "default", "via", "10.83.0.1", check=False)
    assert not one.pings(OUTSIDE4, wait_s=0.5)
    assert "docker_gwbridge" not in lab.docker("network", "ls").stdout
    assert [link["ifname"] for link in one.ip("link")] == ["lo", "eth0"]  # no leg of docker_gwbridge
    lab.remove(one.name, other.name)
    lab.docker("network", "rm", "inside")


def test_networks_do_not_reach_each_other(lab: Lab, pair: tuple[Container, Container]) -> None:
    lab.network("apart", "--subnet", "10.84.0.0/24")
    apart = lab.run("apart", "apart")
    assert not apart.pings(pair[0].ip4, wait_s=0.5)
    assert not pair[0].pings(apart.ip4, wait_s=0.5)
    lab.remove("apart")
    lab.docker("network", "rm", "apart")


def test_compose_style_names_are_those_of_the_network(lab: Lab, pair: tuple[Container, Container]) -> None:
    lab.network("project", "--label", "com.docker.compose.project=p")
    web = lab.run("p-web-1", "project", "--network-alias", "web")
    lab.docker("create", "--name", "p-db-1", "--network", "project", "--network-alias", "db", NAME, *SLEEP)
    lab.docker("start", "p-db-1")
    db = Container(lab, "p-db-1")
    assert web.resolves("db") == [db.ip4]  # not the one on the other network
    assert pair[0].resolves("web") == []
    lab.remove("p-web-1", "p-db-1")
    lab.docker("network", "rm", "project")
