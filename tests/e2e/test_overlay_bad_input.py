"""Clusters that cannot be: wrong URLs, certificates, addresses and names, an etcd that takes nothing.

Each is refused in one line that names what is wrong, and leaves the host as it was, its own networks working.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority, Certificate
from tests.etcd_server import EtcdMember
from tests.hosts import wait_for
from tests.nodes import ETCD, Cluster, Node, cluster
from tests.traffic import Station

pytestmark = pytest.mark.root

FULL_BYTES = 1 << 20
"""The quota of an etcd that is soon out of space."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Cluster]:
    with cluster(2, joined=False) as made:
        for node in made:
            node.linkspan("network", "create", "near")
            for name in ("a", "b"):
                node.box(name, "near")
        yield made
        for node in made:
            node.linkspan("rm", "-f", "a", "b")
            node.linkspan("network", "rm", "near")


@pytest.fixture(autouse=True)
def unharmed(hosts: Cluster) -> Iterator[None]:
    """Local networks are the same before and after, and carry packets."""
    before = [state(node) for node in hosts]
    yield
    assert [state(node) for node in hosts] == before
    for node in hosts:
        assert Station(node, "a").pings(Station(node, "b").ip4)


def state(node: Node) -> Any:
    return [node.api("GET", path) for path in ("/networks", "/linkspan/sandboxes?all=1", "/linkspan/cluster")]


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused command says."""
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def tls_flags(certificate: Certificate) -> list[str]:
    return ["--cacert", str(certificate.cacert), "--cert", str(certificate.cert), "--key", str(certificate.key)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("10.77.0.200:2379", "http://"),
        ("ftp://10.77.0.200:2379", "ftp"),
        ("http://10.77.0.200:99999", "port"),
        ("http://10.77.0.200:1", "10.77.0.200:1"),
        ("http://no-such-host.invalid:2379", "no-such-host.invalid"),
    ],
)
def test_a_url_that_leads_to_no_etcd(hosts: Cluster, url: str, said: str) -> None:
    assert said in complaint(hosts[0].join([url], check=False))


def test_a_url_of_something_else_than_etcd(hosts: Cluster) -> None:
    command = hosts.etcd_host.enter("python3", "-m", "http.server", "8080", "--bind", hosts.etcd[0].address)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://{hosts.etcd[0].address}:8080"
            wait_for(lambda: hosts[0].run("curl", "-sS", url, check=False).returncode == 0, "the web server to answer")
            assert f"{hosts.etcd[0].address}:8080" in complaint(hosts[0].join([url], check=False))
        finally:
            server.kill()


def test_an_etcd_behind_a_cable_that_is_cut(hosts: Cluster) -> None:
    with hosts.underlay.cut("n1", ETCD):
        assert hosts.etcd[0].address in complaint(hosts[0].join(hosts.urls, check=False))


@pytest.mark.parametrize(
    ("advertise", "said"),
    [("10.77.0.99", "10.77.0.99"), ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("next-door", "next-door")],
)
def test_an_address_that_is_not_this_hosts(hosts: Cluster, advertise: str, said: str) -> None:
    line = complaint(hosts[0].join(hosts.urls, advertise=advertise, check=False))
    assert said in line
    assert "--advertise" in line


def test_the_name_of_a_node_that_lives(hosts: Cluster) -> None:
    hosts[0].join(hosts.urls)
    try:
        line = complaint(hosts[1].join(hosts.urls, name="n1", check=False))
        assert "n1" in line
    finally:
        hosts[0].linkspan("cluster", "leave")


def test_clusters_of_one_name_in_two_etcds_see_nothing_of_each_other(hosts: Cluster) -> None:
    one, other = hosts
    with hosts.other_etcd("second") as second:
        one.join(hosts.urls)
        other.join([second.url])
        try:
            for node in hosts:
                assert node.nodes() == {node.name: "ready"}
                body = {
                    "Name": "far",
                    "Driver": "overlay",
                    "IPAM": {"Config": [{"Subnet": "10.88.0.0/24"}]},
                    "Options": {"linkspan.vni": "8888", "linkspan.direct": "off"},
                }
                assert node.ask("POST", "/networks/create", body).status == 201
            a = one.box("far-a", "far", IPAMConfig={"IPv4Address": "10.88.0.10"})
            b = other.box("far-b", "far", IPAMConfig={"IPv4Address": "10.88.0.20"})
            assert not a.pings(b.ip4, wait_s=0.3)
        finally:
            for node in hosts:
                node.linkspan("rm", "-f", "far-a", "far-b", check=False)
                node.linkspan("network", "rm", "far", check=False)
                node.linkspan("cluster", "leave", "--force")


def test_a_second_cluster_on_a_host_that_is_in_one(hosts: Cluster) -> None:
    hosts[0].join(hosts.urls)
    try:
        line = complaint(hosts[0].join(hosts.urls, "--cluster", "second", check=False))
        assert "cluster leave" in line
        assert hosts[0].cluster_state() == "synchronized"
    finally:
        hosts[0].linkspan("cluster", "leave")


def test_a_clients_certificate_that_has_expired(hosts: Cluster, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    good, expired = (
        authority.issue(name, [hosts.etcd[0].address], is_expired=name == "expired") for name in ("good", "expired")
    )
    with hosts.other_etcd("tls", tls=good) as member:
        line = complaint(hosts[0].join([member.url], *tls_flags(expired), check=False))
        assert "certificate" in line
        hosts[0].join([member.url], *tls_flags(good))
        hosts[0].linkspan("cluster", "leave")


def test_a_certificate_that_is_gone_when_a_node_starts(hosts: Cluster, tmp_path: Path) -> None:
    """It is still a node: it can go on when the file is back, or leave."""
    one = hosts[0]
    good = Authority(tmp_path / "authority").issue("good", [hosts.etcd[0].address])
    away = good.key.with_suffix(".away")
    with hosts.other_etcd("tls", tls=good) as member:
        one.join([member.url], *tls_flags(good))
        for is_put_back in (True, False):
            good.key.rename(away)
            one.stop()
            one.start()
            assert str(good.key) in one.cluster_state()
            assert one.api("GET", "/linkspan/cluster")["Joined"]
            line = complaint(one.linkspan("cluster", "leave", check=False))
            assert str(good.key) in line
            assert "--force" in line
            if is_put_back:
                away.rename(good.key)
                one.join([member.url], *tls_flags(good))
                wait_for(lambda: one.cluster_state() == "synchronized", "the node to go on")
                assert one.nodes() == {one.name: "ready"}
        one.linkspan("cluster", "leave", "--force")
        assert one.cluster_state() == "not joined"


def test_an_etcds_certificate_that_has_expired(hosts: Cluster, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    good = authority.issue("good", [hosts.etcd[0].address])
    with hosts.other_etcd("tls", tls=good) as member:
        member.tls = authority.issue("expired", [hosts.etcd[0].address], is_expired=True)
        member.stop()
        member.start(wait=False)
        line = complaint(hosts[0].join([member.url], *tls_flags(good), check=False))
        assert "expired" in line


def test_an_authority_that_is_another(hosts: Cluster, tmp_path: Path) -> None:
    address = hosts.etcd[0].address
    good, strange = (Authority(tmp_path / name).issue(name, [address]) for name in ("good", "strange"))
    with hosts.other_etcd("tls", tls=good) as member:
        line = complaint(hosts[0].join([member.url], *tls_flags(strange), check=False))
        assert "certificate" in line


def test_an_etcd_that_lets_this_host_only_read(hosts: Cluster, tmp_path: Path) -> None:
    """The user is the certificate's common name; see etcd's documentation, "Role-based access control"."""
    authority = Authority(tmp_path / "authority")
    reader, root = (authority.issue(name, [hosts.etcd[0].address]) for name in ("reader", "root"))
    with hosts.other_etcd("read-only", tls=root) as member:
        for user in ("root", "reader"):
            member.run("user", "add", user, "--no-password")
        member.run("role", "add", "reads")
        member.run("role", "grant-permission", "reads", "--prefix=true", "read", "/")
        member.run("user", "grant-role", "reader", "reads")
        member.run("user", "grant-role", "root", "root")
        member.run("auth", "enable")
        line = complaint(hosts[0].join([member.url], *tls_flags(reader), check=False))
        assert "permission denied" in line
        assert member.keys("/linkspan") == []


def test_an_etcd_that_is_out_of_space(hosts: Cluster) -> None:
    with hosts.other_etcd("full", extra_args=("--quota-backend-bytes", str(FULL_BYTES))) as member:
        fill(member)
        line = complaint(hosts[0].join([member.url], check=False))
        assert "space" in line


def test_an_etcd_that_runs_out_of_space_meanwhile(hosts: Cluster) -> None:
    one = hosts[0]
    with hosts.other_etcd("fills", extra_args=("--quota-backend-bytes", str(FULL_BYTES))) as member:
        one.join([member.url])
        try:
            one.linkspan("network", "create", "-d", "overlay", "far")
            box = one.box("far-a", "far")
            fill(member)
            refused = one.ask("POST", "/networks/create", {"Name": "further", "Driver": "overlay"})
            assert refused.status in (503, 507)
            assert "space" in refused.message
            assert set(one.networks()) == {"far"}
            assert box.pings(box.ip4)
        finally:
            one.linkspan("rm", "-f", "far-a")
            one.linkspan("cluster", "leave", "--force")


def fill(member: EtcdMember) -> None:
    """Writes until etcd takes no more, which it then says to everybody (the alarm NOSPACE)."""
    wait_for(
        lambda: member.run("put", "/ballast", "x" * (FULL_BYTES // 16), check=False).returncode != 0,
        "etcd to be out of space",
    )
