"""Docker's network operations over HTTP, with the real controller."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any
from urllib.parse import quote

import pytest

from tests.api_server import ApiServer, Reply
from tests.fakes import FakeDriver

CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def create(server: ApiServer, name: str, **body: Any) -> str:
    reply = server.ask("POST", "/networks/create", {"Name": name, **body})
    assert reply.status == 201, reply.body
    return str(reply.json["Id"])


def sandbox(server: ApiServer, name: str, *networks: str) -> str:
    body = {"Name": name, "Networks": [{"Network": network} for network in networks]}
    reply = server.ask("POST", "/linkspan/sandboxes", body)
    assert reply.status == 201, reply.body
    return str(reply.json["Id"])


def names(reply: Reply) -> set[str]:
    assert reply.status == 200, reply.body
    return {network["Name"] for network in reply.json}


def filtered(server: ApiServer, **filters: Any) -> Reply:
    return server.ask("GET", f"/networks?filters={quote(json.dumps(filters))}")


def test_the_predefined_networks_are_listed(server: ApiServer) -> None:
    listed = {network["Name"]: network for network in server.ask("GET", "/networks").json}
    assert {name: network["Driver"] for name, network in listed.items()} == {
        "bridge": "bridge",
        "host": "host",
        "none": "null",
    }


def test_create_answers_with_an_id_and_the_network_exists(server: ApiServer, driver: FakeDriver) -> None:
    reply = server.ask("POST", "/networks/create", {"Name": "blue", "CheckDuplicate": True})
    assert reply.status == 201
    assert re.fullmatch(r"[0-9a-f]{64}", reply.json["Id"])
    assert reply.json["Warning"] == ""
    assert reply.json["Id"] in driver.networks


def test_inspect_has_all_that_was_asked_for(server: ApiServer) -> None:
    network_id = create(
        server,
        "blue",
        Driver="bridge",
        Internal=True,
        Attachable=True,
        EnableIPv6=True,
        Options={"fake.option": "x"},
        Labels={"team": "a"},
        IPAM={
            "Driver": "default",
            "Options": None,
            "Config": [
                {
                    "Subnet": "10.9.0.0/16",
                    "IPRange": "10.9.1.0/24",
                    "Gateway": "10.9.0.9",
                    "AuxiliaryAddresses": {"printer": "10.9.0.7"},
                },
                {"Subnet": "fd00:9::/64"},
            ],
        },
    )
    reply = server.ask("GET", "/networks/blue")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("application/json")
    body = reply.json
    assert CREATED.fullmatch(body.pop("Created"))
    status = body.pop("Status")
    assert body == {
        "Name": "blue",
        "Id": network_id,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": True,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [
                {
                    "Subnet": "10.9.0.0/16",
                    "IPRange": "10.9.1.0/24",
                    "Gateway": "10.9.0.9",
                    "AuxiliaryAddresses": {"printer": "10.9.0.7"},
                },
                {"Subnet": "fd00:9::/64", "Gateway": "fd00:9::1"},
            ],
        },
        "Internal": True,
        "Attachable": True,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {"fake.option": "x"},
        "Labels": {"team": "a"},
    }
    assert set(status["IPAM"]["Subnets"]) == {"10.9.0.0/16", "fd00:9::/64"}
    assert all(0 <= use["DynamicIPsAvailable"] < 2**64 for use in status["IPAM"]["Subnets"].values())
    assert status["Linkspan"] == {"device": f"fake-{network_id[:12]}"}


def test_connect_shows_under_containers_and_disconnect_takes_it_away(server: ApiServer) -> None:
    create(server, "blue", IPAM={"Config": [{"Subnet": "10.9.0.0/24"}]})
    sandbox_id = sandbox(server, "web")
    settings = {
        "IPAMConfig": {"IPv4Address": "10.9.0.44"},
        "Links": None,
        "Aliases": ["www"],
        "DriverOpts": {},
        "MacAddress": "02-00-00-00-0a-2C",
        "GwPriority": 0,
        "NetworkID": "",
        "IPPrefixLen": 0,
    }
    reply = server.ask("POST", "/networks/blue/connect", {"Container": "web", "EndpointConfig": settings})
    assert (reply.status, reply.body) == (200, b"")
    shown = server.ask("GET", "/networks/blue").json["Containers"]
    assert re.fullmatch(r"[0-9a-f]{64}", shown[sandbox_id].pop("EndpointID"))
    assert shown == {
        sandbox_id: {
            "Name": "web",
            "MacAddress": "02:00:00:00:0a:2c",
            "IPv4Address": "10.9.0.44/24",
            "IPv6Address": "",
        }
    }
    reply = server.ask("POST", "/networks/blue/disconnect", {"Container": sandbox_id[:12], "Force": False})
    assert (reply.status, reply.body) == (200, b"")
    assert server.ask("GET", "/networks/blue").json["Containers"] == {}


def test_remove_refuses_while_an_endpoint_is_active_and_names_it(server: ApiServer) -> None:
    create(server, "blue")
    sandbox(server, "web", "blue")
    reply = server.ask("DELETE", "/networks/blue")
    assert reply.status == 403
    assert "network blue" in reply.message
    assert "has active endpoints" in reply.message
    assert "web" in reply.message
    server.ask("POST", "/networks/blue/disconnect", {"Container": "web"})
    assert server.ask("DELETE", "/networks/blue").status == 204
    assert server.ask("GET", "/networks/blue").status == 404


@pytest.mark.parametrize("name", ["bridge", "host", "none"])
def test_predefined_networks_are_neither_made_nor_removed(server: ApiServer, name: str) -> None:
    made = server.ask("POST", "/networks/create", {"Name": name})
    removed = server.ask("DELETE", f"/networks/{name}")
    assert (made.status, removed.status) == (403, 403)
    assert removed.message == f"{name} is a pre-defined network and cannot be removed"


def test_networks_are_found_by_name_id_and_unique_prefix(server: ApiServer) -> None:
    network_id = create(server, "blue")
    for ref in ("blue", network_id, network_id[:12]):
        assert server.ask("GET", f"/networks/{ref}").json["Id"] == network_id
    assert server.ask("GET", "/networks/blue?scope=local&verbose=true").status == 200
    reply = server.ask("GET", "/networks/blue?scope=swarm")
    assert (reply.status, reply.message) == (404, "network blue not found")


def test_an_ambiguous_prefix_is_an_error_that_says_so(server: ApiServer) -> None:
    first_digits = [create(server, f"net{number}")[0] for number in range(17)]
    shared = next(digit for digit in first_digits if first_digits.count(digit) > 1)
    reply = server.ask("GET", f"/networks/{shared}")
    assert reply.status == 400
    assert "ambiguous" in reply.message


def test_filters_choose_networks_as_dockers_do(server: ApiServer) -> None:
    network_id = create(server, "blue", Labels={"team": "a", "tier": "1"})
    create(server, "green", Labels={"team": "b"})
    sandbox(server, "web", "green")
    assert names(filtered(server, name=["lu"])) == {"blue"}
    assert names(filtered(server, name={"^b.*e$": True})) == {"blue", "bridge"}
    assert names(filtered(server, name=["blue", "host"])) == {"blue", "host"}
    assert names(filtered(server, id=[network_id[:8]])) == {"blue"}
    assert names(filtered(server, driver=["null", "host"])) == {"none", "host"}
    assert names(filtered(server, driver=["nul"])) == set()
    assert names(filtered(server, scope=["local"])) == {"bridge", "host", "none", "blue", "green"}
    assert names(filtered(server, scope=["swarm"])) == set()
    assert names(filtered(server, type=["builtin"])) == {"bridge", "host", "none"}
    assert names(filtered(server, type=["custom"])) == {"blue", "green"}
    assert names(filtered(server, label=["team"])) == {"blue", "green"}
    assert names(filtered(server, label=["team=a", "tier"])) == {"blue"}
    assert names(filtered(server, label=["team=a", "team=b"])) == set()
    assert names(filtered(server, dangling=["true"])) == {"blue"}
    assert names(filtered(server, dangling=["0"])) == {"bridge", "host", "none", "green"}


def test_prune_removes_what_is_unused_and_keeps_the_rest(server: ApiServer) -> None:
    for name, labels in (("blue", {"keep": ""}), ("green", {}), ("red", {})):
        create(server, name, Labels=labels)
    sandbox(server, "web", "red")
    target = f"/networks/prune?filters={quote(json.dumps({'label!': {'keep': True}}))}"
    assert server.ask("POST", target).json == {"NetworksDeleted": ["green"]}
    long_ago = f"/networks/prune?filters={quote(json.dumps({'until': {'1h': True}}))}"
    assert server.ask("POST", long_ago).json["NetworksDeleted"] in ([], None)
    assert server.ask("POST", "/networks/prune").json == {"NetworksDeleted": ["blue"]}
    assert names(server.ask("GET", "/networks")) == {"bridge", "host", "none", "red"}


def test_prune_until_takes_networks_made_before_it(server: ApiServer) -> None:
    create(server, "blue")
    created = datetime.fromisoformat(server.ask("GET", "/networks/blue").json["Created"])
    for moment, gone in ((created.timestamp() - 10, False), (created.timestamp() + 10, True)):
        target = f"/networks/prune?filters={quote(json.dumps({'until': [f'{moment:.9f}']}))}"
        assert (server.ask("POST", target).json["NetworksDeleted"] == ["blue"]) is gone


@pytest.mark.parametrize(
    ("version", "has_containers", "has_enable_ipv4"),
    [
        ("1.24", True, False),
        ("1.27", True, False),
        ("1.28", False, False),
        ("1.47", False, False),
        ("1.48", False, True),
    ],
)
def test_fields_follow_the_version(
    server: ApiServer, version: str, has_containers: bool, has_enable_ipv4: bool
) -> None:
    sandbox_id = sandbox(server, "web", "bridge")
    listed = next(n for n in server.ask("GET", f"/v{version}/networks").json if n["Name"] == "bridge")
    assert ("Containers" in listed) is has_containers
    assert ("EnableIPv4" in listed) is has_enable_ipv4
    if has_containers:
        assert set(listed["Containers"]) == {sandbox_id}
    inspected = server.ask("GET", f"/v{version}/networks/bridge").json
    assert "Containers" in inspected
    assert ("EnableIPv4" in inspected) is has_enable_ipv4


def test_a_failing_driver_leaves_nothing_and_names_the_network(server: ApiServer, driver: FakeDriver) -> None:
    driver.failing["network"] = OSError(28, "No space left on device")
    reply = server.ask("POST", "/networks/create", {"Name": "blue", "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]}})
    assert reply.status == 500
    assert "blue" in reply.message
    driver.failing.clear()
    assert names(server.ask("GET", "/networks")) == {"bridge", "host", "none"}
    create(server, "blue", IPAM={"Config": [{"Subnet": "10.9.0.0/24"}]})
