"""The web page over HTTP: for reading alone, for users alone where there are some, and with headers that keep a browser
to what is served."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from control.api.server import bind_tcp
from control.config import MetricsSection
from control.model import SandboxSpec
from control.passwords import hash_password
from tests.api_server import DEADLINE_SECONDS, Reply
from tests.fakes import fake_controller
from tests.page_server import page_server

ROOT = Path(__file__).resolve().parents[2]
PATHS = ("/", "/page.js", "/rates.js", "/topology.js", "/page.css", "/icon.svg", "/stats")


def ask(url: str, path: str, method: str = "GET", **headers: str) -> Reply:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_SECONDS)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@pytest.fixture
def section() -> MetricsSection:
    return MetricsSection()


@pytest.fixture
def url(tmp_path: Path, section: MetricsSection) -> Iterator[str]:
    controller = fake_controller(tmp_path)
    controller.start()
    controller.create_sandbox(SandboxSpec(name="web"))
    with bind_tcp("127.0.0.1", 0) as sock, page_server(controller, sock, section) as running:
        yield running
    controller.stop()


def test_the_page_and_all_that_it_names_are_there(url: str) -> None:
    page = ask(url, "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    named = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    imported = re.findall(r'from "\./([^"]+)"', ask(url, "/page.js").body.decode())
    assert {f"/{name}" for name in (*named, *imported)} == set(PATHS) - {"/", "/stats"}
    for name in (*named, *imported):
        assert ask(url, f"/{name}").status == 200


def test_the_document_is_that_of_the_api(url: str) -> None:
    bridge = json.loads(ask(url, "/stats").body)["networks"][0]
    assert (bridge["name"], [each["name"] for each in bridge["endpoints"]]) == ("bridge", ["web"])


@pytest.mark.parametrize("path", PATHS)
def test_it_is_for_reading_alone_and_stays_what_it_is(url: str, path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert ask(url, path, method).status == 405
    head = ask(url, path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    policy = head.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
    assert "unsafe" not in policy
    assert head.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in head.headers


@pytest.mark.parametrize("path", ["/../page.py", "/static/page.js", "/page.py", "/%2e%2e/page.py"])
def test_nothing_else_is_served(url: str, path: str) -> None:
    assert ask(url, path).status == 404


class TestWithUsers:
    @pytest.fixture
    def section(self, tmp_path: Path) -> MetricsSection:
        (tmp_path / "users").write_text(f"ann:{hash_password('open')}\n")
        return MetricsSection(users=str(tmp_path / "users"))

    def test_they_alone_get_it(self, url: str) -> None:
        credentials = "Basic " + base64.b64encode(b"ann:open").decode()
        for path in PATHS:
            refused = ask(url, path)
            assert refused.status == 401
            assert refused.headers["www-authenticate"].startswith("Basic ")
            assert ask(url, path, Authorization=credentials).status == 200


def test_every_file_is_served() -> None:
    served = {path.name for path in (ROOT / "control/web/static").iterdir()}
    assert served == {"index.html", *(path[1:] for path in PATHS if path not in ("/", "/stats"))}
