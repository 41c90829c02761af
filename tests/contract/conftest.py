"""Fixtures for suites that talk to the API: the real server and controller over a driver that lives in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_server import ApiServer
from tests.fakes import FakeDriver, fake_controller
from tests.plugin_server import Host, PluginServer


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def server(tmp_path: Path, driver: FakeDriver) -> Iterator[ApiServer]:
    with ApiServer(fake_controller(tmp_path, driver), tmp_path / "api.sock") as running:
        yield running


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def plugin(host: Host) -> Iterator[PluginServer]:
    with PluginServer(host) as running:
        yield running
