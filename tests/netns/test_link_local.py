"""Link-local addresses that endpoints were given: on their devices, reachable, nobody else's, and there to stay."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from tests.e2e.agreement import assert_agreement
from tests.hosts import Host, host
from tests.leaks import purge
from tests.netns.lab import Lab
from tests.netns.lan import PARENT, Lan, lan
from tests.netns.outside import HOST4, OUTSIDE4, outside
from tests.traffic import Place, Station, growth, tallies, udp_echo

pytestmark = pytest.mark.root

A4, A6, B4, B6 = "169.254.7.7", "fe80::77", "169.254.7.8", "fe80::78"
NOBODYS4, NOBODYS6 = "169.254.7.99", "fe80::99"
MODES = {
    "macvlan": {},
    "macvlan without the host": {"linkspan.host_access": "off"},
    "macvlan without programs": {"linkspan.accel": "off"},
}


def given(*addresses: str) -> dict[str, Any]:
    return {"IPAMConfig": {"LinkLocalIPs": list(addresses)}}


def given_pools(subnet: str) -> dict[str, Any]:
    return {"IPAM": {"Config": [{"Subnet": subnet}]}}


def of_link(place: Place) -> set[str]:
    """The device's addresses of the scope link, without the one that follows from its MAC."""
    (link,) = place.ip("addr", "show", "dev", place.ifname)
    infos = [info for info in link["addr_info"] if info["scope"] == "link"]
    return {f"{info['local']}/{info['prefixlen']}" for info in infos if "ff:fe" not in info["local"]}


def reaches(source: Place, target4: str, target6: str, **how: Any) -> tuple[bool, bool]:
    return source.pings(target4, "-I", source.ifname, **how), source.pings(f"{target6}%{source.ifname}", **how)


@contextmanager
def address(place: Place, text: str) -> Iterator[None]:
    """The address, which the place gives itself."""
    flags = ["nodad"] if ":" in text else ["scope", "link"]
    place.run("ip", "addr", "add", text, "dev", place.ifname, *flags)
    try:
        yield
    finally:
        place.run("ip", "addr", "delete", text, "dev", place.ifname)


class Given:
    """A network of both families with two sandboxes that were given link-local addresses, and one that was not."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.a, self.b = lab.join("a", **given(A4, A6)), lab.join("b", **given(B4, B6))


@pytest.fixture(scope="module", params=["on", "off"])
def net(request: pytest.FixtureRequest, machine: Host) -> Given:
    return Given(Lab(machine, f"local-{request.param}", accel=request.param, EnableIPv6=True))


def test_the_devices_have_them(net: Given) -> None:
    assert of_link(net.a) == {f"{A4}/16", f"{A6}/64"}
    assert of_link(net.b) == {f"{B4}/16", f"{B6}/64"}
    assert of_link(net.lab.c) == set()
    assert A4 not in net.a.run("ip", "-json", "route", "get", "8.8.8.8").stdout
    assert_agreement(net.lab.host)


def test_endpoints_reach_each_other_by_them(net: Given) -> None:
    before = tallies(net.lab.host, net.a.name)
    assert reaches(net.a, B4, B6) == reaches(net.b, A4, A6) == (True, True)
    udp_echo(net.a, net.b, B4, b"hello")
    grown = growth(before, tallies(net.lab.host, net.a.name))
    assert not [key for key in grown if key[0] == "drops"]
    if net.lab.is_fast:
        assert grown["packets", "out", "fast"] >= 5


def test_one_of_its_own_making_gets_nowhere_where_programs_look(net: Given) -> None:
    a, b, c = net.a, net.b, net.lab.c
    before = tallies(net.lab.host, c.name)
    with address(c, f"{NOBODYS4}/16"), address(c, f"{NOBODYS6}/64"):
        assert c.pings(B4, "-I", NOBODYS4, wait_s=0.3) is not net.lab.is_fast
        assert c.pings(f"{B6}%{c.ifname}", "-I", f"{NOBODYS6}%{c.ifname}", wait_s=0.3) is not net.lab.is_fast
    if not net.lab.is_fast:  # nobody looks
        return
    with address(c, f"{A4}/16"):
        assert not c.pings(B4, "-I", A4, wait_s=0.3)
    dropped = {key[1] for key in growth(before, tallies(net.lab.host, c.name)) if key[0] == "drops"}
    assert dropped & {"spoofed_arp", "spoofed_ip4"}
    assert dropped & {"spoofed_nd", "spoofed_ip6"}
    heard = {entry["dst"]: entry.get("lladdr") for entry in b.ip("neigh")}
    assert heard.get(A4) in (None, a.mac)


def test_they_outlive_linkspand(net: Given) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        net.lab.host.stop(number)
        net.a.run("ip", "neigh", "flush", "dev", net.a.ifname)
        assert reaches(net.a, B4, B6) == (True, True)
        net.lab.host.start()
        net.b.run("ip", "neigh", "flush", "dev", net.b.ifname)
        assert reaches(net.b, A4, A6) == (True, True)
        assert of_link(net.a) == {f"{A4}/16", f"{A6}/64"}
        assert_agreement(net.lab.host)


def test_a_device_that_is_made_again_has_them_again(net: Given) -> None:
    net.lab.host.stop(signal.SIGKILL)
    net.a.run("ip", "link", "delete", net.a.ifname)
    net.lab.host.start()
    assert of_link(net.a) == {f"{A4}/16", f"{A6}/64"}
    assert reaches(net.b, A4, A6) == (True, True)
    assert_agreement(net.lab.host)


def test_they_go_with_the_endpoint_and_another_may_have_them(net: Given) -> None:
    machine, name = net.lab.host, net.lab.name
    d = net.lab.join("d", **given("169.254.7.10", "fe80::10"))
    machine.linkspan("network", "disconnect", name, d.name)
    assert not net.a.pings("169.254.7.10", "-I", net.a.ifname, wait_s=0.3)
    assert_agreement(machine)
    machine.linkspan("network", "connect", name, d.name)
    assert of_link(Station(machine, d.name)) == set()
    e = net.lab.join("e", **given("169.254.7.10", "fe80::10"))
    assert reaches(net.a, "169.254.7.10", "fe80::10") == (True, True)
    assert_agreement(machine)
    for each in (d, e):
        machine.linkspan("rm", "-f", each.name)


def test_the_command_line_gives_them(net: Given) -> None:
    machine = net.lab.host
    name = f"{net.lab.name}-run"
    flags = ("--link-local-ip", "169.254.7.11", "--link-local-ip", "fe80::11")
    machine.linkspan("run", "-d", "--net", net.lab.name, *flags, "--name", name, "--", "sleep", "3600")
    assert of_link(Station(machine, name)) == {"169.254.7.11/16", "fe80::11/64"}
    machine.linkspan("network", "disconnect", net.lab.name, name)
    machine.linkspan("network", "connect", "--link-local-ip", "169.254.7.12,fe80::12", net.lab.name, name)
    assert of_link(Station(machine, name)) == {"169.254.7.12/16", "fe80::12/64"}
    machine.linkspan("network", "disconnect", net.lab.name, name)
    refused = machine.linkspan("network", "connect", "--link-local-ip", A4, net.lab.name, name, check=False)
    assert f"link-local address {A4} is in use on network {net.lab.name} by {net.a.name}" in refused.stderr
    machine.linkspan("rm", "-f", name)


def test_without_inter_container_traffic_nobody_is_answered_for_them(machine: Host) -> None:
    options = {"com.docker.network.bridge.enable_icc": "false"}
    lab = Lab(machine, "apart", EnableIPv6=True, Options=options)
    net = Given(lab)
    before = tallies(machine, net.a.name)
    assert reaches(net.a, B4, B6, wait_s=0.3) == (False, False)
    assert net.a.pings(str(net.a.gateway()), "-I", A4, wait_s=0.3) is False  # the host has no way back, and no drop
    assert not [key for key in growth(before, tallies(machine, net.a.name)) if key[0] == "drops"]
    assert_agreement(machine)


def test_what_is_from_them_stays_on_its_link(machine: Host) -> None:
    """RFC 3927, 7; for IPv6 the kernel's own routing sees to it. A subnet of such addresses is one like any other."""
    lab = Lab(machine, "inward", **given_pools("10.77.0.0/24"))
    a = lab.join("a", **given(A4))
    own = Lab(machine, "own", **given_pools("169.254.64.0/24")).join("a", IPAMConfig={"IPv4Address": "169.254.64.9"})
    with outside(machine) as there, there.wire() as wire:
        assert not a.pings(OUTSIDE4, "-I", A4, wait_s=0.3)
        assert a.pings(OUTSIDE4)
        assert own.pings(OUTSIDE4, "-I", "169.254.64.9")
        sources = {frame[IP].src for frame in map(Ether, wire.until_idle()) if IP in frame}
        assert {source for source in sources if source == HOST4 or source.startswith("169.254.")} == {HOST4}


# -- macvlan ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent() -> Iterator[Lan]:
    with host() as made, lan(made) as there:
        made.start()
        yield there


@pytest.fixture
def lan_host(parent: Lan) -> Iterator[Host]:
    yield parent.host.place.host
    purge(parent.host.place.host)


@pytest.mark.parametrize("mode", MODES)
def test_macvlan_endpoints_reach_each_other_by_them(parent: Lan, lan_host: Host, mode: str) -> None:
    machine = lan_host
    pools = [{"Subnet": "192.168.32.0/24", "IPRange": "192.168.32.64/27"}, {"Subnet": "fd00:32::/64"}]
    options = {"parent": PARENT, **MODES[mode]}
    body = {"Name": "pub", "Driver": "macvlan", "EnableIPv6": True, "Options": options, "IPAM": {"Config": pools}}
    machine.api("POST", "/networks/create", body)
    for name, addresses in (("a", (A4, A6)), ("b", (B4, B6))):
        machine.sandbox(name, "pub", **given(*addresses))
    a, b = Station(machine, "a"), Station(machine, "b")
    assert (of_link(a), of_link(b)) == ({f"{A4}/16", f"{A6}/64"}, {f"{B4}/16", f"{B6}/64"})
    before = {station.name: tallies(machine, station.name) for station in (a, b)}
    assert reaches(a, B4, B6) == reaches(b, A4, A6) == (True, True)
    machine.stop(signal.SIGKILL)
    machine.start()
    for station in (a, b):
        station.run("ip", "neigh", "flush", "dev", station.ifname)
    assert reaches(a, B4, B6) == reaches(b, A4, A6) == (True, True)
    router = parent.router.place
    with address(router, "169.254.7.1/16"), address(router, "fe80::1/64"):
        assert reaches(a, "169.254.7.1", "fe80::1") == (True, True)
    for station in (a, b):
        assert not [key for key in growth(before[station.name], tallies(machine, station.name)) if key[0] == "drops"]
    with address(a, f"{NOBODYS4}/16"):
        assert a.pings(B4, "-I", NOBODYS4, wait_s=0.3) is (mode == "macvlan without programs")


def test_one_that_somebody_on_the_link_has_is_refused(parent: Lan, lan_host: Host) -> None:
    machine, router = lan_host, parent.router.place
    options = ("-o", f"parent={PARENT}", "--ipv6", "--subnet", "192.168.32.0/24", "--subnet", "fd00:32::/64")
    machine.linkspan("network", "create", "-d", "macvlan", *options, "--ip-range", "192.168.32.64/27", "pub")
    machine.linkspan("run", "-d", "--net", "none", "--name", "a", "--", "sleep", "3600")
    machine.linkspan("network", "disconnect", "none", "a")
    for text, length in (("169.254.7.1", 16), ("fe80::1", 64)):
        with address(router, f"{text}/{length}"):
            connect = ("network", "connect", "--link-local-ip", f"169.254.7.30,{text}", "pub", "a")
            refused = machine.linkspan(*connect, check=False)
            assert f"address {text} is in use on {PARENT} by {router.mac}" in refused.stderr
        machine.linkspan(*connect)
        machine.linkspan("network", "disconnect", "pub", "a")
