"""Nodes without devices: the real client, store and view of the cluster, many of them in one process.

`python -m bench.simulated URL CLUSTER FIRST COUNT ENDPOINTS` is COUNT of the NODES, from number FIRST on, in a cluster
with so many ENDPOINTS in all. It does what it reads, a JSON object a line, and answers each with another.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from bench.daemon import resident_bytes
from control.cluster.etcd import Etcd
from control.cluster.etcd_errors import LeaseLost
from control.cluster.records import RemoteEndpoint
from control.cluster.store import ClusterStore
from control.cluster.view import View
from control.model import EndpointId, NetworkId, NetworkSpec, PoolSpec

NODES: Final = 100
NETWORKS_OF_A_NODE: Final = 10
"""Ten nodes share ten networks, so each network has the endpoints of ten nodes."""
DEADLINE_S: Final = 60.0
LOOK_S: Final = 0.05
TTL_S: Final = 60
"""Of leases: longer than linkspand's, because nodes that share a process and two cores may be late in renewing them."""

_libc: Final = ctypes.CDLL(None)

Place = tuple[NetworkId, EndpointId]


def network_id(number: int) -> NetworkId:
    return NetworkId(hashlib.sha256(f"network {number}".encode()).hexdigest())


def network_spec(number: int) -> NetworkSpec:
    """Networks 0 .. 99, each with room for 65,000 endpoints."""
    return NetworkSpec(name=f"net{number}", driver="overlay", pools=(PoolSpec(subnet=_subnet(number)),))


def _subnet(number: int) -> IPv4Network:
    return IPv4Network((f"10.{100 + number}.0.0", 16))


def endpoint(node: int, number: int) -> tuple[Place, RemoteEndpoint]:
    """The endpoint `number` (below 250 x NETWORKS_OF_A_NODE) of a node."""
    network = node // NETWORKS_OF_A_NODE * NETWORKS_OF_A_NODE + number % NETWORKS_OF_A_NODE
    id_ = EndpointId(hashlib.sha256(f"endpoint {node} {number}".encode()).hexdigest())
    address: IPv4Address = _subnet(network)[256 * (1 + node) + 1 + number // NETWORKS_OF_A_NODE]
    mac = f"02:{node:02x}:{number >> 8:02x}:{number & 255:02x}:00:01"
    record = RemoteEndpoint(node=f"n{node}", mac=mac, ipv4=address, names=(f"box{number}.n{node}",))
    return (network_id(network), id_), record


@dataclass
class SimulatedNode:
    """One node: it registers, writes its endpoints, and follows what all have written."""

    url: str
    cluster: str
    number: int
    total: int
    lost_leases: int = 0

    def __post_init__(self) -> None:
        self._own = dict(endpoint(self.number, number) for number in range(self.total // NODES))
        self._may_have_converged = threading.Event()

    def start(self) -> None:
        """Registers, writes its own records, and begins to follow, as linkspand does."""
        self._etcd = Etcd([self.url]).start()
        self.store = ClusterStore(
            self._etcd, self.cluster, f"n{self.number}", ttl_s=TTL_S, on_lease_lost=self._come_back
        )
        self.view = View(self._etcd, self.cluster, lambda _: self._may_have_converged.set())
        self._register()
        self.view.start()

    def _register(self) -> None:
        self.store.register(IPv4Address((10 << 24) + self.number + 1), f"incarnation {self.number}")
        with suppress(LeaseLost):  # `_come_back` is called then
            self.store.restore(self._own)

    def _come_back(self) -> None:
        self.lost_leases += 1
        self._register()

    def has_converged(self) -> bool:
        """Whether it knows all endpoints and nodes; what a node with endpoints there decodes is decoded then.

        To ask costs nothing where nothing has come since.
        """
        if not self._may_have_converged.is_set():
            return False
        self._may_have_converged.clear()
        if len(self.view.nodes) < NODES:
            return False
        if sum(map(self.view.endpoint_count, self.view.networks)) < self.total:
            return False
        for each in self._networks():
            self.view.endpoints(each)
        return True

    def _networks(self) -> Iterator[NetworkId]:
        first = self.number // NETWORKS_OF_A_NODE * NETWORKS_OF_A_NODE
        yield from (network_id(first + number) for number in range(NETWORKS_OF_A_NODE))

    def close(self) -> None:
        self.view.close()
        self.store.close()
        self._etcd.close()


class Process:
    """The nodes of one process."""

    def __init__(self, url: str, cluster: str, first: int, count: int, endpoints: int) -> None:
        self._nodes = [SimulatedNode(url, cluster, first + number, endpoints) for number in range(count)]

    def start(self) -> Mapping[str, Any]:
        """Starts all at once; answers when each has converged, with the seconds that each took."""
        begin = time.monotonic()
        with ThreadPoolExecutor(len(self._nodes)) as pool:
            starts = [pool.submit(node.start) for node in self._nodes]
        for start in starts:
            start.result()
        waiting, converged_s = self._nodes, list[float]()
        while waiting:
            waiting = [node for node in waiting if not node.has_converged()]
            now_s = time.monotonic() - begin
            converged_s += [now_s] * (len(self._nodes) - len(waiting) - len(converged_s))
            if now_s > DEADLINE_S:
                raise TimeoutError(f"{len(waiting)} nodes have not converged within {DEADLINE_S:.0f} s")
            time.sleep(LOOK_S)
        return {"converged_s": converged_s, **self.costs()}

    def reach(self, revision: int) -> Mapping[str, Any]:
        """Answers when every node knows what etcd had at the revision."""
        end = time.monotonic() + DEADLINE_S
        while min(node.view.revision for node in self._nodes) < revision:
            if time.monotonic() > end:
                raise TimeoutError(f"revision {revision} has not come within {DEADLINE_S:.0f} s")
            time.sleep(0.005)
        return self.costs()

    def costs(self) -> Mapping[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        gc.collect()
        _libc.malloc_trim(0)  # so that what was only in passing is not counted
        return {
            "resident": resident_bytes(os.getpid()),
            "cpu_s": used.ru_utime + used.ru_stime,
            "lost_leases": sum(node.lost_leases for node in self._nodes),
        }

    def close(self) -> None:
        with ThreadPoolExecutor(len(self._nodes)) as pool:
            list(pool.map(SimulatedNode.close, self._nodes))


def main(argv: Sequence[str]) -> None:
    url, cluster, *numbers = argv
    process = Process(url, cluster, *map(int, numbers))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            answer = process.start() if wanted["do"] == "start" else process.reach(wanted["revision"])
        except Exception as error:
            # Nodes that have failed are not to be waited for: their threads may hang in what has failed.
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            os._exit(1)
        print(json.dumps(answer), flush=True)
    process.close()


if __name__ == "__main__":
    main(sys.argv[1:])
