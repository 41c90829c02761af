"""What a world was made of, written down while it lives, and looked for when it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.world import World

DEADLINE_S: Final = 10.0
"""The kernel takes namespaces, programs and maps apart a little after the last that held them is gone."""


@dataclass(frozen=True)
class Footprint:
    """The directory of a world, its network namespaces (inode numbers) and its eBPF programs and maps (ids)."""

    directory: Path
    namespaces: frozenset[int]
    programs: frozenset[int]
    maps: frozenset[int]

    def __str__(self) -> str:
        return (
            f"{len(self.namespaces)} network namespaces, {len(self.programs)} eBPF programs, {len(self.maps)} maps "
            f"and {self.directory}"
        )

    def remains(self) -> list[str]:
        """What of it is still there after the deadline, in words."""
        end = time.monotonic() + DEADLINE_S
        while (found := list(self._look())) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _look(self) -> Iterator[str]:
        if self.directory.exists():
            yield f"directory {self.directory}"
        if str(self.directory) in Path("/proc/self/mounts").read_text():
            yield f"a mount under {self.directory}"
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and _netns(process) in self.namespaces:
                yield f"process {process.name}"
        for kind, ids in (("prog", self.programs), ("map", self.maps)):
            present = _present(kind)
            yield from (f"eBPF {kind} {number}" for number in ids if number in present)


def footprint(world: World) -> Footprint:
    """Looks with tools that are not linkspand's: bpftool for what is pinned, /proc for the namespaces."""
    pinned = world.run("find", str(world.bpffs), "-type", "f").split()
    programs: set[int] = set()
    maps: set[int] = set()
    for path in pinned:
        for kind, ids in (("prog", programs), ("map", maps)):
            done = subprocess.run(
                world.enter("bpftool", "--json", kind, "show", "pinned", path),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                ids.add(int(json.loads(done.stdout)["id"]))
    return Footprint(world.dir, frozenset(world.netns_inodes()), frozenset(programs), frozenset(maps))


def _present(kind: str) -> set[int]:
    shown = subprocess.run(["bpftool", "--json", kind, "show"], capture_output=True, text=True, check=True)
    return {int(one["id"]) for one in json.loads(shown.stdout)}


def _netns(process: Path) -> int | None:
    try:
        return os.stat(process / "ns/net").st_ino
    except OSError:
        return None
