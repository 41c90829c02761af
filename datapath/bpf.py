"""The bpf(2) system call, typed: pinned objects, maps, programs and links.

Descriptors are plain ints (close-on-exec) that the caller closes; a Map owns its own. Every refusal by the kernel is an
OSError whose text names the command, the object and, where it is known, the remedy. Devices are looked up in the
calling thread's network namespace.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from errno import E2BIG, EACCES, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM
from functools import cache
from pathlib import Path
from typing import Final, Self

from datapath._native import ffi, lib

StrPath = str | os.PathLike[str]

ANY: Final[int] = lib.BPF_ANY
NOEXIST: Final[int] = lib.BPF_NOEXIST
EXIST: Final[int] = lib.BPF_EXIST
REDIRECT_PEER: Final[int] = lib.BPF_FUNC_redirect_peer

# What the kernel answers for a command that a map type does not have; not among the errnos of user space.
ENOTSUPP: Final = 524
_NAME_LENGTH: Final = 15
_LOG_BYTES: Final = 1 << 20
_HOOK_PROGRAMS: Final = 64  # BPF_MPROG_MAX
_BATCH_BYTES: Final = 1 << 16  # what malloc keeps, and a CPU's cache
_U32: Final = struct.Struct("=I")
_POSSIBLE_CPUS: Final = Path("/sys/devices/system/cpu/possible")


class MapType(IntEnum):
    """enum bpf_map_type, the types that are used here."""

    HASH = lib.BPF_MAP_TYPE_HASH
    ARRAY = lib.BPF_MAP_TYPE_ARRAY
    PROG_ARRAY = lib.BPF_MAP_TYPE_PROG_ARRAY
    PERCPU_HASH = lib.BPF_MAP_TYPE_PERCPU_HASH
    PERCPU_ARRAY = lib.BPF_MAP_TYPE_PERCPU_ARRAY
    LRU_HASH = lib.BPF_MAP_TYPE_LRU_HASH
    LRU_PERCPU_HASH = lib.BPF_MAP_TYPE_LRU_PERCPU_HASH
    LPM_TRIE = lib.BPF_MAP_TYPE_LPM_TRIE


class ProgType(IntEnum):
    """enum bpf_prog_type, the types that are used here."""

    SOCKET_FILTER = lib.BPF_PROG_TYPE_SOCKET_FILTER
    SCHED_CLS = lib.BPF_PROG_TYPE_SCHED_CLS
    XDP = lib.BPF_PROG_TYPE_XDP


_PER_CPU: Final = (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)
_ARRAYS: Final = (MapType.ARRAY, MapType.PERCPU_ARRAY)

_HINTS: Final = {
    ("", EPERM): "needs root, or CAP_BPF and CAP_NET_ADMIN",
    ("", ENOSYS): "this kernel is built without eBPF",
    ("BPF_OBJ_GET", ENOENT): "nothing is pinned there",
    ("BPF_OBJ_GET", EACCES): "it is not a pinned eBPF object",
    ("BPF_OBJ_PIN", EPERM): "needs root and a bpffs mounted there",
    ("BPF_OBJ_PIN", EEXIST): "something is pinned there already",
    ("BPF_MAP_UPDATE_ELEM", E2BIG): "the map is full, or the index is past its end",
    ("BPF_MAP_UPDATE_ELEM", EEXIST): "the key is there already",
    ("BPF_MAP_UPDATE_ELEM", ENOENT): "the key is not there",
    ("BPF_LINK_CREATE", EINVAL): "the kernel may be older than 6.6 and have no tcx",
}


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says of a map; `type` is a MapType where that has a member for it."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True)
class ProgInfo:
    """What the kernel says of a program. `tag` is the hex digest of its instructions; `loaded_ns` is CLOCK_BOOTTIME's,
    `user_id` that of who has loaded it; `run_*` count only while kernel.bpf_stats_enabled is set."""

    type: int
    id: int
    name: str
    tag: str
    jited_bytes: int
    xlated_bytes: int
    verified_insns: int
    loaded_ns: int
    user_id: int
    run_time_ns: int
    run_count: int


@dataclass(frozen=True)
class LinkInfo:
    """What the kernel says of a link. `ifindex` is 0 once the link is detached or its device is gone."""

    type: int
    id: int
    prog_id: int
    ifindex: int
    is_egress: bool


def _check(result: int, command: str, what: str) -> int:
    if result < 0:
        raise refusal(-result, command, what)
    return result


def refusal(code: int, command: str, what: str) -> OSError:
    """The error for an errno that the kernel answered a command with, about an object."""
    reason = "operation not supported by this object" if code == ENOTSUPP else os.strerror(code)
    hint = _HINTS.get((command, code)) or _HINTS.get(("", code))
    return OSError(code, f"bpf({command}) {what}: {reason}" + (f"; {hint}" if hint else ""))


def _encode(path: StrPath) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"a path cannot hold a NUL character: {path!r}")
    return raw


def _name(raw: bytes) -> bytes:
    if len(raw) > _NAME_LENGTH:
        raise ValueError(f"a name of an eBPF object has at most {_NAME_LENGTH} bytes: {raw!r}")
    return raw


def _expect(fd: int, kind: str) -> None:
    """Raises OSError(EINVAL) when fd is no eBPF object of this kind: the kernel would answer with another struct."""
    target = os.readlink(f"/proc/self/fd/{fd}")
    if target not in (f"anon_inode:bpf-{kind}", f"anon_inode:bpf_{kind}"):
        raise OSError(EINVAL, f"descriptor {fd} is no eBPF {kind} but {target}")


@cache
def possible_cpus() -> int:
    """The number of CPUs that per-CPU maps hold a value for (online or not)."""
    last = _POSSIBLE_CPUS.read_text().strip().replace(",", "-").split("-")[-1]
    return int(last) + 1


def obj_get(path: StrPath) -> int:
    """Opens the map, program or link pinned at `path`."""
    return _check(lib.ls_bpf_obj_get(_encode(path)), "BPF_OBJ_GET", os.fspath(path))


def obj_pin(fd: int, path: StrPath) -> None:
    """Pins a map, program or link at `path`, which lies on a bpffs; the object then outlives this process."""
    _check(lib.ls_bpf_obj_pin(fd, _encode(path)), "BPF_OBJ_PIN", os.fspath(path))


def is_bpffs(path: StrPath) -> bool:
    """Whether the file or directory at `path` lies on a mounted bpffs; raises OSError when there is none."""
    result = lib.ls_bpf_is_bpffs(_encode(path))
    if result < 0:
        raise OSError(-result, f"statfs {os.fspath(path)}: {os.strerror(-result)}")
    return result > 0


def map_create(
    type: MapType, key_size: int, value_size: int, max_entries: int, *, flags: int = 0, name: str = ""
) -> int:
    """Creates a map; sizes in bytes."""
    result = lib.ls_bpf_map_create(type, key_size, value_size, max_entries, flags, _name(name.encode()))
    return _check(result, "BPF_MAP_CREATE", f"{type.name.lower()} map {name}".rstrip())


def map_info(fd: int) -> MapInfo:
    _expect(fd, "map")
    info = ffi.new("struct bpf_map_info *")
    _check(lib.ls_bpf_map_info(fd, info), "BPF_OBJ_GET_INFO_BY_FD", f"map descriptor {fd}")
    return MapInfo(
        type=info.type,
        id=info.id,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
        name=ffi.string(info.name).decode(),
    )


def prog_info(fd: int) -> ProgInfo:
    _expect(fd, "prog")
    info = ffi.new("struct bpf_prog_info *")
    _check(lib.ls_bpf_prog_info(fd, info), "BPF_OBJ_GET_INFO_BY_FD", f"program descriptor {fd}")
    return ProgInfo(
        type=info.type,
        id=info.id,
        name=ffi.string(info.name).decode(),
        tag=bytes(info.tag).hex(),
        jited_bytes=info.jited_prog_len,
        xlated_bytes=info.xlated_prog_len,
        verified_insns=info.verified_insns,
        loaded_ns=info.load_time,
        user_id=info.created_by_uid,
        run_time_ns=info.run_time_ns,
        run_count=info.run_cnt,
    )


def prog_id(fd: int) -> int:
    """The number by which the kernel and bpftool know the program."""
    return prog_info(fd).id


def prog_load(insns: bytes, type: ProgType, license: str = "GPL", *, name: str = "", log_level: int = 0) -> int:
    """Verifies and loads a program given as instructions of 8 bytes.

    The error of a rejected program has the verifier's log as a note; for that, with a `log_level` of 0, it is loaded
    once more.
    """
    if len(insns) % 8:
        raise ValueError(f"eBPF instructions have 8 bytes each, got {len(insns)}")
    log = ffi.new("char[]", _LOG_BYTES)

    def load(level: int) -> int:
        return lib.ls_bpf_prog_load(
            type, insns, len(insns) // 8, license.encode(), _name(name.encode()), level, log, _LOG_BYTES
        )

    result = load(log_level)
    if result < 0 and log_level == 0:
        result = load(1)
    text = ffi.string(log).decode(errors="replace")
    try:
        return _check(result, "BPF_PROG_LOAD", f"{type.name.lower()} program {name}".rstrip())
    except OSError as error:
        if text:
            error.add_note(text)
        raise


def tcx_attach(prog_fd: int, ifindex: int, egress: bool = False) -> int:
    """Attaches a SCHED_CLS program to a device and returns the link (kernel 6.6).

    The program is detached when the last descriptor and pin of the link are gone, or the device.
    """
    hook = lib.BPF_TCX_EGRESS if egress else lib.BPF_TCX_INGRESS
    result = lib.ls_bpf_link_create(prog_fd, ifindex, hook, 0)
    return _check(result, "BPF_LINK_CREATE", f"tcx {'egress' if egress else 'ingress'} of ifindex {ifindex}")


def xdp_attach(prog_fd: int, ifindex: int, *, generic: bool = False) -> int:
    """Attaches an XDP program to a device, in native (driver) mode unless `generic` is said, and returns the link."""
    mode = lib.XDP_FLAGS_SKB_MODE if generic else lib.XDP_FLAGS_DRV_MODE
    result = lib.ls_bpf_link_create(prog_fd, ifindex, lib.BPF_XDP, mode)
    return _check(result, "BPF_LINK_CREATE", f"{'generic' if generic else 'native'} XDP of ifindex {ifindex}")


def link_update(link_fd: int, prog_fd: int) -> None:
    """Replaces the link's program; no packet passes without one."""
    _check(lib.ls_bpf_link_update(link_fd, prog_fd), "BPF_LINK_UPDATE", f"link descriptor {link_fd}")


def link_detach(link_fd: int) -> None:
    """Takes the program off its device, whoever else holds the link."""
    _check(lib.ls_bpf_link_detach(link_fd), "BPF_LINK_DETACH", f"link descriptor {link_fd}")


def link_info(fd: int) -> LinkInfo:
    _expect(fd, "link")
    info = ffi.new("struct ls_link_info *")
    _check(lib.ls_bpf_link_info(fd, info), "BPF_OBJ_GET_INFO_BY_FD", f"link descriptor {fd}")
    return LinkInfo(info.type, info.id, info.prog_id, info.ifindex, info.attach_type == lib.BPF_TCX_EGRESS)


def tcx_programs(ifindex: int, egress: bool = False) -> list[int]:
    """The ids of the programs at a device's tcx hook, in the order in which they run; none before kernel 6.6, or
    on one without eBPF."""
    ids, count = ffi.new("__u32[]", _HOOK_PROGRAMS), ffi.new("__u32 *", _HOOK_PROGRAMS)
    hook = lib.BPF_TCX_EGRESS if egress else lib.BPF_TCX_INGRESS
    result = lib.ls_bpf_prog_query(ifindex, hook, ids, count)
    if result in (-EINVAL, -ENOENT, -ENOSYS):
        return []
    _check(result, "BPF_PROG_QUERY", f"tcx {'egress' if egress else 'ingress'} of ifindex {ifindex}")
    return list(ids[0 : count[0]])


def prog_by_id(id: int) -> ProgInfo | None:
    """What the kernel says of the program with this id, None when there is none."""
    fd = lib.ls_bpf_prog_get_fd_by_id(id)
    if fd == -ENOENT:
        return None
    _check(fd, "BPF_PROG_GET_FD_BY_ID", f"program {id}")
    try:
        return prog_info(fd)
    finally:
        os.close(fd)


class Map:
    """An open map. Keys and values are bytes of exactly the map's sizes, else ValueError.

    A per-CPU map's value is one value per possible CPU, each padded to a multiple of 8 bytes. Owns and closes `fd`;
    a context manager.
    """

    def __init__(self, fd: int, label: str = "") -> None:
        self.fd = fd
        self.info = map_info(fd)
        self._label = label or self.info.name or f"id {self.info.id}"
        self.is_array = self.info.type in _ARRAYS
        self.value_size = self.info.value_size
        if self.info.type in _PER_CPU:
            self.value_size = (self.info.value_size + 7) // 8 * 8 * possible_cpus()

    @classmethod
    def from_pin(cls, path: StrPath) -> Self:
        """Opens the map pinned at `path`; raises OSError(EINVAL) for a pinned program or link."""
        fd = obj_get(path)
        try:
            return cls(fd, os.fspath(path))
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def lookup(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        value = ffi.new("char[]", self.value_size)
        result = lib.ls_bpf_map_lookup(self.fd, self._key(key), value)
        if result == -ENOENT:
            return None
        self._check(result, "BPF_MAP_LOOKUP_ELEM")
        return bytes(ffi.buffer(value))

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Writes `value` under `key`; NOEXIST raises EEXIST, EXIST raises ENOENT, a full map E2BIG."""
        if len(value) != self.value_size:
            raise ValueError(f"map {self._label}: a value has {self.value_size} bytes, not {len(value)}")
        self._check(lib.ls_bpf_map_update(self.fd, self._key(key), value, flags), "BPF_MAP_UPDATE_ELEM")

    def delete(self, key: bytes) -> bool:
        """Removes `key`; False when it was not there."""
        result = lib.ls_bpf_map_delete(self.fd, self._key(key))
        if result == -ENOENT:
            return False
        self._check(result, "BPF_MAP_DELETE_ELEM")
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields (key, value) of each entry, in the kernel's order.

        An entry that is written or deleted meanwhile may or may not appear.
        """
        width, size = self.info.key_size, self.value_size
        for batch in self.batches():
            keys, values = map(bytes, batch)
            for index in range(len(keys) // width):
                yield keys[index * width : (index + 1) * width], values[index * size : (index + 1) * size]

    def batches(self, most: int | None = None) -> Iterator[tuple[memoryview, memoryview]]:
        """As `items`, keys and values of many entries at a time, `most` at most, concatenated; one at a time without
        batched reads. They hold until the next are asked for."""
        previous: bytes | None = None
        room = Room(self, self._batch_size() if most is None else min(self._batch_size(), most))
        while True:
            try:
                keys, values, following = self.read_batch(previous, room)
            except OSError as error:
                if error.errno == ENOSPC and room.capacity < self.info.max_entries:
                    room = Room(self, min(2 * room.capacity, self.info.max_entries))  # a hash bucket did not fit
                    continue
                if error.errno in (EINVAL, ENOTSUPP) and previous is None:
                    yield from ((memoryview(key), memoryview(value)) for key, value in self._items_by_key())
                    return
                raise
            if keys:
                yield keys, values
            if following is None:
                return
            previous = following

    def array_batches(self, count: int | None = None) -> Iterator[memoryview]:
        """As `batches`, the first `count` values of an array map (per-CPU or not), or all."""
        if not self.is_array:
            raise ValueError(f"map {self._label} is no array")
        left = self.info.max_entries if count is None else min(self.info.max_entries, count)
        batches = self.batches(left)
        while left:
            _, values = next(batches)
            here = min(left, len(values) // self.value_size)
            yield values[: here * self.value_size]
            left -= here

    def read_batch(self, previous: bytes | None, room: Room) -> tuple[memoryview, memoryview, bytes | None]:
        """Keys and values, concatenated, in `room`, and the position to go on from (None: at the end).

        `previous` is the position (None: the beginning). Raises OSError: EINVAL or 524 when the kernel has no batched
        reads of this map type, ENOSPC when a hash bucket holds more than there is room for.
        """
        room.count[0] = room.capacity
        position = ffi.NULL if previous is None else previous
        result = lib.ls_bpf_map_lookup_batch(self.fd, position, room.following, room.keys, room.values, room.count)
        is_last = result == -ENOENT
        if not is_last:
            self._check(result, "BPF_MAP_LOOKUP_BATCH")
        return (
            memoryview(ffi.buffer(room.keys, room.count[0] * self.info.key_size)),
            memoryview(ffi.buffer(room.values, room.count[0] * self.value_size)),
            None if is_last else bytes(ffi.buffer(room.following)),
        )

    def _batch_size(self) -> int:
        return min(self.info.max_entries, max(1, _BATCH_BYTES // self.value_size))

    def _items_by_key(self) -> Iterator[tuple[bytes, bytes]]:
        previous: bytes | None = None
        buffer = ffi.new("char[]", self.info.key_size)
        while True:
            result = lib.ls_bpf_map_next_key(self.fd, ffi.NULL if previous is None else previous, buffer)
            if result == -ENOENT:
                return
            self._check(result, "BPF_MAP_GET_NEXT_KEY")
            previous = bytes(ffi.buffer(buffer))
            value = self.lookup(previous)
            if value is not None:
                yield previous, value

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.info.key_size:
            raise ValueError(f"map {self._label}: a key has {self.info.key_size} bytes, not {len(key)}")
        return key

    def _check(self, result: int, command: str) -> None:
        _check(result, command, f"map {self._label}")


class Room:
    """What batches of a map are read to, one after the other: `capacity` entries."""

    def __init__(self, table: Map, capacity: int) -> None:
        self.capacity = capacity
        self.keys = ffi.new("char[]", capacity * table.info.key_size)
        self.values = ffi.new("char[]", capacity * table.value_size)
        self.count = ffi.new("__u32 *")
        # A hash map's position is a bucket number of 4 bytes, an array's is the last key.
        self.following = ffi.new("char[]", max(table.info.key_size, _U32.size))
