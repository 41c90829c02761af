"""Orders names the way Docker lists them: runs of digits compare as numbers."""

from __future__ import annotations

import re

_PARTS = re.compile(r"[0-9]+|[^0-9]", re.DOTALL)


def natural_key(text: str) -> list[tuple[int, int, int]]:
    """A sort key: "b9" before "b10"; of equal numbers the one with fewer leading zeros comes first."""
    return [
        # A number stands where its digits stand among the other characters.
        (ord("0"), int(part), len(part)) if part[0] in "0123456789" else (ord(part), 0, 0)
        for part in _PARTS.findall(text)
    ]
