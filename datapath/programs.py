"""The loaded programs and their maps: one run of the loader, shared by all that attach programs and fill maps."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from datapath import bpf, loader
from datapath.maps import Maps


class Programs:
    """Thread-safe. Descriptors stay open until `close`."""

    def __init__(self, bpffs_dir: Path, run_dir: Path) -> None:
        self.bpffs_dir = bpffs_dir
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._maps: Maps | None = None
        self._failure: OSError | loader.LoaderError | None = None
        self._descriptors: dict[str, int] = {}
        self._facts: dict[str, str] = {}
        self._is_compiled = False

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
        self._facts = {"programs": "compiled at start" if loaded.compiled else "taken from bpffs"}
        return Maps.open(loaded.maps)

    def __getitem__(self, name: str) -> int:
        """The descriptor of a loaded program."""
        return self._descriptors[name]

    @property
    def are_new(self) -> bool:
        """Whether `load` has made them, so that what an earlier linkspan has attached is older."""
        return self._is_compiled

    def prune(self) -> None:
        """Removes the pins of other versions; raises LoaderError."""
        loader.prune(str(self.bpffs_dir))

    def facts(self) -> Mapping[str, str]:
        return self._facts

    def close(self) -> None:
        """Idempotent. What is attached goes on."""
        with self._lock:
            if self._maps is not None:
                self._maps.close()
                self._maps = None
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
