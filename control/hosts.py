"""Who is called what on which network: the text of each sandbox's /etc/hosts, kept up to date."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from control.model import Address, Endpoint, Sandbox

LOG = logging.getLogger(__name__)

LOCALHOST: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


class HostsTable:
    """One line an address; every sandbox on a network reads the same lines, which are put together once a change.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, dict[str, str]] = {}
        self._texts: dict[str, str] = {}
        self._remote: dict[str, str] = {}
        self._named: dict[tuple[str, str], Endpoint] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def add(self, endpoint: Endpoint, sandbox: Sandbox) -> None:
        """Makes the endpoint's addresses known under its sandbox's name and its own aliases."""
        lines = _lines(endpoint, (sandbox.name, *endpoint.aliases))
        with self._lock:
            self._lines.setdefault(endpoint.network_id, {})[endpoint.id] = lines
            self._names[endpoint.id] = (sandbox.name, sandbox.id, sandbox.id[:12])
            for name in self._names[endpoint.id]:
                self._named[endpoint.network_id, name] = endpoint
            self._texts.pop(endpoint.network_id, None)

    def remove(self, endpoint: Endpoint) -> None:
        """Harmless for an endpoint that is not known."""
        with self._lock:
            for name in self._names.pop(endpoint.id, ()):
                self._named.pop((endpoint.network_id, name), None)
            lines = self._lines.get(endpoint.network_id, {})
            if lines.pop(endpoint.id, None) is not None:
                self._texts.pop(endpoint.network_id, None)
            if not lines:
                self._lines.pop(endpoint.network_id, None)

    def set_remote(self, network_id: str, named: Mapping[Address, Sequence[str]]) -> bool:
        """Makes known who is called what on other nodes; returns whether that is anything new."""
        lines = "".join(f"{address}\t{' '.join(names)}\n" for address, names in named.items() if names)
        with self._lock:
            if lines == self._remote.get(network_id, ""):
                return False
            self._remote[network_id] = lines
            if not lines:
                del self._remote[network_id]
            self._texts.pop(network_id, None)
            return True

    def text(self, sandbox: Sandbox, endpoints: Sequence[Endpoint]) -> str:
        """The whole file: loopback, the sandbox's own addresses, its links, then everybody on its networks."""
        own = "".join(_lines(endpoint, (sandbox.name, sandbox.id[:12])) for endpoint in endpoints)
        own += "".join(self._linked(endpoint) for endpoint in endpoints)
        return LOCALHOST + own + "".join(self._network_text(endpoint.network_id) for endpoint in endpoints)

    def _linked(self, endpoint: Endpoint) -> str:
        with self._lock:
            found = [(self._named.get((endpoint.network_id, name)), alias) for name, alias in endpoint.links]
        return "".join(_lines(other, (alias,)) for other, alias in found if other is not None)

    def _network_text(self, network_id: str) -> str:
        with self._lock:
            text = self._texts.get(network_id)
            if text is None:
                lines = self._lines.get(network_id, {}).values()
                text = self._texts[network_id] = "".join(lines) + self._remote.get(network_id, "")
            return text


def _lines(endpoint: Endpoint, names: Sequence[str]) -> str:
    joined = " ".join(names)
    return "".join(f"{a.ip}\t{joined}\n" for a in (endpoint.ipv4, endpoint.ipv6) if a is not None)


class HostsWriter:
    """Brings hosts files up to date soon after endpoints come and go, many changes in one writing.

    With N sandboxes on a network each join changes N files, so a burst of joins written one by one would cost N times
    N; here a sandbox's file is written at most once a round, and a round starts only after a pause of five times what
    the last one took, so that writing takes no more than a sixth of a core from the joins themselves.
    """

    def __init__(self, write: Callable[[str], None], *, pause_s: float = 0.02) -> None:
        self._write = write
        self._pause_s = pause_s
        self._condition = threading.Condition()
        self._waiting: set[str] = set()
        self._is_busy = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="hosts-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def mark(self, sandbox_ids: Iterable[str]) -> None:
        """Asks for the files of these sandboxes to be written."""
        with self._condition:
            self._waiting.update(sandbox_ids)
            self._condition.notify_all()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Waits until everything marked so far is written; False when that took too long."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._waiting and not self._is_busy, timeout_s)

    def close(self) -> None:
        """Writes what is waiting and ends the thread; idempotent."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                batch, self._waiting, self._is_busy = self._waiting, set(), True
            begin = time.monotonic()
            for sandbox_id in batch:
                try:
                    self._write(sandbox_id)
                except OSError:
                    LOG.exception("cannot write the hosts file of sandbox %s", sandbox_id[:12])
            with self._condition:
                self._is_busy = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._is_closed, max(self._pause_s, 5 * (time.monotonic() - begin)))
