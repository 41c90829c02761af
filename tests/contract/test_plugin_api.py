"""The Engine API's view of networks and endpoints that Docker owns: shown, and not to be changed from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.plugin.network import NetworkDriver
from control.plugin.schema import decode
from tests.api_server import ApiServer
from tests.plugin_server import EP, NET, Host, endpoint, ident, ids, join, network, port, publish


@pytest.fixture
def api(host: Host, tmp_path: Path) -> Iterator[ApiServer]:
    """The Engine API, where Docker has a network with one endpoint that joined and one that did not."""
    with ApiServer(host.controller, tmp_path / "api.sock") as running:
        idle = endpoint(ident("idle"), v4="10.9.0.3/16")
        calls = [("CreateNetwork", network(linkspan_name="fast")), ("CreateEndpoint", endpoint()), ("Join", join())]
        for name, body in [*calls, ("CreateEndpoint", idle)]:
            _direct(host, name, body)
        yield running


def _direct(host: Host, name: str, body: Any) -> None:
    routes = {route.name: route for route in NetworkDriver(host.controller).routes()}
    route = routes[f"NetworkDriver.{name}"]
    route.handler(decode(json.dumps(body).encode(), route.message))


def test_a_network_of_dockers_is_listed_and_inspected(api: ApiServer) -> None:
    (listed,) = [each for each in api.ask("GET", "/networks").json if each["Id"] == NET]
    assert (listed["Name"], listed["Driver"], listed["Scope"]) == ("fast", "bridge", "local")
    shown = api.ask("GET", "/networks/fast").json
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.9.0.0/16", "Gateway": "10.9.0.1"}]
    assert shown["Containers"] == {
        f"ep-{EP}": {
            "Name": "1a2b3c4d5e6f",
            "EndpointID": EP,
            "MacAddress": "02:42:0a:09:00:02",
            "IPv4Address": "10.9.0.2/16",
            "IPv6Address": "",
        }
    }


def test_published_ports_are_shown_with_the_network(api: ApiServer, host: Host) -> None:
    _direct(host, "ProgramExternalConnectivity", publish(port(80, 8080)))
    facts = api.ask("GET", "/networks/fast").json["Status"]["Linkspan"]
    assert facts["linkspan.ports"] == f"*:8080->80/tcp ({EP[:12]})"


def test_a_network_of_dockers_is_not_linkspans_to_change(api: ApiServer, host: Host) -> None:
    api.ask("POST", "/linkspan/sandboxes", {"Name": "box", "Networks": [{"Network": "bridge"}]})
    before = host.state()
    reply = api.ask("DELETE", "/networks/fast")
    assert reply.status == 403
    assert "belongs to docker" in reply.message
    assert "docker network rm" in reply.message
    reply = api.ask("POST", "/networks/fast/connect", {"Container": "box"})
    assert reply.status == 403
    assert "belongs to docker: run containers on it with docker" in reply.message
    assert host.state() == before


def test_an_empty_network_of_dockers_is_left_by_prune_and_rm(api: ApiServer, host: Host) -> None:
    for name in (EP, ident("idle")):
        _direct(host, "DeleteEndpoint", ids(name))
    before = host.state()
    assert NET in {network["Id"] for network in api.ask("GET", "/networks").json}
    assert "fast" not in (api.ask("POST", "/networks/prune").json["NetworksDeleted"] or [])
    assert api.ask("DELETE", "/networks/fast").status == 403
    assert host.state() == before


def test_a_sandbox_of_linkspans_cannot_be_made_on_a_network_of_dockers(api: ApiServer, host: Host) -> None:
    before = host.state()
    reply = api.ask("POST", "/linkspan/sandboxes", {"Name": "box", "Networks": [{"Network": "fast"}]})
    assert reply.status == 403
    assert "belongs to docker" in reply.message
    assert host.state() == before


def test_by_force_a_network_of_dockers_goes_with_its_endpoints(api: ApiServer, host: Host) -> None:
    _direct(host, "ProgramExternalConnectivity", publish(port(80, 8080)))
    host.controller.remove_network("fast", force=True)
    assert api.ask("GET", "/networks/fast").status == 404
    state = host.state()
    assert (state["endpoints"], state["kernel"][1], state["kernel"][2], state["ports"]) == ([], set(), set(), set())
