"""Following a range of keys: all of it at one revision, then every change, on whatever member answers."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from grpclib.exceptions import GRPCError, StreamTerminatedError

from control.cluster import etcd_messages as api
from control.cluster.etcd_errors import Compacted, refusal
from control.cluster.etcd_members import Member, Members, unavailable, within
from control.cluster.etcd_messages import Event, KeyValue
from control.errors import ControlError

LOG = logging.getLogger(__name__)

SILENCE_S: Final = 3.0
"""A member that says nothing for so long is asked whether it is there, and left when it takes as long again."""
_PAUSE_S: Final = (0.2, 2.0)
_MIX_UP_PAUSE_S: Final = 5.0


class Snapshot(Protocol):
    """All keys, page by page; `revision` is theirs once the first has come."""

    revision: int

    def __iter__(self) -> Any: ...


class Follower(Protocol):
    """Who is told; one call at a time, each in a thread of the client, and never again for what was told."""

    def read(self, snapshot: Snapshot) -> None:
        """Takes up the whole range in place of what is known: at first, and when etcd has forgotten what came after
        the last change (a compaction). May raise what reading raises."""

    def change(self, events: Sequence[Event], revision: int) -> None:
        """Takes up changes in their order, the last of them of `revision`."""

    def connected(self) -> None:
        """From now on changes come as they are made."""

    def waiting(self, why: str) -> None:
        """Changes do not come for the time being; what is known stays."""


async def follow(
    members: Members,
    first: bytes,
    end: bytes,
    read: Callable[[], Snapshot],
    in_thread: Callable[..., Awaitable[Any]],
    follower: Follower,
) -> None:
    """Never returns; errors of etcd are the follower's to hear, its own are logged, and it is given all again."""
    revision = 0
    pause_s = _PAUSE_S[0]
    while True:
        try:
            if not revision:
                snapshot = read()
                await in_thread(follower.read, snapshot)
                revision = snapshot.revision
            else:
                # A watch says it too, but only a while after it was made. One key is enough to hear it.
                asked = api.RangeRequest(key=first, revision=revision)
                await members.call(api.RANGE, asked, SILENCE_S)
            watch = _Watch(members, first, end, revision, in_thread, follower)
            try:
                await watch.run()
            finally:
                revision = watch.revision
                if watch.was_connected:
                    pause_s = _PAUSE_S[0]
        except Compacted as error:
            LOG.info("etcd forgot what came after revision %d (%s): reading all again", revision, error)
            revision = 0
            continue
        except ControlError as error:
            await in_thread(follower.waiting, str(error))
        except Exception:
            LOG.exception("changes of the cluster could not be taken up: reading all again")
            await in_thread(follower.waiting, "a change could not be taken up; see the log")
            revision, pause_s = 0, _MIX_UP_PAUSE_S
        await asyncio.sleep(random.uniform(0, pause_s))  # many nodes lose a member at the same moment
        pause_s = min(pause_s * 2, _PAUSE_S[1])


class _Watch:
    """One watch at one member. `revision` is the last that the follower knows of."""

    def __init__(
        self,
        members: Members,
        first: bytes,
        end: bytes,
        revision: int,
        in_thread: Callable[..., Awaitable[Any]],
        follower: Follower,
    ) -> None:
        self._members = members
        self._range = first, end
        self.revision = revision
        self.was_connected = False
        self._in_thread = in_thread
        self._follower = follower

    async def run(self) -> None:
        """Raises Compacted, EtcdUnavailable, EtcdRefused; leaves the member that failed."""
        member = self._members.current
        try:
            await asyncio.ensure_future(self._listen(member))  # in a task of its own: see `within`
        except (GRPCError, StreamTerminatedError, OSError, TimeoutError) as error:
            if isinstance(error, GRPCError) and (meaning := refusal(error)) is not None:
                raise meaning from error
            self._members.leave(member)
            raise unavailable({member.url: await member.explain(error)}) from error

    async def _listen(self, member: Member) -> None:
        async with member.open(api.WATCH) as stream:
            first, end = self._range
            wanted = {"key": first, "range_end": end, "start_revision": self.revision + 1}
            await within(SILENCE_S, stream.send_message(api.WatchRequest(create=wanted)))
            # A read that is cut off loses its place in the stream, so one that waits goes on waiting.
            while True:
                reading = asyncio.ensure_future(stream.recv_message())
                try:
                    if not (await asyncio.wait({reading}, timeout=SILENCE_S))[0]:
                        await within(SILENCE_S, stream.send_message(api.WatchRequest(progress={})))
                        if not (await asyncio.wait({reading}, timeout=SILENCE_S))[0]:
                            raise TimeoutError
                    answer = reading.result()
                finally:
                    reading.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await reading
                if answer is None:
                    raise StreamTerminatedError("the watch ended")
                await self._take_up(answer)

    async def _take_up(self, answer: Any) -> None:
        if answer.compact_revision:
            raise Compacted(f"compacted up to revision {answer.compact_revision}")
        if answer.canceled:
            raise StreamTerminatedError(answer.cancel_reason or "the watch was cancelled")
        if answer.created:
            self.was_connected = True
            await self._in_thread(self._follower.connected)
        events: Iterable[Event] = answer.events
        if events:
            revision = max(_revision(event.kv) for event in events)
            await self._in_thread(self._follower.change, events, revision)
            self.revision = revision


def _revision(kv: KeyValue) -> int:
    return kv.mod_revision
