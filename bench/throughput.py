"""One TCP stream by iperf3 over several paths in turn, in short rounds: sender and receiver have a core each.

On two shared cores a stream moves by a quarter from one second to the next, so only ratios within a round mean much.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from bench.paths import Path
from bench.world import BenchError, output_of, running

PORT: Final = 7003
CLIENT_CPU: Final = 1
SERVER_CPU: Final = 0
TRANSFER_BYTES: Final = 1 << 30


def measure(
    paths: Sequence[Path], rounds: int, *, transfer_bytes: int = TRANSFER_BYTES, seed: int = 1
) -> Mapping[str, list[float]]:
    """Received bits per second by the path's name, one value a round; the order within each round is shuffled.

    The first round is left out: connections, caches and neighbours are new in it.
    """
    order = random.Random(seed)
    measured: dict[str, list[float]] = {path.name: [] for path in paths}
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(running(path.at_server("iperf3", "--server", "--port", str(PORT), cpu=SERVER_CPU)))
        time.sleep(0.3)
        for number in range(rounds + 1):
            for path in order.sample(list(paths), len(paths)):
                rate = _stream(path, transfer_bytes)
                if number:
                    measured[path.name].append(rate)
    return measured


def _stream(path: Path, transfer_bytes: int) -> float:
    options = ("--client", path.server_ip, "--port", str(PORT), "--bytes", str(transfer_bytes), "--json")
    report = json.loads(output_of(path.at_client("iperf3", *options, cpu=CLIENT_CPU)))
    received = report["end"]["sum_received"]
    if received["bytes"] < transfer_bytes * 0.9:
        raise BenchError(f"iperf3 over the {path.name}: {received['bytes']} of {transfer_bytes} bytes received")
    return float(received["bits_per_second"])
