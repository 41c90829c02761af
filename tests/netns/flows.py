"""Steady traffic, and how fast it is by the sender's own device, for suites that judge what is shown of rates."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.traffic import Station


@contextmanager
def udp_flow(client: Station, server: Station) -> Iterator[None]:
    """8 Mbit/s of UDP payload, until the block ends."""
    listening = subprocess.Popen(
        server.command("iperf3", "-s", "-1", "--forceflush"), stdout=subprocess.PIPE, text=True
    )
    assert listening.stdout is not None
    while "listening" not in listening.stdout.readline():
        assert listening.poll() is None, "iperf3 -s ended"
    sending = subprocess.Popen(
        client.command("iperf3", "-c", server.ip4, "-u", "-b", "8M", "-t", "120"), stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        for process in (sending, listening):
            process.send_signal(signal.SIGKILL)
            process.wait()
        listening.stdout.close()


def sent_bits_per_second(station: Station) -> float:
    """What its device counted in about a second."""
    before, begin = station.link()["stats64"]["tx"]["bytes"], time.monotonic()
    time.sleep(1)
    return float((station.link()["stats64"]["tx"]["bytes"] - before) * 8 / (time.monotonic() - begin))
