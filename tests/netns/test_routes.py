"""Sandboxes on several networks, networks of one family or of several subnets, and addresses that were asked for."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.hosts import Host
from tests.netns.lab import Lab
from tests.traffic import Station, connects, udp_echo

pytestmark = pytest.mark.xdist_group("routes")


@pytest.fixture(scope="module", params=["on", "off"])
def accel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def red(machine: Host, accel: str) -> Lab:
    return Lab(machine, f"red-{accel}", accel=accel, EnableIPv6=True)


@pytest.fixture(scope="module")
def blue(machine: Host, accel: str) -> Lab:
    return Lab(machine, f"blue-{accel}", accel=accel, EnableIPv6=True)


@pytest.fixture(scope="module")
def inner(machine: Host, accel: str) -> Lab:
    return Lab(machine, f"inner-{accel}", accel=accel, EnableIPv6=True, Internal=True)


def connect(lab: Lab, name: str, **settings: Any) -> Station:
    lab.host.api("POST", f"/networks/{lab.name}/connect", {"Container": name, "EndpointConfig": settings})
    return Station(lab.host, name, lab.name)


def disconnect(lab: Lab, name: str) -> None:
    lab.host.api("POST", f"/networks/{lab.name}/disconnect", {"Container": name})


def gateways_of(lab: Lab) -> dict[int, str]:
    pools = lab.host.api("GET", f"/networks/{lab.name}")["IPAM"]["Config"]
    return {6 if ":" in pool["Gateway"] else 4: pool["Gateway"] for pool in pools}


def remove(lab: Lab, name: str) -> None:
    lab.host.api("DELETE", f"/linkspan/sandboxes/{name}")


def default_routes(station: Station) -> list[tuple[str, str] | None]:
    return [station.default_route(version) for version in (4, 6)]


def through(lab: Lab, ifname: str) -> list[tuple[str, str] | None]:
    return [(gateway, ifname) for _, gateway in sorted(gateways_of(lab).items())]


def test_a_sandbox_on_two_networks_has_an_interface_for_each_and_one_default_route(red: Lab, blue: Lab) -> None:
    first = red.join("both")
    second = connect(blue, first.name)
    assert (first.ifname, second.ifname) == ("eth0", "eth1")
    assert default_routes(first) == through(red, "eth0")
    for target in (red.b.ip4, red.b.ip6, blue.b.ip4, blue.b.ip6):
        assert first.pings(target), target
    assert red.b.pings(first.ip4)
    assert blue.b.pings(second.ip4)
    remove(red, first.name)


def test_the_default_route_moves_to_the_network_that_is_left(red: Lab, blue: Lab) -> None:
    station = red.join("mover")
    second = connect(blue, station.name)
    disconnect(red, station.name)
    assert default_routes(second) == through(blue, "eth1")
    assert second.pings(str(second.gateway()))
    third = connect(red, station.name)
    assert third.ifname == "eth0"
    assert default_routes(second) == through(blue, "eth1")
    disconnect(blue, station.name)
    assert default_routes(third) == through(red, "eth0")
    disconnect(red, station.name)
    assert [link["ifname"] for link in third.ip("link")] == ["lo"]
    assert default_routes(third) == [None, None]
    remove(red, station.name)


def test_an_internal_network_never_has_the_default_route(red: Lab, inner: Lab) -> None:
    station = inner.join("deep")
    assert default_routes(station) == [None, None]
    outer = connect(red, station.name)
    assert default_routes(station) == through(red, "eth1")
    for target in (inner.b.ip4, inner.b.ip6, red.b.ip4, str(outer.gateway(6))):
        assert station.pings(target), target
    disconnect(red, station.name)
    assert default_routes(station) == [None, None]
    remove(inner, station.name)


def test_gateway_priority_settles_which_network_has_the_default_route(red: Lab, blue: Lab) -> None:
    station = red.join("chooser")
    connect(blue, station.name, GwPriority=1)
    assert default_routes(station) == through(blue, "eth1")
    disconnect(blue, station.name)
    assert default_routes(station) == through(red, "eth0")
    remove(red, station.name)


def test_a_network_of_one_family_lends_the_default_route_of_the_other(machine: Host, red: Lab, accel: str) -> None:
    """Each family's default route goes through the oldest network that has that family."""
    six = Lab(machine, f"only-six-{accel}", accel=accel, EnableIPv4=False, EnableIPv6=True)
    station = six.join("mixed")
    connect(red, station.name)
    assert station.default_route(6) == (gateways_of(six)[6], "eth0")
    assert station.default_route(4) == (gateways_of(red)[4], "eth1")
    remove(six, station.name)


def test_a_network_of_ipv6_alone_works_without_any_ipv4(machine: Host, accel: str) -> None:
    six = Lab(machine, f"six-{accel}", accel=accel, EnableIPv4=False, EnableIPv6=True)
    assert all(":" in address for address in six.a.addresses())
    assert all(":" in address["local"] for address in six.host.ip("addr", "show", "dev", six.bridge)[0]["addr_info"])
    assert six.a.default_route(4) is None
    udp_echo(six.a, six.b, six.b.ip6, b"x" * 8000)
    assert connects(six.a, six.b, six.b.ip6)
    assert six.a.pings(str(six.a.gateway(6)))
    assert six.a.pings(f"{six.b.ip6_ll}%{six.a.ifname}")
    assert six.a.mac != six.b.mac


def test_a_network_of_ipv4_alone_has_no_ipv6_address_anywhere(machine: Host, accel: str) -> None:
    four = Lab(machine, f"four-{accel}", accel=accel)
    assert [info["family"] for info in four.a.ip("addr", "show", "dev", "eth0")[0]["addr_info"]] == ["inet"]
    assert [info["family"] for info in four.host.ip("addr", "show", "dev", four.bridge)[0]["addr_info"]] == ["inet"]
    assert four.a.pings(four.b.ip4)


def test_sandboxes_of_several_subnets_reach_each_other(machine: Host, accel: str) -> None:
    """Those of one subnet directly, others through the gateway, which has an address in each."""
    number = {"on": 1, "off": 2}[accel]
    subnets = [f"10.{number}.0.0/30", f"10.{number}.8.0/24", f"fd00:{number}::/64", f"fd00:{number}:8::/64"]
    lab = Lab(
        machine,
        f"several-{accel}",
        accel=accel,
        EnableIPv6=True,
        IPAM={"Config": [{"Subnet": subnet} for subnet in subnets]},
    )
    first = lab.join("first")
    second = lab.join("second")  # the /30 has room for the gateway and one more
    fixed = lab.join("fixed", IPAMConfig={"IPv4Address": f"10.{number}.8.77", "IPv6Address": f"fd00:{number}:8::77"})
    assert first.addresses() == [f"10.{number}.0.2/30", f"fd00:{number}::2/64"]
    assert second.addresses()[0] == f"10.{number}.8.2/24"
    assert fixed.addresses() == [f"10.{number}.8.77/24", f"fd00:{number}:8::77/64"]
    assert first.gateway() == f"10.{number}.0.1"
    assert fixed.default_route() == (f"10.{number}.8.1", "eth0")
    assert fixed.default_route(6) == (f"fd00:{number}:8::1", "eth0")
    for here, there in ((first, second), (second, first), (second, fixed), (first, fixed), (fixed, first)):
        for address in (there.ip4, there.ip6):
            assert here.pings(address), (here.name, there.name)
    for gateway in (f"10.{number}.0.1", f"10.{number}.8.1", f"fd00:{number}::1", f"fd00:{number}:8::1"):
        assert first.pings(gateway)


def test_addresses_and_mac_that_were_asked_for_are_the_sandboxs_own(red: Lab) -> None:
    pools = gateways_of(red)
    ip4, ip6 = pools[4].rsplit(".", 1)[0] + ".200", pools[6].rsplit(":", 1)[0] + ":abcd"
    settings = {"IPAMConfig": {"IPv4Address": ip4, "IPv6Address": ip6}, "MacAddress": "02:00:00:12:34:56"}
    station = red.join("asked", **settings)
    assert [address.partition("/")[0] for address in station.addresses()] == [ip4, ip6]
    assert station.mac == "02:00:00:12:34:56"
    assert station.ip6_ll == "fe80::ff:fe12:3456"
    for address in (ip4, ip6, f"{station.ip6_ll}%{red.a.ifname}"):
        assert red.a.pings(address), address
    entry = next(e for e in red.a.ip("neigh", "show", "dev", "eth0") if e["dst"] == ip4)
    assert entry["lladdr"] == station.mac
    remove(red, station.name)


def test_the_mac_follows_from_the_address_as_in_docker(red: Lab) -> None:
    assert red.a.mac == "02:42:" + socket.inet_aton(red.a.ip4).hex(":")


def test_interface_names_can_be_asked_for(machine: Host, accel: str) -> None:
    lab = Lab(machine, f"named-{accel}", accel=accel, Options={"com.docker.network.container_iface_prefix": "net"})
    assert (lab.a.ifname, lab.a.pings(lab.b.ip4)) == ("net0", True)
    special = lab.join("special", DriverOpts={"com.docker.network.endpoint.ifname": "uplink"})
    assert special.ifname == "uplink"
    assert special.pings(lab.a.ip4)


def test_a_bridge_may_have_a_name_of_its_own(machine: Host, accel: str) -> None:
    lab = Lab(machine, f"own-{accel}", accel=accel, Options={"com.docker.network.bridge.name": f"own-{accel}"})
    assert lab.host.ip("link", "show", "dev", lab.a.host_ifname)[0]["master"] == f"own-{accel}"
    assert lab.a.pings(str(lab.a.gateway()))


def test_the_none_network_is_loopback_alone(machine: Host) -> None:
    machine.sandbox("alone", "none")
    facts = machine.api("GET", "/linkspan/sandboxes/alone")
    links = machine.run("nsenter", f"--net={facts['NetnsPath']}", "ip", "-o", "link").stdout.splitlines()
    assert len(links) == 1
    assert "lo:" in links[0]
    assert "UP" in links[0]


def test_the_host_network_is_the_hosts_own_stack(machine: Host) -> None:
    machine.sandbox("inhost", "host")
    facts = machine.api("GET", "/linkspan/sandboxes/inhost")
    assert facts["NetnsPath"] == "/proc/self/ns/net"
    assert facts["OwnsNetns"] is False
