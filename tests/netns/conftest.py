"""Hosts for the suites that send packets. Each is looked over for leaks at its end, which fails the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.hosts import Host, host
from tests.leaks import leaks, purge


@contextmanager
def linkspan_host(*args: str, before: Callable[[Host], object] | None = None, **start: Any) -> Iterator[Host]:
    """A host with linkspand on it; at the end everything is removed through the API, and nothing may be left.

    `before` is done to the host first; the rest are the arguments of `Host.start`.
    """
    with host() as made:
        if before is not None:
            before(made)
        made.start(*args, **start)
        yield made
        purge(made)
        assert leaks(made) == []


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    """The module's host; tests share it, so each makes networks and sandboxes of its own."""
    with linkspan_host() as made:
        yield made


@pytest.fixture(scope="module")
def make_host() -> Iterator[Callable[..., Host]]:
    """Makes more hosts; arguments are those of `Host.start`."""
    with ExitStack() as stack:
        yield lambda *args, **start: stack.enter_context(linkspan_host(*args, **start))
