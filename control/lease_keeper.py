"""Keeps leases: renews them in time, and moves an endpoint whose server gives it another address.

One thread sleeps until the next lease is due; a few workers, which exist only while there is something to do, talk to
servers. So a server that is away holds up nobody else's lease.

Source: RFC 2131, 4.4.5 (reacquisition and expiration) and 4.4.2 (a known address after a restart).
"""

from __future__ import annotations

import heapq
import logging
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final

import msgspec

from control.endpoints import Endpoints
from control.errors import ControlError, NotFound
from control.leases import Lease, Leases
from control.model import EndpointId, Network, Sandbox
from control.records import Records
from datapath.dhcp import Extension, NoAnswer, Refused

LOG = logging.getLogger(__name__)

WORKERS: Final = 8
LISTEN_S: Final = 4.0
"""How long is listened for the answer to one request for more time."""
LEAST_PAUSE_S: Final = 60.0
"""Between such requests; else half the time that is left (RFC 2131, 4.4.5). Where less than this is left, it is half of
that too: better too early than never."""
ANEW_S: Final = (4.0, 64.0)
"""The first and the longest pause between attempts to get an address anew, a second more or less (RFC 2131, 4.1)."""


class LeaseKeeper:
    """Goes on with all leases from `start` to `stop`.

    `exclusive` holds off other changes of a sandbox while it is entered; it raises NotFound for one that is gone.
    """

    def __init__(
        self,
        leases: Leases,
        records: Records,
        endpoints: Endpoints,
        exclusive: Callable[[Sandbox], AbstractContextManager[Sandbox]],
    ) -> None:
        self._leases = leases
        self._records = records
        self._endpoints = endpoints
        self._exclusive = exclusive
        self._clock = leases.clock
        self._condition = threading.Condition()
        self._queue: list[tuple[float, EndpointId]] = []
        self._due: dict[EndpointId, float] = {}
        self._busy: set[EndpointId] = set()
        self._failures: dict[EndpointId, int] = {}
        self._tried: dict[EndpointId, datetime] = {}
        self._unsure: set[EndpointId] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Leases that are past the time to renew are asked about at once: nobody knows what their servers did since."""
        now = self._clock.now()
        for endpoint_id in map(EndpointId, self._leases.ids()):
            lease = self._leases.get(endpoint_id)
            if lease is not None and lease.renew_at is not None and now >= lease.renew_at:
                self._unsure.add(endpoint_id)
            self._schedule(endpoint_id)
        self._leases.changed = lambda endpoint_id: self._schedule(EndpointId(endpoint_id))
        self._thread.start()

    def stop(self) -> None:
        """Leases are not given back: endpoints go on. Idempotent; waits for nobody's answer."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)

    # -- when ----------------------------------------------------------------------------------------------------

    def _schedule(self, endpoint_id: EndpointId) -> None:
        pause_s = self._pause_s(endpoint_id)
        with self._condition:
            if pause_s is None:
                self._due.pop(endpoint_id, None)
                self._failures.pop(endpoint_id, None)
                self._tried.pop(endpoint_id, None)
                return
            if endpoint_id in self._busy:
                return  # what is being done ends with a new time
            self._due[endpoint_id] = self._clock.uptime() + pause_s
            heapq.heappush(self._queue, (self._due[endpoint_id], endpoint_id))
            self._condition.notify_all()

    def _pause_s(self, endpoint_id: EndpointId) -> float | None:
        """Seconds until something is to be done for the lease; None when nothing ever is."""
        lease = self._leases.get(endpoint_id)
        if lease is None or (lease.expires is None and lease.left is None):
            return None
        failures = self._failures.get(endpoint_id, 0)
        now = self._clock.now()
        if self._has_come_to(endpoint_id, now, lease.rebind_at, lease.expires):
            return 0.0
        if lease.left is not None or lease.is_over(now):
            first, longest = ANEW_S
            return min(longest, first * 2 ** (failures - 1)) + random.uniform(-1, 1) if failures else 0.0
        assert lease.renew_at is not None
        assert lease.rebind_at is not None
        assert lease.expires is not None
        if not failures:
            return max(0.0, (lease.renew_at - now).total_seconds())
        end = lease.rebind_at if now < lease.rebind_at else lease.expires
        left = (end - now).total_seconds()
        return min(left, max(LISTEN_S, left / 2, LEAST_PAUSE_S if left > LEAST_PAUSE_S else 0.0))

    def _has_come_to(self, endpoint_id: EndpointId, now: datetime, *times: datetime | None) -> bool:
        """Whether one of the times has come since the last attempt, so that something else is to be tried."""
        tried = self._tried.get(endpoint_id)
        return tried is not None and any(time is not None and tried < time <= now for time in times)

    def _run(self) -> None:
        while True:
            with self._condition:
                if self._is_closed:
                    return
                if not self._queue or len(self._busy) >= WORKERS:
                    self._condition.wait()
                    continue
                when, endpoint_id = self._queue[0]
                left = when - self._clock.uptime()
                if left > 0:
                    self._clock.wait(self._condition, min(left, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._queue)
                if self._due.get(endpoint_id) != when:
                    continue
                del self._due[endpoint_id]
                self._busy.add(endpoint_id)
            try:
                # Not a pool: the end of the process would wait for its threads.
                threading.Thread(target=self._work, args=(endpoint_id,), name="lease", daemon=True).start()
            except RuntimeError as error:  # there may be no more threads
                self._end(endpoint_id, error)

    # -- what ----------------------------------------------------------------------------------------------------

    def _work(self, endpoint_id: EndpointId) -> None:
        try:
            self._go_on(endpoint_id)
        except Exception as error:
            self._end(endpoint_id, error)
        else:
            self._end(endpoint_id)

    def _end(self, endpoint_id: EndpointId, error: Exception | None = None) -> None:
        """Sets the time of the next attempt, after one that failed sooner than else."""
        if error is not None:
            is_expected = isinstance(error, (ControlError, NoAnswer, OSError, RuntimeError))
            LOG.warning(
                "ep=%s: its lease could not be gone on with: %s",
                endpoint_id[:12], error, exc_info=None if is_expected else error,
            )  # fmt: skip
        with self._condition:
            self._busy.discard(endpoint_id)
            self._failures[endpoint_id] = 0 if error is None else self._failures.get(endpoint_id, 0) + 1
            self._condition.notify_all()
        self._schedule(endpoint_id)

    def _go_on(self, endpoint_id: EndpointId) -> None:
        """Sees to it that the lease is as it should be; raises what keeps it from that."""
        endpoint, lease = self._records.endpoint(endpoint_id), self._leases.get(endpoint_id)
        if endpoint is None or lease is None:
            return
        network = self._records.network(endpoint.network_id)
        now = self._clock.now()
        if self._has_come_to(endpoint_id, now, lease.expires):
            self._failures[endpoint_id] = 0
        tried, self._tried[endpoint_id] = self._tried.get(endpoint_id), now
        if endpoint.mac != lease.mac:
            # As its parent's, in mode passthru. Servers know the endpoint by its MAC.
            lease = self._leases.ended(msgspec.structs.replace(lease, mac=endpoint.mac))
        if lease.is_over(now):
            self._get_anew(endpoint_id, network, lease)
        elif lease.left is not None:
            self._move(endpoint_id, network, lease)
        else:
            self._extend(endpoint_id, network, lease, now, tried)

    def _extend(
        self, endpoint_id: EndpointId, network: Network, lease: Lease, now: datetime, tried: datetime | None
    ) -> None:
        """`tried` is when the attempt before was made, if it failed."""
        assert lease.rebind_at is not None
        assert lease.expires is not None
        how, end = (Extension.RENEW, lease.rebind_at) if now < lease.rebind_at else (Extension.REBIND, lease.expires)
        # Answers to the other two are for the endpoint's MAC alone, and may take a way that leads past the parent.
        if endpoint_id in self._unsure or (how is Extension.REBIND and tried is not None and tried >= lease.rebind_at):
            how = Extension.REBOOT
            self._unsure.discard(endpoint_id)
        try:
            extended = self._leases.extend(network, lease, how, min(LISTEN_S, (end - now).total_seconds()))
        except Refused as error:
            LOG.warning("net=%s ep=%s: %s", network.name, endpoint_id[:12], error)
            lease = self._leases.ended(lease)
            self._leases.replace(endpoint_id, lease)
            self._get_anew(endpoint_id, network, lease)
        else:
            self._take_over(endpoint_id, network, extended)

    def _take_over(self, endpoint_id: EndpointId, network: Network, lease: Lease) -> None:
        if self._leases.replace(endpoint_id, lease):
            LOG.info(
                "net=%s ep=%s: %s is leased %s",
                network.name, endpoint_id[:12], lease.address, lease.text(self._clock.now()),
            )  # fmt: skip
        else:
            # The endpoint left meanwhile, and the server may have heard that before this.
            self._leases.release(network, lease)

    def _get_anew(self, endpoint_id: EndpointId, network: Network, lease: Lease) -> None:
        LOG.log(
            logging.INFO if self._failures.get(endpoint_id) else logging.ERROR,
            "net=%s ep=%s: the lease of %s %s: asking for another, and %s stays in use meanwhile",
            network.name, endpoint_id[:12], lease.address, lease.text(self._clock.now()), lease.address,
        )  # fmt: skip
        fresh = self._leases.take(
            network,
            lease.mac,
            lease.hostname,
            failure=f"endpoint {endpoint_id[:12]} of network {network.name} has no lease",
        )
        if fresh.address == lease.address:
            fresh = msgspec.structs.replace(fresh, left=lease.left)
        if fresh.address == lease.address and fresh.left is None:
            self._take_over(endpoint_id, network, fresh)
        else:
            self._move(endpoint_id, network, fresh)

    def _move(self, endpoint_id: EndpointId, network: Network, lease: Lease) -> None:
        endpoint = self._records.endpoint(endpoint_id)
        try:
            if endpoint is None:
                raise NotFound(f"endpoint {endpoint_id[:12]} is gone")
            with self._exclusive(self._records.sandbox(endpoint.sandbox_id)) as sandbox:
                self._endpoints.move(endpoint_id, sandbox, lease)
        except NotFound:
            self._leases.release(network, lease)
