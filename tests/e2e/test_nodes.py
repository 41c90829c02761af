"""Hosts beside an etcd that are in no cluster: their own networks are what they were, and an overlay is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from tests.nodes import Cluster, cluster, unbroken

pytestmark = pytest.mark.root

AHEAD = timedelta(hours=1)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Cluster]:
    with cluster(2, joined=False, clocks={2: int(AHEAD.total_seconds())}) as made:
        yield made
        made.clear()


def test_a_host_in_no_cluster_says_in_one_line_how_to_join_one(hosts: Cluster) -> None:
    before = hosts[0].api("GET", "/networks")
    refused = hosts[0].linkspan("network", "create", "-d", "overlay", "far", check=False)
    assert refused.returncode == 1
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert "linkspan cluster join --etcd URL --advertise ADDR --name NODE" in line
    assert hosts[0].api("GET", "/networks") == before


def test_local_networks_work_and_end_at_their_host(hosts: Cluster) -> None:
    for node in hosts:
        node.linkspan("network", "create", "--subnet", "10.9.0.0/24", "near")
    one, other = hosts
    a, b = one.box("a", "near"), one.box("b", "near")
    far = other.box("c", "near", IPAMConfig={"IPv4Address": "10.9.0.99"})
    with unbroken((a, b.ip4), (b, a.ip4), (one.uplink, other.advertise), (a, other.advertise)) as flows:
        for flow in flows:
            flow.go_on(50)
    assert far.ip4 == "10.9.0.99"
    assert not a.pings(far.ip4, wait_s=0.3)


def test_the_second_host_lives_an_hour_ahead(hosts: Cluster) -> None:
    """The harness itself: tests of clocks that differ rely on it."""
    made = []
    for node in hosts:
        node.linkspan("network", "create", "dated")
        made.append(datetime.fromisoformat(node.networks("bridge")["dated"]["Created"]))
    assert AHEAD <= made[1] - made[0] < AHEAD + timedelta(minutes=5)


def test_both_reach_etcd(hosts: Cluster) -> None:
    for node in hosts:
        node.run("etcdctl", "--endpoints", hosts.urls[0], "put", node.name, "was here", env={"ETCDCTL_API": "3"})
        assert hosts.etcd[0].get(node.name) == "was here"
