"""Endpoints and sandboxes that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api_server import ApiServer
from tests.fakes import fake_controller


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
    server: ApiServer, settings: dict[str, Any], status: int, says: str
) -> None:
    reply = server.ask("POST", "/networks/taken/connect", {"Container": "idle", "EndpointConfig": settings})
    assert (reply.status, says in reply.message) == (status, True), reply.message


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
