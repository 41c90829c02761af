"""Round trips by sockperf over several paths, which take turns of 20 ms.

A sockperf run cannot be shorter than a second, and takes three. So one client a path runs through all turns and logs
every round trip with its time, which tells the turn. Client and servers share one core, because an unpinned round trip
moves between 13 and 75 us as the scheduler places its ends.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from types import MappingProxyType
from typing import Final, Literal

from bench import paths
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import percentile, ratios, spread
from bench.turns import take_turns
from bench.world import BenchError, running, wait_for, world

Proto = Literal["tcp", "udp"]
PROTOS: Final[tuple[Proto, ...]] = ("tcp", "udp")
PORTS: Final = {"tcp": 7001, "udp": 7002}
PAYLOAD_BYTES: Final = 64
CPU: Final = 1
SLICE_S: Final = 0.02
_FIRST: Final = ("nice", "--adjustment=-20")
"""Other work on the machine seldom gets in between. Not for streams, which would starve the kernel's own threads."""
SETTLE_SAMPLES: Final = 20
"""Round trips at the start of a slice that are left out: they find the caches full of another path's data."""
_LEAST_SAMPLES: Final = 50
_MAX_PER_SECOND: Final = 150_000
"""Far more round trips than there can be; sockperf reserves memory for a log of so many."""
_WARM_UP_S: Final = 0.6
"""sockperf leaves the first half second of the test out of its log."""
_PAUSE_S: Final = 1.0
"""How long all are stopped before the first turn: far longer than between turns, and so seen in each log."""

Key = tuple[str, Proto]


@dataclass(frozen=True)
class Samples:
    """The round trips of one path and protocol, in microseconds, one list a round."""

    rounds: Sequence[Sequence[float]]

    def p50s(self) -> list[float]:
        """The median of each round."""
        return [percentile(sorted(one), 50) for one in self.rounds]

    def ordered(self) -> list[float]:
        """All round trips, ascending."""
        return sorted(sample for one in self.rounds for sample in one)


Measured = Mapping[Key, Samples]


def measure(
    compared: Sequence[Path],
    rounds: int,
    *,
    protos: Sequence[Proto] = PROTOS,
    beside: Mapping[str, int] = MappingProxyType({}),
    server_cpu: int = CPU,
    before: Callable[[str], None] = lambda _: None,
    seed: int = 1,
) -> Measured:
    """Round trips of every path and protocol, by (path's name, protocol): the same rounds of each, at most `rounds`.

    `beside` gives, by path's name, the pid of a stopped process that runs in that path's turns alone; `before` is
    called with the path's name when its turn begins. Clients are on the core CPU. Takes at least two paths. Blocks for
    `rounds` x paths x protocols x 20 ms and about 5 s more. Raises BenchError when sockperf fails, or when other work
    on the machine left less than a quarter of the rounds whole.
    """
    expected_s = rounds * len(compared) * len(protos) * SLICE_S
    longest_s = math.ceil(_PAUSE_S + 2 * expected_s + 10)
    logs: dict[Key, File] = {}
    clients: dict[Key, subprocess.Popen[str]] = {}
    starts: dict[Key, list[float]] = {}
    with ExitStack() as stack:
        for proto in protos:
            for path in compared:
                stack.enter_context(running(path.at_server(*_server(path, proto), cpu=server_cpu)))
        time.sleep(0.2)
        for proto in protos:
            for path in compared:
                starts[path.name, proto] = []
                log = logs[path.name, proto] = path.world.dir / f"round-trips-{len(logs)}.csv"
                command = path.at_client(*_client(path, proto, longest_s, log), cpu=CPU)
                output = stack.enter_context(log.with_suffix(".out").open("w"))
                clients[path.name, proto] = stack.enter_context(running(command, output))
        for (name, proto), log in logs.items():
            wait_for(partial(_has_started, log), f"sockperf to start over the {name}, {proto}")
        time.sleep(_WARM_UP_S)
        for client in clients.values():
            client.send_signal(signal.SIGSTOP)
        time.sleep(_PAUSE_S)

        def slice_of(key: Key) -> None:
            before(key[0])
            starts[key].append(time.monotonic())
            other = beside.get(key[0])
            if other is not None:
                os.kill(other, signal.SIGCONT)
            time.sleep(SLICE_S)
            if other is not None:
                os.kill(other, signal.SIGSTOP)

        take_turns({key: client.pid for key, client in clients.items()}, rounds, slice_of, seed=seed)
        for client in clients.values():
            client.send_signal(signal.SIGINT)
            client.send_signal(signal.SIGCONT)
        for (name, proto), client in clients.items():
            if client.wait(30):
                raise BenchError(f"sockperf over the {name}, {proto}: exit {client.returncode}")
    margin_s = len(logs) // 2 * SLICE_S / 2
    return _whole_rounds({key: slices(log, starts[key], margin_s) for key, log in logs.items()})


def suite(rounds: int) -> Result:
    """The four paths side by side, in a world of its own."""
    with world() as machine:
        machine.start()
        built = paths.build(machine)
        measured = measure(built, rounds)
        sent = paths.packets(machine, paths.FAST_NETWORK)
    tables, bars = [], []
    for proto in PROTOS:
        base, kernel = (measured[name, proto].p50s() for name in (paths.VETH, paths.BRIDGE))
        rows = []
        for path in built:
            samples = measured[path.name, proto]
            ordered, p50 = samples.ordered(), spread(samples.p50s())
            rows.append(
                [
                    path.name,
                    f"{p50.median:.2f}",
                    f"{p50.low:.2f} .. {p50.high:.2f}",
                    f"{percentile(ordered, 90):.1f}",
                    f"{percentile(ordered, 99):.1f}",
                    f"{ratios(samples.p50s(), base).median:.3f}",
                    f"{ratios(samples.p50s(), kernel).median:.3f}",
                    str(len(ordered)),
                ]
            )
        columns = ("", "p50", "10 % .. 90 % of rounds", "p90", "p99", "x veth", "x bridge", "round trips")
        title = f"{proto.upper()} round trip, {PAYLOAD_BYTES} B, {len(base)} rounds, both ends on one core: us"
        tables.append(Table(title, columns, rows))
        accel = measured[paths.ACCEL, proto].p50s()
        bars.append(Bar(f"{proto.upper()} round trip p50 against a bare veth pair", "<=", 1.05, ratios(accel, base)))
        bars.append(Bar(f"{proto.upper()} round trip p50 against the kernel bridge", "<=", 0.88, ratios(accel, kernel)))
    data = {"p50_us": {f"{name}, {proto}": one.p50s() for (name, proto), one in measured.items()}, "packets": sent}
    return Result(tables, bars, data)


def _server(path: Path, proto: Proto) -> list[str]:
    return [*_FIRST, "sockperf", "server", *_options(path, proto)]


def _client(path: Path, proto: Proto, duration_s: int, log: File) -> list[str]:
    return [
        *(
            "stdbuf",
            "-oL",
            "sockperf",
            "ping-pong",
            *_options(path, proto),
            "--msg-size",
            str(PAYLOAD_BYTES),
            "--full-log",
            str(log),
        ),
        *("--time", str(duration_s), "--mps", str(_MAX_PER_SECOND)),
    ]


def _has_started(log: File) -> bool:
    return "Starting test" in log.with_suffix(".out").read_text()


def _options(path: Path, proto: Proto) -> list[str]:
    return ["--ip", path.server_ip, "--port", str(PORTS[proto]), *(["--tcp"] if proto == "tcp" else [])]


def slices(log: File, starts: Sequence[float], margin_s: float) -> list[list[float]]:
    """The round trips of each slice in sockperf's log, in microseconds.

    The log's clock is sockperf's own; where the pause ends in it, the first slice began. A process may get to run a
    little late, so what is within the margin of a slice's start or end, when nobody but other paths' clients ran,
    belongs to it.
    """
    found: list[list[float]] = [[] for _ in starts]
    edges: list[float] | None = None
    before = math.inf
    with log.open() as lines:
        for line in lines:
            fields = line.split(",")
            if not fields[0].isdecimal():
                continue
            sent, received = float(fields[1]), float(fields[2])
            if edges is None and received - before > _PAUSE_S * 0.8:
                shift = (received if received - sent > _PAUSE_S * 0.8 else sent) - starts[0] - margin_s
                edges = [start + shift for start in starts]
            before = received
            if edges is not None:
                number = bisect_right(edges, sent) - 1
                if number >= 0 and number == bisect_right(edges, received) - 1:
                    found[number].append((received - sent) * 1e6)
    return [one[SETTLE_SAMPLES:] for one in found]


def _whole_rounds(found: Mapping[Key, Sequence[Sequence[float]]]) -> Measured:
    """Leaves out the rounds in which a path had too little of the core to say anything."""
    whole = [all(len(one) >= _LEAST_SAMPLES for one in turn) for turn in zip(*found.values(), strict=True)]
    if sum(whole) * 4 < len(whole):
        raise BenchError(f"only {sum(whole)} of {len(whole)} rounds are whole: too much other work on this machine")
    return {key: Samples([one for one, keep in zip(every, whole, strict=True) if keep]) for key, every in found.items()}
