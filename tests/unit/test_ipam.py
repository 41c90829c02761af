"""The built-in IPAM, call by call: pools, addresses, defaults, messages, and what survives a restart."""

from __future__ import annotations

import threading
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_address, ip_network
from itertools import pairwise

import pytest

from control.errors import ControlError, Exhausted, Forbidden, InvalidArgument, NotFound
from control.ipam.defaults import DefaultPool
from control.ipam.pools import PoolIpam
from control.store.base import Delete, Put
from tests.memory_store import MemoryStore


@pytest.fixture
def ipam() -> PoolIpam:
    return PoolIpam()


def make_pool(ipam: PoolIpam, subnet: str, ip_range: str | None = None, owner: str = "network red") -> str:
    pool, _ = ipam.request_pool(
        "local", subnet=ip_network(subnet), ip_range=ip_network(ip_range) if ip_range else None, owner=owner
    )
    return pool.id


def take(ipam: PoolIpam, pool_id: str, address: str | None = None, owner: str = "endpoint web") -> str:
    return str(ipam.request_address(pool_id, ip_address(address) if address else None, owner=owner)[0])


def take_all(ipam: PoolIpam, pool_id: str) -> list[str]:
    return [take(ipam, pool_id) for _ in range(ipam.usage(pool_id)[1])]


# Pools


def test_pool_ids_name_space_subnet_and_range(ipam: PoolIpam) -> None:
    assert make_pool(ipam, "10.0.0.0/24") == "local/10.0.0.0/24"
    assert make_pool(ipam, "10.0.1.0/24", "10.0.1.64/26") == "local/10.0.1.0/24/10.0.1.64/26"
    assert make_pool(ipam, "fd00::/64") == "local/fd00::/64"


@pytest.mark.parametrize("subnet", ["10.0.0.0/24", "10.0.0.128/25", "10.0.0.0/16", "10.0.0.7/32"])
def test_an_overlapping_subnet_is_refused_with_both_subnets_and_the_owner(ipam: PoolIpam, subnet: str) -> None:
    make_pool(ipam, "10.0.0.0/24", owner="network red")
    with pytest.raises(Forbidden, match=r"^Pool overlaps with other one on this address space: ") as refused:
        make_pool(ipam, subnet)
    for part in (subnet, "10.0.0.0/24", "network red", "--subnet"):
        assert part in str(refused.value)


@pytest.mark.parametrize("inner", ["10.0.0.0/32", "10.0.0.255/32", "10.0.0.0/25", "10.0.0.128/25"])
def test_a_subnet_around_another_is_refused_at_either_edge(ipam: PoolIpam, inner: str) -> None:
    make_pool(ipam, inner)
    with pytest.raises(Forbidden, match=f"10.0.0.0/24 overlaps {inner}"):
        make_pool(ipam, "10.0.0.0/24")
    make_pool(ipam, "10.0.1.0/24")
    make_pool(ipam, "9.255.255.0/24")


def test_address_spaces_and_ip_versions_do_not_see_each_other(ipam: PoolIpam) -> None:
    make_pool(ipam, "10.0.0.0/24")
    make_pool(ipam, "fd00::/64")
    assert ipam.request_pool("global", subnet=ip_network("10.0.0.0/24"))[0].id == "global/10.0.0.0/24"


def test_a_released_subnet_can_be_taken_again(ipam: PoolIpam) -> None:
    store = MemoryStore()
    for _ in range(2):
        pool, changes = ipam.request_pool("local", subnet=ip_network("10.0.0.0/24"))
        store.write(changes)
        store.write(ipam.request_address(pool.id)[1])
        store.write(ipam.release_pool(pool.id))
    assert not list(store.read("pool"))
    assert not list(store.read("lease"))


def test_disjoint_ranges_may_share_a_subnet(ipam: PoolIpam) -> None:
    low = make_pool(ipam, "10.0.0.0/24", "10.0.0.0/25")
    high = make_pool(ipam, "10.0.0.0/24", "10.0.0.128/25")
    assert take(ipam, low) == "10.0.0.1"
    assert take(ipam, high) == "10.0.0.128"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("10.0.0.0/25", "10.0.0.64/26"),
        ("10.0.0.0/25", "10.0.0.0/25"),
        ("10.0.0.0/25", None),
        (None, "10.0.0.0/25"),
        ("10.0.0.0/24", "10.0.0.0/25"),
    ],
)
def test_ranges_that_overlap_in_one_subnet_are_refused(ipam: PoolIpam, first: str | None, second: str | None) -> None:
    make_pool(ipam, "10.0.0.0/24", first, owner="network red")
    with pytest.raises(Forbidden, match=r"^Pool overlaps with other one on this address space: .*network red"):
        make_pool(ipam, "10.0.0.0/24", second)


def test_a_range_may_be_the_whole_subnet(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/30", "10.0.0.0/30")
    assert take_all(ipam, pool) == ["10.0.0.1", "10.0.0.2"]


def test_pools_of_one_subnet_never_share_an_address(ipam: PoolIpam) -> None:
    low = make_pool(ipam, "10.0.0.0/29", "10.0.0.0/30", owner="network low")
    high = make_pool(ipam, "10.0.0.0/29", "10.0.0.4/30", owner="network high")
    take(ipam, low, "10.0.0.4", owner="endpoint static")
    assert ipam.usage(high) == (3, 2)
    assert take(ipam, high) == "10.0.0.5"
    with pytest.raises(Forbidden, match=r"Address already in use: .*endpoint static"):
        take(ipam, high, "10.0.0.4")
    assert ipam.release_address(high, ip_address("10.0.0.4")) == (), "another pool's lease"
    ipam.release_pool(low)
    assert take_all(ipam, high) == ["10.0.0.6", "10.0.0.4"]


def test_an_address_released_into_the_range_of_a_neighbour_is_kept_back_there() -> None:
    ipam, store = PoolIpam(), MemoryStore()
    for ip_range in ("10.0.0.0/30", "10.0.0.4/30"):
        store.write(ipam.request_pool("local", subnet=ip_network("10.0.0.0/29"), ip_range=ip_network(ip_range))[1])
    low, high = "local/10.0.0.0/29/10.0.0.0/30", "local/10.0.0.0/29/10.0.0.4/30"
    store.write(ipam.request_address(low, ip_address("10.0.0.4"))[1])
    store.write(ipam.release_address(low, ip_address("10.0.0.4")))
    restarted = PoolIpam()
    restarted.load(store)
    assert take_all(ipam, high) == take_all(restarted, high) == ["10.0.0.5", "10.0.0.6", "10.0.0.4"]


@pytest.mark.parametrize("ip_range", ["10.0.1.0/25", "10.0.0.0/23", "fd00::/64"])
def test_a_range_outside_its_subnet_is_refused(ipam: PoolIpam, ip_range: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^invalid address subpool: .*10\.0\.0\.0/24.*--ip-range"):
        make_pool(ipam, "10.0.0.0/24", ip_range)


def test_a_range_without_its_subnet_is_refused(ipam: PoolIpam) -> None:
    with pytest.raises(InvalidArgument, match="add --subnet"):
        ipam.request_pool("local", ip_range=ip_network("10.0.0.0/25"))


@pytest.mark.parametrize("subnet", ["0.0.0.0/0", "::/0", "127.0.0.0/8", "127.1.0.0/16", "224.0.1.0/24", "ff02::/64"])
def test_a_subnet_that_no_host_can_have_is_refused(ipam: PoolIpam, subnet: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^invalid address pool: {subnet} .*--subnet"):
        make_pool(ipam, subnet)


def test_an_ipv4_subnet_for_ipv6_is_refused(ipam: PoolIpam) -> None:
    with pytest.raises(InvalidArgument, match=r"10\.0\.0\.0/24 is not an IPv6 subnet"):
        ipam.request_pool("local", subnet=ip_network("10.0.0.0/24"), v6=True)


@pytest.mark.parametrize("space", ["", "a/b", "a|b"])
def test_a_space_whose_name_would_blur_pool_ids_is_refused(ipam: PoolIpam, space: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid address space"):
        ipam.request_pool(space)


def test_an_unknown_pool_is_not_found_by_any_method(ipam: PoolIpam) -> None:
    calls = (
        lambda: ipam.release_pool("local/10.9.0.0/24"),
        lambda: ipam.request_address("local/10.9.0.0/24"),
        lambda: ipam.release_address("local/10.9.0.0/24", ip_address("10.9.0.1")),
        lambda: ipam.usage("local/10.9.0.0/24"),
    )
    for call in calls:
        with pytest.raises(NotFound, match=r"does not contain specified address pool: local/10\.9\.0\.0/24"):
            call()


def test_a_refused_pool_changes_nothing(ipam: PoolIpam) -> None:
    make_pool(ipam, "10.0.0.0/24")
    with pytest.raises(Forbidden):
        make_pool(ipam, "10.0.0.0/16")
    assert make_pool(ipam, "10.0.1.0/24") == "local/10.0.1.0/24"


# Default pools


def test_the_default_ipv4_pools_are_dockers(ipam: PoolIpam) -> None:
    subnets = [ipam.request_pool("local")[0].subnet for _ in range(31)]
    assert subnets == [
        *(IPv4Network(f"172.{n}.0.0/16") for n in range(17, 32)),
        *IPv4Network("192.168.0.0/16").subnets(new_prefix=20),
    ]
    with pytest.raises(Exhausted, match=r"^all predefined address pools have been fully subnetted"):
        ipam.request_pool("local")


def test_default_pools_step_around_the_hosts_and_the_spaces_subnets(ipam: PoolIpam) -> None:
    make_pool(ipam, "172.18.5.0/24")
    avoid = [ip_network("172.17.0.0/28"), ip_network("172.19.0.0/15", strict=False), ip_network("fd00::/8")]
    assert ipam.request_pool("local", avoid=avoid)[0].subnet == ip_network("172.20.0.0/16")


def test_exhausted_default_pools_name_what_blocks_them() -> None:
    ipam = PoolIpam([DefaultPool(ip_network("10.0.0.0/22"), 24)])
    make_pool(ipam, "10.0.1.0/24", owner="network red")
    make_pool(ipam, "172.16.0.0/24", owner="network elsewhere")
    with pytest.raises(Exhausted) as refused:
        ipam.request_pool("local", avoid=[ip_network("10.0.2.0/23"), ip_network("10.0.0.128/30")])
    assert (
        "in the way are 10.0.0.128/30 (in use on this host), 10.0.1.0/24 (network red), "
        "10.0.2.0/23 (in use on this host); " in str(refused.value)
    )
    assert "elsewhere" not in str(refused.value)
    for remedy in ("remove networks", "--subnet", "configure more default pools"):
        assert remedy in str(refused.value)


def test_a_long_list_of_blockers_is_cut_with_its_count(ipam: PoolIpam) -> None:
    for _ in range(31):
        ipam.request_pool("local", owner="network x")
    with pytest.raises(Exhausted, match=r"172\.24\.0\.0/16 \(network x\) and 23 more; "):
        ipam.request_pool("local")


def test_default_pools_are_tried_in_the_configured_order() -> None:
    ipam = PoolIpam([DefaultPool(ip_network("10.9.0.0/24"), 25), DefaultPool(ip_network("10.1.0.0/16"), 24)])
    subnets = [str(ipam.request_pool("local")[0].subnet) for _ in range(3)]
    assert subnets == ["10.9.0.0/25", "10.9.0.128/25", "10.1.0.0/24"]


def test_a_huge_default_pool_is_searched_by_its_blockers_not_its_blocks() -> None:
    ipam = PoolIpam([DefaultPool(ip_network("fc00::/7"), 64)])
    avoid = [ip_network("fc00::/8"), ip_network("fd00::/9")]
    assert ipam.request_pool("local", v6=True, avoid=avoid)[0].subnet == ip_network("fd80::/64")


def test_an_ip_version_without_configured_pools_keeps_the_built_in_ones() -> None:
    ipam = PoolIpam([DefaultPool(ip_network("fd12::/48"), 64)])
    assert ipam.request_pool("local")[0].subnet == ip_network("172.17.0.0/16")
    assert ipam.request_pool("local", v6=True)[0].subnet == ip_network("fd12::/64")


@pytest.mark.parametrize(("base", "size"), [("10.0.0.0/16", 15), ("10.0.0.0/16", 33), ("fd00::/48", 129)])
def test_a_default_pool_that_cannot_be_cut_is_refused(base: str, size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"default address pool {base} cannot be cut into /{size} networks"):
        DefaultPool(ip_network(base), size)


def test_default_ipv6_pools_are_one_unique_local_48_for_as_long_as_the_store_lives() -> None:
    store = MemoryStore()
    subnets = []
    for _ in range(3):
        ipam = PoolIpam()
        ipam.load(store)
        pool, changes = ipam.request_pool("local", v6=True)
        store.write(changes)
        subnets.append(pool.subnet)
    assert [subnet.prefixlen for subnet in subnets] == [64, 64, 64]
    prefix = int(subnets[0].network_address) >> 80
    assert prefix >> 40 == 0xFD
    assert [int(subnet.network_address) >> 64 for subnet in subnets] == [prefix << 16 | n for n in range(3)]
    assert PoolIpam().request_pool("local", v6=True)[0].subnet not in subnets, "hosts would share their ULA"


# Addresses


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("10.0.0.0/29", [f"10.0.0.{n}" for n in range(1, 7)]),
        ("10.0.0.0/30", ["10.0.0.1", "10.0.0.2"]),
        ("10.0.0.0/31", ["10.0.0.0", "10.0.0.1"]),
        ("10.0.0.7/32", ["10.0.0.7"]),
        ("fd00::/125", [f"fd00::{n}" for n in range(1, 8)]),
        ("fd00::/126", ["fd00::1", "fd00::2", "fd00::3"]),
        ("fd00::/127", ["fd00::", "fd00::1"]),
        ("fd00::7/128", ["fd00::7"]),
    ],
)
def test_all_but_the_reserved_addresses_are_handed_out_in_order(
    ipam: PoolIpam, subnet: str, expected: list[str]
) -> None:
    pool = make_pool(ipam, subnet)
    reserved = ip_network(subnet).num_addresses - len(expected)
    assert ipam.usage(pool) == (reserved, len(expected))
    assert take_all(ipam, pool) == expected
    assert ipam.usage(pool) == (reserved + len(expected), 0)
    with pytest.raises(Exhausted, match=f"^no available addresses on this pool: .*{subnet} of network red"):
        take(ipam, pool)


@pytest.mark.parametrize(
    ("subnet", "address", "what"),
    [
        ("10.0.0.0/24", "10.0.0.0", "network"),
        ("10.0.0.0/24", "10.0.0.255", "broadcast"),
        ("10.0.0.0/30", "10.0.0.3", "broadcast"),
        ("fd00::/64", "fd00::", "subnet-router anycast"),
    ],
)
def test_a_reserved_address_is_refused_with_the_reason(ipam: PoolIpam, subnet: str, address: str, what: str) -> None:
    pool = make_pool(ipam, subnet)
    with pytest.raises(InvalidArgument, match=f"{address} is the {what} address of {subnet} of network red"):
        take(ipam, pool, address)
    ipam.release_address(pool, ip_address(address))
    assert ipam.usage(pool)[0] == len(set(ip_network(subnet)) - set(ip_network(subnet).hosts())) if "." in subnet else 1


@pytest.mark.parametrize("address", ["10.0.1.1", "9.255.255.255", "fd00::1", "::a00:1"])
def test_an_address_outside_the_subnet_is_refused(ipam: PoolIpam, address: str) -> None:
    pool = make_pool(ipam, "10.0.0.0/24")
    with pytest.raises(
        InvalidArgument, match=f"^requested address is out of range: {address} is not in 10.0.0.0/24 of network red"
    ):
        take(ipam, pool, address)
    assert ipam.release_address(pool, ip_address(address)) == ()


def test_an_address_in_use_is_refused_with_its_holder(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/24")
    take(ipam, pool, "10.0.0.9", owner="endpoint db")
    with pytest.raises(
        Forbidden, match=r"^Address already in use: 10\.0\.0\.9 of 10\.0\.0\.0/24 is held by endpoint db"
    ):
        take(ipam, pool, "10.0.0.9")


def test_a_holder_without_a_name_is_named_by_its_pool(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/24", owner="")
    take(ipam, pool, "10.0.0.9", owner="")
    with pytest.raises(Forbidden, match="is held by address space local"):
        take(ipam, pool, "10.0.0.9")


def test_static_addresses_are_stepped_over(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/29")
    take(ipam, pool, "10.0.0.2")
    take(ipam, pool, "10.0.0.3")
    assert [take(ipam, pool) for _ in range(3)] == ["10.0.0.1", "10.0.0.4", "10.0.0.5"]


def test_a_given_address_may_lie_outside_the_range_but_a_free_one_never_does(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/24", "10.0.0.64/30")
    assert take(ipam, pool, "10.0.0.1") == "10.0.0.1"
    assert ipam.usage(pool) == (3, 4)
    assert take_all(ipam, pool) == [f"10.0.0.{n}" for n in range(64, 68)]
    with pytest.raises(Exhausted, match=r"all of 10\.0\.0\.64/30 of network red are taken.*--ip-range"):
        take(ipam, pool)
    changes = ipam.release_address(pool, ip_address("10.0.0.1"))
    assert changes == (Delete("lease", f"{pool}|10.0.0.1"),)
    assert ipam.usage(pool) == (6, 0)
    assert take(ipam, pool, "10.0.0.1") == "10.0.0.1"


def test_the_callers_interface_or_scope_does_not_leak_into_the_lease(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/24")
    address, changes = ipam.request_address(pool, IPv4Interface("10.0.0.5/16"), owner="endpoint web")
    assert type(address) is IPv4Address
    assert changes == (Put("lease", f"{pool}|10.0.0.5", b'{"owner":"endpoint web"}'),)
    scoped = make_pool(ipam, "fe80::/64")
    address, _ = ipam.request_address(scoped, IPv6Address("fe80::1%eth0"))
    assert str(address) == "fe80::1"
    assert ipam.release_address(scoped, IPv6Address("fe80::1"))


def test_release_twice_is_harmless(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/24")
    before = ipam.usage(pool)
    address, _ = ipam.request_address(pool)
    assert ipam.release_address(pool, address)
    assert ipam.release_address(pool, address) == ()
    assert ipam.usage(pool) == before


def test_a_released_address_comes_again_only_after_all_others(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/29")
    for _ in range(20):
        address = take(ipam, pool)
        ipam.release_address(pool, ip_address(address))
        others = [take(ipam, pool) for _ in range(5)]
        assert address not in others
        assert take(ipam, pool) == address
        for other in (*others, address):
            ipam.release_address(pool, ip_address(other))


def test_a_static_address_released_just_ahead_of_the_round_is_passed_over(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/29")
    take(ipam, pool)
    take(ipam, pool, "10.0.0.2")
    ipam.release_address(pool, ip_address("10.0.0.2"))
    assert take_all(ipam, pool) == [*(f"10.0.0.{n}" for n in range(3, 7)), "10.0.0.2"]


def test_released_addresses_come_again_in_the_order_of_their_release(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/29")
    take_all(ipam, pool)
    order = [f"10.0.0.{n}" for n in (4, 1, 6, 2, 5, 3)]
    for address in order:
        ipam.release_address(pool, ip_address(address))
    assert take_all(ipam, pool) == order


def test_the_round_goes_through_a_big_pool_before_it_starts_again(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/22")
    seen = []
    for _ in range(1022):
        seen.append(take(ipam, pool))
        ipam.release_address(pool, ip_address(seen[-1]))
    assert len(set(seen)) == 1022
    assert take(ipam, pool) == "10.0.0.1"


def test_a_slash_8_and_an_ipv6_64_hand_out_their_last_address(ipam: PoolIpam) -> None:
    v4, v6 = make_pool(ipam, "10.0.0.0/8"), make_pool(ipam, "fd00::/64")
    assert ipam.usage(v4) == (2, 2**24 - 2)
    assert ipam.usage(v6) == (1, 2**64 - 1)
    assert take(ipam, v4, "10.255.255.254") == "10.255.255.254"
    assert take(ipam, v6, "fd00::ffff:ffff:ffff:ffff") == "fd00::ffff:ffff:ffff:ffff"
    assert ipam.usage(v6) == (2, 2**64 - 2)


# Threads


def test_parallel_threads_never_get_one_address_or_subnet_twice() -> None:
    ipam = PoolIpam([DefaultPool(ip_network("10.0.0.0/16"), 24)])
    shared = make_pool(ipam, "192.168.0.0/24")
    start = threading.Barrier(8)
    results: list[list[str]] = [[] for _ in range(8)]
    subnets: list[list[IPv4Network]] = [[] for _ in range(8)]
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            start.wait(10)
            for i in range(30):
                results[n].append(take(ipam, shared))
                subnets[n].append(ipam.request_pool("local")[0].subnet)
                if i % 3 == 0:
                    ipam.release_address(shared, ip_address(take(ipam, shared)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    held = [address for result in results for address in result]
    assert len(held) == len(set(held)) == 240
    assert ipam.usage(shared) == (242, 14)
    made = sorted(subnet for made in subnets for subnet in made)
    assert len(made) == 240
    assert not any(left.overlaps(right) for left, right in pairwise(made))


def test_every_error_has_a_kind_of_the_control_plane(ipam: PoolIpam) -> None:
    pool = make_pool(ipam, "10.0.0.0/32")
    take(ipam, pool)
    for address in (None, "10.0.0.0", "10.0.0.1"):
        with pytest.raises(ControlError):
            take(ipam, pool, address)
