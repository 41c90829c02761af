"""The loaded programs and their maps: one run of the loader, shared by all that attach programs and fill maps."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from datapath import abi, bpf, loader
from datapath.latency import DEFAULT_SAMPLE_EVERY, Histograms
from datapath.maps import Maps
from datapath.trace import Tracer

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FEW: Final = 8
"""Slots that are sooner looked up one by one than all read in batches."""


class Programs:
    """Thread-safe. Descriptors stay open until `close`. One packet in `sample_every` has its forwarding timed, 0 for
    none."""

    def __init__(self, bpffs_dir: Path, run_dir: Path, sample_every: int = DEFAULT_SAMPLE_EVERY) -> None:
        self._sample_every = sample_every
        self.bpffs_dir = bpffs_dir
        self.tracer = Tracer(bpffs_dir, run_dir)
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._maps: Maps | None = None
        self._failure: OSError | loader.LoaderError | None = None
        self._descriptors: dict[str, int] = {}
        self._facts: dict[str, str] = {}
        self._is_compiled = False
        self._map_paths: dict[str, str] = {}
        self._program_paths: dict[str, str] = {}

    def load(self) -> Maps:
        """The maps, open, with all programs pinned beside them.

        Loads what is missing, which may take a second and more; a second call costs nothing. Raises OSError or
        LoaderError, and the same again when it is asked again.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._maps is None:
                try:
                    self._maps = self._load()
                except (OSError, loader.LoaderError) as error:
                    self._failure = error
                    raise
            return self._maps

    def _load(self) -> Maps:
        loaded = loader.load(str(self.bpffs_dir), run_dir=str(self._run_dir))
        for name, path in loaded.programs.items():
            self._descriptors[name] = bpf.obj_get(path)
        self._is_compiled = loaded.compiled
        self._map_paths, self._program_paths = dict(loaded.maps), dict(loaded.programs)
        self._facts = {"programs": "compiled at start" if loaded.compiled else "taken from bpffs"}
        maps = Maps.open(loaded.maps)
        maps.sample(self._sample_every)
        return maps

    def __getitem__(self, name: str) -> int:
        """The descriptor of a loaded program."""
        return self._descriptors[name]

    def id(self, name: str) -> int:
        """The kernel's number of a loaded program."""
        return bpf.prog_info(self._descriptors[name]).id

    def unpinned(self) -> list[Path]:
        """Where something is to be pinned and is not; none before `load`."""
        return [path for path in self._pins() if not path.exists()]

    def pin_again(self) -> None:
        """Pins what is `unpinned`: without its pin the next start would not find it. Raises OSError."""
        for path, fd in self._pins().items():
            if not path.exists():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                bpf.obj_pin(fd, path)

    def _pins(self) -> dict[Path, int]:
        if self._maps is None:
            return {}
        pins = {Path(path): self._maps.table(name).fd for name, path in self._map_paths.items()}
        return pins | {Path(path): self._descriptors[name] for name, path in self._program_paths.items()}

    @property
    def are_new(self) -> bool:
        """Whether `load` has made them, so that what an earlier linkspan has attached is older."""
        return self._is_compiled

    def prune(self) -> None:
        """Removes the pins of other versions; raises LoaderError."""
        loader.prune(str(self.bpffs_dir))

    def facts(self) -> Mapping[str, str]:
        return self._facts

    def slot_counters(self, slots: Collection[int]) -> dict[int, tuple[abi.Counters, Mapping[str, int]]]:
        """What slots have counted, whether an endpoint has them or not, and their drops by reason; nothing without
        maps."""
        maps = self._maps
        if maps is None:
            return {}
        if len(slots) < _FEW:
            return {slot: maps.slot_counters(slot) for slot in slots}
        drops = maps.drops()
        return {slot: (counted, drops.get(slot, {})) for slot, counted in maps.counters(slots).items()}

    def slot_latencies(self, slots: Collection[int] | None) -> Histograms:
        """As `slot_counters`, what took how long, by slot: of these, perhaps among others, or of all for None."""
        maps = self._maps
        if maps is None:
            return Histograms()
        return maps.latencies() if slots is None or len(slots) >= _FEW else maps.slot_latencies(slots)

    def clear_slot(self, slot: int) -> None:
        """Has a slot, that no endpoint has, count from zero."""
        if self._maps is not None:
            self._maps.clear_slot(slot)

    def count_since(self) -> str:
        """Names what the counters have been counting since: another text after a reboot, or when the maps are new."""
        boot = _BOOT_ID.read_text().strip()
        return boot if self._maps is None else f"{boot} {self._maps.table('ep_counters').info.id}"

    def map_fill(self) -> Mapping[str, tuple[int, int]]:
        """(entries, most entries) of the maps that can be full, by name."""
        return {} if self._maps is None else self._maps.fill()

    def close(self) -> None:
        """Idempotent. What is attached goes on."""
        self.tracer.close()
        with self._lock:
            if self._maps is not None:
                self._maps.close()
                self._maps = None
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
