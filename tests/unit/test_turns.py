"""Priorities that a comparison takes while it runs, on machines with and without autogroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import turns


@pytest.mark.parametrize("content", [None, "", "/autogroup-7 nice 0\n"])
def test_priorities_are_raised_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    autogroup = tmp_path / "autogroup"
    if content is not None:
        autogroup.write_text(content)
    monkeypatch.setattr(turns, "_AUTOGROUP", autogroup)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with turns.before_others():
        assert os.getpriority(os.PRIO_PROCESS, 0) == -20
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
