"""One TCP stream by iperf3 over several paths, which take turns of 0.15 s; sender and receiver have a core each.

What has arrived is read from the receiving device's own counter, which needs no end of a stream.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path as File
from typing import Final

from bench import paths
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import ratios, spread
from bench.turns import take_turns
from bench.world import BenchError, running, wait_for, world

PORT: Final = 7003
CLIENT_CPU: Final = 1
SERVER_CPU: Final = 0
RAMP_S: Final = 0.05
"""The start of a turn that is left out: the stream was idle, so TCP begins with a small window (RFC 2861)."""
SLICE_S: Final = 0.1


def measure(compared: Sequence[Path], rounds: int, *, seed: int = 1) -> Mapping[str, list[float]]:
    """Received bits per second by the path's name, one value a round.

    Blocks for `rounds` x paths x 0.15 s and about 2 s more. Rounds in which a path stood still are left out, because
    other work had the core. Raises BenchError when these are more than half, or iperf3 does not work at all.
    """
    measured: dict[str, list[float]] = {path.name: [] for path in compared}
    receivers: dict[str, int] = {}
    senders: dict[str, int] = {}
    longest_s = int(2 * rounds * len(compared) * (RAMP_S + SLICE_S)) + 30
    with ExitStack() as stack:
        for path in compared:
            server = path.at_server("iperf3", "--server", "--port", str(PORT), cpu=SERVER_CPU)
            receivers[path.name] = stack.enter_context(running(server)).pid
        time.sleep(0.3)
        for path in compared:
            client = ("iperf3", "--client", path.server_ip, "--port", str(PORT), "--time", str(longest_s))
            before = _received_bytes(receivers[path.name])
            pid = senders[path.name] = stack.enter_context(running(path.at_client(*client, cpu=CLIENT_CPU))).pid
            wait_for(
                lambda receiver=receivers[path.name], least=before + (1 << 20): _received_bytes(receiver) > least,  # type: ignore[misc]
                f"iperf3 over the {path.name}",
            )
            os.kill(pid, signal.SIGSTOP)

        def slice_of(name: str) -> None:
            time.sleep(RAMP_S)
            begin, before = time.monotonic(), _received_bytes(receivers[name])
            time.sleep(SLICE_S)
            after, end = _received_bytes(receivers[name]), time.monotonic()
            measured[name].append((after - before) * 8 / (end - begin))

        take_turns(senders, rounds, slice_of, seed=seed)
    whole = [number for number, turn in enumerate(zip(*measured.values(), strict=True)) if all(turn)]
    if len(whole) * 2 < rounds:
        raise BenchError(f"only {len(whole)} of {rounds} rounds are whole: too much other work on this machine")
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


def _received_bytes(pid: int) -> int:
    """What eth0 has received in the network namespace of a process; see proc(5), /proc/net/dev."""
    for line in File(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "eth0":
            return int(counters.split()[0])
    raise BenchError(f"process {pid} has no eth0")
