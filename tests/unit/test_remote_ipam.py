"""Addresses for an engine: what it may have, what it is refused and in which words, and what a repeated call gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path

import pytest

from control.errors import ControlError, Exhausted, Forbidden, InvalidArgument, NotFound, StoreError
from control.ipam.pools import PoolIpam
from control.model import EndpointId, NetworkId, NetworkSpec, PoolSpec, Subnet
from control.remote_ipam import RemoteIpam
from tests.plugin_server import EP, KEY, NET, Host

N, E = NetworkId(NET), EndpointId(EP)
NET9 = IPv4Network("10.9.0.0/16")
POOL = "docker/10.9.0.0/16"
GATEWAY = IPv4Address("10.9.0.1")
MAC, MAC2 = "02:42:0a:09:00:02", "02:42:0a:09:00:03"
DEFAULTS = [
    *(IPv4Network(f"172.{number}.0.0/16") for number in range(17, 32)),
    *IPv4Network("192.168.0.0/16").subnets(new_prefix=20),
]
"""Docker's own list (moby, daemon/libnetwork/ipamutils)."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    host.boot()
    yield host
    host.controller.stop()


@pytest.fixture
def ipam(host: Host) -> RemoteIpam:
    return host.controller.remote_ipam


def pool(host: Host, subnet: Subnet | None = NET9, ip_range: Subnet | None = None, v6: bool = False) -> Subnet:
    return host.controller.remote_ipam.request_pool(subnet, ip_range, v6=v6).subnet


def take(host: Host, address: str = "", mac: str = "", gateway: bool = False, pool_id: str = POOL) -> str:
    wanted = ip_address(address) if address else None
    return str(host.controller.remote_ipam.request_address(pool_id, wanted, gateway=gateway, mac=mac))


def refuses(host: Host, kind: type[ControlError], says: str, call: Callable[[], object]) -> None:
    before = host.state()
    with pytest.raises(kind, match=says):
        call()
    assert host.state() == before


def make_network(host: Host, subnet: Subnet = NET9, gateway: IPv4Address | None = GATEWAY) -> None:
    spec = NetworkSpec(name="net", pools=(PoolSpec(subnet=subnet, gateway=gateway),))
    host.controller.remote.create_network(N, spec)


def make_endpoint(host: Host, address: str, mac: str, name: str = EP) -> None:
    host.controller.remote.create_endpoint(
        N, EndpointId(name), ipv4=IPv4Interface(address), ipv6=None, mac=mac, options={}
    )


# -- pools -----------------------------------------------------------------------------------------------------------


def test_default_pools_overlap_nothing_and_end_in_words(host: Host) -> None:
    """In the way: Linkspan's predefined network and one with a subnet of its own, a route of the host, a network of
    Docker's with addresses from elsewhere, and the pools given out before."""
    own = host.controller.network("bridge").pools[0].subnet
    host.controller.create_network(NetworkSpec(name="own", pools=(PoolSpec(subnet=IPv4Network("172.20.0.0/16")),)))
    host.routes = [IPv4Network("172.21.5.0/24"), IPv4Network("192.168.0.0/18"), IPv6Network("fd00::/8")]
    make_network(host, IPv4Network("172.22.0.0/16"), None)
    in_the_way = [own, IPv4Network("172.20.0.0/16"), IPv4Network("172.22.0.0/16"), *host.routes[:2]]
    free = [net for net in DEFAULTS if not any(net.overlaps(other) for other in in_the_way)]
    assert [pool(host, None) for _ in free] == free
    refuses(host, Exhausted, "all predefined address pools have been fully subnetted", lambda: pool(host, None))


def test_asking_again_and_again_gives_a_new_pool_each_time(host: Host) -> None:
    """The engine keeps asking until a pool suits it, and only then gives the others back."""
    before = host.state()
    got = [pool(host, None) for _ in range(5)]
    assert len({str(subnet) for subnet in got}) == 5
    for subnet in got:
        host.controller.remote_ipam.release_pool(f"docker/{subnet}")
    assert host.state() == before
    assert pool(host, None) == got[0]


def test_default_pools_of_ipv6_are_unique_local_and_differ(host: Host) -> None:
    got = [pool(host, None, v6=True) for _ in range(3)]
    assert all(subnet.prefixlen == 64 and subnet.subnet_of(IPv6Network("fd00::/8")) for subnet in got)  # type: ignore[arg-type]
    assert len(set(got)) == 3
    host.boot()
    assert pool(host, None, v6=True).supernet(new_prefix=48) == got[0].supernet(new_prefix=48)


@pytest.mark.parametrize(
    ("subnet", "ip_range", "pool_id"),
    [
        ("10.9.0.0/16", None, "docker/10.9.0.0/16"),
        ("10.9.0.0/16", "10.9.4.0/24", "docker/10.9.0.0/16/10.9.4.0/24"),
        ("10.9.0.0/16", "10.9.0.0/16", "docker/10.9.0.0/16/10.9.0.0/16"),
        ("10.9.0.0/31", None, "docker/10.9.0.0/31"),
        ("fd00:9::/64", None, "docker/fd00:9::/64"),
        ("fd00:9::/64", "fd00:9::8000/113", "docker/fd00:9::/64/fd00:9::8000/113"),
    ],
)
def test_a_pool_that_is_asked_for_is_given_and_released(
    host: Host, ipam: RemoteIpam, subnet: str, ip_range: str | None, pool_id: str
) -> None:
    before = host.state()
    part = ip_network(ip_range) if ip_range else None
    got = ipam.request_pool(ip_network(subnet), part, v6=":" in subnet)
    assert (got.id, got.subnet, got.ip_range) == (pool_id, ip_network(subnet), part)
    for _ in range(2):
        ipam.release_pool(pool_id)
        assert host.state() == before


@pytest.mark.parametrize("subnet", ["10.9.0.0/16", "10.0.0.0/8", "10.9.128.0/17", "10.9.255.252/30"])
def test_an_overlap_is_refused_in_dockers_words(host: Host, subnet: str) -> None:
    pool(host)
    wanted = ip_network(subnet)
    refuses(host, Forbidden, "^Pool overlaps with other one on this address space", lambda: pool(host, wanted))


@pytest.mark.parametrize(
    ("subnet", "ip_range", "says"),
    [
        ("10.9.0.0/16", "10.10.0.0/24", "invalid address subpool"),
        ("10.9.0.0/16", "10.0.0.0/8", "invalid address subpool"),
        ("10.9.0.0/16", "fd00::/64", "invalid address subpool"),
        ("127.0.0.0/8", None, "invalid address pool"),
        ("224.0.0.0/4", None, "invalid address pool"),
        ("0.0.0.0/0", None, "invalid address pool"),
        ("ff02::/16", None, "invalid address pool"),
    ],
)
def test_pools_that_can_never_work_are_refused(host: Host, subnet: str, ip_range: str | None, says: str) -> None:
    part = ip_network(ip_range) if ip_range else None
    refuses(host, InvalidArgument, says, lambda: pool(host, ip_network(subnet), part, v6=":" in subnet))


def test_the_same_subnet_may_be_linkspans_and_dockers_to_ask_for(host: Host) -> None:
    """Address spaces differ; the driver refuses the second network, when one is made."""
    own = host.controller.network("bridge").pools[0]
    assert pool(host, own.subnet) == own.subnet
    host.controller.remote_ipam.release_pool(f"docker/{own.subnet}")
    assert host.controller.pool_usage(host.controller.network("bridge"))


@pytest.mark.parametrize("pool_id", ["local/172.17.0.0/16", "", "docker", "docker-global/10.9.0.0/16", "10.9.0.0/16"])
def test_pools_that_are_not_dockers_are_neither_released_nor_given_from(host: Host, pool_id: str) -> None:
    ipam = host.controller.remote_ipam
    for call in (
        lambda: ipam.release_pool(pool_id),
        lambda: take(host, pool_id=pool_id),
        lambda: ipam.release_address(pool_id, IPv4Address("172.17.0.1")),
    ):
        refuses(host, InvalidArgument, "invalid address pool", call)


def test_pools_that_are_not_there_give_nothing_and_take_everything_back(host: Host, ipam: RemoteIpam) -> None:
    for pool_id in ("docker/10.8.0.0/16", "docker/", "docker/x", "docker/10.8.0.0/16/10.8.0.0/24", "docker/a|b"):
        refuses(host, NotFound, "does not contain specified address pool", lambda p=pool_id: take(host, pool_id=p))  # type: ignore[misc]
        before = host.state()
        ipam.release_pool(pool_id)
        ipam.release_address(pool_id, IPv4Address("10.8.0.1"))
        assert host.state() == before


# -- addresses -------------------------------------------------------------------------------------------------------


def test_addresses_come_with_the_subnets_prefix_length(host: Host, ipam: RemoteIpam) -> None:
    pool(host, NET9, IPv4Network("10.9.4.0/24"))
    pool_id = "docker/10.9.0.0/16/10.9.4.0/24"
    assert take(host, "10.9.0.1", gateway=True, pool_id=pool_id) == "10.9.0.1/16"
    assert ip_address(take(host, pool_id=pool_id).partition("/")[0]) in IPv4Network("10.9.4.0/24")
    six = ipam.request_pool(IPv6Network("fd00:9::/64"), None, v6=True)
    assert take(host, pool_id=six.id) == "fd00:9::1/64"
    assert take(host, "fd00:9::8", pool_id=six.id) == "fd00:9::8/64"


@pytest.mark.parametrize(
    ("address", "kind", "says"),
    [
        ("10.9.0.9", Forbidden, "^Address already in use"),
        ("10.9.0.1", Forbidden, "^Address already in use"),
        ("10.10.0.1", InvalidArgument, "^requested address is out of range"),
        ("fd00::1", InvalidArgument, "^requested address is out of range"),
        ("10.9.0.0", InvalidArgument, "^requested address is reserved"),
        ("10.9.255.255", InvalidArgument, "^requested address is reserved"),
    ],
)
def test_addresses_that_cannot_be_had_are_refused_in_dockers_words(
    host: Host, address: str, kind: type[ControlError], says: str
) -> None:
    pool(host)
    take(host, "10.9.0.1", gateway=True)
    take(host, "10.9.0.9")
    refuses(host, kind, says, lambda: take(host, address))


def test_a_pool_without_addresses_left_says_so_and_a_released_one_can_be_had(host: Host, ipam: RemoteIpam) -> None:
    small = IPv4Network("10.9.0.0/29")
    pool(host, small)
    got = [take(host, pool_id="docker/10.9.0.0/29") for _ in range(6)]
    assert len(set(got)) == 6
    refuses(host, Exhausted, "^no available addresses on this pool", lambda: take(host, pool_id="docker/10.9.0.0/29"))
    ipam.release_address("docker/10.9.0.0/29", IPv4Address("10.9.0.3"))
    assert take(host, pool_id="docker/10.9.0.0/29") == "10.9.0.3/29"


def test_releasing_what_is_not_taken_changes_nothing(host: Host, ipam: RemoteIpam) -> None:
    pool(host)
    take(host, "10.9.0.2")
    before = host.state()
    for address in ("10.9.0.3", "10.9.0.0", "10.10.0.1", "fd00::1", "::ffff:10.9.0.2"):
        ipam.release_address(POOL, ip_address(address))
    assert host.state() == before


def test_an_address_that_an_endpoint_has_is_not_released(host: Host, ipam: RemoteIpam) -> None:
    """A release that comes late is for an endpoint that was lost; the address has gone to this one since."""
    pool(host)
    make_network(host)
    given = take(host, mac=MAC)
    make_endpoint(host, given, MAC)
    before = host.state()
    ipam.release_address(POOL, IPv4Interface(given).ip)
    assert host.state() == before
    host.controller.remote.delete_endpoint(N, E)
    ipam.release_address(POOL, IPv4Interface(given).ip)
    assert take(host, given.partition("/")[0], mac=MAC2) == given


# -- repeated calls --------------------------------------------------------------------------------------------------


def test_a_repeated_request_of_a_mac_gets_the_same_address_until_an_endpoint_has_it(host: Host) -> None:
    pool(host)
    take(host, "10.9.0.1", gateway=True)
    make_network(host)
    first = take(host, mac=MAC)
    before = host.state()
    assert [take(host, mac=MAC), take(host, first.partition("/")[0], mac=MAC)] == [first, first]
    assert host.state() == before
    assert take(host, mac=MAC2) != first
    make_endpoint(host, first, MAC)
    again = take(host, mac=MAC)  # another container with the same --mac-address
    assert again != first
    assert IPv4Interface(again).ip in NET9


def test_an_address_whose_endpoint_got_another_mac_is_not_given_twice(host: Host) -> None:
    pool(host)
    make_network(host)
    first = take(host, mac=MAC)
    make_endpoint(host, first, MAC2)
    assert take(host, mac=MAC) != first


def test_a_repeated_request_of_a_mac_is_recognised_after_a_restart(host: Host) -> None:
    pool(host)
    make_network(host)
    first = take(host, mac=MAC)
    host.boot()
    assert take(host, mac=MAC) == first
    make_endpoint(host, first, MAC)
    host.boot()
    assert take(host, mac=MAC) != first


def test_a_repeated_request_for_another_address_gets_that(host: Host) -> None:
    pool(host)
    make_network(host)
    assert take(host, mac=MAC) == "10.9.0.1/16"
    assert take(host, "10.9.0.77", mac=MAC) == "10.9.0.77/16"


def test_after_its_release_a_mac_gets_a_new_address(host: Host, ipam: RemoteIpam) -> None:
    pool(host)
    make_network(host)
    first = take(host, mac=MAC)
    make_endpoint(host, first, MAC)
    host.controller.remote.delete_endpoint(N, E)
    ipam.release_address(POOL, IPv4Interface(first).ip)
    assert take(host, mac=MAC) != first


def test_without_a_mac_every_request_gets_an_address_of_its_own(host: Host) -> None:
    pool(host)
    assert len({take(host) for _ in range(5)}) == 5
    take(host, "10.9.0.77")
    refuses(host, Forbidden, "^Address already in use", lambda: take(host, "10.9.0.77"))


def test_the_gateway_can_be_asked_for_again_until_its_network_is_there(host: Host) -> None:
    pool(host)
    assert [take(host, "10.9.0.1", gateway=True) for _ in range(2)] == ["10.9.0.1/16"] * 2
    assert take(host, gateway=True) == "10.9.0.1/16"
    host.boot()
    assert take(host, gateway=True) == "10.9.0.1/16"
    make_network(host)
    refuses(host, Forbidden, "^Address already in use", lambda: take(host, "10.9.0.1", gateway=True))


@pytest.mark.parametrize("ip_range", [None, IPv4Network("10.9.4.0/24")])
def test_a_pool_whose_answer_was_lost_with_a_restart_is_adopted_once(host: Host, ip_range: IPv4Network | None) -> None:
    pool(host, NET9, ip_range)
    host.boot()
    before = host.state()
    assert pool(host, NET9, ip_range) == NET9
    assert host.state() == before
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host, NET9, ip_range))


def test_a_pool_of_before_a_restart_is_not_adopted_for_another_range(host: Host) -> None:
    pool(host, NET9, IPv4Network("10.9.4.0/24"))
    host.boot()
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host))
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host, NET9, IPv4Network("10.9.4.0/25")))


def test_a_pool_in_use_is_never_adopted(host: Host, ipam: RemoteIpam) -> None:
    pool(host)
    take(host, "10.9.0.1", gateway=True)
    host.boot()
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host))
    host.boot()
    host.controller.remote_ipam.release_address(POOL, GATEWAY)
    take(host)
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host))


def test_a_pool_of_a_network_is_never_adopted_though_nobody_has_an_address_of_it(host: Host) -> None:
    """A network without a gateway. Whoever was given its pool would release it, once the second network was refused."""
    pool(host)
    make_network(host, gateway=None)
    host.boot()
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host))


def test_a_pool_of_before_a_restart_that_was_used_since_is_not_adopted(host: Host) -> None:
    pool(host)
    host.boot()
    address = take(host)
    host.controller.remote_ipam.release_address(POOL, IPv4Interface(address).ip)
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host))


def test_a_pool_of_before_a_restart_that_was_released_is_a_new_one(host: Host) -> None:
    pool(host)
    host.boot()
    host.controller.remote_ipam.release_pool(POOL)
    pool(host)
    refuses(host, Forbidden, "^Pool overlaps", lambda: pool(host))


# -- faults and crowds -----------------------------------------------------------------------------------------------


def stored(host: Host) -> PoolIpam:
    """The state of addresses that the next linkspand will begin with."""
    ipam = PoolIpam()
    ipam.load(host.store)
    return ipam


def test_a_request_that_cannot_be_stored_takes_nothing(host: Host) -> None:
    host.store.arm([0])
    refuses(host, StoreError, "no space left", lambda: pool(host))
    pool(host)
    host.store.arm([0])
    refuses(host, StoreError, "no space left", lambda: take(host, "10.9.0.5", MAC))
    assert take(host, "10.9.0.5", MAC2) == "10.9.0.5/16"


def test_a_release_that_could_not_be_stored_is_stored_with_the_next_change(host: Host, ipam: RemoteIpam) -> None:
    pool(host)
    take(host, "10.9.0.5", MAC)
    host.store.arm(range(2))
    for call in (lambda: ipam.release_address(POOL, IPv4Address("10.9.0.5")), lambda: ipam.release_pool(POOL)):
        refuses(host, StoreError, "no space left", call)
    assert stored(host).usage(POOL)[0] == 3  # with network and broadcast
    pool(host, IPv4Network("10.10.0.0/16"))
    with pytest.raises(NotFound):
        stored(host).usage(POOL)
    assert pool(host) == NET9
    assert stored(host).usage(POOL)[0] == 2


def test_an_address_released_in_vain_and_given_anew_is_stored_as_it_is(host: Host, ipam: RemoteIpam) -> None:
    pool(host)
    take(host, "10.9.0.5", MAC)
    host.store.arm([0, 1])
    with pytest.raises(StoreError):
        ipam.release_address(POOL, IPv4Address("10.9.0.5"))
    with pytest.raises(StoreError):
        take(host, "10.9.0.5", MAC2)
    assert take(host, "10.9.0.5", MAC2) == "10.9.0.5/16"
    assert stored(host).find(POOL, f"endpoint {MAC2}") == IPv4Address("10.9.0.5")


def test_many_requests_at_once_get_different_pools_and_addresses(host: Host, ipam: RemoteIpam) -> None:
    pool(host)
    before = host.state()
    with ThreadPoolExecutor(10) as threads:
        pools = list(threads.map(lambda _: pool(host, None), range(20)))
        given = list(threads.map(lambda n: take(host, mac=f"02:42:00:00:00:{n:02x}"), range(100)))
        assert len(set(pools)) == 20
        assert len(set(given)) == 100
        assert stored(host).usage(POOL)[0] == 102
        list(threads.map(lambda text: ipam.release_address(POOL, IPv4Interface(text).ip), given * 2))
        list(threads.map(lambda subnet: ipam.release_pool(f"docker/{subnet}"), pools * 2))
    after = host.state()
    assert stored(host).usage(POOL)[0] == 2
    assert after["store"].keys() == before["store"].keys()


def test_a_network_with_addresses_of_another_ipam_asks_for_none(host: Host) -> None:
    """Docker's own IPAM gave the addresses: its networks are in nobody's way but the default pools'."""
    make_network(host)
    make_endpoint(host, "10.9.0.2/16", MAC)
    host.controller.remote.join(N, E, KEY)
    assert not [key for key in host.state()["store"] if key[0] in ("pool", "lease") and "10.9." in key[1]]
    assert pool(host) == NET9
