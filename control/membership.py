"""This host's membership in a cluster: joined once, kept over restarts, followed for as long as it lasts.

What the user asked for is stored here, on this host. etcd may come and go: the node's records there end with its lease
when it is away for long, and are written again when it is back.
"""

from __future__ import annotations

import errno
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from control.cluster.records import Node
from control.cluster.secrecy import Secrecy
from control.cluster_spec import (
    INGRESS,
    ClusterHealth,
    ClusterInfo,
    ClusterSpec,
    Difference,
    InvalidOption,
    NodeInfo,
    not_joined,
)
from control.deps import Deps
from control.encryption import Encryption, Keys
from control.errors import Conflict, ControlError, DatapathFailed, Forbidden, StoreError
from control.global_networks import GlobalNetworks
from control.model import Endpoint, NetworkId, NetworkSpec, from_json, to_json, utcnow
from control.records import Records
from control.store.base import Delete, Put
from datapath import devices
from datapath.wireguard import Tunnels

if TYPE_CHECKING:  # etcd's client is for those who are in a cluster: it costs memory
    from control.cluster.session import ClusterSession

LOG = logging.getLogger(__name__)

KIND: Final = "cluster"
_ID: Final = "membership"
_TUNNELS: Final = "tunnels/wireguard"
_KEYS_FILE: Final = "wireguard-keys.json"
_FIRST_READ_S: Final = 10.0
_LOOK_AGAIN_S: Final = 15.0
"""How often the ways to other nodes are looked up again: routes change without a word to anybody."""
_RETRY_S: Final = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored: `identity` tells the cluster from another one of its name, and `incarnation` this node from
    another one of its. `node_id` is that which the cluster gave it last."""

    spec: ClusterSpec
    identity: str
    incarnation: str
    node_id: int
    since: datetime


class Membership:
    """Implements `control.cluster_spec.Cluster`. Thread-safe; `load` and `start` come once, in this order.

    `disconnect` takes an endpoint off its network, whatever is in the way.
    """

    def __init__(
        self, deps: Deps, records: Records, global_networks: GlobalNetworks, disconnect: Callable[[Endpoint], None]
    ) -> None:
        self._deps = deps
        self._records = records
        self._global = global_networks
        self._disconnect = disconnect
        self._changing = threading.RLock()
        self._settings: Settings | None = None
        self._session: ClusterSession | None = None
        self._is_registered = False
        self._trouble = ""
        self._behind_since: float | None = None
        self._displaced: dict[str, str] = {}
        self._has_followed = threading.Event()
        self._pending = _Pending()
        self._thread: threading.Thread | None = None
        tunnels = deps.run_dir / _TUNNELS
        self._encryption = Encryption(
            Secrecy(Tunnels(tunnels), deps.state_dir / _KEYS_FILE, lifetime_s=deps.cluster_times.key_lifetime_s),
            str(tunnels),
            underlay=self._underlay,
            nodes=self._known_nodes,
            publish=self._publish_keys,
        )
        deps.peering.encrypting = self._encryption
        deps.peering.peers = global_networks.peers
        deps.peering.wake = self._pending.add_all

    # -- start and stop ------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Takes up what is stored, which the drivers need; raises StoreError."""
        for _, body in self._deps.store.read(KIND):
            try:
                self._settings = from_json(Settings, body)
            except (msgspec.MsgspecError, ValueError) as error:
                raise StoreError(
                    f"the stored membership in a cluster is damaged ({error}): restore a copy of the store, or remove "
                    "the record and join again"
                ) from error
            self._deps.peering.address = self._settings.spec.advertise
            self._encryption.node_id = self._settings.node_id

    def start(self) -> None:
        """Goes on as a node of the cluster, or becomes one that the configuration names. Waits for nobody, and never
        raises: `info` says what is wrong."""
        wanted = self._deps.cluster
        if self._settings is not None and wanted not in (None, self._settings.spec):
            LOG.warning(
                "the configuration names another cluster than %s, which this node is in, or that one otherwise: "
                "leave it, then restart linkspand",
                self._settings.spec.cluster,
            )
        spec = self._settings.spec if self._settings is not None else wanted
        if spec is None:
            return
        incarnation = self._settings.incarnation if self._settings is not None else secrets.token_hex(8)
        try:
            session = self._open(spec, incarnation)
        except ControlError as error:
            self._trouble = str(error)
            LOG.error("this node cannot be in the cluster %s: %s", spec.cluster, error)
            return
        self._enter(session)

    def stop(self) -> None:
        """Follows no more; the node's records stay as long as its lease. Idempotent."""
        self._pending.stop()
        if self._session is not None:
            self._session.close()
        if self._thread is not None:
            self._thread.join()
        self._global.lost.stop()
        self._global.exit()

    def _open(self, spec: ClusterSpec, incarnation: str) -> ClusterSession:
        from control.cluster.session import ClusterSession, Told

        told = Told(self._changed, self._state_changed, self._lease_lost, self._asked)
        session = ClusterSession(spec, incarnation, told, lease_s=self._deps.cluster_times.lease_s)
        session.open()
        return session

    def _enter(self, session: ClusterSession) -> None:
        """Follows the cluster in a thread of its own from now on."""
        self._behind_since = time.monotonic()
        self._session = session
        self._global.enter(session)
        self._has_followed.clear()
        self._pending = _Pending()
        self._deps.peering.wake = self._pending.add_all
        self._thread = threading.Thread(target=self._follow_on, name="cluster", daemon=True)
        self._thread.start()

    # -- following -----------------------------------------------------------------------------------------------

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
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        if why:
            LOG.warning("waiting for etcd: %s; networks go on as they are", why)
        else:
            LOG.info("the cluster's changes come as they are made")
        self._pending.add(())

    def _lease_lost(self) -> None:
        self._is_registered = False
        self._pending.add(())

    def _follow_on(self) -> None:
        """The thread that follows: registers when the node is not, and takes up what has changed."""
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
        if self._session is not None and self._session.is_read and not self._has_followed.is_set():
            self._create_ingress()
            self._has_followed.set()
        if changed is None:
            self._tell_again()

    def _tell_again(self) -> None:
        """What the other nodes know of this one's device and endpoints may no longer be so."""
        session = self._session
        if session is None or not self._is_registered:
            return
        try:
            ifname = self._require_advertised(session.spec)
            session.publish_device(mtu=devices.mtu(ifname), mac=devices.mac(ifname).hex(":"))
            self._global.tell_again()
        except (ControlError, OSError) as error:
            LOG.warning("the cluster does not know how this node is now: %s", error)

    def _register_again(self) -> None:
        session, settings = self._session, self._settings
        assert session is not None
        self._is_registered = True  # a lease that is lost meanwhile says otherwise
        try:
            keys = self._encryption.keys
            now = self._register(session, settings, keys)
            told = self._global.own()
            displaced = session.restore(told)
            session.follow()
        except (ControlError, OSError) as error:
            if self._trouble != str(error):
                LOG.warning("this node is not registered in the cluster: %s", error)
            self._trouble, self._is_registered = str(error), False
            return
        self._global.withdraw_gone(told)
        for each in displaced:
            LOG.error("endpoint %s is not in the cluster any more: %s", each.endpoint_id[:12], each.why)
        self._displaced = {f"endpoint {each.endpoint_id[:12]}": each.why for each in displaced}
        self._trouble = ""
        if now != settings:
            self._keep(now)
        self._encryption.registered(keys)
        if settings is not None and settings.node_id != now.node_id:
            self._global.mend()  # this node's address in the tunnels is another one

    def _register(self, session: ClusterSession, before: Settings | None, keys: Keys = ()) -> Settings:
        """Makes this host a node; raises as `join` does, OSError, and Conflict where `before` was another cluster."""
        ifname = self._require_advertised(session.spec)
        identity, node_id = session.register(
            before.identity if before is not None else "",
            mtu=devices.mtu(ifname),
            mac=devices.mac(ifname).hex(":"),
            public_keys=keys,
        )
        return Settings(
            spec=session.spec,
            identity=identity,
            incarnation=session.incarnation,
            node_id=node_id,
            since=before.since if before is not None else utcnow(),
        )

    def _underlay(self) -> tuple[int, int]:
        address = self._deps.peering.address
        ifname = devices.holder(address) if address is not None else None
        if address is None or ifname is None:
            raise OSError(errno.EADDRNOTAVAIL, f"address {address}, which this node is known by, is gone")
        return devices.mtu(ifname), address.version

    def _known_nodes(self) -> Collection[Node] | None:
        session = self._session
        return session.nodes().values() if session is not None and session.is_read else None

    def _publish_keys(self, keys: tuple[tuple[int, str], ...]) -> None:
        if self._session is not None and self._is_registered:
            self._session.publish_keys(keys)

    def _require_advertised(self, spec: ClusterSpec) -> str:
        """The device with the address that other nodes send to; raises InvalidOption."""
        ifname = devices.holder(spec.advertise)
        if ifname is None:
            raise InvalidOption(
                "advertise", f"{spec.advertise} is not an address of this host: give one that it has (`ip address`)"
            )
        return ifname

    def _keep(self, settings: Settings | None) -> None:
        """Stores that this host is in a cluster, or that it is in none."""
        self._deps.store.write([Delete(KIND, _ID) if settings is None else Put(KIND, _ID, to_json(settings))])
        self._settings = settings
        self._deps.peering.address = settings.spec.advertise if settings is not None else None
        self._encryption.node_id = settings.node_id if settings is not None else 0

    # -- joining and leaving -------------------------------------------------------------------------------------

    def join(self, spec: ClusterSpec) -> None:
        with self._changing:
            if self._settings is not None:
                if self._settings.spec == spec:
                    return
                raise Conflict(
                    f"this node is in the cluster {self._settings.spec.cluster} already, as "
                    f"{self._settings.spec.name}: run `linkspan cluster leave` first"
                )
            self._require_advertised(spec)
            self._end_session()
            session = self._open(spec, secrets.token_hex(8))
            try:
                self._is_registered = True
                self._keep(self._register(session, None))
            except Exception:
                self._is_registered = False
                with suppress(ControlError):
                    session.leave()
                session.close()
                raise
            self._enter(session)
            session.follow()
            if not self._has_followed.wait(_FIRST_READ_S):
                LOG.warning("the cluster was not read within %.0f s of joining it", _FIRST_READ_S)
            self._require_one_family(session)

    def _require_one_family(self, session: ClusterSession) -> None:
        """A VXLAN device has addresses of one family."""
        version = session.spec.advertise.version
        other = next((node for node in session.nodes().values() if node.address.version != version), None)
        if other is not None:
            self.leave(force=True)
            raise InvalidOption(
                "advertise",
                f"the cluster's nodes have IPv{other.address.version} addresses, as {other.address} of {other.name}: "
                "give one of that family",
            )

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

    def leave(self, *, force: bool = False) -> None:
        with self._changing:
            if self._settings is None and self._session is None:
                raise not_joined()
            networks = self._global.networks_here()
            if networks and not force:
                names = ", ".join(network.name for network in networks)
                raise Forbidden(f"this node has endpoints on {names}: disconnect them, or leave with --force")
            for network in networks:
                for endpoint in self._records.on_network(network.id):
                    self._disconnect(endpoint)
            self._leave_cluster(force)
            self._end_session()
            self._global.forget_all()
            self._keep(None)

    def _leave_cluster(self, force: bool) -> None:
        assert self._session is not None
        try:
            self._session.leave()
        except ControlError as error:
            if not force:
                raise
            LOG.warning("the cluster was not told that this node leaves, its records end with its lease: %s", error)

    def _end_session(self) -> None:
        self.stop()
        self._session, self._is_registered, self._trouble = None, False, ""
        self._displaced = {}

    # -- looking -------------------------------------------------------------------------------------------------

    def info(self) -> ClusterInfo:
        session = self._session
        if session is None:
            return ClusterInfo(is_joined=False, state=self._trouble or "not joined")
        spec, settings = session.spec, self._settings
        why = self._trouble or session.why_waiting
        return ClusterInfo(
            is_joined=settings is not None,
            cluster=spec.cluster,
            node=spec.name,
            advertise=spec.advertise,
            etcd=spec.etcd,
            state=f"waiting for etcd: {why}" if why else "synchronized",
            revision=session.revision,
            since=settings.since if settings is not None else None,
        )

    def health(self) -> ClusterHealth | None:
        session, since = self._session, self._behind_since
        if session is None:
            return None
        ready = session.nodes()
        return ClusterHealth(
            is_connected=since is None,
            lag_s=0.0 if since is None else time.monotonic() - since,
            nodes={"ready": len(ready), "lost": len(self._global.lost.nodes().keys() - ready.keys())},
        )

    def problems(self) -> dict[str, str]:
        """What the cluster has no room for, and why, in the words that messages use."""
        return {**self._global.problems(), **self._displaced}

    def nodes(self) -> list[NodeInfo]:
        session = self._need_session()
        ready, lost = session.nodes(), self._global.lost.nodes()
        counts = session.networks_by_node({network.id for network in self._global.networks_here()})
        return [
            _info(node, session, is_ready=name in ready, networks=counts[name])
            for name, node in sorted({**lost, **ready}.items())
        ]

    def peers(self, network_id: str) -> list[NodeInfo]:
        session = self._session
        if session is None:
            return []
        on_it = self._global.nodes_on(NetworkId(network_id))
        return [
            _info(node, session, is_ready=True, networks=1)
            for name, node in sorted(session.nodes().items())
            if name in on_it
        ]

    def _need_session(self) -> ClusterSession:
        if self._session is None:
            raise not_joined()
        return self._session

    def check(self) -> list[Difference]:
        session = self._need_session()
        session.require_synchronized()
        found: list[Difference] = []
        for network in self._global.networks_here():
            try:
                said = self._deps.driver_of(network).differences(network)
            except OSError as error:
                raise DatapathFailed(f"network {network.name} cannot be looked at: {error}") from error
            mend = "linkspan doctor --cluster --mend"
            found += [Difference(session.node, network.name, what, mend) for what in said]
            found += [Difference(session.node, network.name, what, mend) for what in self._global.unknown(network)]
        return found

    def mend(self) -> list[Difference]:
        found = self.check()
        if found:
            self._need_session().restore(self._global.own())
            self._global.mend()
        return found


def _info(node: Node, session: ClusterSession, *, is_ready: bool, networks: int) -> NodeInfo:
    return NodeInfo(
        name=node.name,
        address=node.address,
        state="ready" if is_ready else "lost",
        since=node.since,
        is_self=node.name == session.node,
        id=node.id,
        networks=networks,
    )


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
