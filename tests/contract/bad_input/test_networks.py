"""Networks that cannot be, and filters that there are not."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.api_server import ApiServer


def config(**entry: Any) -> dict[str, Any]:
    return {"Name": "new", "EnableIPv6": True, "IPAM": {"Config": [entry]}}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"Name": 5}, "Expected `str | null`, got `int` - at `$.Name`"),
        ({"Name": "new", "Internal": "yes"}, "at `$.Internal`"),
        ({"Name": "new", "EnableIPv6": 1}, "at `$.EnableIPv6`"),
        ({"Name": "new", "Labels": ["a"]}, "at `$.Labels`"),
        ({"Name": "new", "Labels": {"a": 1}}, "at `$.Labels[...]`"),
        ({"Name": "new", "Options": {"a": True}}, "at `$.Options[...]`"),
        ({"Name": "new", "Options": "a=b"}, "at `$.Options`"),
        ({"Name": "new", "IPAM": []}, "at `$.IPAM`"),
        ({"Name": "new", "IPAM": {"Config": {"Subnet": "10.1.0.0/24"}}}, "at `$.IPAM.Config`"),
        ({"Name": "new", "IPAM": {"Config": ["10.1.0.0/24"]}}, "at `$.IPAM.Config[0]`"),
        ({"Name": "new", "IPAM": {"Config": [{"AuxiliaryAddresses": ["10.1.0.9"]}]}}, "AuxiliaryAddresses"),
        ({}, "network name cannot be empty"),
        ({"Name": None}, "network name cannot be empty"),
        ({"Name": ""}, "network name cannot be empty"),
        ({"Name": "x" * 10_000}, "10000 characters, at most 128"),
        ({"Name": " new"}, "only [a-zA-Z0-9][a-zA-Z0-9_.-]"),
        ({"Name": "new\n"}, "only [a-zA-Z0-9][a-zA-Z0-9_.-]"),
        ({"Name": "../new"}, "only [a-zA-Z0-9][a-zA-Z0-9_.-]"),
        ({"Name": "n\u00e9w"}, "only [a-zA-Z0-9][a-zA-Z0-9_.-]"),
        ({"Name": "new", "Scope": "galaxy"}, 'there is no scope "galaxy"'),
        ({"Name": "new", "EnableIPv4": False}, "IPv4 or IPv6 must be enabled"),
        ({"Name": "new", "Options": {"no.such.option": "1"}}, "unknown option 'no.such.option'"),
    ],
)
def test_a_network_that_cannot_be_is_refused(server: ApiServer, body: dict[str, Any], says: str) -> None:
    reply = server.ask("POST", "/networks/create", body)
    assert reply.status == 400
    assert says in reply.message


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"Subnet": "10.0.0.1/8"}, "invalid subnet 10.0.0.1/8: it should be 10.0.0.0/8"),
        ({"Subnet": "fd00::1/64"}, "invalid subnet fd00::1/64: it should be fd00::/64"),
        ({"Subnet": "10.0.0.0"}, "invalid subnet 10.0.0.0: invalid CIDR block notation"),
        ({"Subnet": "10.0.0.0/33"}, "invalid subnet 10.0.0.0/33: invalid CIDR block notation"),
        ({"Subnet": "10.0.0/24"}, "invalid CIDR block notation"),
        ({"Subnet": "10.0.0.0/255.0.0.0"}, "invalid CIDR block notation"),
        ({"Subnet": "10.0.0.0/-1"}, "invalid CIDR block notation"),
        ({"Subnet": "010.0.0.0/8"}, "invalid CIDR block notation"),
        ({"Subnet": "fd00::/129"}, "invalid CIDR block notation"),
        ({"Subnet": "fe80::%eth0/64"}, "invalid CIDR block notation"),
        ({"Subnet": "ten"}, "invalid CIDR block notation"),
        ({"Gateway": "10.1.0.1"}, "invalid subnet : invalid CIDR block notation"),
        ({"Subnet": "10.1.0.0/24", "IPRange": "10.1.0.5/25"}, "invalid ip-range 10.1.0.5/25: it should be 10.1.0.0/25"),
        ({"Subnet": "10.1.0.0/24", "IPRange": "half"}, "invalid ip-range half: invalid CIDR block notation"),
        (
            {"Subnet": "10.1.0.0/24", "IPRange": "10.2.0.0/25"},
            "invalid ip-range 10.2.0.0/25: parent subnet 10.1.0.0/24 doesn't contain ip-range",
        ),
        (
            {"Subnet": "10.1.0.0/24", "IPRange": "10.0.0.0/8"},
            "invalid ip-range 10.0.0.0/8: CIDR block is bigger than its parent subnet 10.1.0.0/24",
        ),
        (
            {"Subnet": "10.1.0.0/24", "IPRange": "fd00::/64"},
            "invalid ip-range fd00::/64: parent subnet is an IPv4 block",
        ),
        ({"Subnet": "10.1.0.0/24", "Gateway": "10.1.0"}, "invalid gateway: 10.1.0"),
        (
            {"Subnet": "10.1.0.0/24", "Gateway": "10.2.0.1"},
            "invalid gateway 10.2.0.1: parent subnet 10.1.0.0/24 doesn't contain this address",
        ),
        ({"Subnet": "10.1.0.0/24", "Gateway": "fd00::1"}, "invalid gateway fd00::1: parent subnet is an IPv4 block"),
        ({"Subnet": "10.1.0.0/24", "AuxiliaryAddresses": {"p": "10.1"}}, "invalid auxiliary address p: 10.1"),
        (
            {"Subnet": "10.1.0.0/24", "AuxiliaryAddresses": {"p": "10.2.0.1"}},
            "invalid auxiliary address p 10.2.0.1: parent subnet 10.1.0.0/24 doesn't contain this address",
        ),
        (
            {"Subnet": "fd00::/64", "AuxiliaryAddresses": {"p": "10.2.0.1"}},
            "invalid auxiliary address p 10.2.0.1: parent subnet is an IPv6 block",
        ),
        ({"Subnet": "fd00::/64", "Gateway": "fd00::1%eth0"}, "an address with a zone belongs to one host"),
    ],
)
def test_a_subnet_that_cannot_be_is_refused_in_dockers_words(
    server: ApiServer, entry: dict[str, Any], says: str
) -> None:
    reply = server.ask("POST", "/networks/create", config(**entry))
    assert reply.status == 400
    assert says in reply.message


def test_all_faults_of_a_body_are_named_at_once(server: ApiServer) -> None:
    body = config(Subnet="10.0.0.1/8", Gateway="nowhere")
    body["IPAM"]["Config"].append({"Subnet": "fd00::/999"})
    assert server.ask("POST", "/networks/create", body).message.splitlines() == [
        "invalid network config:",
        "invalid subnet 10.0.0.1/8: it should be 10.0.0.0/8",
        "invalid gateway: nowhere",
        "invalid subnet fd00::/999: invalid CIDR block notation",
    ]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"Name": "taken"}, 409, "network with name taken already exists"),
        ({"Name": "new", "Driver": "overlai"}, 404, 'plugin "overlai" not found'),
        ({"Name": "new", "Driver": "host"}, 403, 'only one instance of "host" network is allowed'),
        (config(Subnet="10.50.0.128/25"), 403, "Pool overlaps with other one on this address space"),
        ({"Name": "new", "IPAM": {"Driver": "other"}}, 404, 'plugin "other" not found'),
        ({"Name": "new", "IPAM": {"Driver": "dhcp"}}, 400, "no DHCP server can be reached from a network of driver"),
        ({"Name": "default"}, 403, "operation is not permitted on predefined default network"),
        ({"Name": "new", "Scope": "swarm"}, 403, "cannot create a swarm scoped network when swarm is not active"),
        ({"Name": "new", "Ingress": True}, 403, "Ingress network can only be global scope network"),
    ],
)
def test_what_clashes_with_other_objects_is_refused(
    server: ApiServer, body: dict[str, Any], status: int, says: str
) -> None:
    reply = server.ask("POST", "/networks/create", body)
    assert (reply.status, says in reply.message) == (status, True), reply.message


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "ref", ["nosuch", "x" * 5000, "%FF%FE", "a%00b", "%2e%2e%2fetc", "%F0%9F%90%B3", "a/b", "x/", "a%0Ab"]
)
def test_a_network_that_is_not_there_is_not_found(server: ApiServer, method: str, ref: str) -> None:
    reply = server.ask(method, f"/networks/{ref}")
    assert reply.status == 404
    assert "not found" in reply.message


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ('{"colour": ["red"]}', "invalid filter 'colour'"),
        ('{"until": ["1h"]}', "invalid filter 'until'"),
        ("colour=red", "invalid filter"),
        ('{"name": "x"}', "invalid filter"),
        ('{"name": [1]}', "invalid filter"),
        ('{"name": {"x": "true"}}', "invalid filter"),
        ("[" * 2000, "invalid filter"),
        ('{"dangling": ["maybe"]}', "invalid value for filter 'dangling'"),
        ('{"dangling": ["true", "false"]}', "got more than one value for filter key"),
        ('{"type": ["mine"]}', "invalid filter: 'type'='mine'"),
        ('{"name": ["(a+)+$"]}', "groups and over 2 repetitions are not supported"),
        ('{"name": ["a?a?a?aaa"]}', "groups and over 2 repetitions are not supported"),
    ],
)
def test_filters_that_do_not_exist_are_refused(server: ApiServer, filters: str, says: str) -> None:
    reply = server.ask("GET", f"/networks?filters={quote(filters)}")
    assert reply.status == 400
    assert says in reply.message


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ('{"name": ["x"]}', "invalid filter 'name'"),
        ('{"until": ["1h", "2h"]}', "more than one until filter specified"),
        ('{"until": ["yesterday"]}', "invalid time 'yesterday'"),
        ('{"until": ["2026-13-01"]}', "invalid time '2026-13-01'"),
        ('{"until": ["99999999999999999999"]}', "invalid time"),
        ('{"until": [""]}', "invalid time ''"),
    ],
)
def test_prune_filters_that_cannot_be_are_refused(server: ApiServer, filters: str, says: str) -> None:
    reply = server.ask("POST", f"/networks/prune?filters={quote(filters)}")
    assert reply.status == 400
    assert says in reply.message
