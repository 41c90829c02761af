"""Macvlan endpoints of a container engine: the plugin's calls, and the engine's own part played with `ip`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api_server import ask
from tests.hosts import Host
from tests.leaks import leaks
from tests.netns.lan import PARENT, ROUTER4, Lan, lan, parent_state
from tests.traffic import Place

pytestmark = pytest.mark.root


class Engine:
    """What dockerd does with a remote driver; its sandboxes are namespaces that it has pinned."""

    def __init__(self, net: Lan) -> None:
        self.net = net
        self.host: Host = net.host.place.host
        self.network = secrets.token_hex(32)
        self.host.run("mkdir", "-p", str(self.sandboxes))

    @property
    def sandboxes(self) -> Any:
        return self.host.dir / "engine"

    def call(self, method: str, **body: Any) -> Any:
        reply = ask(self.host.plugin_socket, "POST", f"/NetworkDriver.{method}", {"NetworkID": self.network, **body})
        assert (reply.status, reply.json.get("Err")) == (200, None), reply.body
        return reply.json

    def refusal(self, method: str, **body: Any) -> str:
        reply = ask(self.host.plugin_socket, "POST", f"/NetworkDriver.{method}", {"NetworkID": self.network, **body})
        return str(reply.json["Err"])

    def create_network(self, **options: str) -> None:
        generic = {"linkspan.driver": "macvlan", "parent": PARENT, **options}
        data = [{"AddressSpace": "x", "Pool": "192.168.32.0/24", "Gateway": f"{ROUTER4}/24"}]
        self.call("CreateNetwork", Options={"com.docker.network.generic": generic}, IPv4Data=data, IPv6Data=[])

    def create_endpoint(self, number: int, mac: str = "") -> str:
        endpoint = secrets.token_hex(32)
        interface = {"Address": f"192.168.32.{number}/24", "MacAddress": mac}
        self.call("CreateEndpoint", EndpointID=endpoint, Interface=interface)
        return endpoint

    def sandbox(self, name: str) -> str:
        path = str(self.sandboxes / name)
        self.host.run("sh", "-c", f"touch {path} && unshare --net={path} true")
        return path

    def run(self, name: str, number: int, mac: str = "") -> tuple[str, Place]:
        """Starts a container: the id of its endpoint, and where it is."""
        endpoint = self.create_endpoint(number, mac)
        path = self.sandbox(name)
        joined = self.call("Join", EndpointID=endpoint, SandboxKey=path)
        self.move_in(joined["InterfaceName"]["SrcName"], path, number)
        return endpoint, Place(self.host, name, path, "eth0")

    def move_in(self, waiting: str, path: str, number: int) -> None:
        self.host.run("ip", "link", "set", waiting, "netns", path)
        at = Place(self.host, path, path, "eth0")
        at.run("ip", "link", "set", waiting, "name", "eth0")
        at.run("ip", "addr", "add", f"192.168.32.{number}/24", "dev", "eth0")
        at.run("ip", "link", "set", "eth0", "up")

    def stop(self, endpoint: str, at: Place) -> None:
        """Ends a container as libnetwork does: leave, take the device back, delete."""
        self.call("Leave", EndpointID=endpoint)
        at.run("ip", "link", "set", "eth0", "down")
        at.run("ip", "link", "set", "eth0", "name", f"lp{endpoint[:12]}")
        at.run("ip", "link", "set", f"lp{endpoint[:12]}", "netns", str(self.host.pid))
        self.call("DeleteEndpoint", EndpointID=endpoint)
        self.end(at)

    def end(self, at: Place) -> None:
        self.host.run("umount", at.netns)
        self.host.run("rm", at.netns)


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    machine = Host(bpffs=False)
    try:
        with lan(machine) as made:
            machine.start("--metrics-listen", "off")
            yield made
    finally:
        machine.close()


@pytest.fixture
def engine(net: Lan) -> Iterator[Engine]:
    made = Engine(net)
    before = parent_state(made.host)
    yield made
    made.call("DeleteNetwork")
    assert parent_state(made.host) == before
    assert leaks(made.host, ignore={PARENT}) == []


def restart(machine: Host) -> None:
    machine.stop(9)
    machine.start("--metrics-listen", "off")


def links(place: Place) -> set[str]:
    return {link["ifname"] for link in place.ip("link")}


def test_containers_come_and_go_and_linkspand_too(engine: Engine) -> None:
    engine.create_network()
    (one, a), (other, b) = engine.run("a", 20), engine.run("b", 21)
    assert a.pings(b.ip4)
    assert a.pings(ROUTER4)
    restart(engine.host)
    assert a.pings(b.ip4)
    assert {a.link()["ifname"], b.link()["ifname"]} == {"eth0"}
    engine.stop(one, a)
    assert b.pings(ROUTER4)
    engine.stop(other, b)


def test_a_joined_endpoint_is_told_where_to_go_and_waits_down(engine: Engine) -> None:
    engine.create_network(macvlan_mode="vepa")
    endpoint = engine.create_endpoint(20)
    path = engine.sandbox("a")
    for _ in range(2):
        joined = engine.call("Join", EndpointID=endpoint, SandboxKey=path)
        waiting = joined["InterfaceName"]["SrcName"]
        assert (waiting, joined["InterfaceName"]["DstPrefix"]) == (f"lp{endpoint[:12]}", "eth")
        assert (joined["Gateway"], joined["DisableGatewayService"]) == (ROUTER4, False)
        (link,) = engine.host.ip("link", "show", "dev", waiting)
        assert (link["linkinfo"]["info_data"]["mode"], "UP" in link["flags"]) == ("vepa", False)
    restart(engine.host)
    assert waiting in {link["ifname"] for link in engine.host.ip("link")}
    engine.move_in(waiting, path, 20)
    assert engine.call("Join", EndpointID=endpoint, SandboxKey=path) == joined
    assert waiting not in {link["ifname"] for link in engine.host.ip("link")}, "it is in its sandbox, and made once"
    engine.stop(endpoint, Place(engine.host, "a", path, "eth0"))


def test_an_endpoint_that_is_deleted_in_its_sandbox_is_gone_from_there(engine: Engine) -> None:
    engine.create_network()
    endpoint, a = engine.run("a", 20)
    engine.call("DeleteEndpoint", EndpointID=endpoint)
    assert links(a) == {"lo"}
    engine.end(a)


def test_an_endpoint_whose_sandbox_ended_while_linkspand_was_away_is_gone(engine: Engine) -> None:
    engine.create_network()
    endpoint, a = engine.run("a", 20)
    engine.host.stop(9)
    engine.end(a)
    engine.host.start("--metrics-listen", "off")
    assert "is not known" in engine.refusal("Join", EndpointID=endpoint, SandboxKey="/var/run/docker/netns/again")
    engine.call("DeleteEndpoint", EndpointID=endpoint)
    other, b = engine.run("b", 20)
    assert b.pings(ROUTER4)
    engine.stop(other, b)


def test_what_cannot_be_is_refused_in_words(engine: Engine) -> None:
    generic = {"linkspan.driver": "macvlan", "parent": "eth7"}
    data = [{"AddressSpace": "x", "Pool": "192.168.32.0/24", "Gateway": f"{ROUTER4}/24"}]
    said = engine.refusal("CreateNetwork", Options={"com.docker.network.generic": generic}, IPv4Data=data, IPv6Data=[])
    assert "parent eth7 does not exist" in said
    engine.create_network()
    own = engine.host.ip("link", "show", "dev", PARENT)[0]["address"]
    interface = {"Address": "192.168.32.30/24", "MacAddress": own}
    said = engine.refusal("CreateEndpoint", EndpointID=secrets.token_hex(32), Interface=interface)
    assert f"MAC address {own} is in use by the parent {PARENT}" in said
    endpoint, a = engine.run("a", 20, mac="02:11:22:33:44:55")
    assert a.mac == "02:11:22:33:44:55"
    interface = {"Address": "192.168.32.31/24", "MacAddress": "02:11:22:33:44:55"}
    said = engine.refusal("CreateEndpoint", EndpointID=secrets.token_hex(32), Interface=interface)
    assert "MAC address 02:11:22:33:44:55 is in use" in said
    ports = {"com.docker.network.portmap": [{"Proto": 6, "Port": 80, "HostPort": 8080}]}
    said = engine.refusal("ProgramExternalConnectivity", EndpointID=endpoint, Options=ports)
    assert "the driver macvlan publishes no ports" in said
    engine.stop(endpoint, a)


def test_an_internal_network_gives_out_no_gateway(engine: Engine) -> None:
    options = {"com.docker.network.generic": {"linkspan.driver": "macvlan"}, "com.docker.network.internal": True}
    data = [{"AddressSpace": "x", "Pool": "192.168.32.0/24", "Gateway": f"{ROUTER4}/24"}]
    engine.call("CreateNetwork", Options=options, IPv4Data=data, IPv6Data=[])
    endpoint = engine.create_endpoint(20)
    joined = engine.call("Join", EndpointID=endpoint, SandboxKey=engine.sandbox("a"))
    assert "Gateway" not in joined
    assert joined["DisableGatewayService"] is True
    engine.call("DeleteEndpoint", EndpointID=endpoint)
    engine.end(Place(engine.host, "a", str(engine.sandboxes / "a"), "eth0"))


def test_the_plugin_says_where_the_endpoint_is(engine: Engine) -> None:
    engine.create_network()
    endpoint, a = engine.run("a", 20)
    value = engine.call("EndpointOperInfo", EndpointID=endpoint)["Value"]
    assert json.loads(json.dumps(value)) == {"linkspan.device": "", "linkspan.ports": []}
    engine.stop(endpoint, a)
