"""Programs run on packets that no device sends: bpf(2), BPF_PROG_TEST_RUN.

The kernel runs the program and returns its verdict and the packet as it left it; nothing is redirected. Refusals are
OSErrors as in `datapath.bpf`. Devices are looked up in the calling thread's network namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from datapath import bpf
from datapath._native import ffi, lib

_ROOM: Final = 1024
"""Bytes by which a program may make a packet longer: what a test run leaves as head and tail room."""


@dataclass(frozen=True)
class Outcome:
    """`duration_ns` is the mean of one run, `mark` the packet's mark after the last."""

    retval: int
    data_out: bytes
    duration_ns: int
    mark: int


def run(
    fd: int,
    data: bytes,
    *,
    ifindex: int = 0,
    ingress_ifindex: int = 0,
    mark: int = 0,
    gso_segs: int = 0,
    gso_size: int = 0,
    cb: int = 0,
    repeat: int = 1,
) -> Outcome:
    """Runs a program on a packet (at least 14 bytes: the Ethernet header).

    The keyword arguments fill struct __sk_buff of a SCHED_CLS program, `cb` the first word there; other types take
    none. With an `ifindex` > 0 the program runs as on that device. `repeat` runs work on one packet: what one changes
    the next one sees.
    """
    context = ffi.NULL
    if ifindex or ingress_ifindex or mark or gso_segs or gso_size or cb:
        context = ffi.new(
            "struct __sk_buff *",
            {
                "ifindex": ifindex,
                "ingress_ifindex": ingress_ifindex,
                "mark": mark,
                "gso_segs": gso_segs,
                "gso_size": gso_size,
                "cb": [cb],
            },
        )
    done = _run(fd, data, context, ifindex, repeat)
    return Outcome(*done, context.mark if context else 0)


def run_xdp(fd: int, data: bytes, ifindex: int) -> Outcome:
    """Runs an XDP program on a packet that has come in by a device.

    Source: kernel commit 47316f4a3053 (test runs of XDP take a context since 5.14; before that they are refused).
    """
    context = ffi.new("struct xdp_md *", {"data_end": len(data), "ingress_ifindex": ifindex})
    return Outcome(*_run(fd, data, context, ifindex, 1), 0)


def _run(fd: int, data: bytes, context: Any, ifindex: int, repeat: int) -> tuple[int, bytes, int]:
    """(verdict, packet, mean duration in ns)"""
    out_size = ffi.new("__u32 *", len(data) + _ROOM)
    out = ffi.new("char[]", out_size[0])
    retval, duration = ffi.new("__u32 *"), ffi.new("__u32 *")
    size = ffi.sizeof(context[0]) if context else 0
    result = lib.ls_bpf_prog_test_run(fd, data, len(data), out, out_size, context, size, repeat, retval, duration)
    if result < 0:
        what = f"program descriptor {fd}, packet of {len(data)} bytes, ifindex {ifindex}"
        raise bpf.refusal(-result, "BPF_PROG_TEST_RUN", what)
    return retval[0], bytes(ffi.buffer(out, out_size[0])), duration[0]
