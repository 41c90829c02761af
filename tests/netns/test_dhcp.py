"""Endpoints with addresses of a DHCP server on the network: a real dnsmasq, and one that does as it is told.

What a server lends is looked up in its own file of leases, what an endpoint has with `ip` in its namespace.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from tests.api_server import Reply
from tests.dhcp_server import Server
from tests.hosts import Host, wait_for
from tests.leaks import leaks, purge
from tests.netns.dnsmasq import dnsmasq
from tests.netns.lan import PARENT, ROUTER4, Lan, lan_host, lan_net
from tests.require import require
from tests.traffic import Place

pytestmark = pytest.mark.root
net, machine = lan_net, lan_host

RANGE = "192.168.32.100,192.168.32.150"
SOON = ("--dhcp-option=option:T1,3",)
"""Has clients renew after about three seconds."""


def create(machine: Host, *options: str, name: str = "pub", parent: str = PARENT, check: bool = True) -> str:
    """What `network create` says."""
    command = ("network", "create", "-d", "macvlan", "-o", f"parent={parent}", "--ipam-driver", "dhcp", *options, name)
    done = machine.linkspan(*command, check=check)
    return done.stdout + done.stderr


def try_sandbox(machine: Host, name: str, **options: Any) -> Reply:
    body = {"Name": name, "Networks": [{"Network": "pub", **options}]}
    return machine.ask("POST", "/linkspan/sandboxes", body, timeout=60)


def addresses(place: Place) -> list[str]:
    """Of IPv4, none while there is no device."""
    done = place.run("ip", "-json", "-4", "addr", "show", "dev", place.ifname, check=False)
    found = json.loads(done.stdout or "[]")
    return [f"{each['local']}/{each['prefixlen']}" for link in found for each in link["addr_info"]]


def joined(machine: Host, name: str, network: str = "pub") -> Place:
    return Place(machine, name, machine.sandbox(name, network), "eth0")


def shown(machine: Host, network: str = "pub") -> dict[str, Any]:
    (found,) = json.loads(machine.linkspan("network", "inspect", network).stdout)
    return found  # type: ignore[no-any-return]


def expiry(machine: Host) -> str:
    """When the one lease ends, in a form that sorts."""
    return str(shown(machine)["Status"]["Linkspan"]["linkspan.leases"]).rpartition(" ")[2]


# -- dnsmasq -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
def test_an_endpoint_has_a_lease_until_it_leaves(machine: Host, net: Lan, mode: str) -> None:
    with dnsmasq(net.router.place, RANGE) as server:
        create(machine, "-o", f"macvlan_mode={mode}")
        assert server.leases() == {}
        assert shown(machine)["IPAM"]["Config"] == [{"Subnet": "192.168.32.0/24", "Gateway": ROUTER4}]
        web = joined(machine, "web")
        address, name, client = server.leases()[web.mac]
        assert (name, client) == ("web", f"01:{web.mac}")
        assert addresses(web) == [f"{address}/24"]
        web.run("ping", "-nqc1", "-W2", ROUTER4)
        (route,) = web.ip("-4", "route", "show", "default")
        assert route["gateway"] == ROUTER4
        lease = shown(machine)["Status"]["Linkspan"]["linkspan.leases"]
        assert re.fullmatch(rf"{address} \([0-9a-f]{{12}}\) from {ROUTER4} until [0-9TZ:-]+", lease)
        machine.linkspan("rm", "-f", "web")
        wait_for(lambda: server.leases() == {}, "dnsmasq to have its address back")
        assert server.count("DHCPRELEASE") == 1


def test_many_at_once_all_have_leases_of_their_own(machine: Host, net: Lan) -> None:
    with dnsmasq(net.router.place, RANGE) as server:
        create(machine)
        names = [f"box{number}" for number in range(20)]
        with ThreadPoolExecutor(20) as pool:
            replies = list(pool.map(lambda name: try_sandbox(machine, name), names))
        assert [reply.status for reply in replies] == [201] * 20, replies
        containers = shown(machine)["Containers"].values()
        lent = server.leases()
        assert {each["MacAddress"]: each["IPv4Address"] for each in containers} == {
            mac: f"{address}/24" for mac, (address, _, _) in lent.items()
        }
        assert len({address for address, _, _ in lent.values()}) == 20
        purge(machine)
        wait_for(lambda: server.leases() == {}, "dnsmasq to have all its addresses back")


def test_a_wanted_address_is_had_or_refused(machine: Host, net: Lan) -> None:
    with dnsmasq(net.router.place, RANGE) as server:
        create(machine)
        assert try_sandbox(machine, "web", IPAMConfig={"IPv4Address": "192.168.32.120"}).status == 201
        assert [address for address, _, _ in server.leases().values()] == ["192.168.32.120"]
        refused = try_sandbox(machine, "other", IPAMConfig={"IPv4Address": "192.168.32.50"})
        assert refused.status == 409
        assert re.search(r"on eth1, offered is 192.168.32.1\d\d \(192.168.32.1\) instead", refused.message)
        assert len(server.leases()) == 1


def test_a_server_with_no_address_left_fails_the_join_in_bounded_time(machine: Host, net: Lan) -> None:
    with dnsmasq(net.router.place, "192.168.32.100,192.168.32.100") as server:
        create(machine)
        joined(machine, "web")
        begin = time.monotonic()
        refused = try_sandbox(machine, "other")
        assert time.monotonic() - begin < 25
        assert refused.status == 504
        assert "network pub: no DHCP server on eth1 gave an address in time" in refused.message
        assert len(server.leases()) == 1
        assert [each["Name"] for each in machine.api("GET", "/linkspan/sandboxes?all=1")] == ["web"]


def test_an_address_that_somebody_has_is_declined(machine: Host, net: Lan) -> None:
    machine.run("ip", "addr", "add", "192.168.32.100/32", "dev", "lo")
    try:
        with dnsmasq(net.router.place, RANGE, "--dhcp-sequential-ip") as server:
            create(machine)
            assert addresses(joined(machine, "web")) == ["192.168.32.101/24"]
            assert server.count("DHCPDECLINE") == 1
    finally:
        machine.run("ip", "addr", "del", "192.168.32.100/32", "dev", "lo")


@pytest.mark.parametrize("mode", ["bridge", "passthru"])
def test_a_lease_is_renewed_by_its_server_alone(machine: Host, net: Lan, mode: str) -> None:
    with dnsmasq(net.router.place, RANGE, *SOON) as server:
        create(machine, "-o", f"macvlan_mode={mode}")
        web = joined(machine, "web")
        before, first, said = addresses(web), expiry(machine), len(machine.log())
        wait_for(lambda: server.count("DHCPACK") >= 3, lambda: f"two renewals: {server.log()}", 20)
        wait_for(lambda: expiry(machine) > first, "the lease to go on", 5)
        assert "could not be gone on with" not in machine.log()[said:]
        assert server.count("DHCPDISCOVER") == 2  # one of them the network's
        assert addresses(web) == before


def test_a_refused_endpoint_moves_to_the_address_that_it_gets(machine: Host, net: Lan) -> None:
    with dnsmasq(net.router.place, RANGE, *SOON):
        create(machine)
        web, other = joined(machine, "web"), joined(machine, "other")
        (before,) = addresses(web)
        mac = web.ip("link", "show", "dev", "eth0")[0]["address"]
    with dnsmasq(net.router.place, "192.168.32.200,192.168.32.210", *SOON) as server:

        def have_moved() -> bool:
            lent = {address for address, _, _ in server.leases().values()}
            return len(lent) == 2 and {*addresses(web), *addresses(other)} == {f"{each}/24" for each in lent}

        wait_for(have_moved, lambda: f"the endpoints to move: {server.log()} {machine.log()[-3000:]}", 30)
        assert server.count("DHCPNAK") >= 2
        (after,) = addresses(web)
        assert after != before
        assert web.ip("link", "show", "dev", "eth0")[0]["address"] == mac
        web.run("ping", "-nqc1", "-W2", ROUTER4)
        net.router.place.run("ping", "-nqc1", "-W2", after.split("/")[0])
        hosts = machine.seen(machine.run_dir / "sandboxes")
        (file,) = hosts.glob(f"{machine.api('GET', '/linkspan/sandboxes/other')['Id']}/hosts")
        wait_for(lambda: f"{after.split('/')[0]}\tweb" in file.read_text(), "the others to know of it")
        machine.linkspan("rm", "-f", "web", "other")
        wait_for(lambda: server.leases() == {}, "dnsmasq to have its addresses back")


def test_leases_outlive_linkspand(machine: Host, net: Lan) -> None:
    """Killed, and away for longer than the time to renew: the server is asked whether all is as it was."""
    with dnsmasq(net.router.place, RANGE, *SOON) as server:
        create(machine)
        web = joined(machine, "web")
        before, lent = addresses(web), server.leases()
        machine.stop(signal.SIGKILL)
        acknowledged = server.count("DHCPACK")
        late = time.monotonic() + 3.5
        wait_for(lambda: time.monotonic() > late, "the time to renew to be over")
        machine.start("--metrics-listen", "off")
        wait_for(lambda: server.count("DHCPACK") > acknowledged, "the lease to be confirmed", 10)
        assert (addresses(web), server.leases()) == (before, lent)
        assert server.count("DHCPDISCOVER") == 2
        machine.linkspan("rm", "-f", "web")
        wait_for(lambda: server.leases() == {}, "dnsmasq to have its address back")


def test_a_network_of_fixed_addresses_shares_the_parent(machine: Host, net: Lan) -> None:
    with dnsmasq(net.router.place, RANGE) as server:
        create(machine)
        fixed = ("-d", "macvlan", "-o", f"parent={PARENT}", "--subnet", "192.168.33.0/24", "fixed")
        machine.linkspan("network", "create", *fixed)
        assert addresses(joined(machine, "one", "fixed")) == ["192.168.33.2/24"]
        two = joined(machine, "two")
        assert list(server.leases()) == [two.mac]
        overlapping = create(machine, name="twin", check=False)
        assert "Pool overlaps with other one on this address space" in overlapping


def test_a_sub_interface_is_made_to_ask_on_it(machine: Host, net: Lan) -> None:
    require("vlan")
    router = net.router.place
    router.run("ip", "link", "add", "link", "eth0", "name", "eth0.50", "type", "vlan", "id", "50")
    router.run("ip", "addr", "add", "10.50.0.1/24", "dev", "eth0.50")
    router.run("ip", "link", "set", "eth0.50", "up")
    try:
        # Another server on the untagged network, which must not be heard on the tagged one.
        with dnsmasq(router, RANGE), dnsmasq(router, "10.50.0.10,10.50.0.20", ifname="eth0.50") as server:
            create(machine, parent=f"{PARENT}.50")
            web = joined(machine, "web")
            assert addresses(web)[0].startswith("10.50.0.")
            assert list(server.leases()) == [web.mac]
            web.run("ping", "-nqc1", "-W2", "10.50.0.1")
            purge(machine)
            wait_for(lambda: server.leases() == {}, "dnsmasq to have its address back")
    finally:
        router.run("ip", "link", "delete", "eth0.50")


# -- without a server, and with a bad one --------------------------------------------------------------------------


def test_without_a_server_no_network_is_made(machine: Host) -> None:
    begin = time.monotonic()
    said = create(machine, check=False)
    assert 9 < time.monotonic() - begin < 15
    assert "network pub could not be created: no DHCP server on eth1 gave an address in time" in said
    assert "or give --subnet and --gateway" in said
    assert leaks(machine, ignore={PARENT}) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-d", "macvlan"), "nobody answers DHCP on an isolated parent: give -o parent="),
        (("-d", "bridge"), "no DHCP server can be reached from a network of driver bridge"),
        (("-d", "macvlan", "-o", "parent=nosuch0"), "nosuch0"),
        (
            ("-d", "macvlan", "-o", "parent=eth1", "--subnet", "10.0.0.0/24", "--ip-range", "10.0.0.0/25"),
            "leave --ip-range and --aux-address out",
        ),
        (
            ("-d", "macvlan", "-o", "parent=eth1", "--subnet", "10.0.0.0/24", "--aux-address", "a=10.0.0.9"),
            "leave --ip-range and --aux-address out",
        ),
        (("-d", "macvlan", "-o", "parent=eth1", "--ipam-opt", "a=b"), "unknown option 'a'"),
        (("-d", "macvlan", "-o", "parent=eth1", "--ipv4=false", "--ipv6"), "gives IPv4 addresses"),
    ],
)
def test_what_cannot_be_is_refused_at_once(machine: Host, options: tuple[str, ...], why: str) -> None:
    begin = time.monotonic()
    done = machine.linkspan("network", "create", "--ipam-driver", "dhcp", *options, "pub", check=False)
    assert done.returncode != 0
    assert why in done.stderr
    assert time.monotonic() - begin < 5


def test_a_parent_that_is_down_says_so(machine: Host) -> None:
    machine.run("ip", "link", "add", "eth7", "type", "veth", "peer", "name", "eth8")
    try:
        assert "eth7 cannot be asked for DHCP: Network is down" in create(machine, parent="eth7", check=False)
    finally:
        machine.run("ip", "link", "delete", "eth7")


def test_garbage_is_ignored(machine: Host, net: Lan) -> None:
    place = net.router.place
    server = Server(mac=place.mac, lease_s=600)
    answers = server._answer

    def with_garbage(*question: Any) -> list[bytes]:
        """Before each answer what the filter lets through: to the transaction, and cut off or damaged behind it."""
        return [frame for right in answers(*question) for frame in (*damaged(Ether(right)), right)]

    def damaged(right: Packet) -> Iterator[bytes]:
        message = bytes(right[UDP].payload)
        head = Ether(src=right.src, dst=right.dst) / IP(src=right[IP].src, dst=right[IP].dst) / UDP(sport=67, dport=68)
        stranger = Ether(server.say(Ether(bytes(right)), "offer", "192.168.32.99"))
        stranger[BOOTP].xid = right[BOOTP].xid
        yield bytes(Ether(src=right.src, dst=right.dst) / Dot1Q(vlan=50) / stranger[IP])
        for body in (message[:44], message[:236], message[:241], message[:-3], message[:240] + b"\x35\x01\x05" * 9):
            yield bytes(head / body)

    server._answer = with_garbage  # type: ignore[method-assign]
    with server.serving(f"/proc/{machine.pid}/root{place.netns}", place.ifname):
        create(machine)
        assert addresses(joined(machine, "web")) == ["192.168.32.100/24"]
        assert addresses(joined(machine, "other")) == ["192.168.32.101/24"]
    assert "ignored a malformed DHCP answer" in machine.log()


def test_a_server_that_answers_the_mac_alone_is_heard(machine: Host, net: Lan) -> None:
    """Before the endpoint's device is there, and with the network card's filter in between."""
    place = net.router.place
    server = Server(mac=place.mac, lease_s=600, is_deaf_to_flags=True)
    with server.serving(f"/proc/{machine.pid}/root{place.netns}", place.ifname):
        create(machine)
        assert addresses(joined(machine, "web")) == ["192.168.32.100/24"]


def test_leases_of_seconds_are_kept(machine: Host, net: Lan) -> None:
    """Also past the server's silence in the middle of one: all are asked, and then it answers again."""
    place = net.router.place
    server = Server(mac=place.mac, lease_s=4)
    with server.serving(f"/proc/{machine.pid}/root{place.netns}", place.ifname):
        create(machine)
        web = joined(machine, "web")
        renewed = len(server.heard)
        wait_for(lambda: len(server.heard) >= renewed + 2, "two renewals", 15)
        assert {said.frame.dst for said in server.heard[renewed:]} == {place.mac}
        server.is_silent = True
        wait_for(lambda: "ff:ff:ff:ff:ff:ff" in {each.frame.dst for each in server.heard[renewed:]}, "rebinding", 15)
        server.is_silent = False
        heard = len(server.heard)
        wait_for(lambda: len(server.heard) >= heard + 3, "renewals to go on", 15)
        assert addresses(web) == ["192.168.32.100/24"]
        machine.linkspan("rm", "-f", "web")
        wait_for(lambda: server.leases == {}, "the server to have its address back")
