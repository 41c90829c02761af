"""Programs that are not Linkspan's, at hooks of a test host."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from datapath import bpf, netns
from tests.hosts import Host

# r0 = TCX_NEXT (TC_ACT_UNSPEC); exit
PASS: Final = struct.pack("=BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0)


@contextmanager
def stranger(machine: Host, ifname: str) -> Iterator[int]:
    """A program of this process's that lets all packets pass, before all others at a device's tcx ingress; its id."""
    fd = bpf.prog_load(PASS, bpf.ProgType.SCHED_CLS, name="stranger")
    attach = lambda: bpf.tcx_attach(fd, socket.if_nametoindex(ifname))  # noqa: E731
    link = netns.call(f"/proc/{machine.pid}/ns/net", attach)
    try:
        yield bpf.prog_id(fd)
    finally:
        os.close(link)
        os.close(fd)
