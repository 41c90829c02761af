"""A world for the suites that need one; it takes seconds to make, so they share it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.world import World, world


@pytest.fixture(scope="session")
def machine() -> Iterator[World]:
    """A world with linkspand running."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with world() as made:
        made.start()
        yield made
