"""This host as a node of one cluster: registered as long as etcd lets it, and following what the others do.

etcd may come and go: the node's records there end with its lease when it is away for long, and are written again when
it is back.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from control.cluster_spec import INGRESS, ClusterSpec, InvalidOption
from control.deps import Deps
from control.encryption import Encryption, Keys
from control.errors import Conflict, ControlError
from control.global_networks import GlobalNetworks
from control.model import NetworkId, NetworkSpec, utcnow
from control.records import Records
from control.stored_membership import Settings, StoredMembership
from datapath import devices

LOG = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 15.0
"""How often the ways to other nodes are looked up again: routes change without a word to anybody."""
_RETRY_S: Final = 1.0


class Following:
    """One session with a cluster, from `open` to `stop`. Thread-safe; it works in a thread of its own from `start` on.

    `trouble` says why the node is not registered, "" when it is; `behind_since` since when what etcd says has not come,
    on the clock of time.monotonic, None when it comes; `displaced` which endpoints the cluster has no room for, and
    why. `has_followed` is set once the cluster was read and taken up.
    """

    def __init__(
        self,
        deps: Deps,
        records: Records,
        global_networks: GlobalNetworks,
        encryption: Encryption,
        stored: StoredMembership,
        spec: ClusterSpec,
        incarnation: str,
    ) -> None:
        from control.cluster.session import ClusterSession, Told  # for those who are in a cluster: it costs memory

        self._deps = deps
        self._records = records
        self._global = global_networks
        self._encryption = encryption
        self._stored = stored
        told = Told(self._changed, self._state_changed, self._lease_lost, self._asked)
        self.session = ClusterSession(spec, incarnation, told, lease_s=deps.cluster_times.lease_s)
        self.trouble = ""
        self.behind_since: float | None = None
        self.displaced: dict[str, str] = {}
        self.has_followed = threading.Event()
        self._is_registered = False
        self._pending = _Pending()
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)

    # -- start and stop ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Waits for nobody; raises InvalidArgument for what cannot be a URL, or files that cannot be read."""
        self.session.open()

    def join(self) -> None:
        """Makes this host a node of the cluster for the first time, before `start`. Ends the session, and leaves
        nothing in etcd that can be taken out, if it raises: InvalidOption, OSError, StoreError, and what
        `ClusterSession.register` does."""
        self._is_registered = True  # a lease that is lost meanwhile says otherwise
        try:
            self._stored.keep(self._register(None))
        except Exception:
            with suppress(ControlError):
                self.session.leave()
            self.session.close()
            raise

    def start(self) -> None:
        self.behind_since = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Follows no more; the node's records stay as long as its lease. Idempotent."""
        self._pending.stop()
        self.session.close()
        if self._thread.is_alive():
            self._thread.join()

    # -- what others tell ----------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Has all networks brought in line."""
        self._pending.add_all()

    def publish_keys(self, keys: Keys) -> None:
        """Raises as `ClusterSession` does. A node that is not registered publishes its keys when it is."""
        if self._is_registered:
            self.session.publish_keys(keys)

    def _changed(self, networks: frozenset[NetworkId], nodes_changed: bool) -> None:
        """Where a node is concerns all networks."""
        if nodes_changed:
            self._pending.add_all()
        else:
            self._pending.add(networks)

    def _asked(self, operation: str, seconds: float) -> None:
        self._deps.observers.stored("etcd", operation, seconds)

    def _state_changed(self, why: str) -> None:
        if not why:
            self.behind_since = None
        elif self.behind_since is None:
            self.behind_since = time.monotonic()
        if why:
            LOG.warning("waiting for etcd: %s; networks go on as they are", why)
        else:
            LOG.info("the cluster's changes come as they are made")
        self._pending.add(())

    def _lease_lost(self) -> None:
        self._is_registered = False
        self._pending.add(())

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Registers when the node is not, and takes up what has changed."""
        while not self._pending.is_stopped:
            try:
                self._follow_once()
            except Exception:
                if self._pending.is_stopped:
                    return  # in the middle of a call to etcd, whose client was closed
                LOG.exception("this node could not take up a change of the cluster: trying again")
                self._pending.add_all()
                time.sleep(_RETRY_S)

    def _follow_once(self) -> None:
        if not self._is_registered:
            self._register_again()
        changed = self._pending.take(self._encryption.wait_s(_LOOK_AGAIN_S) if self._is_registered else _RETRY_S)
        self._encryption.follow(is_changed=changed is None)
        if changed is None or changed:
            self._global.follow(changed)
        if self.session.is_read and not self.has_followed.is_set():
            self._create_ingress()
            self.has_followed.set()
        if changed is None:
            self._tell_again()

    def _tell_again(self) -> None:
        """What the other nodes know of this one's device and endpoints may no longer be so."""
        if not self._is_registered:
            return
        try:
            ifname = require_advertised(self.session.spec)
            self.session.publish_device(mtu=devices.mtu(ifname), mac=devices.mac(ifname).hex(":"))
            self._global.tell_again()
        except (ControlError, OSError) as error:
            LOG.warning("the cluster does not know how this node is now: %s", error)

    def _create_ingress(self) -> None:
        """The first node makes the network that every cluster has; Conflict says that another one was quicker."""
        if self._records.has_network_named(INGRESS):
            return
        try:
            self._global.create(NetworkSpec(name=INGRESS, driver="overlay"), NetworkId(secrets.token_hex(32)))
        except Conflict:
            self._pending.add_all()
        except ControlError as error:
            LOG.warning("network %s could not be made: %s", INGRESS, error)

    # -- registering ---------------------------------------------------------------------------------------------

    def _register_again(self) -> None:
        settings = self._stored.settings
        self._is_registered = True  # a lease that is lost meanwhile says otherwise
        try:
            keys = self._encryption.keys
            now = self._register(settings, keys)
            told = self._global.own()
            displaced = self.session.restore(told)
            self.session.follow()
        except (ControlError, OSError) as error:
            if self.trouble != str(error):
                LOG.warning("this node is not registered in the cluster: %s", error)
            self.trouble, self._is_registered = str(error), False
            return
        self._global.withdraw_gone(told)
        for each in displaced:
            LOG.error("endpoint %s is not in the cluster any more: %s", each.endpoint_id[:12], each.why)
        self.displaced = {f"endpoint {each.endpoint_id[:12]}": each.why for each in displaced}
        self.trouble = ""
        if now != settings:
            self._stored.keep(now)
        self._encryption.registered(keys)
        if settings is not None and settings.node_id != now.node_id:
            self._global.mend()  # this node's address in the tunnels is another one

    def _register(self, before: Settings | None, keys: Keys = ()) -> Settings:
        """Makes this host a node; raises as `join` does, and Conflict where `before` was another cluster."""
        ifname = require_advertised(self.session.spec)
        identity, node_id = self.session.register(
            before.identity if before is not None else "",
            mtu=devices.mtu(ifname),
            mac=devices.mac(ifname).hex(":"),
            public_keys=keys,
        )
        return Settings(
            spec=self.session.spec,
            identity=identity,
            incarnation=self.session.incarnation,
            node_id=node_id,
            since=before.since if before is not None else utcnow(),
        )


def require_advertised(spec: ClusterSpec) -> str:
    """The device with the address that other nodes send to; raises InvalidOption."""
    ifname = devices.holder(spec.advertise)
    if ifname is None:
        raise InvalidOption(
            "advertise", f"{spec.advertise} is not an address of this host: give one that it has (`ip address`)"
        )
    return ifname


class _Pending:
    """What has changed and was not taken up yet. Thread-safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._networks: set[NetworkId] | None = set()
        self._is_woken = False
        self.is_stopped = False

    def add(self, networks: Collection[NetworkId]) -> None:
        """Wakes who waits, also for nothing."""
        with self._condition:
            if self._networks is not None:
                self._networks.update(networks)
            self._wake()

    def add_all(self) -> None:
        with self._condition:
            self._networks = None
            self._wake()

    def stop(self) -> None:
        with self._condition:
            self.is_stopped = True
            self._wake()

    def _wake(self) -> None:
        self._is_woken = True
        self._condition.notify_all()

    def take(self, timeout_s: float) -> set[NetworkId] | None:
        """Waits for something and returns the networks, None for all of them, as after the time too."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._is_woken, timeout_s):
                return None
            taken, self._networks, self._is_woken = self._networks, set(), False
            return taken
