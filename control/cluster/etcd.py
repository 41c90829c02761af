"""A client of etcd: synchronous and thread-safe outside, one event loop in a thread of its own inside.

It fails over between members, keeps leases alive, and follows ranges of keys for as long as it lives. Only what a
cluster needs imports it: grpclib and protobuf cost 4 MB (ADR 0016).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Protocol, Self, TypeVar

from control.cluster import etcd_messages as api
from control.cluster.etcd_errors import Compacted, EtcdRefused, EtcdUnavailable, LeaseLost
from control.cluster.etcd_following import Follower, follow
from control.cluster.etcd_members import Members, client_tls
from control.cluster.etcd_messages import KeyValue
from control.errors import InvalidArgument, StoreError

LOG = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_TIMEOUT_S: Final = 5.0
"""Longer than an election, which takes up to 2 s (twice --election-timeout)."""
PAGE: Final = 4_000
"""Keys in one answer: about a megabyte of the records that there are."""
_CALLBACK_THREADS: Final = 4
_RETRY_S: Final = 0.5
_ASK_AGAIN_S: Final = 0.2


class TxnResult(Protocol):
    """What became of a transaction; `responses` are those of the `get`s that were done, in place among the others."""

    succeeded: bool
    responses: Sequence[Any]


class Range:
    """Keys of a range in their order, read page by page as they are asked for, all as of `revision` (0 before)."""

    def __init__(self, page: Callable[[bytes, bytes, int], Any], first: bytes, end: bytes) -> None:
        self._page = page
        self._first, self._end = first, end
        self.revision = 0

    def __iter__(self) -> Iterator[KeyValue]:
        first, more = self._first, True
        while more:
            page = self._page(first, self._end, self.revision)
            self.revision = self.revision or page.header.revision
            yield from page.kvs
            more = page.more
            if more:
                first = page.kvs[-1].key + b"\0"


class Background:
    """Something that goes on until it is stopped."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def stop(self) -> None:
        """A callback that has begun goes on. Idempotent."""
        self._future.cancel()


class Etcd:
    """The etcd at `urls`, members of one cluster. `start` before use, or use it as a context.

    Every call blocks for `timeout_s` at most and raises EtcdUnavailable or EtcdRefused, whose text names the members.
    One that could not be answered in time may have been done: writers recognise what they wrote. Callbacks come in
    threads of the client and may call it; `asked` is told what was asked, and how long it took, in seconds. Raises
    InvalidArgument for URLs and files that cannot be used.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        cacert: str = "",
        cert: str = "",
        key: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        asked: Callable[[str, float], None] = lambda _operation, _seconds: None,
    ) -> None:
        if not urls:
            raise InvalidArgument("an etcd needs one URL at least: give --etcd http://10.0.0.5:2379")
        self.urls = tuple(urls)
        self._timeout_s = timeout_s
        self._asked = asked
        is_tls = any(url.startswith("https://") for url in urls)
        if not is_tls and (cacert or cert or key):
            raise InvalidArgument(f"certificates are for etcd over TLS: write https:// in {', '.join(urls)}")
        self._tls = client_tls(cacert, cert, key) if is_tls else None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="etcd", daemon=True)
        self._callbacks = ThreadPoolExecutor(_CALLBACK_THREADS, thread_name_prefix="etcd-callback")
        self._members: Members
        self._is_closed = False

    def start(self) -> Self:
        """Connects to nobody yet. Raises InvalidArgument for a URL that cannot be one."""
        self._thread.start()
        try:
            self._members = self._wait(self._make_members())
        except InvalidArgument:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Ends what goes on in the background and hangs up; leases stay until their time is over. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._thread.is_alive():
            self._run(self._end())
            # Those that run may have asked something just before; the loop is there until they have an answer.
            self._callbacks.shutdown(wait=True, cancel_futures=True)
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- keys ----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> KeyValue | None:
        found: list[KeyValue] = self._call(api.RANGE, api.RangeRequest(key=key.encode())).kvs
        return found[0] if found else None

    def range(self, first: str, end: str, *, keys_only: bool = False) -> Range:
        """All keys from `first` up to `end`, which is not one of them, as of one revision."""
        return Range(partial(self._page, keys_only=keys_only), first.encode(), end.encode())

    def prefix(self, prefix: str, *, keys_only: bool = False) -> Range:
        return self.range(prefix, api.after(prefix), keys_only=keys_only)

    def txn(self, compare: Sequence[Any], then: Sequence[Any], otherwise: Sequence[Any] = ()) -> TxnResult:
        """Does `then` where all that is compared holds, and `otherwise` where not. At most MAX_OPS in each list."""
        assert max(len(compare), len(then), len(otherwise)) <= api.MAX_OPS, "etcd refuses transactions of this size"
        request = api.TxnRequest(compare=compare, success=then, failure=otherwise)
        answer: TxnResult = self._call(api.TXN, request)
        return answer

    def _page(self, first: bytes, end: bytes, revision: int, *, keys_only: bool) -> Any:
        return self._call(
            api.RANGE,
            api.RangeRequest(key=first, range_end=end, limit=PAGE, revision=revision, keys_only=keys_only),
        )

    # -- leases --------------------------------------------------------------------------------------------------

    def grant(self, ttl_s: int) -> int:
        """Makes a lease, and returns its id."""
        lease = secrets.randbits(62) + 1  # ours to choose, so that asking twice makes one
        try:
            self._call(api.GRANT, api.GrantRequest(ttl=ttl_s, id=lease))
        except EtcdRefused as error:
            if "lease already exists" not in str(error):
                raise
        return lease

    def revoke(self, lease: int) -> None:
        """Ends a lease; all keys under it are gone with it, at once. Harmless when it is over."""
        with contextlib.suppress(LeaseLost):
            self._call(api.REVOKE, api.RevokeRequest(id=lease))

    def keep_alive(self, lease: int, ttl_s: int, on_lost: Callable[[], None]) -> Background:
        """Renews the lease three times in its time. `on_lost` is called once, when etcd says that it is over; for as
        long as etcd is away that is not known."""
        return self._spawn(self._keep_alive(lease, ttl_s, on_lost))

    async def _keep_alive(self, lease: int, ttl_s: int, on_lost: Callable[[], None]) -> None:
        pause_s = ttl_s / 3
        while True:
            await asyncio.sleep(pause_s)
            try:
                answer = await self._members.call(api.KEEP_ALIVE, api.KeepAliveRequest(id=lease), self._timeout_s)
                pause_s = ttl_s / 3
            except StoreError as error:
                LOG.debug("lease %x could not be renewed: %s", lease, error)
                pause_s = _RETRY_S
            else:
                if answer.ttl <= 0:
                    break
        await self._loop.run_in_executor(self._callbacks, on_lost)

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, first: str, end: str, follower: Follower) -> Background:
        """Keeps `follower` up to date with the keys from `first` up to `end`; see there."""
        read = partial(self.range, first, end)
        in_thread = partial(self._loop.run_in_executor, self._callbacks)
        return self._spawn(follow(self._members, first.encode(), end.encode(), read, in_thread, follower))

    # -- the loop ------------------------------------------------------------------------------------------------

    def _call(self, method: api.Method, request: Any) -> Any:
        begin = time.monotonic()
        try:
            return self._wait(self._members.call(method, request, self._timeout_s))
        except Compacted as error:
            raise EtcdUnavailable("etcd was compacted while it was read: try again") from error
        finally:
            self._asked(method.name, time.monotonic() - begin)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._is_closed:
            work.close()
            raise EtcdUnavailable("this node has hung up on etcd")
        return self._run(work)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> Background:
        return Background(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _make_members(self) -> Members:
        return Members(self.urls, self._tls)

    async def _end(self) -> None:
        """Cancels until all have ended: a task may lose one that comes while it ends what it waited for."""
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait({asyncio.gather(*others, return_exceptions=True)}, timeout=_ASK_AGAIN_S)
        if hasattr(self, "_members"):
            await self._members.close()
