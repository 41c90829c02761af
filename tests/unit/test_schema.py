"""Bodies become specs: nothing is lost, and what cannot be is refused."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.api.schema import (
    NetworkConnect,
    NetworkCreate,
    SandboxCreate,
    decode,
    endpoint_spec,
    network_spec,
    sandbox_spec,
)
from control.api.versions import NEWEST, OLDEST, Version, negotiate
from control.errors import InvalidArgument
from control.model import EndpointSpec, NetworkSpec, PoolSpec, SandboxSpec


def spec_of(**body: Any) -> NetworkSpec:
    return network_spec(decode(json.dumps(body).encode(), NetworkCreate))


def test_a_minimal_body_has_dockers_defaults() -> None:
    assert spec_of(Name="blue") == NetworkSpec(name="blue", driver="bridge", enable_ipv4=True, enable_ipv6=False)


def test_null_means_absent_everywhere() -> None:
    fields = [field for field in NetworkCreate.__struct_encode_fields__ if field != "Name"]
    assert spec_of(Name="blue", **dict.fromkeys(fields)) == spec_of(Name="blue")
    ipam = {"Driver": None, "Options": None, "Config": [{"Subnet": None, "IPRange": None, "AuxiliaryAddresses": None}]}
    assert spec_of(Name="blue", IPAM=ipam) == spec_of(Name="blue")


def test_unknown_fields_are_ignored() -> None:
    assert spec_of(Name="blue", CheckDuplicate=True, Future={"a": [1]}) == spec_of(Name="blue")


def test_an_explicit_false_for_ipv4_is_kept() -> None:
    spec = spec_of(Name="blue", EnableIPv4=False, EnableIPv6=True)
    assert (spec.enable_ipv4, spec.enable_ipv6) == (False, True)


def test_a_full_body_is_read_whole() -> None:
    spec = spec_of(
        Name="blue",
        Driver="macvlan",
        Internal=True,
        Attachable=True,
        Options={"parent": "eth0"},
        Labels={"": "", "a": "b"},
        IPAM={
            "Options": {"x": "y"},
            "Config": [
                {
                    "Subnet": "10.0.0.0/8",
                    "IPRange": "10.1.0.0/16",
                    "Gateway": "10.0.0.1",
                    "AuxiliaryAddresses": {"p": "10.0.0.7"},
                },
                {"Subnet": "FD00:0:0::/48"},
            ],
        },
    )
    assert spec == NetworkSpec(
        name="blue",
        driver="macvlan",
        internal=True,
        attachable=True,
        options={"parent": "eth0"},
        labels={"": "", "a": "b"},
        ipam_options={"x": "y"},
        pools=(
            PoolSpec(
                subnet=IPv4Network("10.0.0.0/8"),
                ip_range=IPv4Network("10.1.0.0/16"),
                gateway=IPv4Address("10.0.0.1"),
                aux_addresses={"p": IPv4Address("10.0.0.7")},
            ),
            PoolSpec(subnet=IPv6Network("fd00::/48")),
        ),
    )


subnets = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)),
)


@given(subnets)
def test_a_subnet_is_taken_exactly_when_no_host_bits_are_set(subnet: tuple[Any, int]) -> None:
    address, length = subnet
    text = f"{address}/{length}"
    right = ip_network(text, strict=False)
    if right.network_address == address:
        assert spec_of(Name="x", IPAM={"Config": [{"Subnet": text}]}).pools == (PoolSpec(subnet=right),)
    else:
        with pytest.raises(InvalidArgument, match=f"invalid subnet .*: it should be {right}"):
            spec_of(Name="x", IPAM={"Config": [{"Subnet": text}]})


@given(st.text(max_size=40))
def test_any_text_for_a_subnet_is_one_or_is_refused(text: str) -> None:
    refusal, pools = "", tuple[PoolSpec, ...]()
    try:
        pools = spec_of(Name="x", IPAM={"Config": [{"Subnet": text}]}).pools
    except InvalidArgument as error:
        refusal = str(error)
    assert text == "" or "invalid subnet" in refusal or str(pools[0].subnet).count("/") == 1


@given(st.ip_addresses())
def test_any_address_is_a_gateway_in_form(address: Any) -> None:
    subnet = str(ip_network(f"{address}/8", strict=False))
    pools = spec_of(Name="x", IPAM={"Config": [{"Subnet": subnet, "Gateway": str(address)}]}).pools
    assert pools[0].gateway == ip_address(str(address))


def test_endpoint_settings_are_read_whole() -> None:
    body = {
        "Container": "web",
        "EndpointConfig": {
            "IPAMConfig": {
                "IPv4Address": "10.0.0.9",
                "IPv6Address": "",
                "LinkLocalIPs": ["::FFFF:169.254.1.2", "FE80:0::1"],
            },
            "Links": [],
            "Aliases": ["a", "b", "a"],
            "DriverOpts": {"x": "y"},
            "GwPriority": 0,
            "MacAddress": "02:00:00:00:00:01",
            "NetworkID": "operational",
            "DNSNames": ["ignored"],
        },
    }
    connect = decode(json.dumps(body).encode(), NetworkConnect)
    assert endpoint_spec(connect.endpoint_config) == EndpointSpec(
        ipv4=IPv4Address("10.0.0.9"),
        mac="02:00:00:00:00:01",
        aliases=("a", "b"),
        driver_options={"x": "y"},
        link_local_ips=(IPv4Address("169.254.1.2"), IPv6Address("fe80::1")),
    )
    assert endpoint_spec(None) == EndpointSpec()


def test_a_sandbox_joins_its_networks_in_order() -> None:
    body = {
        "Name": "web",
        "Networks": [{"Network": "b"}, {"Network": "a", "Aliases": ["x"]}],
        "Command": ["sh", "-c", ""],
    }
    assert sandbox_spec(decode(json.dumps(body).encode(), SandboxCreate)) == SandboxSpec(
        name="web",
        networks=(("b", EndpointSpec()), ("a", EndpointSpec(aliases=("x",)))),
        command=("sh", "-c", ""),
    )


@given(st.binary(max_size=100))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    refusal = ""
    try:
        decode(body, NetworkCreate)
    except InvalidArgument as error:
        refusal = str(error)
    assert refusal == "" or refusal.startswith(("invalid JSON", "unexpected content"))


@given(st.integers(0, 99), st.integers(0, 99))
def test_exactly_the_versions_between_oldest_and_newest_are_served(major: int, minor: int) -> None:
    version = Version(major, minor)
    if OLDEST <= version <= NEWEST:
        assert negotiate(str(version)) == version
    else:
        with pytest.raises(InvalidArgument, match=f"client version {major}\\.{minor} is too (old|new)"):
            negotiate(str(version))


def test_a_path_without_a_version_gets_the_newest() -> None:
    assert negotiate(None) == NEWEST
