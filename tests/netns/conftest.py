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


def no_bridge_netfilter(made: Host) -> None:
    """Keeps the firewall from seeing what is bridged, as on a host without the module br_netfilter.

    With it, rules for what is routed would also stop frames between ports, and hide that the ports do not.
    """
    made.run("sh", "-c", "for f in /proc/sys/net/bridge/bridge-nf-call-*; do if [ -e $f ]; then echo 0 > $f; fi; done")


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
