"""Leases of networks and endpoints, from asking to giving back."""

from __future__ import annotations

import threading
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from control.errors import (
    Conflict,
    ControlError,
    DatapathFailed,
    DeadlineExceeded,
    Forbidden,
    InvalidArgument,
)
from control.leases import hostname_of
from control.model import NetworkSpec, PoolSpec
from tests.fakes import fake_controller
from tests.leasing import FIRST, SECOND, START, V4, World, leasing_world

world = leasing_world


# -- networks --------------------------------------------------------------------------------------------------------


def test_a_network_learns_its_subnet_and_gateway_and_keeps_no_address(world: World) -> None:
    (pool,) = world.network().pools
    assert (pool.subnet, pool.gateway) == (IPv4Network("192.168.32.0/24"), IPv4Address("192.168.32.1"))
    assert world.server.kinds() == ["discover"]


def test_what_the_user_gives_is_not_asked_for(world: World) -> None:
    given = PoolSpec(subnet=IPv4Network("192.168.32.0/25"), gateway=IPv4Address("192.168.32.9"))
    (pool,) = world.network(pools=(given,)).pools
    assert (pool.subnet, pool.gateway) == (given.subnet, given.gateway)
    assert world.server.heard == []


def test_a_subnet_without_gateway_gets_the_server_s_or_none(world: World) -> None:
    given = PoolSpec(subnet=IPv4Network("192.168.32.0/25"))
    assert world.network(pools=(given,)).pools[0].gateway == IPv4Address("192.168.32.1")
    world.controller.remove_network("pub")
    world.server.extra = [("subnet_mask", "255.255.255.0")]
    assert world.network().pools[0].gateway is None
    world.sandbox()


def test_a_network_can_be_made_from_a_configuration_with_leases(world: World) -> None:
    world.network(name="settings", config_only=True)
    assert world.server.heard == []
    network = world.controller.create_network(NetworkSpec(name="pub", config_from="settings"))[0]
    assert network.pools[0].subnet == V4
    assert world.endpoint(world.sandbox()).ipv4 == IPv4Interface(f"{FIRST}/24")


def test_an_ipv6_subnet_stays_with_the_default_ipam(world: World) -> None:
    subnet = IPv6Network("fd00:32::/64")
    world.network(enable_ipv6=True, pools=(PoolSpec(subnet=subnet),))
    endpoint = world.endpoint(world.sandbox())
    assert endpoint.ipv4 == IPv4Interface("192.168.32.100/24")
    assert endpoint.ipv6 is not None
    assert endpoint.ipv6.ip in subnet


@pytest.mark.parametrize(
    ("changed", "kind", "why"),
    [
        ({"enable_ipv4": False, "enable_ipv6": True}, InvalidArgument, "gives IPv4 addresses"),
        ({"ipam_options": {"a": "b"}}, InvalidArgument, "unknown option 'a'"),
        ({"options": {"a": "b"}}, InvalidArgument, "unknown option 'a'"),
        ({"pools": (PoolSpec(gateway=FIRST),)}, InvalidArgument, "must have a corresponding subnet"),
        ({"pools": (PoolSpec(ip_range=V4),)}, InvalidArgument, "must have a corresponding subnet"),
        ({"pools": (PoolSpec(subnet=V4, ip_range=V4),)}, InvalidArgument, "leave --ip-range and --aux-address out"),
        ({"pools": (PoolSpec(subnet=V4, aux_addresses={"a": FIRST}),)}, InvalidArgument, "leave --ip-range and"),
        ({"pools": (PoolSpec(subnet=V4), PoolSpec(subnet=IPv4Network("10.0.0.0/8")))}, InvalidArgument, "one IPv4"),
        ({"pools": (PoolSpec(subnet=IPv4Network("10.0.0.0/8")),)}, Conflict, "offers 192.168.32.100, which is not in"),
        ({"driver": "null"}, Forbidden, "only one instance"),
        ({"name": "bridge"}, Forbidden, "predefined"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(
    world: World, changed: dict[str, Any], kind: type[ControlError], why: str
) -> None:
    before = world.controller.networks()
    with pytest.raises(kind, match=why):
        world.network(**changed)
    assert world.controller.networks() == before
    assert world.driver.networks == {network.id for network in before if network.driver == "bridge"}
    assert list(world.store.read("pool")) == [each for each in world.store.read("pool") if b"192.168" not in each[1]]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ([], "does not say which subnet it is for: give --subnet"),
        ([("subnet_mask", "255.255.255.128"), ("router", "192.168.32.200")], "not in subnet 192.168.32.0/25: give --g"),
    ],
)
def test_a_server_that_says_too_little_or_wrong_is_refused(world: World, extra: list[Any], why: str) -> None:
    world.server.extra = extra
    with pytest.raises(Conflict, match=why):
        world.network()


def test_no_server_is_an_error_in_bounded_time_and_nothing_is_left(world: World) -> None:
    world.server.is_silent = True
    with pytest.raises(DeadlineExceeded, match=r"network pub could not be created: no DHCP server on eth1.*--subnet"):
        world.network()
    assert world.server.elapsed_s == 10
    assert not any(network.name == "pub" for network in world.controller.networks())


def test_a_driver_without_servers_says_so(tmp_path: Path) -> None:
    controller = fake_controller(tmp_path)
    controller.start()
    with pytest.raises(InvalidArgument, match="no DHCP server can be reached from a network of driver bridge"):
        controller.create_network(NetworkSpec(name="pub", ipam_driver="dhcp"))
    controller.stop()


# -- joining and leaving ---------------------------------------------------------------------------------------------


def test_an_endpoint_has_its_lease_s_address_and_mac_and_gives_it_back(world: World) -> None:
    network = world.network()
    sandbox = world.sandbox("my_web.1")
    endpoint = world.endpoint(sandbox)
    assert endpoint.ipv4 == IPv4Interface(f"{FIRST}/24")
    assert world.server.leases == {endpoint.mac: str(FIRST)}
    assert world.server.heard[-1].options["hostname"] == b"my-web-1"
    lease = world.leases()[endpoint.id]
    assert (lease.address, lease.mac, lease.expires) == (FIRST, endpoint.mac, START + timedelta(seconds=120))
    shown = world.controller.network_info(network)["linkspan.leases"]
    assert shown == f"{FIRST} ({endpoint.id[:12]}) from 192.168.32.1 until 2026-11-24T12:02:00Z"
    world.controller.remove_sandbox(sandbox.id)
    assert world.server.leases == {}
    assert world.leases() == {}
    assert "linkspan.leases" not in world.controller.network_info(network)
    world.controller.remove_network("pub")


def test_a_wanted_address_is_had_or_refused(world: World) -> None:
    world.network()
    assert world.endpoint(world.sandbox(ipv4=IPv4Address("192.168.32.110"))).ipv4 == IPv4Interface("192.168.32.110/24")
    world.server.offers = "192.168.32.5"
    with pytest.raises(
        Conflict, match=r"sandbox other could not be .* offered is 192.168.32.5 \(192.168.32.1\) instead"
    ):
        world.sandbox("other", ipv4=IPv4Address("192.168.32.111"))
    assert len(world.server.leases) == len(world.leases()) == 1


def test_an_offer_outside_the_network_is_not_taken(world: World) -> None:
    world.network()
    world.server.offers = "10.0.0.1"
    with pytest.raises(Conflict, match=r"offered is 10.0.0.1"):
        world.sandbox()
    assert world.server.leases == {}


def test_no_server_fails_the_join_in_bounded_time(world: World) -> None:
    world.network()
    world.server.is_silent = True
    with pytest.raises(DeadlineExceeded, match=r"sandbox web .* network pub: no DHCP server on eth1 gave"):
        world.sandbox()
    assert world.server.elapsed_s == 20
    assert world.controller.sandboxes() == []


def test_a_join_that_fails_gives_its_address_back(world: World) -> None:
    world.network()
    world.driver.failing["endpoint"] = OSError("no")
    with pytest.raises(DatapathFailed):
        world.sandbox()
    assert world.server.kinds()[-1] == "release"
    assert world.server.leases == world.leases() == {}


def test_an_address_that_somebody_has_is_declined_and_another_got(world: World) -> None:
    world.network()
    world.driver.in_use = {FIRST, SECOND}
    assert world.endpoint(world.sandbox()).ipv4 == IPv4Interface("192.168.32.102/24")
    assert world.server.declined == {str(FIRST), str(SECOND)}
    assert "release" not in world.server.kinds()
    assert len(world.leases()) == 1


def test_an_address_that_ipam_knows_of_is_declined(world: World) -> None:
    world.network(pools=(PoolSpec(subnet=V4, gateway=FIRST),))
    with pytest.raises(Forbidden, match="already in use"):
        world.sandbox()
    assert world.server.declined == {str(FIRST)}
    assert world.endpoint(world.sandbox()).ipv4 == IPv4Interface(f"{SECOND}/24")


def test_a_join_that_cannot_be_asks_no_server(world: World) -> None:
    world.network()
    sandbox = world.sandbox()
    heard = len(world.server.heard)
    with pytest.raises(Forbidden, match="already exists"):
        world.controller.connect("pub", sandbox.id)
    with pytest.raises(InvalidArgument, match="no configured subnet contains it"):
        world.sandbox("other", ipv4=IPv4Address("10.0.0.1"))
    with pytest.raises(InvalidArgument, match="invalid MAC"):
        world.sandbox("other", mac="nonsense")
    with pytest.raises(Conflict, match=r"MAC address .* is in use"):
        world.sandbox("other", mac=world.endpoint(sandbox).mac)
    assert len(world.server.heard) == heard


def test_many_joins_at_once_all_get_addresses_of_their_own(world: World) -> None:
    world.network()
    world.server.pool = list(range(10, 90))
    failures: list[BaseException] = []

    def join(number: int) -> None:
        try:
            world.sandbox(f"box{number}")
        except ControlError as error:
            failures.append(error)

    threads = [threading.Thread(target=join, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    addresses = {lease.address for lease in world.leases().values()}
    # Two may be offered the same, of which the server refuses one, who asks again.
    assert len(addresses) + len(failures) == 20
    assert failures == []


@pytest.mark.parametrize(
    ("name", "hostname"),
    [("web", "web"), ("my_web.1", "my-web-1"), ("a" * 100, "a" * 63), ("x-_", "x"), ("1", "1")],
)
def test_hostnames_are_labels(name: str, hostname: str) -> None:
    assert hostname_of(name) == hostname
