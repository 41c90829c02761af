"""Questions to the wire whose answer should be no."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
from contextlib import ExitStack
from itertools import product
from subprocess import PIPE

from tests.traffic import Place, family


def families(station: Place) -> tuple[str, str]:
    return station.ip4, station.ip6


def unreachable(client: Place, target: Place, wait_s: float = 0.3) -> bool:
    """No echo, no TCP, no UDP gets from one to the other, by either family; all is tried at once."""
    with ExitStack() as stack:
        listeners = []
        for address, kind in product(families(target), (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            there = stack.enter_context(target.socket(family(address), kind))
            there.bind((address, 0))
            listeners.append(there)
            here = stack.enter_context(client.socket(family(address), kind))
            here.setblocking(False)
            with contextlib.suppress(OSError):  # in progress, or no route
                if kind == socket.SOCK_STREAM:
                    there.listen()
                    here.connect(there.getsockname())
                else:
                    here.sendto(b"in?", there.getsockname())
        pings = [
            subprocess.Popen(client.command("ping", "-n", "-c1", f"-W{wait_s}", address), stdout=PIPE, stderr=PIPE)
            for address in families(target)
        ]
        answers = [ping.communicate() and ping.returncode == 0 for ping in pings]
        arrived, _, _ = select.select(listeners, [], [], wait_s)
        return not arrived and not any(answers)
