"""Random bodies: whatever comes, the answer is a success or a 4xx with a message, and a refusal changes nothing."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api_server import ApiServer
from tests.fakes import fake_controller

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
octets = st.integers(0, 300)
addresses = st.one_of(
    st.builds("{}.{}.{}.{}".format, octets, octets, octets, octets),
    st.builds("10.{}.0.0".format, octets),
    st.ip_addresses().map(str),
    st.text("0123456789abcdef:./%", max_size=24),
)
subnets = st.builds("{}/{}".format, addresses, st.integers(-1, 130)) | addresses
string_maps = st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3)
names = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=12) | st.text(max_size=200)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any subset of the fields, each mostly well typed."""
    return st.fixed_dictionaries({}, optional={name: field | st.none() | anything for name, field in fields.items()})


pools = optional(
    Subnet=subnets, IPRange=subnets, Gateway=addresses, AuxiliaryAddresses=st.dictionaries(names, addresses, max_size=2)
)
creates = optional(
    Name=names,
    Driver=st.sampled_from(["bridge", "host", "null", "", "nosuch"]),
    Scope=st.sampled_from(["", "local", "swarm"]),
    EnableIPv4=st.booleans(),
    EnableIPv6=st.booleans(),
    IPAM=optional(
        Driver=st.sampled_from(["default", "", "x"]), Options=string_maps, Config=st.lists(pools, max_size=3)
    ),
    Internal=st.booleans(),
    Attachable=st.booleans(),
    Ingress=st.booleans(),
    ConfigOnly=st.booleans(),
    Options=st.dictionaries(st.sampled_from(["fake.option", "x"]), st.text(max_size=5), max_size=2),
    Labels=string_maps,
    Unknown=anything,
)
connects = optional(
    Container=st.sampled_from(["web", "nobody", ""]),
    EndpointConfig=optional(
        IPAMConfig=optional(IPv4Address=addresses, IPv6Address=addresses, LinkLocalIPs=st.lists(addresses, max_size=2)),
        Links=st.lists(names, max_size=1),
        Aliases=st.lists(names, max_size=2),
        DriverOpts=string_maps,
        GwPriority=st.integers(),
        MacAddress=st.text("0123456789abcdef:-", max_size=17),
    ),
)
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    directory = tmp_path_factory.mktemp("fuzz")
    with ApiServer(fake_controller(directory), directory / "api.sock") as running:
        running.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [{"Network": "bridge"}]})
        running.ask("POST", "/networks/create", {"Name": "goal", "IPAM": {"Config": [{"Subnet": "10.77.0.0/16"}]}})
        yield running


def state(server: ApiServer) -> Any:
    networks = server.ask("GET", "/v1.24/networks").json
    usage = [server.ask("GET", f"/networks/{network['Id']}").json["Status"] for network in networks]
    return networks, usage, server.ask("GET", "/linkspan/sandboxes?all=1").json


@FUZZ
@given(body=creates)
def test_any_create_succeeds_or_is_refused_and_changes_nothing(server: ApiServer, body: dict[str, Any]) -> None:
    before = state(server)
    reply = server.ask("POST", "/networks/create", body)
    if reply.status == 201:
        assert server.ask("GET", f"/networks/{reply.json['Id']}").json["Name"] == body["Name"]
        assert server.ask("DELETE", f"/networks/{reply.json['Id']}").status == 204
    else:
        assert 400 <= reply.status < 500 or reply.status == 503, reply.body
        assert reply.message
    assert state(server) == before


@FUZZ
@given(body=connects)
def test_any_connect_succeeds_or_is_refused_and_changes_nothing(server: ApiServer, body: dict[str, Any]) -> None:
    before = state(server)
    reply = server.ask("POST", "/networks/goal/connect", body)
    if reply.status == 200:
        assert server.ask("POST", "/networks/goal/disconnect", {"Container": body["Container"]}).status == 200
    else:
        assert 400 <= reply.status < 500, reply.body
        assert reply.message
    assert state(server) == before


@FUZZ
@given(raw=st.binary(max_size=200) | anything.map(json.dumps).map(str.encode), cut=st.integers(0, 200))
def test_any_bytes_are_refused_in_words(server: ApiServer, raw: bytes, cut: int) -> None:
    for target in ("/networks/create", "/networks/goal/connect", "/linkspan/sandboxes/web/started"):
        reply = server.ask("POST", target, raw=raw[:cut])
        assert reply.status in (400, 404), reply.body
        assert reply.message


@FUZZ
@given(
    filters=st.dictionaries(
        st.sampled_from(["name", "id", "label", "driver", "scope", "type", "dangling", "until", "x"]),
        st.lists(st.text(max_size=12), max_size=3) | st.dictionaries(st.text(max_size=12), st.booleans(), max_size=2),
        max_size=3,
    )
)
def test_any_filter_lists_or_is_refused(server: ApiServer, filters: dict[str, Any]) -> None:
    query = quote(json.dumps(filters))
    assert server.ask("GET", f"/networks?filters={query}").status in (200, 400)
    assert server.ask("GET", f"/events?until=1&filters={query}").status in (200, 400)
