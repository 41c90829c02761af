"""The programs' sources: one text per program for the compiler, one digest of all for the cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from datapath import abi

DIRECTORY: Final = Path(__file__).resolve().parents[2] / "bpf"

# A program is one file in bpf/ with one function of the program's name, and one row here. Files are called tc_ or xdp_
# for what the program runs at.
PROGRAMS: Final = {
    "ls_ep_out": "tc_endpoint_out.c",
    "ls_ep_in": "tc_endpoint_in.c",
    "ls_parent_out": "tc_parent_out.c",
    "ls_parent_in": "tc_parent_in.c",
    "ls_station_out": "tc_station_out.c",
    "ls_switch_out": "tc_switch_out.c",
    "ls_switch_in": "tc_switch_in.c",
    "ls_switch_to": "tc_switch_to.c",
    "ls_uplink_in": "tc_uplink_in.c",
    "ls_switch_xdp": "xdp_switch_in.c",
}

_KEY_DIGITS: Final = 12
_INCLUDE: Final = re.compile(r'\s*#\s*include\s*"([^"]+)"')


def is_xdp(program: str) -> bool:
    return PROGRAMS[program].startswith("xdp_")


def key(directory: Path) -> str:
    """What a compiled program depends on, as 12 hex digits: all sources, the kernel and the ABI version."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*.[ch]")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(directory)} {len(text)}\n".encode() + text)
    uname = os.uname()
    digest.update(f"{uname.release} {uname.machine} {abi.ABI_VERSION}".encode())
    return digest.hexdigest()[:_KEY_DIGITS]


def flatten(directory: Path, name: str) -> str:
    """The source `name` with the project's own headers in the place of their first include.

    bcc turns map accesses into instructions in the main file alone. `#line` keeps clang's messages true. Raises
    FileNotFoundError that names the including line.
    """
    return "\n".join(_lines(directory, directory / name, set())) + "\n"


def _lines(directory: Path, path: Path, seen: set[Path]) -> Iterator[str]:
    label = os.path.relpath(path, directory)
    seen.add(path)
    yield f'#line 1 "{label}"'
    for number, line in enumerate(path.read_text().splitlines(), 1):
        include = _INCLUDE.match(line)
        if not include:
            yield line
            continue
        near, root = path.parent / include[1], directory / include[1]
        target = Path(os.path.normpath(near if near.exists() else root))
        if not target.exists():
            raise FileNotFoundError(f'{label}:{number}: "{include[1]}" is neither beside it nor in {directory}')
        if target not in seen:
            yield from _lines(directory, target, seen)
        yield f'#line {number + 1} "{label}"'
