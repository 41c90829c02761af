"""Link-local addresses of endpoints, over HTTP, with the real controller."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.api_server import DEADLINE_SECONDS, ApiServer, Reply
from tests.fakes import FakeDriver

GIVEN = ["169.254.7.7", "fe80::77"]
OWN = "fe80::42:aff:fe09:9"
"""What follows from the MAC of an endpoint with 10.9.0.9 (RFC 4291, appendix A)."""


@pytest.fixture
def blue(server: ApiServer) -> str:
    """A network of both families with the sandbox `db` on it, which has `GIVEN`, and `web`, which is on no network."""
    pools = [{"Subnet": "10.9.0.0/24"}, {"Subnet": "fd00:9::/64"}]
    body = {"Name": "blue", "EnableIPv6": True, "IPAM": {"Config": pools}}
    network_id = str(server.ask("POST", "/networks/create", body).json["Id"])
    for name in ("db", "web"):
        assert server.ask("POST", "/linkspan/sandboxes", {"Name": name}).status == 201
    assert connect(server, "db", GIVEN).status == 200
    return network_id


def connect(server: ApiServer, sandbox: str, addresses: list[str], network: str = "blue", **ipam: Any) -> Reply:
    settings = {"IPAMConfig": {"LinkLocalIPs": addresses, **ipam}}
    return server.ask("POST", f"/networks/{network}/connect", {"Container": sandbox, "EndpointConfig": settings})


def endpoint(server: ApiServer, sandbox: str, network: str = "blue") -> Any:
    return server.ask("GET", f"/linkspan/sandboxes/{sandbox}").json["Networks"][network]


def test_they_are_shown_as_settings_of_the_endpoint(server: ApiServer, driver: FakeDriver, blue: str) -> None:
    shown = endpoint(server, "db")
    assert shown["IPAMConfig"] == {"LinkLocalIPs": GIVEN}
    assert [str(ip) for ip in driver.endpoints[shown["EndpointID"]].endpoint.link_local_ips] == GIVEN
    assert connect(server, "web", []).status == 200
    assert endpoint(server, "web")["IPAMConfig"] is None


def test_a_network_shows_them_no_more_than_dockers_does(server: ApiServer, blue: str) -> None:
    [container] = server.ask("GET", f"/networks/{blue}").json["Containers"].values()
    assert set(container) == {"Name", "EndpointID", "MacAddress", "IPv4Address", "IPv6Address"}


def test_a_sandbox_is_made_with_them(server: ApiServer, blue: str) -> None:
    joins = [{"Network": "blue", "IPAMConfig": {"LinkLocalIPs": ["169.254.7.8"]}}]
    assert server.ask("POST", "/linkspan/sandboxes", {"Name": "app", "Networks": joins}).status == 201
    assert endpoint(server, "app")["IPAMConfig"] == {"LinkLocalIPs": ["169.254.7.8"]}


def test_hosts_files_do_not_list_them(server: ApiServer, blue: str) -> None:
    assert connect(server, "web", ["169.254.7.8"]).status == 200
    path = Path(server.ask("GET", "/linkspan/sandboxes/web").json["HostsPath"])
    deadline = time.monotonic() + DEADLINE_SECONDS
    while "\tdb" not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert "169.254." not in path.read_text()
    assert "fe80::" not in path.read_text()


@pytest.mark.parametrize("address", [*GIVEN, "FE80:0::77", "::ffff:169.254.7.7"])
def test_one_that_is_taken_is_a_conflict_that_names_the_holder(server: ApiServer, blue: str, address: str) -> None:
    reply = connect(server, "web", ["169.254.7.8", address])
    assert reply.status == 409
    assert "is in use on network blue by db" in reply.message
    assert "blue" not in server.ask("GET", "/linkspan/sandboxes/web").json["Networks"]
    assert connect(server, "web", ["169.254.7.8"]).status == 200


def test_the_one_that_follows_from_a_mac_is_taken_too(server: ApiServer, blue: str) -> None:
    shown = endpoint(server, "db")
    mac = [int(octet, 16) for octet in shown["MacAddress"].split(":")]
    own = "fe80::{:x}{:02x}:{:x}ff:fe{:02x}:{:x}{:02x}".format(mac[0] ^ 2, *mac[1:])
    assert connect(server, "web", [own]).status == 409
    assert connect(server, "web", [OWN]).status == 200
    assert server.ask("POST", "/linkspan/sandboxes", {"Name": "app"}).status == 201
    reply = connect(server, "app", [], IPv4Address="10.9.0.9")
    assert (reply.status, f"{OWN} is in use on network blue by web" in reply.message) == (409, True)


def test_it_is_free_again_when_its_endpoint_has_gone_and_on_other_networks(server: ApiServer, blue: str) -> None:
    assert server.ask("POST", "/networks/create", {"Name": "red", "EnableIPv6": True}).status == 201
    assert connect(server, "web", GIVEN, "red").status == 200
    assert server.ask("POST", "/networks/blue/disconnect", {"Container": "db"}).status == 200
    assert connect(server, "web", GIVEN).status == 200


def test_one_in_a_subnet_of_the_network_is_ipams(server: ApiServer, blue: str) -> None:
    body = {"Name": "local", "IPAM": {"Config": [{"Subnet": "169.254.0.0/16"}]}}
    assert server.ask("POST", "/networks/create", body).status == 201
    reply = connect(server, "web", ["169.254.7.9"], "local")
    assert (reply.status, "it is in subnet 169.254.0.0/16 of network local" in reply.message) == (400, True)
    assert connect(server, "web", [], "local", IPv4Address="169.254.7.9").status == 200


@pytest.mark.parametrize("network", ["host", "none"])
def test_networks_without_addresses_refuse_them(server: ApiServer, network: str) -> None:
    joins = [{"Network": network, "IPAMConfig": {"LinkLocalIPs": ["169.254.7.8"]}}]
    reply = server.ask("POST", "/linkspan/sandboxes", {"Name": "app", "Networks": joins})
    assert (reply.status, f"network {network} has no IPv4 subnet" in reply.message) == (400, True)
    assert server.ask("GET", "/linkspan/sandboxes?all=1").json in (None, [])
