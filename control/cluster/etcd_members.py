"""The members of an etcd, and which of them is asked: one at a time, and the next when that one fails.

All of it runs in one event loop.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from grpclib.client import Channel, Stream
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError, StreamTerminatedError

from control.cluster.etcd_errors import (
    CLOSES_TLS,
    EtcdUnavailable,
    Failure,
    explanation,
    failure,
    is_unexplained,
    refusal,
)
from control.cluster.etcd_messages import Method
from control.errors import InvalidArgument

T = TypeVar("T")

# A member that lost its leader says so at once, in place of letting its clients wait.
_METADATA: Final = {"hasleader": "true"}
# So long one of several is waited for: one that hangs, or that has not noticed yet that its leader is gone.
_ATTEMPT_S: Final = 1.0
_BETWEEN_ROUNDS_S: Final = 0.1
_PROBE_S: Final = 1.0
# For TLS to be closed by both ends (RFC 8446, section 6.1), which grpclib does not wait for.
_GOODBYE_S: Final = 0.05
_ERRORS: Final = (GRPCError, StreamTerminatedError, OSError, TimeoutError)


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Awaits in a task of its own; raises TimeoutError.

    grpclib ends calls on a connection that goes by cancelling their task, and leaves the task's count of cancellations
    as it is. asyncio.timeout of Python 3.11 takes what is counted there for another's wish, and ends the task; its
    asyncio.wait_for forgets that it was cancelled when the work is done at that moment (cpython issue 86296).
    """
    task = asyncio.ensure_future(work)
    try:
        is_done = (await asyncio.wait({task}, timeout=seconds))[0]
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not is_done:
        task.cancel()
        await asyncio.wait({task})
        raise TimeoutError
    return task.result()


class Member:
    """One member and the connection to it, which is made when it is needed and made again when it broke.

    Raises InvalidArgument for a URL that cannot be one.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None) -> None:
        self.url = url
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidArgument(f"etcd URL {url!r}: {error}; write it as http://10.0.0.5:2379") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or port is None:
            raise InvalidArgument(f"etcd URL {url!r} is not whole: write it as http://10.0.0.5:2379, or https://")
        if parts.path not in ("", "/") or parts.query or parts.username:
            raise InvalidArgument(f"etcd URL {url!r} has more than host and port: write it as http://10.0.0.5:2379")
        self._host, self._port = parts.hostname, port
        self._tls = tls if parts.scheme == "https" else None
        self._channel = Channel(self._host, self._port, ssl=self._tls)

    def open(self, method: Method) -> Stream[Any, Any]:
        return self._channel.request(
            method.path, Cardinality.STREAM_STREAM, method.request, method.response, metadata=_METADATA
        )

    async def call(self, method: Method, request: Any) -> Any:
        async with self.open(method) as stream:
            await stream.send_message(request, end=True)
            answer = await stream.recv_message()
        if answer is None:
            raise StreamTerminatedError("no answer")
        return answer

    @property
    def is_tls(self) -> bool:
        return self._tls is not None

    def hang_up(self) -> None:
        self._channel.close()

    async def explain(self, error: BaseException) -> Failure:
        """Why it failed; asks again where the error does not say, for a second at most."""
        found = failure(error)
        if not is_unexplained(found):
            return found
        # A server's complaint about a certificate comes with the first read, and grpclib does not keep it.
        writer = None
        try:
            async with asyncio.timeout(_PROBE_S):
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
                writer.write(b"GET / HTTP/1.1\r\nHost: etcd\r\n\r\n")
                return explanation(await reader.read(512))
        except (OSError, TimeoutError) as probed:
            found = failure(probed)
            return CLOSES_TLS if self.is_tls and is_unexplained(found) else found
        finally:
            if writer is not None:
                writer.close()
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(_PROBE_S):
                        await writer.wait_closed()


class Members:
    """All members; begins with any of them, so that many nodes spread. Made inside of the loop."""

    def __init__(self, urls: Sequence[str], tls: ssl.SSLContext | None) -> None:
        self._members = [Member(url, tls) for url in urls]
        random.shuffle(self._members)

    @property
    def current(self) -> Member:
        return self._members[0]

    def leave(self, member: Member) -> None:
        """Asks the next one from now on; hangs up, so that whoever still waits for this one does so too."""
        member.hang_up()
        if member is self._members[0]:
            self._members.append(self._members.pop(0))

    async def call(self, method: Method, request: Any, timeout_s: float) -> Any:
        """The answer of the first member that gives one. A request whose answer was lost is sent again.

        Raises EtcdUnavailable when none does in time, EtcdRefused, LeaseLost, Compacted.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        failures: dict[str, Failure] = {}
        while True:
            for left in range(len(self._members), 0, -1):
                member = self.current
                remaining_s = deadline - loop.time()
                alone = len(self._members) == 1
                try:
                    patience_s = remaining_s if alone else min(remaining_s / left, _ATTEMPT_S)
                    return await within(patience_s, member.call(method, request))
                except _ERRORS as error:
                    if isinstance(error, GRPCError) and (meaning := refusal(error)) is not None:
                        raise meaning from error
                    self.leave(member)
                    # The last attempt may have had no time; why the one before failed says more.
                    if member.url not in failures or not isinstance(error, TimeoutError):
                        failures[member.url] = await member.explain(error)
            is_hopeless = all(each.is_final for each in failures.values())
            if is_hopeless or loop.time() + _BETWEEN_ROUNDS_S >= deadline:
                raise unavailable(failures)
            await asyncio.sleep(_BETWEEN_ROUNDS_S)

    async def close(self) -> None:
        for member in self._members:
            member.hang_up()
        await asyncio.sleep(_GOODBYE_S if any(member.is_tls for member in self._members) else 0)


def unavailable(failures: dict[str, Failure]) -> EtcdUnavailable:
    said = "; ".join(f"{url}: {each.text}" for url, each in sorted(failures.items()))
    return EtcdUnavailable(f"etcd cannot be reached: {said}")


def client_tls(cacert: str, cert: str, key: str) -> ssl.SSLContext:
    """What https:// members are spoken to with; raises InvalidArgument for files that cannot be used.

    Without `cacert` it is the host's authorities that are believed, which costs 3 MB.
    """
    if bool(cert) != bool(key):
        raise InvalidArgument("a client certificate needs its key, and a key its certificate: give --cert and --key")
    for option, path in (("--cacert", cacert), ("--cert", cert), ("--key", key)):
        if path and not Path(path).is_file():
            raise InvalidArgument(f"{option} {path}: there is no such file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    try:
        if cacert:
            context.load_verify_locations(cacert)
        else:
            context.load_default_certs()
    except ssl.SSLError as error:
        raise InvalidArgument(f"--cacert {cacert}: no certificate in PEM form is in it") from error
    try:
        if cert:
            context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise InvalidArgument(f"--cert {cert} and --key {key} cannot be used: {error.reason}") from error
    return context
