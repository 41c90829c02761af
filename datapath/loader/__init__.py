"""Loads the eBPF programs, and finds them again.

Maps and programs are pinned in a bpffs, so they outlive the process. In `bpffs_dir`:

    abi-<ABI_VERSION>/maps/<map>             kept as long as the ABI: endpoints and counters outlive an upgrade
    abi-<ABI_VERSION>/progs/<program>-<key>  key: 12 hex digits over sources, kernel and ABI version
    abi-<ABI_VERSION>/trace/<program>-<key>  the same built to be traced, since somebody first traced a packet

(bpffs reserves dots in names.) Compiling takes bcc, hence LLVM, and happens in a child process that exits. When all
pins are there, nothing is compiled and no child is started.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

from datapath.loader import headers, pins, sources
from datapath.loader.errors import (
    ChildBroken,
    CompileFailed,
    LoaderError,
    MapMismatch,
    PermissionDenied,
    TimedOut,
    Unavailable,
    VerifierRejected,
)

__all__ = [
    "ChildBroken",
    "CompileFailed",
    "Loaded",
    "LoaderError",
    "MapMismatch",
    "PermissionDenied",
    "TimedOut",
    "Unavailable",
    "VerifierRejected",
    "load",
    "load_traced",
    "prune",
]

_CHILD: Final = Path(__file__).with_name("child.py")
_LOCK_POLL_S: Final = 0.02
_CLANG_ERROR: Final = re.compile(r".*\berror: .*")
# What libbcc and the kernel wrap around the verifier's reason.
_VERIFIER_NOISE: Final = re.compile(r"\s*$|processed \d+ insns|HINT:|bpf: Failed to load|verification time|stack depth")


@dataclass(frozen=True)
class Loaded:
    """Where everything is pinned. `log_path` is the child's output, None when nothing was compiled."""

    programs: Mapping[str, str]
    maps: Mapping[str, str]
    compiled: bool
    seconds: float
    log_path: str | None


def load(
    bpffs_dir: str,
    *,
    run_dir: str = "/run/linkspan",
    python: str = "/usr/bin/python3",
    timeout_s: float = 60.0,
    source_dir: str | None = None,
) -> Loaded:
    """Makes sure that all maps and programs are pinned in `bpffs_dir`, and says where.

    Blocks for some 10 ms when they are, for about a second when the programs must be compiled, and for at most
    `timeout_s`; loaders of the same directory wait for each other. Programs that are attached are not touched.
    `python` is an interpreter that can import bcc. The log of the last compilation is `run_dir`/loader.log.
    Raises LoaderError; nothing is left half-done then, and pins that were there stay.
    """
    return _load(_of_devices, bpffs_dir, run_dir, python, timeout_s, source_dir)


def load_traced(
    bpffs_dir: str,
    *,
    run_dir: str = "/run/linkspan",
    python: str = "/usr/bin/python3",
    timeout_s: float = 60.0,
    source_dir: str | None = None,
) -> Loaded:
    """Makes sure that programs that tell what they decide are pinned beside those of `load`, into whose maps they
    look; `maps` is the map of decisions alone.

    Blocks as `load` does, and raises LoaderError; also when the sources are not those that were loaded.
    """
    return _load(_traced, bpffs_dir, run_dir, python, timeout_s, source_dir)


def prune(bpffs_dir: str, *, source_dir: str | None = None) -> list[str]:
    """Removes pins of other versions' programs and maps, and returns their paths.

    To be called when the programs of this version have taken their place; what is still attached somewhere keeps
    running. Idempotent. Raises LoaderError.
    """
    directory = Path(source_dir) if source_dir else sources.DIRECTORY
    layout = pins.Layout(Path(bpffs_dir), sources.key(directory))
    with _locked(layout, time.monotonic() + 10):
        return [str(path) for path in pins.remove_others(layout)]


@dataclass(frozen=True)
class _Build:
    """What to have of the sources: programs by name and pin, the maps that they come with, all that they use, and paths
    that they are to know by a name. The child's output is kept as `log_name`."""

    programs: Mapping[str, Path]
    maps: Mapping[str, Path]
    shapes: Mapping[str, pins.Shape]
    definitions: Mapping[str, str]
    log_name: str


def _of_devices(layout: pins.Layout) -> _Build:
    pins.make_maps(layout)
    return _Build(layout.programs(), layout.maps(), pins.SHAPES, {}, "loader.log")


def _traced(layout: pins.Layout) -> _Build:
    if not all(path.exists() for path in (*layout.maps().values(), *layout.programs().values())):
        raise Unavailable("the programs of these sources", f"others are pinned in {layout.root}; restart linkspand")
    pins.make_decisions(layout)
    return _Build(
        layout.traced(),
        {pins.DECISIONS: layout.trace_dir / pins.DECISIONS},
        pins.TRACE_SHAPES,
        {"LS_TRACE": str(layout.trace_dir)},
        "loader-trace.log",
    )


def _load(
    prepare: Callable[[pins.Layout], _Build],
    bpffs_dir: str,
    run_dir: str,
    python: str,
    timeout_s: float,
    source_dir: str | None,
) -> Loaded:
    """Has all pinned that `prepare`, called with the directory locked, says."""
    started = time.monotonic()
    directory = Path(source_dir) if source_dir else sources.DIRECTORY
    layout = pins.Layout(Path(bpffs_dir), sources.key(directory))
    with _locked(layout, started + timeout_s):
        build = prepare(layout)
        log_path = Path(run_dir) / build.log_name
        is_cold = not all(path.exists() for path in build.programs.values())
        if is_cold:
            _compile(layout, directory, build, log_path, python, started + timeout_s)
    return Loaded(
        programs={name: str(path) for name, path in build.programs.items()},
        maps={name: str(path) for name, path in build.maps.items()},
        compiled=is_cold,
        seconds=time.monotonic() - started,
        log_path=str(log_path) if is_cold else None,
    )


@contextmanager
def _locked(layout: pins.Layout, deadline: float) -> Iterator[None]:
    """Holds the directory's lock: the lock lies where the pins lie, whatever else two loaders do not share."""
    pins.make_directories(layout)
    fd = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimedOut(f"another loader has held {layout.root} for too long") from error
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _compile(layout: pins.Layout, directory: Path, build: _Build, log_path: Path, python: str, deadline: float) -> None:
    request = {
        "programs": [
            {
                "name": name,
                "text": _flatten(directory, sources.PROGRAMS[name]),
                "is_xdp": sources.is_xdp(name),
                "pin": str(pin),
            }
            for name, pin in build.programs.items()
        ],
        "maps": {name: shape.fields() for name, shape in build.shapes.items()},
        "map_dir": str(layout.map_dir),
        "definitions": {"LS_MAP_DIR": str(layout.map_dir), **build.definitions},
    }
    with tempfile.TemporaryDirectory(prefix="linkspan-headers-") as tree:
        headers.make_tree(Path(tree))
        output, log, status = _run_child(python, request | {"include": tree}, deadline)
    _write_log(log_path, log)
    try:
        reply = json.loads(output)
    except ValueError as error:
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "no output")
        broken = ChildBroken(f"the loader's child ended with status {status} and no reply: {last} (log in {log_path})")
        broken.log_path = str(log_path)
        raise broken from error
    if "error" in reply:
        raise _failure(reply, log, log_path, python)


def _flatten(directory: Path, source: str) -> str:
    try:
        return sources.flatten(directory, source)
    except FileNotFoundError as error:
        raise Unavailable(f"the source of the programs in {directory}", str(error)) from error


def _run_child(python: str, request: Mapping[str, Any], deadline: float) -> tuple[str, str, int]:
    """Runs the child to its end and returns (stdout, stderr, exit status)."""
    try:
        # A session of its own, so that a time-out ends whatever the child has started, too; isolated (-I) from the
        # environment that this process lives in.
        started = subprocess.Popen(
            [python, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"the loader's interpreter {python}", f"{error.strerror}; install python3") from error
    with started as child:
        try:
            output, log = child.communicate(json.dumps(request).encode(), max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"the loader's child, process {child.pid}, did not end in time and was killed") from error
        finally:
            if child.poll() is None:
                os.killpg(child.pid, SIGKILL)
    return output.decode(errors="replace"), log.decode(errors="replace"), child.returncode


def _write_log(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def _failure(reply: Mapping[str, Any], log: str, log_path: Path, python: str) -> LoaderError:
    program, detail, code = reply["program"], reply["detail"], reply["errno"]
    match reply["error"]:
        case "bcc":
            return Unavailable(f"bcc under {python}", f"{detail}; install python3-bpfcc")
        case "compile":
            errors = (line for line in log.splitlines() if _CLANG_ERROR.match(line))
            return CompileFailed(program, next(errors, detail), str(log_path))
        case "load":
            failure = pins.refusal(OSError(code, os.strerror(code)))
            if failure:
                return failure
            lines = log.split(f"== {program}:", 1)[-1].splitlines()
            said = [line for line in lines if not _VERIFIER_NOISE.match(line)]
            return VerifierRejected(program, said[-1] if said else detail, len(lines) - 1, str(log_path))
        case _:
            error = LoaderError(f"load {program}: {detail} (log in {log_path})")
            error.log_path = str(log_path)
            return error
