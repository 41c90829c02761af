"""Packets through the programs without a device sending them: what the programs decide on each, and why.

The programs are those that run on devices, built a second time so that they tell (bpf/lib/trace.h), and they look into
the same maps. What they count and remember is their own, and nothing leaves: docs/adr/0022-trace.md.
"""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from datapath import abi, bpf, loader, progrun
from datapath.abi import Told
from datapath.loader import sources

Action = Literal["kernel", "drop", "redirect"]

_TC_ACTIONS: Final[dict[int, Action]] = {0xFFFFFFFF: "kernel", 2: "drop", 7: "redirect"}
_XDP_ACTIONS: Final[dict[int, Action]] = {0: "drop", 1: "drop", 2: "kernel", 4: "redirect"}
_KEY: Final = struct.pack("=I", 0)

# What ls_parent_out and ls_switch_out note for the program at the parent's ingress: enum ls_note in bpf/lib/parent.h.
NOTE_SHORT: Final = 0x4C51
NOTE_HOST: Final = 0x4C52


@dataclass(frozen=True)
class Decision:
    """What a program tells of a packet: a label of `abi.Told`, and an operand as bpf/abi.h has it for each."""

    what: str
    operand: int


@dataclass(frozen=True)
class Run:
    """What a program did: left the packet to the kernel, dropped or redirected it; and the packet as it left it."""

    action: Action
    packet: bytes
    decisions: tuple[Decision, ...]

    def operand(self, what: str) -> int | None:
        """That of the last decision of a kind, None where there is none."""
        return next((each.operand for each in reversed(self.decisions) if each.what == what), None)


class Tracer:
    """The traced programs of a bpffs directory, opened when they are first asked for. Thread-safe."""

    def __init__(self, bpffs_dir: Path, run_dir: Path) -> None:
        self._bpffs_dir = bpffs_dir
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._programs: dict[str, int] = {}
        self._told: bpf.Map | None = None

    def run(self, program: str, packet: bytes, ifindex: int = 0, *, context: int = 0) -> Run:
        """Runs a program on a packet as on that device of the calling thread's network namespace.

        `context` is a note for a program at a parent's ingress, or the slot of ls_station_out's endpoint. The first
        call builds and loads the programs, which takes a second and more. Raises OSError and LoaderError.
        """
        with self._lock:
            told = self._open()
            told.update(_KEY, bytes(told.value_size))
            if sources.is_xdp(program):
                done, actions = progrun.run_xdp(self._programs[program], packet, ifindex), _XDP_ACTIONS
            else:
                done = progrun.run(self._programs[program], packet, ifindex=ifindex, cb=context)
                actions = _TC_ACTIONS
            raw = told.lookup(_KEY) or bytes(told.value_size)
        decisions = tuple(Decision(Told(each.what).label, each.operand) for each in abi.Decisions.unpack(raw))
        return Run(actions[done.retval], done.data_out, decisions)

    def _open(self) -> bpf.Map:
        if self._told is None:
            loaded = loader.load_traced(str(self._bpffs_dir), run_dir=str(self._run_dir))
            self._programs = {name: bpf.obj_get(path) for name, path in loaded.programs.items()}
            self._told = bpf.Map.from_pin(loaded.maps["decisions"])
        return self._told

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            while self._programs:
                os.close(self._programs.popitem()[1])
            if self._told is not None:
                self._told.close()
                self._told = None
