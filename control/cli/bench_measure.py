"""What `linkspan bench` measures: round trips over each network, between two sandboxes that it makes and removes.

All paths take turns of some milliseconds, so that what disturbs one disturbs all; what a network costs is the median of
the rounds' differences from a bare veth pair. The load is one thread's, with one message of 64 bytes under way.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from control.cli.client import Client, segment
from control.cli.errors import CliError
from datapath import probe
from datapath.probe import PROTOS, Ends, Proto, Stack

LABEL: Final = "linkspan.bench"
"""On all that a run makes, with the run's process ID."""
VETH, LOOPBACK, UNACCELERATED = "(bare veth pair)", "(loopback)", "(bridge, accel=off)"
_TRIPS: Final = 200
_LEFT_OUT: Final = 20
"""Round trips at the start of a turn, which find the caches full of another path's data."""
_LEAST_ROUNDS: Final = 5
_SET_UP_S: Final = 30.0
"""Networks that are not set up by then are left out, so that the command ends in time."""
_PASSED_OVER: Final = frozenset({"host", "null"})
_FAST, _SLOW = "out_fast_packets", "out_slow_packets"


@dataclass
class Measured:
    """One path. `p50s` and `p99s` are microseconds, a value a round, by protocol; `fast` is the share of packets that
    eBPF programs carried, None where nobody counts; `problem` says why there are no values."""

    network: str
    driver: str
    fast: float | None = None
    problem: str = ""
    p50s: dict[Proto, list[float]] = field(default_factory=lambda: {"tcp": [], "udp": []})
    p99s: dict[Proto, list[float]] = field(default_factory=lambda: {"tcp": [], "udp": []})


def measure(client: Client, names: Sequence[str], seconds: float) -> list[Measured]:
    """Measures the networks of these names, or all, and what they are compared with; in the order of the table.

    Takes `seconds`, and at most 30 more to set up. What it has made is gone when it returns or raises. Raises CliError.
    """
    remove_leftovers(client)
    veth, loopback = Measured(VETH, "-"), Measured(LOOPBACK, "-")
    rows = [Measured(one["Name"], one["Driver"]) for one in _networks(client, names)]
    plain = [Measured(UNACCELERATED, "bridge")] if any(row.driver == "bridge" for row in rows) else []
    ends: list[tuple[Measured, dict[Proto, Ends]]] = []
    with ExitStack() as undo:
        try:
            pair = undo.enter_context(probe.veth_pair())
            ends.append((veth, undo.enter_context(_connected(*pair))))
        except OSError as error:
            raise CliError(f"linkspan: cannot make a veth pair to compare with: {error}") from error
        own = Stack(None, ip_address("127.0.0.1"))
        deadline = time.monotonic() + _SET_UP_S
        for row in (loopback, *plain, *rows):
            if time.monotonic() > deadline:
                row.problem = f"not set up within {_SET_UP_S:.0f} s: name fewer networks"
                continue
            try:
                made = _connected(own, own) if row is loopback else _between_sandboxes(client, row)
                ends.append((row, undo.enter_context(made)))
            except (CliError, OSError) as error:
                row.problem = str(error.strerror if isinstance(error, OSError) else error.message)
        _take_turns(ends, seconds)
        _share(client, [row for row, _ in ends])
    return [veth, loopback, *plain, *rows]


def remove_leftovers(client: Client) -> None:
    """Removes what runs have made that were killed: their process is gone."""
    for one in client.get("/linkspan/sandboxes", all="1"):
        if _is_left(one):
            client.request("DELETE", f"/linkspan/sandboxes/{segment(one['Id'])}", {"force": "1"})
    for one in client.get("/networks"):
        if _is_left(one):
            client.delete(f"/networks/{segment(one['Id'])}")


def _is_left(made: dict[str, Any]) -> bool:
    run = (made.get("Labels") or {}).get(LABEL)
    return run is not None and not Path(f"/proc/{run}").exists()


def _networks(client: Client, names: Sequence[str]) -> list[dict[str, Any]]:
    if names:
        return [client.get(f"/networks/{segment(name)}") for name in names]
    every = client.get("/networks")
    return sorted(
        (one for one in every if one["Driver"] not in _PASSED_OVER and not one.get("ConfigOnly")),
        key=lambda one: str(one["Name"]),
    )


@contextmanager
def _between_sandboxes(client: Client, row: Measured) -> Iterator[dict[Proto, Ends]]:
    """Sockets in two new sandboxes on the row's network, which is made too if it is the one without programs."""
    labels = {LABEL: str(os.getpid())}
    with ExitStack() as undo:
        network = row.network
        if network == UNACCELERATED:
            network = f"bench-{os.getpid()}"
            options = {"linkspan.accel": "off"}
            with _uninterrupted():
                client.post("/networks/create", {"Name": network, "Options": options, "Labels": labels})
                undo.callback(client.delete, f"/networks/{network}")
        stacks = []
        for end in "ab":
            name = f"bench-{os.getpid()}-{end}-{network}"[:63]
            body = {"Name": name, "Networks": [{"Network": network}], "Labels": labels}
            with _uninterrupted():
                made = client.post("/linkspan/sandboxes", body)
                undo.callback(client.request, "DELETE", f"/linkspan/sandboxes/{made['Id']}", {"force": "1"})
            (joined,) = made["Networks"].values()
            stacks.append(Stack(made["NetnsPath"], ip_address(joined["IPAddress"] or joined["GlobalIPv6Address"])))
        yield undo.enter_context(_connected(*stacks))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals come after the block: what is being made when one comes would have nobody to remove it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _connected(a: Stack, b: Stack) -> Iterator[dict[Proto, Ends]]:
    with ExitStack() as undo:
        ends: dict[Proto, Ends] = {}
        for proto in PROTOS:
            ends[proto] = probe.connected(proto, a, b)
            undo.callback(ends[proto].close)
            ends[proto].round_trips(_LEFT_OUT)
        yield ends


def _take_turns(paths: Sequence[tuple[Measured, dict[Proto, Ends]]], seconds: float) -> None:
    """Rounds in which every path has one turn, in an order that is shuffled anew, on one CPU."""
    order, cpus = random.Random(1), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        end, rounds = time.monotonic() + seconds, 0
        while time.monotonic() < end or rounds < _LEAST_ROUNDS:
            rounds += 1
            for row, ends in order.sample(paths, len(paths)):
                for proto in PROTOS:
                    trips = sorted(ends[proto].round_trips(_TRIPS + _LEFT_OUT)[_LEFT_OUT:])
                    row.p50s[proto].append(statistics.median(trips) / 1e3)
                    row.p99s[proto].append(trips[int(len(trips) * 0.99)] / 1e3)
    finally:
        os.sched_setaffinity(0, cpus)


def _share(client: Client, rows: Sequence[Measured]) -> None:
    """Fills in what part of the packets the fast path took, from the endpoints' own counters."""
    prefix = f"bench-{os.getpid()}-"
    sent: dict[str, list[int]] = {}
    for network in client.get("/linkspan/stats")["networks"]:
        for endpoint in network["endpoints"]:
            if endpoint["name"].startswith(prefix) and endpoint["counters"] is not None:
                counters = endpoint["counters"]
                both = sent.setdefault(network["name"], [0, 0])
                both[0] += counters[_FAST]
                both[1] += counters[_FAST] + counters[_SLOW]
    for row in rows:
        name = f"bench-{os.getpid()}" if row.network == UNACCELERATED else row.network
        fast, every = sent.get(name, (0, 0))
        row.fast = fast / every if every else None
