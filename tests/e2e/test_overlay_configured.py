"""A node that is in a cluster by its configuration, and one that starts while etcd is away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import wait_for
from tests.nodes import Cluster, cluster

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(1, joined=False) as made:
        yield made


@pytest.fixture(scope="module")
def config(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "linkspan.toml"
    urls = ", ".join(f'"{url}"' for url in nodes.urls)
    path.write_text(
        f'[cluster]\netcd = [{urls}]\nname = "n1"\nadvertise = "{nodes[0].advertise}"\nlease-seconds = 30\n'
    )
    return path


def test_it_joins_when_it_starts(nodes: Cluster, config: Path) -> None:
    node = nodes[0]
    node.stop()
    node.start("--config", str(config))
    wait_for(lambda: node.cluster_state() == "synchronized", "the node to be in the cluster")
    assert node.nodes() == {"n1": "ready"}
    (etcd,) = nodes.etcd
    (lease,) = etcd.run("lease", "list").stdout.split("\n")[1:-1]
    assert "granted with TTL(30s)" in etcd.run("lease", "timetolive", lease).stdout
    wait_for(lambda: "ingress" in [each["Name"] for each in node.api("GET", "/networks")], "the cluster's ingress")


def test_it_starts_without_etcd_and_goes_on_when_that_is_back(nodes: Cluster, config: Path) -> None:
    node, (etcd,) = nodes[0], nodes.etcd
    nodes.create("far")
    box, other = node.box("a", "far"), node.box("b", "far")
    etcd.stop()
    node.stop()
    node.start("--config", str(config))
    wait_for(lambda: "waiting for etcd" in node.cluster_state(), "the node to say that it waits")
    assert set(node.networks()) == {"far"}
    assert box.pings(other.ip4)
    refused = node.ask("POST", "/linkspan/sandboxes", {"Name": "c", "Networks": [{"Network": "far"}]})
    assert refused.status == 503
    assert "etcd" in refused.message
    node.linkspan("rm", "-f", "b")
    etcd.start()
    wait_for(lambda: node.cluster_state() == "synchronized", "the node to be back")
    wait_for(lambda: node.linkspan("doctor", "--cluster", check=False).returncode == 0, "nothing to differ")
    nodes.clear()
