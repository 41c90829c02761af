"""Every version from the oldest to the newest: what it shows, takes and leaves out, by the Engine API's history."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from control.api.versions import NEWEST, OLDEST
from tests.api_server import ApiServer
from tests.fakes import fake_controller

FIRST, LAST = 24, 56
ALL = [f"1.{minor}" for minor in range(FIRST, LAST + 1)]

# (operation, field, minor number of the first version with it, and of the first without it again)
FIELDS = [
    ("GET /networks", "Name", FIRST, None),
    ("GET /networks", "EnableIPv6", FIRST, None),
    ("GET /networks", "Internal", FIRST, None),
    ("GET /networks", "Labels", FIRST, None),
    ("GET /networks", "Containers", FIRST, 28),
    ("GET /networks", "Created", 25, None),
    ("GET /networks", "Attachable", 25, None),
    ("GET /networks", "Ingress", 29, None),
    ("GET /networks", "ConfigOnly", 30, None),
    ("GET /networks", "ConfigFrom", 30, None),
    ("GET /networks", "EnableIPv4", 48, None),
    ("GET /networks/blue", "Containers", FIRST, None),
    ("GET /networks/blue", "Created", 25, None),
    ("GET /networks/blue", "Ingress", 29, None),
    ("GET /networks/blue", "EnableIPv4", 48, None),
    ("GET /networks/blue", "Status", 52, None),
    ("GET /networks/blue", "Peers", None, None),
    ("GET /networks/blue", "Services", None, None),
    ("GET /version", "ApiVersion", FIRST, None),
    ("GET /version", "MinAPIVersion", 25, None),
    ("GET /version", "Platform", 35, None),
    ("GET /version", "Components", 35, None),
    ("GET /info", "IPv4Forwarding", FIRST, None),
    ("GET /info", "Warnings", 39, None),
    ("GET /info", "BridgeNfIptables", FIRST, 50),
    ("GET /info", "BridgeNfIp6tables", FIRST, 50),
    ("GET /events", "Action", FIRST, None),
    ("GET /events", "scope", FIRST, None),
    ("GET /events", "status", FIRST, 52),
    ("GET /events", "id", FIRST, 52),
    ("GET /events", "from", FIRST, 52),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    directory = tmp_path_factory.mktemp("versions")
    with ApiServer(fake_controller(directory), directory / "api.sock") as running:
        running.ask("POST", "/networks/create", {"Name": "blue"})
        running.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [{"Network": "blue"}]})
        running.ask("POST", "/networks/prune")
        yield running


def events(server: ApiServer, version: str, kind: str) -> list[dict[str, Any]]:
    target = f'/v{version}/events?since=0&until={time.time():.6f}&filters={{"type":["{kind}"]}}'
    return [json.loads(line) for line in server.ask("GET", target).body.splitlines()]


def shown(server: ApiServer, version: str, operation: str) -> dict[str, Any]:
    if operation == "GET /events":
        return events(server, version, "container")[0]
    answer = server.ask("GET", f"/v{version}{operation.removeprefix('GET ')}").json
    return dict(next(network for network in answer if network["Name"] == "blue") if operation.endswith("s") else answer)


def test_the_ends_are_those_that_are_tested() -> None:
    assert (str(OLDEST), str(NEWEST)) == (ALL[0], ALL[-1])


@pytest.mark.parametrize("version", ALL)
def test_fields_appear_and_disappear_as_the_history_says(server: ApiServer, version: str) -> None:
    minor = int(version.removeprefix("1."))
    answers = {operation: shown(server, version, operation) for operation, _, _, _ in FIELDS}
    for operation, field, since, until in FIELDS:
        is_expected = since is not None and since <= minor and (until is None or minor < until)
        assert (field in answers[operation]) is is_expected, f"{field} of {operation} in {version}"


def test_a_path_without_a_version_is_of_the_newest(server: ApiServer) -> None:
    assert server.ask("GET", "/networks/blue").json == server.ask("GET", f"/v{ALL[-1]}/networks/blue").json
    assert server.ask("GET", "/version").json == server.ask("GET", f"/v{ALL[-1]}/version").json


@pytest.mark.parametrize(
    ("field", "value", "since", "refusal"),
    [
        ("Ingress", True, 29, 403),
        ("Scope", "swarm", 30, 403),
        ("EnableIPv4", False, 48, 400),
    ],
)
def test_a_field_of_a_later_version_is_ignored_in_create(
    server: ApiServer, field: str, value: Any, since: int, refusal: int
) -> None:
    for minor, status in ((since - 1, 201), (since, refusal)):
        reply = server.ask("POST", f"/v1.{minor}/networks/create", {"Name": "new", field: value})
        assert reply.status == status, reply.body
        if status == 201:
            assert server.ask("DELETE", "/networks/new").status == 204


def test_attachable_is_taken_from_1_25_on(server: ApiServer) -> None:
    for version, expected in (("1.24", False), ("1.25", True)):
        server.ask("POST", f"/v{version}/networks/create", {"Name": "new", "Attachable": True})
        assert server.ask("GET", "/networks/new").json["Attachable"] is expected
        assert server.ask("DELETE", "/networks/new").status == 204


@pytest.fixture
def loose(server: ApiServer) -> Iterator[str]:
    """A sandbox that is on no network."""
    server.ask("POST", "/linkspan/sandboxes", {"Name": "db", "Networks": [{"Network": "none"}]})
    server.ask("POST", "/networks/none/disconnect", {"Container": "db"})
    yield "db"
    assert server.ask("DELETE", "/linkspan/sandboxes/db").status == 204


@pytest.mark.parametrize(
    ("settings", "since", "refusal"),
    [
        ({"DriverOpts": {"no.such.option": "1"}}, 32, "unknown option 'no.such.option'"),
        ({"MacAddress": "nonsense"}, 44, "invalid MAC address"),
    ],
)
def test_an_endpoint_setting_of_a_later_version_is_ignored(
    server: ApiServer, loose: str, settings: dict[str, Any], since: int, refusal: str
) -> None:
    body = {"Container": loose, "EndpointConfig": settings}
    assert server.ask("POST", f"/v1.{since - 1}/networks/blue/connect", body).status == 200
    assert server.ask("POST", "/networks/blue/disconnect", {"Container": loose}).status == 200
    reply = server.ask("POST", f"/v1.{since}/networks/blue/connect", body)
    assert (reply.status, refusal in reply.message) == (400, True)


@pytest.mark.parametrize(("version", "expected"), [("1.47", 0), ("1.48", 7)])
def test_a_gateway_priority_counts_from_1_48_on(server: ApiServer, loose: str, version: str, expected: int) -> None:
    body = {"Container": loose, "EndpointConfig": {"GwPriority": 7}}
    assert server.ask("POST", f"/v{version}/networks/blue/connect", body).status == 200
    assert server.ask("GET", f"/linkspan/sandboxes/{loose}").json["Networks"]["blue"]["GwPriority"] == expected


def test_prune_came_with_1_25_and_its_event_with_1_41(server: ApiServer) -> None:
    reply = server.ask("POST", "/v1.24/networks/prune")
    assert (reply.status, reply.message) == (400, "POST /networks/prune requires minimum API version 1.25")
    assert server.ask("POST", "/v1.25/networks/prune").status == 200
    assert "prune" not in {event["Action"] for event in events(server, "1.40", "network")}
    pruned = [event for event in events(server, "1.41", "network") if event["Action"] == "prune"]
    assert pruned[0]["Actor"] == {"ID": "", "Attributes": {"reclaimed": "0"}}


def test_inspect_takes_a_scope_from_1_31_on(server: ApiServer) -> None:
    assert server.ask("GET", "/v1.30/networks/blue?scope=swarm").status == 200
    assert server.ask("GET", "/v1.31/networks/blue?scope=swarm").status == 404


@pytest.mark.parametrize(
    ("version", "accept", "expected"),
    [
        ("1.51", "", "application/json"),
        ("1.52", "", "application/jsonl"),
        ("1.52", "*/*", "application/jsonl"),
        ("1.56", "application/json", "application/jsonl"),
        ("1.56", "application/x-ndjson", "application/x-ndjson"),
        ("1.56", "application/json-seq;q=0.5, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("1.56", "application/json-seq;q=0, text/html", "application/jsonl"),
        ("1.51", "application/jsonl", "application/jsonl"),
        ("1.56", "application/json-seq;q=much,;,q=1", "application/jsonl"),
        ("1.56", "application/json-seq", "application/json-seq"),
    ],
)
def test_events_have_the_content_type_that_is_asked_for(
    server: ApiServer, version: str, accept: str, expected: str
) -> None:
    headers = {"Accept": accept} if accept else {}
    reply = server.ask("GET", f"/v{version}/events?since=0&until={time.time():.6f}", headers=headers)
    assert reply.headers["content-type"] == expected
    records = reply.body.split(b"\x1e")[1:] if expected == "application/json-seq" else reply.body.splitlines()
    assert [json.loads(record)["Action"] for record in records][:2] == ["create", "connect"]


@pytest.mark.parametrize("value", ["1", "t", "true", "False", "", "0"])
def test_verbose_is_a_boolean_as_go_reads_it(server: ApiServer, value: str) -> None:
    assert server.ask("GET", f"/networks/blue?verbose={value}").status == 200


@pytest.mark.parametrize("value", ["yes", "2", "tRue"])
def test_verbose_that_is_no_boolean_is_refused_in_dockers_words(server: ApiServer, value: str) -> None:
    reply = server.ask("GET", f"/networks/blue?verbose={value}")
    assert reply.status == 400
    assert re.fullmatch(rf"invalid value for verbose: {value}: .*invalid syntax", reply.message)
