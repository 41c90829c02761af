"""One TCP stream by iperf3 over several paths in turn, each time a new one; sender and receiver have a core each.

On two shared cores a stream moves by a quarter and more from one second to the next, so a turn takes a fraction of a
second and only ratios within a round mean much. iperf3 itself cannot do with less than a second: what arrives is read
from the receiving device's own counter while iperf3 runs.

Paths are compared, not TCP: congestion control is one that all kernels have and that does not pace. A write is long,
so nearly all packets are as large as can be: iperf3's own 128 KiB are two such packets and a rest, which makes one
small packet with an MTU of 1500 and two with 1450, a third more packets for the same bytes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path as File
from typing import Final

from bench import paths
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import ratios, spread
from bench.turns import before_others
from bench.world import BenchError, running, world

PORT: Final = 7003
CLIENT_CPU: Final = 1
SERVER_CPU: Final = 0
SLICE_S: Final = 0.2
_TCP: Final = ("--congestion", "cubic", "--length", "1M")
_RAMP_BYTES: Final = 8 << 20
"""What arrives first is left out: iperf3's start, and TCP's slow start."""
_RAMP_DEADLINE_S: Final = 2.0


def measure(compared: Sequence[Path], rounds: int, *, seed: int = 1) -> Mapping[str, list[float]]:
    """Received bits per second by the path's name, one value a round; the order within each round is shuffled.

    A round before the first is left out, and so are those in which a path stood still because other work had a core.
    Blocks for about `rounds` x paths x 0.3 s. Raises BenchError when no round is left.
    """
    order = random.Random(seed)
    measured: dict[str, list[float]] = {path.name: [] for path in compared}
    with before_others(), ExitStack() as stack:
        receivers = {}
        for path in compared:
            server = path.at_server("iperf3", "--server", "--bind", path.server_ip, "--port", str(PORT), cpu=SERVER_CPU)
            receivers[path.name] = stack.enter_context(running(server)).pid
        time.sleep(0.3)
        for number in range(rounds + 1):
            for path in order.sample(list(compared), len(compared)):
                rate = _stream(path, receivers[path.name])
                if number:
                    measured[path.name].append(rate)
    whole = [number for number, turn in enumerate(zip(*measured.values(), strict=True)) if all(turn)]
    if not whole:
        raise BenchError("a stream stood still in every round: too much other work on this machine")
    return {name: [rates[number] for number in whole] for name, rates in measured.items()}


def suite(rounds: int) -> Result:
    """The four paths side by side, in a world of its own."""
    with world() as machine:
        machine.start()
        built = paths.build(machine)
        measured = measure(built, rounds)
        sent = paths.packets(machine, paths.FAST_NETWORK)
    base = measured[paths.VETH]
    rows = []
    for name, rates in measured.items():
        rate, ratio = spread([value / 1e9 for value in rates]), ratios(rates, base)
        rows.append([name, f"{rate.median:.1f}", f"{rate.low:.1f} .. {rate.high:.1f}", f"{ratio.median:.3f}"])
    title = f"TCP throughput, one stream, {len(base)} rounds: Gbit/s"
    accel = ratios(measured[paths.ACCEL], base)
    return Result(
        [Table(title, ("", "median", "10 % .. 90 %", "x veth"), rows)],
        [Bar("throughput against a bare veth pair", ">=", 0.97, accel)],
        {"bits_per_second": dict(measured), "packets": sent},
    )


def _stream(path: Path, receiver: int) -> float:
    """Bits per second in the middle of a stream; 0 if it does not get going."""
    client = ("iperf3", "--client", path.server_ip, "--port", str(PORT), "--time", "30", *_TCP)
    received = partial(_received_bytes, receiver, path.server_ifname)
    start, deadline = received(), time.monotonic() + _RAMP_DEADLINE_S
    with running(path.at_client(*client, cpu=CLIENT_CPU)):
        while received() < start + _RAMP_BYTES:
            if time.monotonic() > deadline:
                return 0.0
            time.sleep(0.002)
        begin, before = time.monotonic(), received()
        time.sleep(SLICE_S)
        after, end = received(), time.monotonic()
    return (after - before) * 8 / (end - begin)


def _received_bytes(pid: int, ifname: str) -> int:
    """What a device has received in the network namespace of a process; see proc(5), /proc/net/dev."""
    for line in File(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == ifname:
            return int(counters.split()[0])
    raise BenchError(f"process {pid} has no {ifname}")
