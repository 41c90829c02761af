"""What a client may get wrong: every request here is refused with a text that says why, and changes nothing."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.api_server import ApiServer, UnixConnection
from tests.fakes import fake_controller

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One server for all: nothing that is refused may change it, which `unchanged` checks after each test."""
    directory = tmp_path_factory.mktemp("bad")
    with ApiServer(fake_controller(directory), directory / "api.sock") as running:
        body = {"Name": "taken", "IPAM": {"Config": [{"Subnet": "10.50.0.0/24"}]}}
        assert running.ask("POST", "/networks/create", body).status == 201
        assert (
            running.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [{"Network": "taken"}]}).status
            == 201
        )
        yield running


@pytest.fixture
def server(shared: ApiServer) -> Iterator[ApiServer]:
    before = state(shared)
    yield shared
    assert state(shared) == before


def state(server: ApiServer) -> Any:
    networks = [server.ask("GET", f"/networks/{n['Id']}").json for n in server.ask("GET", "/networks").json]
    return networks, server.ask("GET", "/linkspan/sandboxes?all=1").json


def config(**entry: Any) -> dict[str, Any]:
    return {"Name": "new", "EnableIPv6": True, "IPAM": {"Config": [entry]}}


@pytest.mark.parametrize(
    ("raw", "headers", "says"),
    [
        (b"", {}, "invalid JSON: got EOF while reading request body"),
        (b"  \n", {}, "invalid JSON: got EOF while reading request body"),
        (b'{"Name": "new"', {}, "invalid JSON"),
        (b"Name=new", {}, "invalid JSON"),
        (b'{"Name": "new"} {"Name": "newer"}', {}, "unexpected content after JSON"),
        (b'{"Name": "new"}x', {}, "unexpected content after JSON"),
        (b"[]", {}, "Expected `object`, got `array`"),
        (b"null", {}, "Expected `object`, got `null`"),
        (b'"new"', {}, "Expected `object`, got `str`"),
        (b'{"Name": "n\xffw"}', {}, "not UTF-8"),
        (b'{"Name": "n\x00w"}', {}, "invalid JSON"),
        (b'{"x": ' + b"[" * 100_000, {}, "invalid JSON"),
        (b"[" * 100_000, {}, "invalid JSON"),
        (b'{"Name": "new"}', {"Content-Type": "text/plain"}, "unsupported Content-Type header (text/plain)"),
        (b'{"Name": "new"}', {"Content-Type": ""}, "unsupported Content-Type header"),
        (b'{"Name": "new"}', {"Content-Type": "application/x-www-form-urlencoded"}, "must be 'application/json'"),
        (gzip.compress(b'{"Name": "new"}', mtime=0), {"Content-Encoding": "gzip"}, "invalid JSON"),
    ],
)
@pytest.mark.parametrize(
    "target",
    ["/networks/create", "/networks/taken/connect", "/networks/taken/disconnect", "/linkspan/cluster/join"],
)
def test_a_body_that_is_not_one_json_object_is_refused(
    server: ApiServer, target: str, raw: bytes, headers: dict[str, str], says: str
) -> None:
    reply = server.ask("POST", target, raw=raw, headers=headers)
    assert reply.status == 400
    assert says in reply.message


def test_a_body_without_any_content_type_is_refused(server: ApiServer) -> None:
    connection = UnixConnection(server.socket_path)
    connection.putrequest("POST", "/networks/create")
    connection.putheader("Content-Length", "15")
    connection.endheaders(b'{"Name": "new"}')
    response = connection.getresponse()
    assert response.status == 400
    assert "Content-Type" in json.loads(response.read())["message"]
    connection.close()


def test_a_content_type_with_parameters_is_json_all_the_same(server: ApiServer) -> None:
    reply = server.ask(
        "POST", "/networks/create", raw=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert "name cannot be empty" in reply.message


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_and_the_limit_named(server: ApiServer, declared: bool) -> None:
    raw = b'{"Name": "new", "Labels": {"x": "' + b"y" * LIMIT + b'"}}'
    connection = UnixConnection(server.socket_path)
    body: Any = raw if declared else iter([raw[:1000], raw[1000:]])  # an iterator goes out in chunks, of unknown length
    with contextlib.suppress(BrokenPipeError):  # refused before it was all sent; the answer is there nevertheless
        connection.request("POST", "/networks/create", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["message"] == f"the request's body is over the limit of {LIMIT} bytes"
    connection.close()


def test_a_body_just_under_the_limit_is_read(server: ApiServer) -> None:
    head, tail = b'{"Name": "", "Labels": {"x": "', b'"}}'
    raw = head + b"y" * (LIMIT - len(head) - len(tail)) + tail
    assert "name cannot be empty" in server.ask("POST", "/networks/create", raw=raw).message


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


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "Container is missing"),
        ({"Container": ""}, 400, "Container is missing"),
        ({"Container": None}, 400, "Container is missing"),
        ({"Container": 7}, 400, "at `$.Container`"),
        ({"Container": "nobody"}, 404, "No such container: nobody"),
        ({"Container": "web"}, 403, "already exists in network taken"),
        ({"Container": "web", "EndpointConfig": []}, 400, "at `$.EndpointConfig`"),
    ],
)
def test_a_connect_that_cannot_be_is_refused(server: ApiServer, body: dict[str, Any], status: int, says: str) -> None:
    reply = server.ask("POST", "/networks/taken/connect", body)
    assert (reply.status, says in reply.message) == (status, True), reply.message


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({"IPAMConfig": {"IPv4Address": "10.50.0"}}, 400, "invalid IPv4 address: 10.50.0"),
        ({"IPAMConfig": {"IPv4Address": "fd00::9"}}, 400, "invalid IPv4 address: fd00::9"),
        ({"IPAMConfig": {"IPv6Address": "10.50.0.9"}}, 400, "invalid IPv6 address: 10.50.0.9"),
        ({"IPAMConfig": {"IPv6Address": "fd00::9"}}, 400, "fd00::9"),
        ({"IPAMConfig": {"IPv4Address": "10.51.0.9"}}, 400, "10.51.0.9"),
        ({"IPAMConfig": {"IPv4Address": "10.50.0.2"}}, 403, "10.50.0.2"),
        ({"IPAMConfig": {"IPv4Address": "10.50.0.1"}}, 403, "10.50.0.1"),
        ({"IPAMConfig": {"IPv4Address": "10.50.0.255"}}, 400, "10.50.0.255"),
        *(
            ({"IPAMConfig": {"LinkLocalIPs": [text]}}, 400, f"invalid link-local IP address: {text}")
            for text in ("foo", "169.254.1.1/16", "169.254.1.01", "169.254.1", "fe80::1%eth0", "fe80::g")
        ),
        *(
            ({"IPAMConfig": {"LinkLocalIPs": [text]}}, 400, f"invalid link local IP address: {text}")
            for text in ("", "10.50.0.9", "0.0.0.0", "::", "fd00::9", "fec0::1", "ff02::1", "127.0.0.1", "224.0.0.1")
        ),
        ({"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1", "::ffff:169.254.1.1"]}}, 400, "169.254.1.1 is given twice"),
        ({"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1", "fe80::1"]}}, 400, "network taken has no IPv6 subnet"),
        ({"IPAMConfig": {"LinkLocalIPs": "169.254.1.1"}}, 400, "at `$.EndpointConfig.IPAMConfig.LinkLocalIPs`"),
        ({"Links": [""]}, 400, "invalid format for links: "),
        ({"Links": ["web:"]}, 400, "invalid format for links: web:"),
        ({"Links": ["web:a:b"]}, 400, "invalid format for links: web:a:b"),
        ({"Links": ["web:evil\n10.0.0.1 bank"]}, 400, "invalid alias 'evil"),
        ({"GwPriority": 10**30}, 400, "GwPriority"),
        ({"MacAddress": "02:00:00:00:00"}, 400, "invalid MAC address"),
        ({"MacAddress": "01:00:5e:00:00:01"}, 400, "unicast"),
        ({"MacAddress": "00:00:00:00:00:00"}, 400, "unicast"),
        ({"Aliases": ["a b"]}, 400, "invalid alias 'a b'"),
        ({"Aliases": ["evil\n10.0.0.1 bank"]}, 400, "invalid alias"),
        ({"Aliases": ["x" * 300]}, 400, "at most 253 characters"),
        ({"Aliases": "www"}, 400, "at `$.EndpointConfig.Aliases`"),
    ],
)
def test_endpoint_settings_that_cannot_be_are_refused(
    shared: ApiServer, settings: dict[str, Any], status: int, says: str
) -> None:
    assert shared.ask("POST", "/linkspan/sandboxes", {"Name": "db"}).status == 201
    before = state(shared)
    reply = shared.ask("POST", "/networks/taken/connect", {"Container": "db", "EndpointConfig": settings})
    after = state(shared)
    assert shared.ask("DELETE", "/linkspan/sandboxes/db").status == 204
    assert (reply.status, says in reply.message) == (status, True), reply.message
    assert after == before


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


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("1.99", "client version 1.99 is too new. Maximum supported API version is 1.56"),
        ("2.0", "client version 2.0 is too new. Maximum supported API version is 1.56"),
        (
            "1.23",
            "client version 1.23 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
        ("1", "client version 1 is too old"),
        ("1.", "client version 1. is too old"),
        ("1.2.3", "client version 1.2.3 is too old"),
        ("9" * 30 + ".1", "is too old"),
    ],
)
def test_versions_out_of_range_are_refused_in_dockers_words(server: ApiServer, version: str, says: str) -> None:
    for target in ("/networks", "/_ping", "/containers/json"):
        reply = server.ask("GET", f"/v{version}{target}")
        assert reply.status == 400
        assert says in reply.message


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("GET", "/v1.41"),
        ("GET", "/v1.41/nowhere"),
        ("GET", "/no%0Awhere"),
        ("GET", "/linkspan/no%0Awhere/x"),
        ("POST", "/networks/taken"),
        ("PUT", "/networks"),
        ("PATCH", "/networks/taken"),
        ("POST", "/_ping"),
        ("GET", "/linkspan"),
    ],
)
def test_an_unknown_operation_is_dockers_page_not_found(server: ApiServer, method: str, target: str) -> None:
    reply = server.ask(method, target)
    assert (reply.status, reply.message) == (404, "page not found")


@pytest.mark.parametrize(
    ("target", "instead"),
    [
        ("/containers/json", "linkspan run"),
        ("/v1.44/containers/web/json", "linkspan run"),
        ("/exec/1/start", "linkspan exec"),
        *(
            (f"/{kind}", "ask Docker's own engine")
            for kind in (
                *(
                    "auth",
                    "build",
                    "commit",
                    "configs",
                    "debug/vars",
                    "distribution/x/json",
                    "grpc",
                    "nodes",
                    "plugins",
                ),
                *("secrets", "services", "session", "swarm", "system/df", "tasks", "v1.41/images/json", "volumes"),
            )
        ),
    ],
)
def test_the_rest_of_docker_is_said_to_be_missing(server: ApiServer, target: str, instead: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        reply = server.ask(method, target)
        assert reply.status == 501
        assert reply.message.startswith("linkspand serves Docker's network API only")
        assert "not supported" in reply.message  # by these words docker inspect knows to try the next kind of object
        assert instead in reply.message


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"Name": "x" * 10_000}, 400, "at most"),
        ({"Name": "a/b"}, 400, "invalid sandbox name"),
        ({"Name": "web"}, 409, "already in use"),
        ({"Name": "db", "Networks": [{}]}, 400, "names no Network"),
        ({"Name": "db", "Networks": [{"Network": "nosuch"}]}, 404, "network nosuch not found"),
        ({"Name": "db", "Networks": [{"Network": "taken"}, {"Network": "nosuch"}]}, 404, "network nosuch not found"),
        ({"Name": "db", "Networks": [{"Network": "taken"}, {"Network": "taken"}]}, 403, "already exists in network"),
        ({"Name": "db", "Networks": [{"Network": "host"}, {"Network": "taken"}]}, 403, "host"),
        ({"Name": "db", "Networks": ["taken"]}, 400, "at `$.Networks[0]`"),
        ({"Name": "db", "Command": "sleep 1"}, 400, "at `$.Command`"),
        ({"Name": "db", "Networks": [{"Network": "taken", "MacAddress": "x"}]}, 400, "invalid MAC address"),
    ],
)
def test_a_sandbox_that_cannot_be_is_refused_whole(
    server: ApiServer, body: dict[str, Any], status: int, says: str
) -> None:
    reply = server.ask("POST", "/linkspan/sandboxes", body)
    assert (reply.status, says in reply.message) == (status, True), reply.message


@pytest.mark.parametrize(
    ("pid", "says"),
    [(0, "at `$.Pid`"), (-1, "at `$.Pid`"), ("1", "at `$.Pid`"), (1 << 40, "at `$.Pid`"), (1 << 22, "no process")],
)
def test_a_pid_that_is_no_process_is_refused(server: ApiServer, pid: Any, says: str) -> None:
    reply = server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": pid})
    assert reply.status == 400
    assert says in reply.message


def test_an_exhausted_pool_is_named(tmp_path: Path) -> None:
    with ApiServer(fake_controller(tmp_path), tmp_path / "api.sock") as server:
        body = {"Name": "tiny", "IPAM": {"Config": [{"Subnet": "10.60.0.0/30"}]}}
        assert server.ask("POST", "/networks/create", body).status == 201
        assert server.ask("POST", "/linkspan/sandboxes", {"Name": "a", "Networks": [{"Network": "tiny"}]}).status == 201
        reply = server.ask("POST", "/linkspan/sandboxes", {"Name": "b", "Networks": [{"Network": "tiny"}]})
        assert reply.status == 503
        assert "no available addresses on this pool" in reply.message
        assert {s["Name"] for s in server.ask("GET", "/linkspan/sandboxes").json} == {"a"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"BREW /networks HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /networks/create HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"POST /networks/create HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_with_400_and_the_connection_closed(server: ApiServer, raw: bytes) -> None:
    connection = UnixConnection(server.socket_path)
    connection.connect()
    connection.sock.sendall(raw)
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    assert response.status == 400
    assert b"Traceback" not in response.read()
    response.close()
    connection.close()
