"""Examples in the docs: what a page says that a command prints, held against what it prints here and now."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_DOTS: Final = "..."
_ELSEWHERE_OTHERS: Final = (
    (r"\b(ls|lv|lv-|lo-|lx-|br-)[0-9a-f]{12}\b", r"\1ID"),
    (r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r"\b(?:\d{1,3}\.){3}\d{1,3}\b", "ADDRESS"),
    (r"\bport \d{5}\b", "port PORT"),
    (r"\b(VNI|id|number|segment is) \d+\b", r"\1 NUMBER"),
    (r"\((?:reachable|stale|delay|probe)\)", "(known)"),
)
"""What is another on every host, and what stands for it."""


def examples(page: Path) -> dict[str, list[str]]:
    """The lines that stand below each `$ command` in the page's blocks, by command."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in page.read_text().splitlines():
        if line.startswith("$ "):
            lines = found[line[2:]] = []
        elif line.startswith("```"):
            lines = None
        elif line and lines is not None:
            lines.append(line)
    return found


def is_still_printed(documented: Iterable[str], printed: str) -> bool:
    """Whether a command prints that, but for what is another on every host; a line of dots stands for any lines."""
    parts = (r"(?:.*\n)*?" if line.strip() == _DOTS else re.escape(_shape(line)) + r"\n" for line in documented)
    return re.fullmatch("".join(parts), _shape(printed)) is not None


def _shape(text: str) -> str:
    for pattern, sign in _ELSEWHERE_OTHERS:
        text = re.sub(pattern, sign, text)
    return text
