"""Round trips over paths from this one process, with a socket at each end: a path's own time, without anyone waking up.

`latency` measures what programs on both ends see; this takes a hundredth of its time, and repeats within two percent.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from ipaddress import ip_address
from typing import Final

from bench.paths import Path
from bench.turns import before_others
from datapath import probe
from datapath.probe import BULK_BYTES, MESSAGE_BYTES, Ends, Proto, Stack

TRIPS: Final = 200
SETTLE: Final = 20
"""Round trips at the start of a turn that are left out: they find the caches full of another path's data."""


def ends_of(path: Path, proto: Proto = "tcp") -> Ends:
    """Connected sockets at the client's and the server's end. Raises TimeoutError and OSError."""
    client = Stack(str(path.world.seen(path.client)), ip_address("0.0.0.0"))
    server = Stack(str((path.server_world or path.world).seen(path.server)), ip_address(path.server_ip))
    return probe.connected(proto, client, server)


def turn_us(ends: Ends, trips: int = TRIPS, size: int = MESSAGE_BYTES) -> float:
    """The median of one turn's round trips, in microseconds."""
    return statistics.median(ends.round_trips(trips + SETTLE, size)[SETTLE:]) / 1e3


def stream_us(ends: Ends) -> float:
    """As `turn_us`, of a stream's packets: nobody answers them but the other end's TCP."""
    return statistics.median(ends.messages(TRIPS + SETTLE, BULK_BYTES)[SETTLE:]) / 1e3


def rounds(
    compared: Sequence[Path],
    proto: Proto = "tcp",
    turn: Callable[[Ends], float] = turn_us,
    *,
    before: Callable[[str], None] = lambda _: None,
    seed: int = 1,
) -> Generator[dict[str, float], None, None]:
    """Without end, one turn of each path in shuffled order: microseconds by the path's name.

    `before` is called with the path's name when its turn begins.
    """
    order = random.Random(seed)
    with before_others(), ExitStack() as stack:
        ends = {path.name: stack.enter_context(closing(ends_of(path, proto))) for path in compared}
        while True:
            found = {}
            for name in order.sample(list(ends), len(ends)):
                before(name)
                found[name] = turn(ends[name])
            yield {path.name: found[path.name] for path in compared}
