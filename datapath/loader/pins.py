"""The layout of bpffs and the maps that are pinned there."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Final

from datapath import abi, bpf
from datapath.bpf import MapType
from datapath.loader import sources
from datapath.loader.errors import LoaderError, MapMismatch, PermissionDenied, Unavailable

_U32: Final = 4
_U64: Final = 8
_NO_PREALLOC: Final = 1  # BPF_F_NO_PREALLOC
_ABI_DIRECTORY: Final = re.compile(r"abi-\d+")
_VERSION_MAP: Final = "abi_version"
_VERSION_KEY: Final = bytes(_U32)
_VERSION: Final = struct.Struct("=I")


@dataclass(frozen=True)
class Shape:
    """What must agree between the programs and everyone else who opens a map; sizes in bytes."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    def fields(self) -> list[int]:
        return [int(value) for value in astuple(self)]

    def __str__(self) -> str:
        known = {int(member): member.name.lower() for member in MapType}
        return (
            f"{known.get(int(self.type), f'type {self.type}')} of {self.max_entries}, key {self.key_size} B, "
            f"value {self.value_size} B, flags {self.flags:#x}"
        )


# The pinned maps, the same as in bpf/maps.h; the loader's child compares. Private maps of a program are not here.
SHAPES: Final[Mapping[str, Shape]] = {
    _VERSION_MAP: Shape(MapType.ARRAY, _U32, _U32, 1, 0),
    "epoch": Shape(MapType.ARRAY, _U32, _U64, 1, 0),
    "ep_by_if": Shape(MapType.HASH, _U32, abi.Endpoint.SIZE, abi.MAX_ENDPOINTS, 0),
    "fdb": Shape(MapType.HASH, abi.FdbKey.SIZE, abi.FdbEntry.SIZE, abi.MAX_ENDPOINTS, 0),
    "parents": Shape(MapType.HASH, _U32, abi.Parent.SIZE, abi.MAX_PARENTS, 0),
    "stations": Shape(MapType.HASH, abi.StationKey.SIZE, abi.Endpoint.SIZE, abi.MAX_ENDPOINTS, 0),
    "nodes": Shape(MapType.ARRAY, _U32, abi.Node.SIZE, abi.MAX_NODES, 0),
    "peers": Shape(MapType.HASH, abi.FdbKey.SIZE, abi.PeerEntry.SIZE, abi.MAX_PEERS, _NO_PREALLOC),
    "node_by_ip": Shape(MapType.HASH, abi.NodeKey.SIZE, _U32, abi.MAX_NODES, _NO_PREALLOC),
    "vnis": Shape(MapType.HASH, _U32, _U32, abi.MAX_NODES, _NO_PREALLOC),
    "direct": Shape(MapType.HASH, abi.DirectKey.SIZE, abi.Direct.SIZE, abi.MAX_DIRECT, _NO_PREALLOC),
    "neigh4": Shape(MapType.HASH, abi.Neigh4Key.SIZE, abi.Neighbour.SIZE, abi.MAX_NEIGHBOURS, _NO_PREALLOC),
    "neigh6": Shape(MapType.HASH, abi.Neigh6Key.SIZE, abi.Neighbour.SIZE, abi.MAX_NEIGHBOURS, _NO_PREALLOC),
    "limits": Shape(MapType.ARRAY, _U32, abi.Limit.SIZE, abi.MAX_ENDPOINTS, 0),
    "ep_counters": Shape(MapType.PERCPU_ARRAY, _U32, abi.Counters.SIZE, abi.MAX_ENDPOINTS, 0),
    "sampling": Shape(MapType.PERCPU_ARRAY, _U32, abi.Sampling.SIZE, 1, 0),
    "latencies": Shape(MapType.HASH, abi.LatencyKey.SIZE, abi.Latency.SIZE, abi.MAX_LATENCIES, _NO_PREALLOC),
    "ep_drops": Shape(MapType.PERCPU_HASH, abi.DropKey.SIZE, _U64, abi.MAX_DROP_KEYS, _NO_PREALLOC),
}


# What traced programs have otherwise (bpf/lib/trace.h): a map for their decisions, and maps of their own to count in.
DECISIONS: Final = "decisions"
_COUNTED: Final = ("ep_counters", "ep_drops", "sampling", "latencies")
TRACE_SHAPES: Final[Mapping[str, Shape]] = {
    **SHAPES,
    **{name: replace(SHAPES[name], max_entries=1) for name in _COUNTED},
    DECISIONS: Shape(MapType.ARRAY, _U32, abi.Decisions.SIZE, 1, 0),
}


@dataclass(frozen=True)
class Layout:
    """The paths of one version's pins under `root`; `key` tells its programs from others'."""

    root: Path
    key: str

    @property
    def abi_dir(self) -> Path:
        return self.root / f"abi-{abi.ABI_VERSION}"

    @property
    def map_dir(self) -> Path:
        return self.abi_dir / "maps"

    @property
    def program_dir(self) -> Path:
        return self.abi_dir / "progs"

    @property
    def trace_dir(self) -> Path:
        return self.abi_dir / "trace"

    def maps(self) -> dict[str, Path]:
        return {name: self.map_dir / name for name in SHAPES}

    def programs(self) -> dict[str, Path]:
        return {name: self.program_dir / f"{name}-{self.key}" for name in sources.PROGRAMS}

    def traced(self) -> dict[str, Path]:
        return {name: self.trace_dir / f"{name}-{self.key}" for name in sources.PROGRAMS}


def make_directories(layout: Layout) -> None:
    """Makes the layout's directories, which only root may enter; Unavailable when they are not on a bpffs."""
    _require_bpffs(layout.root)
    try:
        for directory in (layout.root, layout.map_dir, layout.program_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(error) or LoaderError(f"make directories in {layout.root}: {error}") from error


def make_maps(layout: Layout) -> None:
    """Checks the shape of each map that is pinned, then creates and pins the others.

    Raises MapMismatch before anything is changed, and what the kernel refuses as LoaderError.
    """
    missing = []
    for name, path in layout.maps().items():
        if path.exists():
            _check(name, path)
        else:
            missing.append(name)
    if missing:
        # Programs hold on to the maps that they were loaded with, so those that are pinned know the lost ones.
        for path in layout.programs().values():
            path.unlink(missing_ok=True)
    for name in missing:
        _make(name, SHAPES[name], layout.maps()[name])


def make_decisions(layout: Layout) -> None:
    """Makes the directory of what is traced, and the map of decisions there; raises LoaderError."""
    layout.trace_dir.mkdir(mode=0o700, exist_ok=True)
    path = layout.trace_dir / DECISIONS
    if not path.exists():
        _make(DECISIONS, TRACE_SHAPES[DECISIONS], path)


def remove_others(layout: Layout) -> list[Path]:
    """Unlinks programs of other keys, what a killed loader left, and other ABI versions' directories."""
    keep = set(layout.programs().values())
    removed = [path for path in sorted(layout.program_dir.iterdir()) if path not in keep]
    removed += [path for path in sorted(layout.map_dir.iterdir()) if path.name not in SHAPES]
    if layout.trace_dir.exists():
        keep |= {*layout.traced().values(), layout.trace_dir / DECISIONS}
        removed += [path for path in sorted(layout.trace_dir.iterdir()) if path not in keep]
    for path in removed:
        path.unlink()
    for directory in sorted(layout.root.iterdir()):
        if directory != layout.abi_dir and _ABI_DIRECTORY.fullmatch(directory.name):
            removed += _remove_tree(directory)
    return removed


def refusal(error: OSError) -> LoaderError | None:
    """The loader's error for what the kernel refuses whoever asks wrongly, None for anything else."""
    match error.errno:
        case errno.EPERM:
            return PermissionDenied(f"{error}: loading programs needs root, or CAP_BPF, CAP_NET_ADMIN and write access")
        case errno.EACCES if error.filename is not None:
            return PermissionDenied(f"{error}: loading programs needs root")
        case errno.ENOSYS:
            return Unavailable("eBPF", "this kernel is built without the bpf system call (CONFIG_BPF_SYSCALL)")
    return None


def _make(name: str, shape: Shape, path: Path) -> None:
    new = path.with_name(f"new-{name}")
    try:
        new.unlink(missing_ok=True)
        fd = bpf.map_create(
            MapType(shape.type), shape.key_size, shape.value_size, shape.max_entries, flags=shape.flags, name=name
        )
        with bpf.Map(fd, name) as created:
            if name == _VERSION_MAP:
                created.update(_VERSION_KEY, _VERSION.pack(abi.ABI_VERSION))
            bpf.obj_pin(fd, new)
        new.rename(path)
    except OSError as error:
        raise refusal(error) or LoaderError(f"make map {name}: {error}") from error


def _check(name: str, path: Path) -> None:
    try:
        with bpf.Map.from_pin(path) as found:
            info = found.info
            version = found.lookup(_VERSION_KEY) if name == _VERSION_MAP else None
    except OSError as error:
        raise refusal(error) or LoaderError(f"open map {name}: {error}") from error
    have = Shape(info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    if have != SHAPES[name]:
        raise MapMismatch(name, str(SHAPES[name]), str(have), str(path))
    if version is not None and version != _VERSION.pack(abi.ABI_VERSION):
        raise MapMismatch(name, f"ABI version {abi.ABI_VERSION}", f"{_VERSION.unpack(version)[0]}", str(path))


def _require_bpffs(directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    device = os.stat(existing).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            if fields[fields.index("-") + 1] == "bpf":
                return
            break
    mount = f"mkdir -p {directory} && mount -t bpf bpf {directory}"
    raise Unavailable(f"a bpffs at {directory}", f"{existing} is on another file system; {mount}")


def _remove_tree(directory: Path) -> list[Path]:
    removed = []
    for parent, directories, files in os.walk(directory, topdown=False):
        for name in files:
            Path(parent, name).unlink()
            removed.append(Path(parent, name))
        for name in directories:
            Path(parent, name).rmdir()
    directory.rmdir()
    return removed
