"""A hundred nodes and ten thousand endpoints: how soon all know all, and what a change costs then.

The nodes are simulated (`bench.simulated`): the real control plane's part of the cluster and a real etcd, no devices,
in a few processes that share this machine's cores with each other and with etcd.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from bench.report import Bar, Result, Table
from bench.simulated import NODES, endpoint, network_id, network_spec
from bench.stats import percentile, single, spread
from bench.turns import before_others
from bench.world import BenchError
from control.cluster.etcd import Etcd
from control.cluster.store import ClusterStore
from tests.etcd_server import EtcdMember, etcd_cluster

SIZES: Final = (1_000, 10_000)
PROCESSES: Final = 4
CLUSTER: Final = "bench"
END_S: Final = 20.0
CONVERGED_S: Final = 10
STARTS: Final = 5
"""Cold starts of the larger cluster; on a shared machine they differ by a third."""
GROWTH: Final = 1.2
"""What a change may cost at the greater size, times what it costs at the lesser."""


@dataclass(frozen=True)
class AtSize:
    """What was found with so many endpoints: seconds until each node had converged, processor seconds of all nodes
    until then, leases that ended because a node had no time to renew them, resident bytes a node, and what one change
    costs: bytes that etcd sent to each node, bytes that each node grew by, and milliseconds until all knew."""

    endpoints: int
    converged_s: list[float]
    cpu_s: float
    lost_leases: int
    resident: float
    sent: float
    grown: float
    change_ms: float


class Simulation:
    """The processes with the nodes, of one cluster."""

    def __init__(self, url: str, endpoints: int, stack: ExitStack) -> None:
        share = NODES // PROCESSES
        command = [sys.executable, "-m", "bench.simulated", url, CLUSTER]
        self._processes = []
        for number in range(PROCESSES):
            numbers = map(str, (number * share, share, endpoints))
            process = subprocess.Popen([*command, *numbers], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(_end, process)
            self._processes.append(process)
        self._answers()

    def ask(self, **wanted: Any) -> list[dict[str, Any]]:
        """Has every process do the same, and returns their answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(wanted) + "\n")
            process.stdin.flush()
        return self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchError(f"simulated nodes ended with {process.wait()}")
            answer = json.loads(line)
            if "error" in answer:
                raise BenchError(f"simulated nodes: {answer['error']}")
            answers.append(answer)
        return answers


def suite(rounds: int) -> Result:
    """One cold start at each size, and so many changes; then more cold starts of the larger one."""
    with before_others():
        found = [measure(size, rounds) for size in SIZES]
        small, large = found
        starts = [large, *(measure(large.endpoints, 1) for _ in range(STARTS - 1))]
    rows = [
        [
            f"{at.endpoints:,}",
            f"{max(at.converged_s):.1f}",
            f"{percentile(sorted(at.converged_s), 50):.1f}",
            f"{at.cpu_s / NODES * 1e3:.0f}",
            str(at.lost_leases),
            f"{at.resident / 1e6:.1f}",
            f"{at.sent:.0f}",
            f"{at.grown:.0f}",
            f"{at.change_ms:.1f}",
        ]
        for at in found
    ]
    columns = (
        *("endpoints", "last node, s", "median node, s", "CPU a node, ms", "leases lost", "resident a node, MB"),
        *("etcd to a node, B a change", "a node's memory, B a change", "ms a change"),
    )
    title = f"{NODES} simulated nodes in {PROCESSES} processes: cold start until converged, then {rounds} changes"
    bars = [
        Bar(
            f"{NODES} nodes, {large.endpoints:,} endpoints: cold start until the last has converged",
            "<",
            CONVERGED_S,
            spread([max(at.converged_s) for at in starts]),
            "s",
        ),
        *(
            Bar(
                f"{what} a change, {large.endpoints:,} against {small.endpoints:,} endpoints",
                "<=",
                GROWTH,
                single(ratio),
            )
            for what, ratio in (
                ("etcd's traffic", large.sent / small.sent),
                ("a node's memory", large.grown / max(small.grown, 1.0)),
            )
        ),
    ]
    data = {**{str(at.endpoints): asdict(at) for at in found}, "starts": [at.converged_s for at in starts]}
    return Result([Table(title, columns, rows)], bars, data)


def measure(endpoints: int, changes: int) -> AtSize:
    """A cluster of its own, on an etcd of its own: a cold start of all nodes at once, then endpoints that are added."""
    with tempfile.TemporaryDirectory(prefix="lsb") as folder, ExitStack() as stack:
        (member,) = stack.enter_context(etcd_cluster(Path(folder)))
        client = stack.enter_context(Etcd([member.url]))
        store = ClusterStore(client, CLUSTER, "changes")
        stack.callback(store.close)
        store.register(IPv4Address("10.1.0.0"), "the one that changes")
        for number in range(NODES):
            store.create_network(network_spec(number), network_id(number))
        nodes = Simulation(member.url, endpoints, stack)
        started = nodes.ask(do="start")
        before, sent = nodes.ask(do="reach", revision=member.revision), sent_bytes(member)
        begin = time.monotonic()
        for number in range(changes):
            (network, id_), record = endpoint(number % NODES, endpoints // NODES + number // NODES)
            store.put_endpoint(network, id_, record)
        after = nodes.ask(do="reach", revision=member.revision)
        took_s, sent = time.monotonic() - begin, sent_bytes(member) - sent
    return AtSize(
        endpoints=endpoints,
        converged_s=[seconds for answer in started for seconds in answer["converged_s"]],
        cpu_s=_sum(started, "cpu_s"),
        lost_leases=int(_sum(after, "lost_leases")),
        resident=_sum(started, "resident") / NODES,
        sent=sent / NODES / changes,
        grown=(_sum(after, "resident") - _sum(before, "resident")) / NODES / changes,
        change_ms=took_s / changes * 1e3,
    )


def sent_bytes(member: EtcdMember) -> int:
    """What an etcd has sent to its clients so far; see its documentation, "Metrics"."""
    with urllib.request.urlopen(f"{member.url}/metrics", timeout=10) as reply:
        found = re.search(r"^etcd_network_client_grpc_sent_bytes_total (\S+)$", reply.read().decode(), re.MULTILINE)
    if found is None:
        raise BenchError("etcd does not say how much it has sent")
    return int(float(found[1]))


def _sum(answers: list[dict[str, Any]], key: str) -> float:
    return float(sum(answer[key] for answer in answers))


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process with nodes, which hangs up first."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
