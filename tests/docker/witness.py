"""Traffic that goes on while something else happens, and counts what it loses."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import IO

from tests.hosts import wait_for
from tests.traffic import Place, tcp_pair

INTERVAL_S = 0.01


@contextmanager
def no_loss(*ways: tuple[Place, str]) -> Iterator[None]:
    """Pings each address from its place 100 times a second while the block runs; fails if one answer is missing."""
    processes = []
    try:
        for place, address in ways:
            command = place.command("ping", "-n", "-i", str(INTERVAL_S), address)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            processes.append(process)
            assert process.stdout is not None
            wait_for(partial(_says, process.stdout, "icmp_seq=3 "), f"an answer of {address} to {place.name}")
        yield
        for process in processes:
            process.send_signal(signal.SIGINT)
        for (place, address), process in zip(ways, processes, strict=True):
            said, _ = process.communicate(timeout=30)
            found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
            assert found is not None, said
            sent, received = map(int, found.groups())
            # The last may be on its way when the signal comes.
            assert received >= sent - 1, f"{place.name} lost {sent - received} of {sent} answers of {address}"
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _says(output: IO[str], word: str) -> bool:
    return word in output.readline()


@contextmanager
def goes_on(*pairs: tuple[Place, Place, str]) -> Iterator[None]:
    """Keeps a TCP connection open between each (client, server, address) while the block runs, and uses it after."""
    with ExitStack() as stack:
        connections = [stack.enter_context(tcp_pair(client, server, address)) for client, server, address in pairs]
        yield
        for here, there in connections:
            here.sendall(b"still there?")
            assert there.recv(100) == b"still there?"
            there.sendall(b"yes")
            assert here.recv(100) == b"yes"
