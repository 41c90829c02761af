"""The web page of a node of a cluster, in a browser, over TLS and for users alone: its hosts and what they share."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from control.passwords import hash_password
from tests.browser import Browser, browser
from tests.certificates import Authority, Certificate
from tests.nodes import Cluster, Node, cluster
from tests.traffic import Station
from tests.waiting import PATIENCE

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("page-cluster")]

AT: Final = "127.0.0.1:9478"
PAGE: Final = f"https://{AT}/"
USER, PASSWORD = "ann", "open sesame"
HOSTILE: Final = '<img src=x onerror="document.title=1"><b>bold</b>'


class SecureNode(Node):
    """A node whose metrics and page are served over TLS, to one user."""

    @property
    def certificate(self) -> Certificate:
        folder = self.dir / "ca"
        return Certificate(folder / "ca.pem", folder / "server.pem", folder / "server.key")

    def start(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        config = self.dir / "secure.toml"
        if not config.exists():
            made = Authority(self.dir / "ca").issue("server")
            (self.dir / "users").write_text(f"{USER}:{hash_password(PASSWORD)}\n")
            config.write_text(
                f'[cluster]\nlease-seconds = {10 * PATIENCE:.0f}\n[metrics]\ntls-cert = "{made.cert}"\n'
                f'tls-key = "{made.key}"\nusers = "{self.dir / "users"}"\n'
            )
        return super().start("--config", str(config), *args, env=env, **options)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2, kind=SecureNode) as made:
        yield made


@pytest.fixture(scope="module")
def far(nodes: Cluster) -> Iterator[tuple[str, Station, Station]]:
    """A network with an endpoint on either node, whose every text that its maker chooses is HTML: its id, and both."""
    id_ = nodes.create("far", Labels={HOSTILE: HOSTILE})
    yield id_, nodes[0].box("here", "far"), nodes[1].box("there", "far")
    nodes.clear()


@pytest.fixture(scope="module")
def chromium(nodes: Cluster) -> Iterator[Browser]:
    """It trusts the node's key alone, by its fingerprint (RFC 7469, 2.4)."""
    certificate = nodes[0].certificate.cert
    public = _openssl("x509", "-in", str(certificate), "-noout", "-pubkey")
    fingerprint = hashlib.sha256(_openssl("pkey", "-pubin", "-outform", "der", input=public)).digest()
    trust = f"--ignore-certificate-errors-spki-list={base64.b64encode(fingerprint).decode()}"
    with browser(f"/proc/{nodes[0].pid}/ns/net", trust) as running:
        yield running


def _openssl(*args: str, input: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *args], input=input, capture_output=True, check=True).stdout


@pytest.fixture
def page(chromium: Browser, far: tuple[str, Station, Station]) -> Iterator[Browser]:
    chromium.open(f"https://{USER}:{PASSWORD.replace(' ', '%20')}@{AT}/")
    chromium.wait("return document.querySelector('.box.endpoint')", "endpoints")
    yield chromium
    requests = chromium.requests()
    assert f"{PAGE}stats" in requests
    assert {(urlsplit(url).scheme, urlsplit(url).netloc.rpartition("@")[2]) for url in requests} == {("https", AT)}
    assert [line for line in chromium.complaints() if "401" not in line] == []


def test_hosts_and_what_they_share_are_drawn(page: Browser, nodes: Cluster, far: tuple[str, Station, Station]) -> None:
    id_, here, _ = far
    names = [node.name for node in nodes]
    page.wait("return document.querySelectorAll('.box.node').length === 2", "both hosts")
    assert page.texts(".box.node > title") == names
    assert page.texts(".box.endpoint > title") == ["here"], "the other node's endpoints are its own to show"
    wires = set(page.run("return [...document.querySelectorAll('.edge')].map((edge) => edge.dataset.key)"))
    assert {f"node:{name} network:{id_}" for name in names} <= wires
    assert f"network:{id_} endpoint:{here.endpoint_id}" in wires
    local = next(network["Id"] for network in nodes[0].api("GET", "/networks") if network["Name"] == "bridge")
    assert f"node:{names[0]} network:{local}" in wires
    assert f"node:{names[1]} network:{local}" not in wires


def test_details_of_the_other_host_and_of_the_network(
    page: Browser, nodes: Cluster, far: tuple[str, Station, Station]
) -> None:
    for key, facts in {
        f"node:{nodes[1].name}": {nodes[1].advertise, "ready"},
        f"network:{far[0]}": {"overlay", "global", ", ".join(node.name for node in nodes)},
    }.items():
        click = "document.querySelector(arguments[0]).dispatchEvent(new Event('click', {bubbles: true}))"
        page.run(click, f'[data-key="{key}"]')
        page.wait("return !document.getElementById('details').hidden", "details")
        assert facts <= set(page.texts("#details td"))
        page.run(click, f'[data-key="{key}"]')


def test_html_that_others_chose_is_no_part_of_the_page(page: Browser, nodes: Cluster) -> None:
    assert HOSTILE in nodes[0].networks()["far"]["Labels"]
    assert page.run("return document.querySelectorAll('img, b, main script').length") == 0
    assert page.run("return document.title") == "Linkspan"
    assert HOSTILE not in page.run("return document.documentElement.outerHTML")


@pytest.mark.parametrize("path", ["", "stats", "page.js"])
def test_it_is_read_by_its_user_over_tls_and_changed_by_nobody(nodes: Cluster, path: str) -> None:
    user, trust = ("-u", f"{USER}:{PASSWORD}"), ("--cacert", str(nodes[0].certificate.cacert))

    def status(*args: str) -> str:
        command = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *args, f"{PAGE}{path}")
        return nodes[0].run(*command, check=False).stdout

    assert status(*trust, *user) == "200"
    assert status(*trust) == status(*trust, "-u", f"{USER}:wrong") == "401"
    assert status(*user) == "000", "a certificate that nobody has signed is not trusted"
    assert [status(*trust, *user, "-X", method) for method in ("POST", "PUT", "DELETE")] == ["405"] * 3
    plain = nodes[0].run("curl", "-sS", f"http://{AT}/{path}", check=False)
    assert plain.returncode != 0
