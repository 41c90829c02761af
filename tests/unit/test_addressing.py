"""Pools and addresses as the controller asks for them: all of a network's, or none."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import addressing
from control.errors import Conflict, ControlError, Exhausted, Forbidden, InvalidArgument
from control.ipam.pools import PoolIpam
from control.model import (
    Endpoint,
    EndpointId,
    EndpointSpec,
    EndpointState,
    Network,
    NetworkId,
    NetworkSpec,
    NetworkState,
    PoolConfig,
    PoolSpec,
    SandboxId,
    Subnet,
    utcnow,
)


@pytest.fixture
def ipam() -> PoolIpam:
    return PoolIpam()


def pool(subnet: str, **fields: Any) -> PoolSpec:
    return PoolSpec(subnet=ip_network(subnet), **fields)


def request(ipam: PoolIpam, *pools: PoolSpec, avoid: list[Subnet] | None = None, **spec: Any) -> tuple[PoolConfig, ...]:
    made, changes = addressing.request_pools(
        ipam, NetworkSpec(name="net", pools=pools, **spec), owner="network net", is_needed=True, avoid=avoid or []
    )
    assert changes
    return made


def network(pools: tuple[PoolConfig, ...], **fields: Any) -> Network:
    return Network(
        id=NetworkId("a" * 64),
        name="net",
        driver="bridge",
        state=NetworkState.ACTIVE,
        created=utcnow(),
        segment=1,
        pools=pools,
        **fields,
    )


def nothing_is_taken(ipam: PoolIpam, *subnets: str) -> bool:
    """Whether the subnets can be had as if nobody had ever asked; takes them."""
    for subnet in subnets:
        taken, _ = ipam.request_pool("local", subnet=ip_network(subnet))
        assert ipam.usage(taken.id)[0] == 2  # the reserved ones
    return True


def test_a_network_that_asks_for_nothing_gets_a_default_pool_with_the_first_address_as_gateway(ipam: PoolIpam) -> None:
    (made,) = request(ipam)
    assert made.gateway == made.subnet.network_address + 1
    assert isinstance(made.subnet, IPv4Network)


def test_each_family_that_has_no_subnet_gets_a_default_one(ipam: PoolIpam) -> None:
    versions = [p.subnet.version for p in request(ipam, pool("10.9.0.0/24"), enable_ipv6=True)]
    assert versions == [4, 6]
    versions = [p.subnet.version for p in request(ipam, enable_ipv4=False, enable_ipv6=True)]
    assert versions == [6]


def test_default_pools_avoid_what_the_host_routes_and_given_ones_do_not(ipam: PoolIpam) -> None:
    (first,) = request(ipam)
    again = PoolIpam()
    (second,) = request(again, avoid=[first.subnet])
    assert not second.subnet.overlaps(first.subnet)
    (given_one,) = request(again, pool(str(first.subnet)), avoid=[first.subnet])
    assert given_one.subnet == first.subnet


@pytest.mark.parametrize(
    ("spec", "gateway"),
    [
        (pool("10.9.0.0/24"), "10.9.0.1"),
        (pool("10.9.0.0/24", gateway=IPv4Address("10.9.0.254")), "10.9.0.254"),
        (pool("10.9.0.0/24", ip_range=ip_network("10.9.0.128/25")), "10.9.0.1"),
        (pool("10.9.0.0/31"), "10.9.0.0"),
        (pool("10.9.0.0/24", aux_addresses={"r": IPv4Address("10.9.0.1")}), "10.9.0.2"),
    ],
)
def test_the_gateway_is_the_one_asked_for_or_the_first_address_that_is_free(
    ipam: PoolIpam, spec: PoolSpec, gateway: str
) -> None:
    (made,) = request(ipam, spec)
    assert made.gateway == ip_address(gateway)
    assert made.aux_addresses == spec.aux_addresses


@pytest.mark.parametrize(
    ("spec", "kind", "says"),
    [
        ({"enable_ipv4": False}, InvalidArgument, "IPv4 or IPv6 must be enabled"),
        ({"pools": (pool("fd00::/64"),)}, InvalidArgument, "subnet fd00::/64 is IPv6 and the network is not"),
        (
            {"pools": (pool("10.9.0.0/24"),), "enable_ipv4": False, "enable_ipv6": True},
            InvalidArgument,
            "subnet 10.9.0.0/24 is IPv4 and the network is not",
        ),
        ({"pools": (PoolSpec(gateway=IPv4Address("10.9.0.1")),)}, InvalidArgument, "must have a corresponding subnet"),
        (
            {"pools": (pool("10.9.0.0/24", gateway=IPv4Address("10.8.0.1")),)},
            InvalidArgument,
            "10.8.0.1",
        ),
        (
            {
                "pools": (
                    pool("10.9.0.0/24", gateway=IPv4Address("10.9.0.5"), aux_addresses={"r": IPv4Address("10.9.0.5")}),
                )
            },
            Forbidden,
            "10.9.0.5",
        ),
        ({"pools": (pool("10.9.0.0/24"), pool("10.9.0.0/16"))}, Forbidden, "Pool overlaps"),
    ],
)
def test_a_network_that_cannot_be_had_takes_nothing(
    ipam: PoolIpam, spec: dict[str, Any], kind: type[ControlError], says: str
) -> None:
    pools = (pool("10.200.0.0/24"), *spec.pop("pools", ()))
    if spec.get("enable_ipv4", True):
        spec["pools"] = pools
    else:
        spec["pools"] = pools[1:]
    with pytest.raises(kind, match=says):
        addressing.request_pools(ipam, NetworkSpec(name="net", **spec), owner="network net", is_needed=True, avoid=())
    assert nothing_is_taken(ipam, "10.200.0.0/24", "10.9.0.0/24")


def test_a_subnet_of_one_address_has_room_for_the_gateway_alone(ipam: PoolIpam) -> None:
    pools = request(ipam, pool("10.9.0.0/32"))
    assert pools[0].gateway == IPv4Address("10.9.0.0")
    with pytest.raises(Exhausted):
        addressing.request_addresses(ipam, network(pools), EndpointSpec(), owner="sandbox a")


def test_a_driver_without_addresses_takes_no_subnets(ipam: PoolIpam) -> None:
    spec = NetworkSpec(name="net", driver="null")
    assert addressing.request_pools(ipam, spec, owner="x", is_needed=False, avoid=()) == ((), [])
    with pytest.raises(InvalidArgument, match="the driver null takes no subnets"):
        addressing.request_pools(
            ipam,
            NetworkSpec(name="net", driver="null", pools=(pool("10.0.0.0/24"),)),
            owner="x",
            is_needed=False,
            avoid=(),
        )


def test_an_endpoint_gets_one_address_of_each_family_from_the_first_pool_that_has_any(ipam: PoolIpam) -> None:
    made = network(request(ipam, pool("10.9.0.0/30"), pool("10.8.0.0/24"), pool("fd00::/64"), enable_ipv6=True))
    first, _ = addressing.request_addresses(ipam, made, EndpointSpec(), owner="sandbox a")
    second, _ = addressing.request_addresses(ipam, made, EndpointSpec(), owner="sandbox b")
    assert first == (IPv4Interface("10.9.0.2/30"), IPv6Interface("fd00::2/64"))
    assert second == (IPv4Interface("10.8.0.2/24"), IPv6Interface("fd00::3/64"))


def test_an_address_that_is_asked_for_comes_from_the_pool_that_has_it(ipam: PoolIpam) -> None:
    made = network(request(ipam, pool("10.9.0.0/24"), pool("10.8.0.0/24")))
    (ipv4, ipv6), _ = addressing.request_addresses(
        ipam, made, EndpointSpec(ipv4=IPv4Address("10.8.0.77")), owner="sandbox a"
    )
    assert (ipv4, ipv6) == (IPv4Interface("10.8.0.77/24"), None)
    assert addressing.gateway_for(made, ipv4) == IPv4Address("10.8.0.1")
    assert addressing.gateway_for(made, None) is None


@pytest.mark.parametrize(
    ("wanted", "kind", "says"),
    [
        (EndpointSpec(ipv4=IPv4Address("10.7.0.1")), InvalidArgument, "no configured subnet contains it"),
        (EndpointSpec(ipv4=IPv4Address("10.9.0.1")), Forbidden, "Address already in use"),
        (EndpointSpec(ipv4=IPv4Address("10.9.0.255")), InvalidArgument, "10.9.0.255"),
        (EndpointSpec(ipv6=IPv6Address("fd01::5")), InvalidArgument, "no configured subnet contains it"),
        (EndpointSpec(ipv6=IPv6Address("fd00::1")), Forbidden, "Address already in use"),
    ],
)
def test_an_endpoint_that_cannot_have_one_address_keeps_none(
    ipam: PoolIpam, wanted: EndpointSpec, kind: type[ControlError], says: str
) -> None:
    made = network(request(ipam, pool("10.9.0.0/24"), pool("fd00::/64"), enable_ipv6=True))
    before = [ipam.usage(each.pool_id) for each in made.pools]
    with pytest.raises(kind, match=says):
        addressing.request_addresses(ipam, made, wanted, owner="sandbox a")
    assert [ipam.usage(each.pool_id) for each in made.pools] == before


@pytest.mark.parametrize("wanted", [EndpointSpec(ipv6=IPv6Address("fd00::5"))])
def test_an_address_of_a_family_that_the_network_lacks_is_refused(ipam: PoolIpam, wanted: EndpointSpec) -> None:
    made = network(request(ipam))
    with pytest.raises(InvalidArgument, match="network net has no IPv6 subnet"):
        addressing.request_addresses(ipam, made, wanted, owner="sandbox a")


def test_the_last_pools_exhaustion_is_the_networks(ipam: PoolIpam) -> None:
    made = network(request(ipam, pool("10.9.0.0/30"), pool("10.8.0.0/30")))
    taken = [addressing.request_addresses(ipam, made, EndpointSpec(), owner="sandbox")[0][0] for _ in range(2)]
    with pytest.raises(Exhausted):
        addressing.request_addresses(ipam, made, EndpointSpec(), owner="sandbox")
    assert taken[1] is not None
    assert addressing.release_addresses(ipam, made, taken[1], None)
    assert addressing.request_addresses(ipam, made, EndpointSpec(), owner="sandbox")[0][0] == taken[1]


def test_addresses_of_a_network_that_is_gone_went_with_it(ipam: PoolIpam) -> None:
    assert addressing.release_addresses(ipam, None, IPv4Interface("10.9.0.2/24"), None) == []


def test_released_pools_can_be_taken_again_and_taken_back_as_they_were(ipam: PoolIpam) -> None:
    spec = pool("10.9.0.0/24", gateway=IPv4Address("10.9.0.9"), aux_addresses={"r": IPv4Address("10.9.0.10")})
    pools = request(ipam, spec)
    assert addressing.release_pools(ipam, pools)
    addressing.retake_pools(ipam, pools, owner="network net")
    for address in ("10.9.0.9", "10.9.0.10"):
        with pytest.raises(Forbidden, match="Address already in use"):
            ipam.request_address(pools[0].pool_id, ip_address(address))
    addressing.release_pools(ipam, pools)
    assert nothing_is_taken(ipam, "10.9.0.0/24")


def test_only_a_network_that_leads_out_can_have_the_default_route(ipam: PoolIpam) -> None:
    pools = request(ipam, pool("10.9.0.0/24"))
    assert addressing.has_gateway(network(pools), 4)
    assert not addressing.has_gateway(network(pools), 6)
    assert not addressing.has_gateway(network(pools, internal=True), 4)


def sibling(mac: str) -> Endpoint:
    return Endpoint(
        id=EndpointId("e" * 64),
        network_id=NetworkId("a" * 64),
        sandbox_id=SandboxId("c" * 64),
        state=EndpointState.JOINED,
        created=utcnow(),
        mac=mac,
    )


@pytest.mark.parametrize("written", ["02:42:ac:11:00:02", "02-42-AC-11-00-02", " 02:42:AC:11:00:02 "])
def test_a_mac_is_taken_however_it_is_written(written: str) -> None:
    assert addressing.check_mac(written, network(()), [sibling("02:42:ac:11:00:03")]) == "02:42:ac:11:00:02"
    with pytest.raises(Conflict, match="02:42:ac:11:00:02 is in use on network net"):
        addressing.check_mac(written, network(()), [sibling("02:42:ac:11:00:02")])


@pytest.mark.parametrize(
    "written",
    ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "02:42:ac:11:00:zz", "0242ac110002", "01:00:5e:00:00:01",
     "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"],
)  # fmt: skip
def test_what_is_no_mac_of_one_device_is_refused(written: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid MAC address"):
        addressing.check_mac(written, network(()), [])


@given(st.ip_addresses(v=4))
def test_the_mac_follows_from_the_ipv4_address(address: Any) -> None:
    made = addressing.make_mac(IPv4Interface(f"{address}/16"), ())
    assert made == "02:42:" + address.packed.hex(":")
    assert addressing.check_mac(made, network(()), []) == made


def test_a_mac_without_an_address_is_random_and_locally_administered() -> None:
    made = {addressing.make_mac(None, ()) for _ in range(50)}
    assert len(made) == 50
    assert all(mac.startswith("02:42:") for mac in made)


def test_a_mac_that_somebody_asked_for_before_is_not_made_again() -> None:
    address = IPv4Interface("10.0.0.2/24")
    taken = addressing.make_mac(address, ())
    assert addressing.make_mac(address, [sibling(taken)]) != taken
