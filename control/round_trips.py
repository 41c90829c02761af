"""Whose own TCP connections have their round trips timed: every endpoint's that has addresses and is in a sandbox.

It is no part of what makes a network work, so nothing fails because of it: what is refused is logged, and doctor finds
it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial

from control.addressing import link_local
from control.deps import Deps
from control.model import Endpoint, EndpointState
from control.plan import Step
from control.records import Records
from datapath.attached import Attached
from datapath.tcp_rtt import End

LOG = logging.getLogger(__name__)


class RoundTrips:
    """Thread-safe after `start`."""

    def __init__(self, deps: Deps, records: Records) -> None:
        self._rtt = deps.tcp_rtt
        self._deps = deps
        self._records = records

    def start(self, renewed: Collection[str]) -> None:
        """Takes up what goes on from before, and brings it in line with the records. `renewed` are the ids of sandboxes
        whose namespace was made again."""
        if self._rtt is None:
            return
        slots = [each.slot for each in self._records.endpoints() if each.sandbox_id in renewed]
        for _ in range(self._rtt.start(list(self._ends()), slots)):
            self._deps.observers.difference("tcp-rtt", True)

    @property
    def fallbacks(self) -> Mapping[str, str]:
        return {} if self._rtt is None else self._rtt.fallbacks

    def steps(self, endpoint: Endpoint) -> list[Step]:
        """What has an endpoint's connections timed, until it is reverted; nothing for one that is in no sandbox.

        A container's namespace comes to be after the join: see `moved_in`.
        """
        end = self._end(endpoint)
        if self._rtt is None or end is None:
            return []
        remove = partial(_attempt, _what(endpoint), partial(self._rtt.remove, end))
        apply = _nothing if endpoint.is_remote else partial(self._add, endpoint, end)
        return [Step(_what(endpoint), apply, remove, kind="tcp-rtt")]

    def moved_in(self, endpoint: Endpoint) -> None:
        """Called when a container engine has moved an endpoint's device to its sandbox, perhaps more than once."""
        end = self._end(endpoint)
        if self._rtt is None or end is None:
            return
        self._add(endpoint, end)
        now = self._records.endpoint(endpoint.id)
        if now is None or now.sandbox_key != endpoint.sandbox_key:  # it has left meanwhile
            _attempt(_what(endpoint), partial(self._rtt.remove, end))

    def _add(self, endpoint: Endpoint, end: End) -> None:
        if self._rtt is not None:
            _attempt(_what(endpoint), partial(self._rtt.add, end))

    def attached(self) -> list[tuple[str, Attached, bool]]:
        """(cgroup, program there, whether it is ours); raises OSError."""
        if self._rtt is None:
            return []
        return [(self._rtt.place, each, self._rtt.is_ours(each)) for each in self._rtt.attached()]

    def problems(self) -> list[tuple[str, str]]:
        """(where, what) is other than the records say. Looks, but changes nothing. Raises OSError."""
        if self._rtt is None:
            return []
        with self._records.lock:
            ends, leave = self._ends(), self._moving()
            names = {each.slot: f"endpoint {each.id[:12]}" for each in self._records.endpoints()}
        found = self._rtt.differences(ends, leave)
        return [(names.get(slot, self._rtt.place), what) for slot, what in found]

    def mend(self) -> None:
        """Puts right what `problems` finds. Called with the records locked; raises OSError."""
        if self._rtt is not None:
            self._rtt.mend(self._ends(), self._moving())

    def _ends(self) -> list[End]:
        """Those of endpoints that have come to rest in a sandbox."""
        joined = (each for each in self._records.endpoints() if each.state is EndpointState.JOINED)
        return [end for endpoint in joined if (end := self._end(endpoint)) is not None]

    def _moving(self) -> set[int]:
        """The slots of the endpoints that have not."""
        return {each.slot for each in self._records.endpoints() if each.state is not EndpointState.JOINED}

    def _end(self, endpoint: Endpoint) -> End | None:
        netns = self._deps.files.netns_path(endpoint.sandbox_id) if endpoint.sandbox_id else endpoint.sandbox_key
        addresses = [*endpoint.addresses, *endpoint.link_local_ips]
        if endpoint.ipv6 is not None:
            addresses.append(link_local(endpoint.mac))
        return End(endpoint.slot, netns, tuple(addresses)) if netns and addresses else None


def _what(endpoint: Endpoint) -> str:
    return f"time the connections of endpoint {endpoint.id[:12]}"


def _nothing() -> None:
    pass


def _attempt(what: str, function: Callable[[], None]) -> None:
    try:
        function()
    except OSError as error:
        LOG.warning("could not %s, or no longer: %s", what, error)
