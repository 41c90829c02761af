"""Endpoints of an engine from many threads at once: nothing is given twice, and nothing is left."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from control.controller import NetworkController
from control.errors import Conflict, NotFound
from control.model import Endpoint, EndpointId, NetworkId, NetworkSpec, PoolSpec
from control.ports import PortWish
from control.remote import RemoteNetworks
from tests.plugin_server import KEY, NET, Host, ident

N = NetworkId(NET)
SPEC = NetworkSpec(name="net", pools=(PoolSpec(subnet=IPv4Network("10.9.0.0/16"), gateway=IPv4Address("10.9.0.1")),))
WEB = [PortWish(protocol="tcp", port=80, host_port=8080)]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    host.boot().remote.create_network(N, SPEC)
    yield host
    host.controller.stop()


@pytest.fixture
def remote(host: Host) -> RemoteNetworks:
    return host.controller.remote


def create(remote: RemoteNetworks, name: str, v4: IPv4Interface) -> Endpoint:
    return remote.create_endpoint(N, EndpointId(name), ipv4=v4, ipv6=None, mac=None, options={})


def addresses(number: int) -> IPv4Interface:
    return IPv4Interface(f"10.9.{1 + number // 250}.{1 + number % 250}/16")


def check_unique(controller: NetworkController, known: Sequence[str]) -> None:
    endpoints = controller.endpoints()
    assert len({endpoint.slot for endpoint in endpoints}) == len(endpoints)
    assert len({endpoint.ipv4 for endpoint in endpoints}) == len(endpoints)
    assert len({endpoint.mac for endpoint in endpoints}) == len(endpoints)
    assert {endpoint.id for endpoint in endpoints} <= set(known)


def test_a_hundred_endpoints_from_ten_threads_some_of_them_twice(host: Host, remote: RemoteNetworks) -> None:
    names = [EndpointId(ident(number)) for number in range(100)]
    jobs = [*range(100), *range(0, 100, 3)]  # a third of the ids from two threads
    random.Random(3).shuffle(jobs)
    empty = host.state()

    def make(number: int) -> None:
        made = create(remote, names[number], addresses(number))
        assert made.ipv4 == addresses(number)
        remote.join(N, names[number], f"/sandbox/{number}")
        wish = PortWish(protocol="tcp", port=80, host_port=20000 + number)
        assert [port.host_port for port in remote.publish(N, names[number], [wish]).ports] == [20000 + number]

    def take_down(number: int) -> None:
        remote.unpublish(N, names[number])
        remote.leave(N, names[number])
        remote.delete_endpoint(N, names[number])

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(make, jobs))
        check_unique(host.controller, names)
        assert sorted(endpoint.slot for endpoint in host.controller.endpoints()) == list(range(100))
        assert set(host.driver.endpoints) == set(names)
        assert len(host.ports.held) == len(host.driver.published) == 100
        list(pool.map(take_down, jobs))
    assert host.state() == empty


def test_lives_that_overlap_end_in_nothing(host: Host, remote: RemoteNetworks) -> None:
    """Two threads play the life of the same endpoint; either may find it deleted by the other."""
    names = [EndpointId(ident(number)) for number in range(50)]
    empty = host.state()

    def live(number: int) -> None:
        name = names[number % 50]
        for call in (
            lambda: create(remote, name, addresses(number % 50)),
            lambda: remote.join(N, name, "/sandbox"),
            lambda: remote.publish(N, name, [PortWish(protocol="udp", port=53, host_port=20000 + number % 50)]),
            lambda: remote.leave(N, name),
            lambda: remote.delete_endpoint(N, name),
        ):
            try:
                call()
            except NotFound:
                continue
        check_unique(host.controller, names)

    order = [*range(100)] * 2
    random.Random(4).shuffle(order)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(live, order))
    assert host.state() == empty


def test_of_many_who_want_one_address_or_port_one_gets_it(host: Host, remote: RemoteNetworks) -> None:
    begin = threading.Barrier(10)

    def rush(number: int) -> str:
        name = EndpointId(ident(number))
        create(remote, name, addresses(number))
        remote.join(N, name, KEY)
        begin.wait(10)
        try:
            remote.publish(N, name, WEB)
        except Conflict as refused:
            return str(refused).partition(" by ")[0]
        return "mine"

    with ThreadPoolExecutor(10) as pool:
        refused = "port *:8080->80/tcp cannot be published: *:8080->80/tcp is published"
        assert sorted(pool.map(rush, range(10))) == ["mine", *[refused] * 9]
    assert len(host.ports.held) == len(host.driver.published) == 1


def test_of_many_who_make_one_network_all_get_the_same(host: Host, remote: RemoteNetworks) -> None:
    other = NetworkId(ident("other"))
    spec = NetworkSpec(name="other", pools=(PoolSpec(subnet=IPv4Network("10.10.0.0/16")),))
    with ThreadPoolExecutor(10) as pool:
        made = list(pool.map(lambda _: remote.create_network(other, spec), range(20)))
        assert {network.segment for network in made} == {made[0].segment}
        list(pool.map(lambda _: remote.delete_network(other), range(20)))
    assert other not in host.driver.networks
