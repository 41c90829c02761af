"""What every Docker client asks first: ping, version, info."""

from __future__ import annotations

import platform

import pytest

from tests.api_server import ApiServer


@pytest.mark.parametrize("target", ["/_ping", "/v1.24/_ping", "/v1.56/_ping"])
@pytest.mark.parametrize(("method", "body"), [("GET", b"OK"), ("HEAD", b"")])
def test_ping_has_the_headers_that_clients_negotiate_with(
    server: ApiServer, method: str, body: bytes, target: str
) -> None:
    reply = server.ask(method, target)
    assert (reply.status, reply.body) == (200, body)
    assert reply.headers["api-version"] == "1.56"
    assert reply.headers["ostype"] == "linux"
    assert reply.headers["docker-experimental"] == "false"
    assert reply.headers["cache-control"] == "no-cache, no-store, must-revalidate"
    assert reply.headers["pragma"] == "no-cache"
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.headers["content-length"] == "2"
    assert reply.headers["server"].startswith("linkspand/")


def test_version_is_honest(server: ApiServer) -> None:
    version = server.ask("GET", "/version").json
    assert version["KernelVersion"] == platform.release()
    assert (version["ApiVersion"], version["MinAPIVersion"]) == ("1.56", "1.24")
    assert [component["Name"] for component in version["Components"]] == ["linkspand"]


def test_info_counts_sandboxes(server: ApiServer) -> None:
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    info = server.ask("GET", "/v1.41/info").json
    assert (info["Containers"], info["ContainersRunning"], info["ContainersStopped"]) == (1, 0, 1)
    assert info["OSType"] == "linux"
    assert info["Warnings"] == []


def test_errors_carry_the_headers_too(server: ApiServer) -> None:
    assert server.ask("GET", "/nowhere").headers["api-version"] == "1.56"
