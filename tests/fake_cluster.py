"""A cluster without etcd, whose nodes and differences are what a test says."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Literal

from control.cluster_spec import ClusterHealth, ClusterInfo, ClusterSpec, Difference, NodeInfo, not_joined
from control.errors import Conflict, Forbidden

JOINED = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)


def node(name: str, address: str = "10.0.0.9", state: Literal["ready", "lost"] = "ready") -> NodeInfo:
    """Another node, with endpoints on two networks."""
    return NodeInfo(name, IPv4Address(address), state, JOINED, is_self=False, id=9, networks=2)


SPEC = ClusterSpec(etcd=("http://10.0.0.7:2379",), name="a", advertise=IPv4Address("10.0.0.1"))


class FakeCluster:
    """Implements `control.cluster_spec.Cluster`.

    `others` are the nodes besides this one; `on_network` those with endpoints, by network id; `is_in_use` says whether
    this node has endpoints on overlay networks; `curable` differences go when they are mended, `incurable` ones stay.
    A call whose name is in `failing` raises what is stored there.
    """

    def __init__(self) -> None:
        self.spec: ClusterSpec | None = None
        self.others: list[NodeInfo] = []
        self.on_network: dict[str, list[NodeInfo]] = {}
        self.is_in_use = False
        self.curable: list[Difference] = []
        self.incurable: list[Difference] = []
        self.failing: dict[str, Exception] = {}
        self.state = "synchronized"
        self.lag_s = 0.0

    def load(self) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def problems(self) -> dict[str, str]:
        return {}

    def join(self, spec: ClusterSpec) -> None:
        self._fail("join")
        if self.spec is not None:
            raise Conflict(f"this node is in the cluster {self.spec.cluster} already: leave that first")
        self.spec = spec

    def leave(self, *, force: bool = False) -> None:
        self._fail("leave")
        self._joined()
        if self.is_in_use and not force:
            raise Forbidden("this node has endpoints on overlay networks: disconnect them, or leave with --force")
        self.spec = None

    def info(self) -> ClusterInfo:
        if self.spec is None:
            return ClusterInfo(is_joined=False)
        spec = self.spec
        return ClusterInfo(True, spec.cluster, spec.name, spec.advertise, spec.etcd, self.state, 17, JOINED)

    def health(self) -> ClusterHealth | None:
        if self.spec is None:
            return None
        nodes = Counter({"ready": 1, "lost": 0})
        nodes.update(each.state for each in self.others)
        return ClusterHealth(self.lag_s == 0, self.lag_s, nodes)

    def nodes(self) -> list[NodeInfo]:
        self._fail("nodes")
        spec = self._joined()
        return [*self.others, NodeInfo(spec.name, spec.advertise, "ready", JOINED, True, 1, 0)]

    def peers(self, network_id: str) -> list[NodeInfo]:
        return self.on_network.get(network_id, [])

    def check(self) -> list[Difference]:
        self._fail("check")
        self._joined()
        return [*self.curable, *self.incurable]

    def mend(self) -> list[Difference]:
        found = self.check()
        self.curable = []
        return found

    def _joined(self) -> ClusterSpec:
        if self.spec is None:
            raise not_joined()
        return self.spec

    def _fail(self, call: str) -> None:
        if call in self.failing:
            raise self.failing[call]
