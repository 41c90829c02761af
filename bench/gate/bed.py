"""A test bed for builds of one program side by side, each with maps of its own, and each loaded as often as one likes.

Ifindexes and addresses in it never change, so what the maps of a build hold can be written down as bytes and given back
to that build years later, when bpf/abi.h says something else (see bench.gate.builds).
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.world import BenchError, output_of
from datapath import bpf, progrun
from datapath.loader import headers

T = TypeVar("T")

SENDER, RECEIVER = 7001, 7002
"""Ifindexes of the host ends of the two endpoints' veth pairs."""
_COMPILER: Final = Path(__file__).with_name("compiling.py")
_COMPILE_TIMEOUT_S: Final = 120.0
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
_INSTRUCTION: Final = struct.Struct("=BBhi")
_LD_IMM64, _PSEUDO_MAP_FD = 0x18, 1  # linux/bpf.h


@dataclass(frozen=True)
class Build:
    """A program's text with everything in it, and what its maps hold: values by key, by the map's name."""

    name: str
    text: str
    elements: Mapping[str, Mapping[bytes, bytes]]


@dataclass(frozen=True)
class Compiled:
    """A build for the kernel of this machine: instructions of 8 bytes, whose map descriptors are this process's."""

    name: str
    instructions: bytes


class Bed:
    """Namespaces of its own, in one thread on one CPU. `close` ends them and what was loaded."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="lsg", dir="/tmp")
        self.dir = Path(self._directory.name)
        self.bpffs = self.dir / "bpf"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bed")
        self._descriptors: list[int] = []
        self.call(self._set_up)

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a function in the bed's thread."""
        return self._thread.submit(function, *args, **kwargs).result()

    def compile(self, build: Build) -> Compiled:
        """Compiles a build, and makes and fills its maps. Raises BenchError with what clang said."""
        return self.call(self._compile, build)

    def load(self, compiled: Compiled) -> int:
        """Loads one more copy of a program, with the build's maps; the descriptor stays open until `close`.

        Each copy lies elsewhere in memory, which alone makes it faster or slower by some percent.
        """
        fd = bpf.prog_load(compiled.instructions, bpf.ProgType.SCHED_CLS, name=compiled.name)
        self._descriptors.append(fd)
        return fd

    def unload(self, fd: int) -> None:
        self._descriptors.remove(fd)
        os.close(fd)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
        self._thread.shutdown()
        self._directory.cleanup()

    def _set_up(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        output_of(["mount", "--make-rprivate", "/"])
        for name in ("bpf", "include"):
            (self.dir / name).mkdir()
        output_of(["mount", "-t", "bpf", "bpf", str(self.bpffs)])
        headers.make_tree(self.dir / "include")
        for ifindex in (SENDER, RECEIVER):
            host_end = ["ip", "link", "add", f"host-{ifindex}", "up", "index", str(ifindex), "type", "veth"]
            output_of([*host_end, "peer", "name", f"end-{ifindex}"])
            output_of(["ip", "link", "set", f"end-{ifindex}", "up"])
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    def _compile(self, build: Build) -> Compiled:
        map_dir = Path(tempfile.mkdtemp(dir=self.bpffs))
        paths = {"map_dir": str(map_dir), "include": str(self.dir / "include")}
        done = subprocess.run(
            ["/usr/bin/python3", "-I", str(_COMPILER)],
            input=json.dumps({"name": build.name, "text": build.text, **paths}),
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"{build.name} does not compile:\n{done.stderr[-2000:]}")
        reply = json.loads(done.stdout)
        own = {one["fd"]: self._map(name, one["shape"], build) for name, one in reply["maps"].items()}
        return Compiled(build.name, _with_maps(bytes.fromhex(reply["instructions"]), own))

    def _map(self, name: str, shape: list[int], build: Build) -> int:
        kind, key_size, value_size, entries, flags = shape
        fd = bpf.map_create(bpf.MapType(kind), key_size, value_size, entries, flags=flags, name=name[:15])
        self._descriptors.append(fd)
        made = bpf.Map(fd)
        for key, value in build.elements.get(name, {}).items():
            made.update(key, value)
        return fd


def _with_maps(instructions: bytes, descriptors: Mapping[int, int]) -> bytes:
    """The instructions with this process's map descriptors in the place of the compiler's."""
    rows = []
    for code, registers, offset, value in _INSTRUCTION.iter_unpack(instructions):
        is_map = code == _LD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD
        rows.append(_INSTRUCTION.pack(code, registers, offset, descriptors[value] if is_map else value))
    return b"".join(rows)


@contextmanager
def bed() -> Iterator[Bed]:
    """A bed that is gone at the end of the block."""
    made = Bed()
    try:
        yield made
    finally:
        made.close()


def verdict(program: int, packet: bytes) -> int:
    """What a program returns for a packet of the sender's; to be called in the bed's thread."""
    return progrun.run(program, packet, ifindex=SENDER).retval


def timed_ns(program: int, packet: bytes, packets: int) -> float:
    """Nanoseconds a packet of a test run on the sender's host end; to be called in the bed's thread.

    By this clock, because the kernel's own figure is in whole nanoseconds.
    """
    begin = time.perf_counter_ns()
    progrun.run(program, packet, ifindex=SENDER, repeat=packets)
    return (time.perf_counter_ns() - begin) / packets
