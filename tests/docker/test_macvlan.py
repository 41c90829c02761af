"""Containers of dockerd on macvlan networks: on the network of the machine at the other end of the cable."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docker.image import NAME
from tests.docker.lab import SLEEP, Container, Lab
from tests.hosts import wait_for
from tests.netns.lan import parent_state
from tests.netns.outside import OUTSIDE4, OUTSIDE6, UPLINK
from tests.netns.test_macvlan_limit import LIMIT, SENT, storm

pytestmark = pytest.mark.root

ADDRESSES = ("--subnet", "203.0.113.0/24", "--gateway", OUTSIDE4, "--ip-range", "203.0.113.64/27")
ADDRESSES6 = ("--ipv6", "--subnet", "2001:db8:9::/64", "--gateway", OUTSIDE6, "--ip-range", "2001:db8:9::40/122")
MACVLAN = ("-o", "linkspan.driver=macvlan")


@pytest.mark.parametrize("ipam", ["default", "linkspan"])
def test_containers_are_on_the_existing_network(lab: Lab, ipam: str) -> None:
    before = parent_state(lab.host, UPLINK)
    lab.network("pub", *MACVLAN, "-o", f"parent={UPLINK}", "--ipam-driver", ipam, *ADDRESSES, *ADDRESSES6)
    a, b = lab.run("pub-a", "pub"), lab.run("pub-b", "pub", "--mac-address", "02:11:22:33:44:55")
    assert (a.link()["linkinfo"]["info_kind"], b.mac) == ("macvlan", "02:11:22:33:44:55")
    assert (a.gateway(4), a.gateway(6)) == (OUTSIDE4, OUTSIDE6)
    for target in (b.ip4, b.ip6, OUTSIDE4, OUTSIDE6):
        assert a.pings(target), target
    assert lab.outside.pings(a.ip4), "the outside reaches containers without a route or a published port"
    lab.docker("restart", "-t", "0", "pub-a")
    a = type(a)(lab, "pub-a", "pub")
    assert a.pings(OUTSIDE4)
    lab.host.stop(9)
    lab.host.start()
    assert a.pings(b.ip4)
    lab.remove("pub-a", "pub-b")
    lab.docker("network", "rm", "pub")
    assert parent_state(lab.host, UPLINK) == before


def test_without_a_parent_containers_have_each_other(lab: Lab) -> None:
    lab.network("alone", *MACVLAN, "--internal", "--subnet", "10.66.0.0/24")
    a, b = lab.run("alone-a", "alone"), lab.run("alone-b", "alone")
    assert a.pings(b.ip4)
    assert a.default_route() is None
    assert a.resolves("alone-b") == [b.ip4]
    lab.remove("alone-a", "alone-b")
    lab.docker("network", "rm", "alone")


def test_published_ports_and_parents_that_are_not_there_are_refused(lab: Lab) -> None:
    done = lab.docker("network", "create", "-d", "linkspan", *MACVLAN, "-o", "parent=eth7", "bad", check=False)
    assert "parent eth7 does not exist" in done.stderr
    lab.network("pub", *MACVLAN, "-o", f"parent={UPLINK}", *ADDRESSES)

    run = lab.docker("run", "-d", "--name", "publisher", "--network", "pub", "-p", "8080:80", NAME, *SLEEP, check=False)
    assert "the driver macvlan publishes no ports" in run.stderr
    lab.remove("publisher")
    lab.docker("network", "rm", "pub")


def test_containers_are_as_before_when_their_parent_was_away(lab: Lab) -> None:
    """The engine is told of nothing, and ends them as always."""

    def plug_in() -> None:
        lab.host.run("ip", "link", "add", "eth8", "type", "veth", "peer", "name", "far8")
        lab.host.run("sh", "-c", "ip link set eth8 up; ip link set far8 up")

    def inside(container: Container) -> Any:
        links = [(link["ifname"], link["address"], link["addr_info"]) for link in container.ip("addr")[1:]]
        addresses = {(ifname, mac, a["local"], a["prefixlen"]) for ifname, mac, each in links for a in each}
        routes = container.ip("route") + container.ip("-6", "route")
        return addresses, {(route["dst"], route.get("gateway"), route["dev"]) for route in routes}

    plug_in()
    lab.network("pub", *MACVLAN, "-o", "parent=eth8", *ADDRESSES, *ADDRESSES6)
    a, b = lab.run("pub-a", "pub"), lab.run("pub-b", "pub")
    assert a.pings(b.ip4)
    assert a.pings(b.ip6)
    before = inside(a), inside(b)
    for is_away in (False, True):
        if is_away:
            lab.host.stop(9)
        lab.host.run("ip", "link", "delete", "eth8")
        plug_in()
        if is_away:
            lab.host.start()
        for target in (b.ip4, b.ip6):
            wait_for(lambda t=target: a.pings(t, wait_s=1), lambda: f"a to reach b:\n{lab.host.log()}", 10)  # type: ignore[misc]
        assert (inside(a), inside(b)) == before
    lab.docker("restart", "-t", "0", "pub-a")
    assert type(a)(lab, "pub-a", "pub").pings(b.ip4)
    lab.remove("pub-a", "pub-b")
    lab.docker("network", "rm", "pub")
    lab.host.run("ip", "link", "delete", "eth8")


def test_a_container_cannot_flood_the_others(lab: Lab) -> None:
    limit = ("-o", f"linkspan.broadcast_limit={LIMIT}")
    lab.network("pub", *MACVLAN, "-o", f"parent={UPLINK}", *limit, *ADDRESSES)
    a, b = lab.run("pub-a", "pub"), lab.run("pub-b", "pub")
    # Until linkspand hears that the engine has moved the device there is no limit.
    wait_for(lambda: storm(a, b)[0][0] < SENT, "the limit")
    (local, outside), allowed = storm(a, b, lab.outside)
    assert outside == local <= allowed
    lab.docker("restart", "-t", "0", "pub-a")
    again = Container(lab, "pub-a", "pub")
    wait_for(lambda: storm(again, b)[0][0] < SENT, "the limit")
    lab.remove("pub-a", "pub-b")
    lab.docker("network", "rm", "pub")


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_containers_are_on_the_existing_network_by_veth_pairs(lab: Lab, hook: str) -> None:
    before = parent_state(lab.host, UPLINK)
    device = ("-o", "linkspan.macvlan_device=veth", "-o", f"linkspan.parent_hook={hook}")
    lab.network("pub", *MACVLAN, "-o", f"parent={UPLINK}", *device, *ADDRESSES, *ADDRESSES6)
    a, b = lab.run("pub-a", "pub"), lab.run("pub-b", "pub")
    assert a.link()["linkinfo"]["info_kind"] == "veth"
    for is_again in (False, True):
        for target in (b.ip4, b.ip6, OUTSIDE4, OUTSIDE6):
            assert a.pings(target), target
        assert lab.outside.pings(a.ip4)
        if not is_again:
            lab.docker("restart", "-t", "0", "pub-a")
            a = Container(lab, "pub-a", "pub")
            lab.host.stop(9)
            lab.host.start()
    lab.remove("pub-a", "pub-b")
    lab.docker("network", "rm", "pub")
    assert parent_state(lab.host, UPLINK) == before
