"""The hierarchy of cgroups, version 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def root() -> Path | None:
    """Where the root of the hierarchy is mounted, or else a part of it; None where nothing of it is.

    Source: proc(5), mountinfo.
    """
    found: Path | None = None
    for line in _MOUNTS.read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 "):
            fields = mount.split()
            path = Path(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields[4]))
            if fields[3] == "/":
                return path
            found = found or path
    return found
