"""A container engine's macvlan endpoints when the parent vanishes and comes back: the engine is told of nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_macvlan_engine import Engine, restart
from tests.hosts import Host, wait_for
from tests.leaks import leaks
from tests.netns.lan import HOST4, PARENT, ROUTER4, Lan, lan
from tests.traffic import Place

pytestmark = pytest.mark.root

SOON_S = 5.0


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    machine = Host()
    try:
        with lan(machine) as made:
            machine.start("--metrics-listen", "off")
            yield made
    finally:
        machine.close()


@pytest.fixture
def engine(net: Lan) -> Iterator[Engine]:
    made = Engine(net)
    yield made
    made.call("DeleteNetwork")
    assert leaks(made.host, ignore={PARENT}) == []


def run(engine: Engine, name: str, number: int) -> tuple[str, Place]:
    """A container as the engine sets it up, with its default route."""
    endpoint, place = engine.run(name, number)
    place.run("ip", "route", "add", "default", "via", ROUTER4)
    return endpoint, place


def replug(net: Lan) -> None:
    net.unplug_host()
    net.plug_in_host()


def inside(place: Place) -> Any:
    addresses = [(link["ifname"], link["address"], link["addr_info"][0]["local"]) for link in place.ip("addr")[1:]]
    return addresses, [(route["dst"], route.get("gateway"), route["dev"]) for route in place.ip("route")]


def soon(engine: Engine, place: Place, target: str) -> None:
    wait_for(lambda: place.pings(target, wait_s=1), lambda: f"it to reach {target}:\n{engine.host.log()}", SOON_S)


@pytest.mark.parametrize("is_away", [False, True], ids=["linkspand runs", "linkspand was killed"])
def test_containers_are_as_before_and_end_as_always(engine: Engine, net: Lan, is_away: bool) -> None:
    engine.create_network()
    (one, a), (other, b) = run(engine, "a", 20), run(engine, "b", 21)
    before = inside(a), inside(b)
    if is_away:
        engine.host.stop(signal.SIGKILL)
    replug(net)
    if is_away:
        engine.host.start("--metrics-listen", "off")
    for place in (a, b):
        soon(engine, place, ROUTER4)
        soon(engine, place, HOST4)
    assert (inside(a), inside(b)) == before
    assert a.pings(b.ip4)
    restart(engine.host)
    assert (inside(a), inside(b)) == before
    engine.stop(one, a)
    engine.stop(other, b)


def test_a_start_without_the_parent_keeps_them_for_when_it_is_back(engine: Engine, net: Lan) -> None:
    engine.create_network()
    endpoint, a = run(engine, "a", 20)
    engine.host.stop(signal.SIGKILL)
    net.unplug_host()
    try:
        engine.host.start("--metrics-listen", "off")
        assert f"endpoint {endpoint[:12]}" in engine.host.ask("GET", "/linkspan/status").json["broken"]
    finally:
        net.plug_in_host()
    soon(engine, a, ROUTER4)
    assert engine.host.ask("GET", "/linkspan/status").json["broken"] == {}
    engine.stop(endpoint, a)


def test_a_default_route_by_another_network_stays(engine: Engine, net: Lan) -> None:
    engine.create_network()
    endpoint, a = engine.run("a", 20)
    a.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "far")
    a.run("ip", "addr", "add", "10.9.0.2/24", "dev", "eth1")
    a.run("sh", "-c", "ip link set eth1 up; ip link set far up; ip route add default via 10.9.0.1")
    replug(net)
    soon(engine, a, ROUTER4)
    assert [route["gateway"] for route in a.ip("route", "show", "default")] == ["10.9.0.1"]
    assert a.link()["ifname"] == "eth0"
    engine.stop(endpoint, a)


def test_those_whose_sandbox_ended_meanwhile_are_given_up(engine: Engine, net: Lan) -> None:
    engine.create_network()
    endpoint, a = engine.run("a", 20)
    engine.host.stop(signal.SIGKILL)
    net.unplug_host()
    engine.end(a)
    try:
        engine.host.start("--metrics-listen", "off")
        sandbox = "/var/run/docker/netns/again"
        assert "is not known" in engine.refusal("Join", EndpointID=endpoint, SandboxKey=sandbox)
    finally:
        net.plug_in_host()


def test_an_endpoint_that_nobody_joined_waits_as_before(engine: Engine, net: Lan) -> None:
    engine.create_network()
    endpoint = engine.create_endpoint(20)
    said = len(engine.host.log())
    for change, words in ((net.unplug_host, "is gone\n"), (net.plug_in_host, "is up again\n")):
        change()
        wait_for(lambda w=words: w in engine.host.log()[said:], engine.host.log, SOON_S)  # type: ignore[misc]
    path = engine.sandbox("a")
    joined = engine.call("Join", EndpointID=endpoint, SandboxKey=path)
    engine.move_in(joined["InterfaceName"]["SrcName"], path, 20)
    a = Place(engine.host, "a", path, "eth0")
    assert a.pings(ROUTER4)
    engine.stop(endpoint, a)


def test_the_only_container_of_a_passthru_parent_has_the_new_devices_mac(engine: Engine, net: Lan) -> None:
    engine.create_network(macvlan_mode="passthru")
    endpoint, a = engine.run("a", 20)
    replug(net)
    soon(engine, a, ROUTER4)
    assert a.link()["address"] == engine.host.ip("link", "show", "dev", PARENT)[0]["address"]
    restart(engine.host)
    assert engine.host.ask("GET", "/linkspan/status").json["broken"] == {}
    assert a.pings(ROUTER4)
    engine.stop(endpoint, a)
