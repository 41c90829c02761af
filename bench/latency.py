"""Round trips by sockperf over several paths at once, in slices so short that what disturbs one disturbs all.

A sockperf run cannot be shorter than a second, and takes three: in that time a shared machine changes by more than what
is to be seen. So one client a path is started, all of them are stopped (SIGSTOP), and then each in turn runs for a
slice of 20 ms, over and over. Each client logs every round trip with its time, which tells the slice. The slices that
follow each other, one a path, are a round. Client and servers share one core, because an unpinned round trip moves
between 13 and 75 us as the scheduler places its ends.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Final, Literal

from bench.paths import Path
from bench.stats import percentile
from bench.world import BenchError, running, wait_for

Proto = Literal["tcp", "udp"]
PROTOS: Final[tuple[Proto, ...]] = ("tcp", "udp")
PORTS: Final = {"tcp": 7001, "udp": 7002}
PAYLOAD_BYTES: Final = 64
CPU: Final = 1
SLICE_S: Final = 0.02
_SETTLE_SAMPLES: Final = 20
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


def measure(paths: Sequence[Path], rounds: int, *, protos: Sequence[Proto] = PROTOS, seed: int = 1) -> Measured:
    """Round trips of every path and protocol, by (path's name, protocol): the same rounds of each, at most `rounds`.

    Takes at least two paths. Blocks for `rounds` x paths x protocols x 20 ms and about 5 s more. Raises BenchError when
    sockperf fails, or when other work on the machine left less than half of the rounds whole.
    """
    expected_s = rounds * len(paths) * len(protos) * SLICE_S
    longest_s = math.ceil(_PAUSE_S + 2 * expected_s + 10)
    logs: dict[Key, File] = {}
    clients = {}
    with ExitStack() as stack:
        for proto in protos:
            for path in paths:
                stack.enter_context(running(path.at_server(*_server(path, proto), cpu=CPU)))
        time.sleep(0.2)
        for proto in protos:
            for path in paths:
                log = logs[path.name, proto] = path.world.dir / f"round-trips-{len(logs)}.csv"
                command = path.at_client(*_client(path, proto, longest_s, log), cpu=CPU)
                output = stack.enter_context(log.with_suffix(".out").open("w"))
                clients[path.name, proto] = stack.enter_context(running(command, output))
        for (name, proto), log in logs.items():
            wait_for(partial(_has_started, log), f"sockperf to start over the {name}, {proto}")
        time.sleep(_WARM_UP_S)
        with _before_others():
            starts = _take_turns({key: client.pid for key, client in clients.items()}, rounds, random.Random(seed))
        for client in clients.values():
            client.send_signal(signal.SIGINT)
            client.send_signal(signal.SIGCONT)
        for (name, proto), client in clients.items():
            if client.wait(30):
                raise BenchError(f"sockperf over the {name}, {proto}: exit {client.returncode}")
    margin_s = len(logs) // 2 * SLICE_S / 2
    return _whole_rounds({key: _slices(log, starts[key], margin_s) for key, log in logs.items()})


def _server(path: Path, proto: Proto) -> list[str]:
    return ["sockperf", "server", *_options(path, proto)]


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


@contextmanager
def _before_others() -> Iterator[None]:
    """Lets this thread run before other work on the machine, so that slices end when they should."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def _take_turns(pids: Mapping[Key, int], rounds: int, order: random.Random) -> Mapping[Key, list[float]]:
    """Lets each process run alone for a slice, `rounds` times; returns when each of its slices began.

    Leaves all of them stopped. The order is shuffled, so that none always follows the same one, but within each half
    alone, so that between two slices of one process there are always as many slices of others as the smaller half has.
    """
    keys = list(pids)
    half = len(keys) - len(keys) // 2
    starts: dict[Key, list[float]] = {key: [] for key in keys}
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    time.sleep(_PAUSE_S)
    for _ in range(rounds):
        for key in (*order.sample(keys[:half], half), *order.sample(keys[half:], len(keys) - half)):
            starts[key].append(time.monotonic())
            os.kill(pids[key], signal.SIGCONT)
            time.sleep(SLICE_S)
            os.kill(pids[key], signal.SIGSTOP)
    return starts


def _slices(log: File, starts: Sequence[float], margin_s: float) -> list[list[float]]:
    """The round trips of each slice in sockperf's log, in microseconds.

    The log's clock is sockperf's own; where the pause ends in it, the first slice began. A process may get to run a
    little late, so what is within the margin of a slice's start or end, when nobody but other paths' clients ran,
    belongs to it.
    """
    slices: list[list[float]] = [[] for _ in starts]
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
                    slices[number].append((received - sent) * 1e6)
    return [one[_SETTLE_SAMPLES:] for one in slices]


def _whole_rounds(slices: Mapping[Key, Sequence[Sequence[float]]]) -> Measured:
    """Leaves out the rounds in which a path had too little of the core to say anything."""
    whole = [all(len(one) >= _LEAST_SAMPLES for one in turn) for turn in zip(*slices.values(), strict=True)]
    if sum(whole) * 2 < len(whole):
        raise BenchError(f"only {sum(whole)} of {len(whole)} rounds are whole: too much other work on this machine")
    return {
        key: Samples([one for one, keep in zip(every, whole, strict=True) if keep]) for key, every in slices.items()
    }
