"""Who may scrape /metrics: by password, by certificate, and nobody else."""

from __future__ import annotations

import base64
import logging
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from control.api.server import bind_tcp
from control.config import ConfigError, MetricsSection
from control.metrics import Metrics
from control.metrics.access import Access
from control.metrics.server import build_metrics_app
from control.passwords import UnusableUsers, matches, read_users
from tests.certificates import Authority
from tests.served import served

DEADLINE_S = 20.0
HASHED = "$scrypt$ln=13,r=8,p=10$YAy0HaffsiIQ3+3qSB/kTQ$wikKh61h3Ag4bBrvP9jl7DUPNmEdOIip7o7NHoiz6UY"
"""Of "correct horse: battery"; always the same, because tests are named after it."""


@pytest.fixture
def users(tmp_path: Path) -> str:
    path = tmp_path / "users"
    path.write_text(f"# who scrapes\n\nprom:{HASHED}\n", encoding="utf-8")
    return str(path)


@contextmanager
def metrics_served(section: MetricsSection) -> Iterator[int]:
    """The port of loopback where metrics are served as the section says."""
    access = Access(section)
    with (
        closing(bind_tcp("127.0.0.1", 0)) as sock,
        served(lambda scraper: build_metrics_app(Metrics(), scraper, access), sock, access.tls) as port,
    ):
        yield port


def status(url: str, credentials: str | None = None, context: ssl.SSLContext | None = None) -> int:
    request = urllib.request.Request(url)
    if credentials is not None:
        request.add_header("Authorization", credentials)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S, context=context) as response:
            assert b"linkspan_build_info" in response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code if error.headers["WWW-Authenticate"].startswith("Basic ") else 0


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_users_scrape_with_their_password_and_nobody_else(users: str) -> None:
    with metrics_served(MetricsSection(users=users)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert status(url) == 401
        for _ in range(2):
            assert status(url, basic("prom", "correct horse: battery")) == 200
            assert status(url, basic("prom", "wrong")) == 401
        assert status(url, basic("nobody", "correct horse: battery")) == 401
        for malformed in ("Basic", "Basic !!", "Bearer x", "Basic " + base64.b64encode(b"prom").decode(), "\xff"):
            assert status(url, malformed) == 401


def test_over_tls_scrapers_show_a_certificate(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    server, client, stranger = ours.issue("server"), ours.issue("client"), others.issue("client")
    section = MetricsSection(tls_cert=str(server.cert), tls_key=str(server.key), tls_client_ca=str(ours.cacert))
    with metrics_served(section) as port:
        url = f"https://127.0.0.1:{port}/metrics"
        trusting = ssl.create_default_context(cafile=str(ours.cacert))
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            status(url, context=trusting)
        trusting.load_cert_chain(stranger.cert, stranger.key)
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            status(url, context=trusting)
        trusting.load_cert_chain(client.cert, client.key)
        assert status(url, context=trusting) == 200
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            status(f"http://127.0.0.1:{port}/metrics")


def test_files_that_are_no_use_are_named(tmp_path: Path, users: str) -> None:
    certificate = Authority(tmp_path / "ca").issue("server")
    other = Authority(tmp_path / "other").issue("server")
    cert, key = str(certificate.cert), str(certificate.key)
    for section, says in (
        (MetricsSection(tls_cert=users, tls_key=key), f"metrics.tls-cert: {users} and .* no certificate"),
        (MetricsSection(tls_cert=cert, tls_key=str(other.key)), "metrics.tls-cert: .* no certificate with its key"),
        (MetricsSection(tls_cert=cert, tls_key="/nosuch"), "metrics.tls-cert: .*No such file"),
        (MetricsSection(tls_cert=cert, tls_key=key, tls_client_ca=users), "metrics.tls-client-ca: .* no certificate"),
        (MetricsSection(users="/nosuch"), "metrics.users: .*No such file"),
    ):
        with pytest.raises(ConfigError, match=says):
            Access(section)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "there is no user in"),
        ("prom:secret", "line 1: there is no scrypt hash"),
        ("prom", "line 1: there is no scrypt hash"),
        (f":{HASHED}", "line 1: '' cannot be a user's name"),
        (f"a b:{HASHED}", "line 1: 'a b' cannot be"),
        (f"prom:{HASHED}\nprom:{HASHED}", "line 2: user prom is there twice"),
        (f"prom:{HASHED.replace('ln=13', 'ln=30')}", "line 1: the hash's cost cannot be"),
        (f"prom:{HASHED[:-2]}", "line 1: the hash is cut off"),
    ],
)
def test_a_file_of_users_that_is_wrong_says_where(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "users"
    path.write_text(line)
    with pytest.raises(UnusableUsers, match=says):
        read_users(str(path))


def test_the_command_prints_a_line_of_the_file(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("linkspan")), "metrics", "password"]
    done = subprocess.run(
        [*command, "prom"], input="pass word\n", capture_output=True, text=True, timeout=60, check=True
    )
    path = tmp_path / "users"
    path.write_text(done.stdout)
    hashed = read_users(str(path))["prom"]
    assert matches("pass word", hashed)
    assert not matches("pass word\n", hashed)
    refused = subprocess.run([*command, "a:b"], input="x\n", capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "cannot be a user's name" in refused.stderr
    empty = subprocess.run([*command, "prom"], input="\n", capture_output=True, text=True, timeout=60)
    assert (empty.returncode, empty.stdout) == (1, "")


def test_what_others_can_see_is_said_once(tmp_path: Path, users: str, caplog: pytest.LogCaptureFixture) -> None:
    certificate = Authority(tmp_path / "ca").issue("server")
    tls = {"tls_cert": str(certificate.cert), "tls_key": str(certificate.key)}
    everywhere = "0.0.0.0:9478"
    for section, says in (
        (MetricsSection(), None),
        (MetricsSection(listen="[::1]:9478"), None),
        (MetricsSection(listen="off"), None),
        (MetricsSection(listen=everywhere), "everybody who reaches 0.0.0.0:9478"),
        (MetricsSection(listen=everywhere, users=users), "passwords for 0.0.0.0:9478 can be read"),
        (MetricsSection(listen=everywhere, **tls), "everybody who reaches 0.0.0.0:9478"),
        (MetricsSection(listen=everywhere, users=users, **tls), None),
        (MetricsSection(listen=everywhere, tls_client_ca=str(certificate.cacert), **tls), None),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            Access(section).warn(section)
        assert len(caplog.messages) == (says is not None), section
        assert says is None or says in caplog.text
