"""A server that clients give what they get wrong: it refuses every request with a text that says why, and does nothing.

It has the network `taken` with 10.50.0.0/24, the sandbox `web` on it, and the sandbox `idle` on none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api_server import ApiServer
from tests.fakes import fake_controller


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    directory = tmp_path_factory.mktemp("bad")
    with ApiServer(fake_controller(directory), directory / "api.sock") as running:
        network = {"Name": "taken", "IPAM": {"Config": [{"Subnet": "10.50.0.0/24"}]}}
        web = {"Name": "web", "Networks": [{"Network": "taken"}]}
        assert running.ask("POST", "/networks/create", network).status == 201
        for sandbox in (web, {"Name": "idle"}):
            assert running.ask("POST", "/linkspan/sandboxes", sandbox).status == 201
        yield running


@pytest.fixture
def server(shared: ApiServer) -> Iterator[ApiServer]:
    """Fails when a test has changed anything."""
    before = _state(shared)
    yield shared
    assert _state(shared) == before


def _state(server: ApiServer) -> Any:
    networks = [server.ask("GET", f"/networks/{n['Id']}").json for n in server.ask("GET", "/networks").json]
    return networks, server.ask("GET", "/linkspan/sandboxes?all=1").json
