"""From a join on one node until a packet from another node gets there, with many endpoints on the network.

The other node sends to the address each millisecond from before the join on. That is the worst case: its kernel has
asked for the address in vain, and would only ask again after a second.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Final

from bench.nodes import Nodes, joined_nodes
from bench.report import Bar, Result, Table
from bench.stats import Spread, percentile, single, spread
from bench.turns import before_others
from bench.world import BenchError, World
from datapath import netns

ENDPOINTS: Final = 1000
NETWORK: Final = "far"
SUBNET: Final = "10.90.0.0/16"
FIRST: Final = 50_000
"""The first address, as a number in the subnet, that the joins to be timed take; far above those of the others."""
PORT: Final = 7004
INTERVAL_S: Final = 0.001
DEADLINE_S: Final = 20.0
P50_MS, P99_MS = 50, 200


def suite(rounds: int) -> Result:
    """Fills the network from both nodes, then times one join after another on the first."""
    with joined_nodes(2) as cluster:
        cluster.create(NETWORK, IPAM={"Config": [{"Subnet": SUBNET}]})
        begin = time.monotonic()
        fill(cluster, ENDPOINTS)
        filled_s = time.monotonic() - begin
        with before_others():
            until_answer, until_packet = _joins(cluster, rounds)
    ordered = sorted(until_packet)
    p99 = percentile(ordered, 99)
    rows = [
        ["join, until it is answered", *_cells(until_answer)],
        ["until a packet from the other node is there", *_cells(until_packet)],
    ]
    columns = ("", "p50", "10 % .. 90 %", "p99")
    return Result(
        [Table(f"A join on one of two nodes, {ENDPOINTS} endpoints on the network, {rounds} joins: ms", columns, rows)],
        [
            Bar(
                f"join until a packet from another node, p50 at {ENDPOINTS} endpoints",
                "<",
                P50_MS,
                spread(ordered),
                "ms",
            ),
            Bar(f"join until a packet from another node, p99 at {ENDPOINTS} endpoints", "<", P99_MS, single(p99), "ms"),
        ],
        {"until_answer_ms": until_answer, "until_packet_ms": until_packet, "filled_s": filled_s},
    )


def fill(cluster: Nodes, count: int) -> None:
    """Makes so many endpoints, as many on each node, a node's one after another and the nodes side by side."""
    members = list(cluster)

    def fill_one(index: int) -> None:
        for number in range(index, count, len(members)):
            members[index].sandbox(f"filler{number}", NETWORK)

    with ThreadPoolExecutor(len(members)) as pool:
        list(pool.map(fill_one, range(len(members))))


def _joins(cluster: Nodes, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds until the join is answered, and until a packet from the other node is there."""
    here, there = cluster
    spare = here.sandbox("spare", "none")
    here.api("POST", "/networks/none/disconnect", {"Container": "spare"})
    sender = there.sandbox("sender", NETWORK)
    until_answer, until_packet = [], []
    for number in range(rounds):
        address = f"10.90.{(FIRST + number) >> 8}.{(FIRST + number) & 255}"
        with closing(_udp(here, spare)) as receiving, _sending(there, sender, address):
            receiving.bind(("", PORT))
            receiving.settimeout(DEADLINE_S)
            arrived: list[float] = []
            waiting = threading.Thread(target=_note_arrival, args=(receiving, arrived))
            waiting.start()
            begin = time.perf_counter()
            config = {"IPAMConfig": {"IPv4Address": address}}
            here.api("POST", f"/networks/{NETWORK}/connect", {"Container": "spare", "EndpointConfig": config})
            until_answer.append((time.perf_counter() - begin) * 1e3)
            waiting.join()
            if not arrived:
                raise BenchError(f"no packet came to {address} within {DEADLINE_S:.0f} s")
            until_packet.append((arrived[0] - begin) * 1e3)
        here.api("POST", f"/networks/{NETWORK}/disconnect", {"Container": "spare"})
    return until_answer, until_packet


def _note_arrival(receiving: socket.socket, arrived: list[float]) -> None:
    try:
        receiving.recv(64)
    except TimeoutError:
        return
    arrived.append(time.perf_counter())


@contextmanager
def _sending(machine: World, sandbox: str, address: str) -> Iterator[None]:
    """A datagram each millisecond to an address, from a sandbox, until the block ends."""
    stop = threading.Event()

    def send() -> None:
        with closing(_udp(machine, sandbox)) as sending:
            while not stop.wait(INTERVAL_S):
                try:
                    sending.sendto(b"here?", (address, PORT))
                except OSError:  # nobody has the address yet
                    continue

    thread = threading.Thread(target=send)
    thread.start()
    time.sleep(10 * INTERVAL_S)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _udp(machine: World, sandbox: str) -> socket.socket:
    return socket.socket(fileno=netns.open_socket(machine.seen(sandbox), socket.AF_INET, socket.SOCK_DGRAM))


def _cells(values: list[float]) -> list[str]:
    found: Spread = spread(values)
    p99 = percentile(sorted(values), 99)
    return [f"{found.median:.1f}", f"{found.low:.1f} .. {found.high:.1f}", f"{p99:.1f}"]
