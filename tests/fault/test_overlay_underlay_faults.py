"""A slow and a lossy underlay: what the cluster tells its nodes arrives late, and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from tests.agreement_overlay import wait_for_agreement
from tests.hosts import wait_for
from tests.nodes import Cluster, cluster
from tests.traffic import tcp_pair

pytestmark = pytest.mark.root

LOSS_PERCENT = 5
DELAY_S = 0.1
BOXES = 4


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2) as made:
        yield made


Fault = Callable[[Cluster], AbstractContextManager[None]]


def slow(nodes: Cluster) -> AbstractContextManager[None]:
    return nodes.underlay.slow("n2", DELAY_S)


def lossy(nodes: Cluster) -> AbstractContextManager[None]:
    return nodes.underlay.lossy(LOSS_PERCENT)


@pytest.mark.parametrize("fault", [slow, lossy])
def test_a_cluster_on_a_bad_underlay_converges(nodes: Cluster, fault: Fault) -> None:
    with fault(nodes):
        nodes.create("far", EnableIPv6=True)
        boxes = [node.box(f"{node.name}-{number}", "far") for number in range(BOXES) for node in nodes]
        wait_for_agreement(nodes)
        for one, other in zip(boxes[::2], boxes[1::2], strict=True):
            for address in (other.ip4, other.ip6):
                wait_for(lambda: one.pings(address), f"an answer from {other.name}")  # noqa: B023
        with tcp_pair(boxes[0], boxes[1], boxes[1].ip4) as (client, server), ThreadPoolExecutor(1) as pool:
            for end in (client, server):
                end.settimeout(60)
            blob = bytes(range(256)) * 1024
            sent = pool.submit(client.sendall, blob)
            assert server.makefile("rb").read(len(blob)) == blob
            sent.result()
        for node in nodes:
            node.linkspan("rm", "-f", *(box.name for box in boxes if box.host is node))
        wait_for_agreement(nodes)
        nodes.remove("far")
        assert all(set(node.nodes().values()) == {"ready"} for node in nodes)


@pytest.mark.parametrize("fault", [slow, lossy])
def test_a_node_joins_over_a_bad_underlay(nodes: Cluster, fault: Fault) -> None:
    with fault(nodes):
        nodes[1].linkspan("cluster", "leave")
        nodes[1].join(nodes.urls)
        nodes.wait_until_synchronized()
