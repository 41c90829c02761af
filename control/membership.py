"""This host's membership in a cluster: joined once, kept over restarts, followed for as long as it lasts.

What the user asked for is stored here, on this host, whatever becomes of etcd.
"""

from __future__ import annotations

import errno
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from control.cluster.records import Node
from control.cluster.secrecy import Secrecy
from control.cluster_spec import (
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
from control.errors import Conflict, ControlError, DatapathFailed, Forbidden
from control.following import Following, require_advertised
from control.global_networks import GlobalNetworks
from control.model import Endpoint, NetworkId
from control.records import Records
from control.stored_membership import StoredMembership
from datapath import devices
from datapath.wireguard import Tunnels

if TYPE_CHECKING:  # etcd's client is for those who are in a cluster: it costs memory
    from control.cluster.session import ClusterSession

LOG = logging.getLogger(__name__)

_TUNNELS: Final = "tunnels/wireguard"
_KEYS_FILE: Final = "wireguard-keys.json"
_FIRST_READ_S: Final = 10.0


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
        tunnels = deps.run_dir / _TUNNELS
        self._encryption = Encryption(
            Secrecy(Tunnels(tunnels), deps.state_dir / _KEYS_FILE, lifetime_s=deps.cluster_times.key_lifetime_s),
            str(tunnels),
            underlay=self._underlay,
            nodes=self._known_nodes,
            publish=self._publish_keys,
        )
        self._stored = StoredMembership(deps, self._encryption)
        self._following: Following | None = None
        self._trouble = ""
        deps.peering.encrypting = self._encryption
        deps.peering.peers = global_networks.peers

    # -- start and stop ------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Takes up what is stored, which the drivers need; raises StoreError."""
        self._stored.load()

    def start(self) -> None:
        """Goes on as a node of the cluster, or becomes one that the configuration names. Waits for nobody, and never
        raises: `info` says what is wrong."""
        stored, wanted = self._stored.settings, self._deps.cluster
        if stored is not None and wanted not in (None, stored.spec):
            LOG.warning(
                "the configuration names another cluster than %s, which this node is in, or that one otherwise: "
                "leave it, then restart linkspand",
                stored.spec.cluster,
            )
        spec = stored.spec if stored is not None else wanted
        if spec is None:
            return
        try:
            following = self._open(spec, stored.incarnation if stored is not None else secrets.token_hex(8))
        except ControlError as error:
            self._trouble = str(error)
            LOG.error("this node cannot be in the cluster %s: %s", spec.cluster, error)
            return
        self._enter(following)

    def stop(self) -> None:
        """Follows no more; the node's records stay as long as its lease. Idempotent."""
        if self._following is not None:
            self._following.stop()
        self._global.lost.stop()
        self._global.exit()

    def _open(self, spec: ClusterSpec, incarnation: str) -> Following:
        following = Following(
            self._deps, self._records, self._global, self._encryption, self._stored, spec, incarnation
        )
        following.open()
        return following

    def _enter(self, following: Following) -> None:
        """Follows the cluster from now on."""
        self._following = following
        self._global.enter(following.session)
        self._deps.peering.wake = following.look_again
        following.start()

    # -- what the tunnels ask ------------------------------------------------------------------------------------

    def _underlay(self) -> tuple[int, int]:
        address = self._deps.peering.address
        ifname = devices.holder(address) if address is not None else None
        if address is None or ifname is None:
            raise OSError(errno.EADDRNOTAVAIL, f"address {address}, which this node is known by, is gone")
        return devices.mtu(ifname), address.version

    def _known_nodes(self) -> Collection[Node] | None:
        session = self._session
        return session.nodes().values() if session is not None and session.is_read else None

    def _publish_keys(self, keys: Keys) -> None:
        following = self._following
        if following is not None:
            following.publish_keys(keys)

    # -- joining and leaving -------------------------------------------------------------------------------------

    def join(self, spec: ClusterSpec) -> None:
        with self._changing:
            now = self._stored.settings
            if now is not None:
                if now.spec == spec:
                    if self._following is None:  # what kept it from going on at the start may be there now
                        self._enter(self._open(spec, now.incarnation))
                        self._trouble = ""
                    return
                raise Conflict(
                    f"this node is in the cluster {now.spec.cluster} already, as {now.spec.name}: run "
                    "`linkspan cluster leave` first"
                )
            require_advertised(spec)
            self._end_session()
            following = self._open(spec, secrets.token_hex(8))
            following.join()
            self._enter(following)
            following.session.follow()
            if not following.has_followed.wait(_FIRST_READ_S):
                LOG.warning("the cluster was not read within %.0f s of joining it", _FIRST_READ_S)
            self._require_one_family(following.session)

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

    def leave(self, *, force: bool = False) -> None:
        with self._changing:
            if self._stored.settings is None and self._following is None:
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
            self._stored.keep(None)

    def _leave_cluster(self, force: bool) -> None:
        try:
            if self._following is None:
                raise Conflict(f"the cluster cannot be told of it: {self._trouble}; mend that, or leave with --force")
            self._following.session.leave()
        except ControlError as error:
            if not force:
                raise
            LOG.warning("the cluster was not told that this node leaves, its records end with its lease: %s", error)

    def _end_session(self) -> None:
        self.stop()
        self._following, self._trouble = None, ""

    # -- looking -------------------------------------------------------------------------------------------------

    def info(self) -> ClusterInfo:
        following, settings = self._following, self._stored.settings
        if following is not None:
            session, spec = following.session, following.session.spec
            why, revision = following.trouble or session.why_waiting, session.revision
        elif settings is not None:
            spec, why, revision = settings.spec, self._trouble, 0
        else:
            return ClusterInfo(is_joined=False, state=self._trouble or "not joined")
        return ClusterInfo(
            is_joined=settings is not None,
            cluster=spec.cluster,
            node=spec.name,
            advertise=spec.advertise,
            etcd=spec.etcd,
            state=f"waiting for etcd: {why}" if why else "synchronized",
            revision=revision,
            since=settings.since if settings is not None else None,
        )

    def health(self) -> ClusterHealth | None:
        following = self._following
        if following is None:
            return None
        ready, since = following.session.nodes(), following.behind_since
        return ClusterHealth(
            is_connected=since is None,
            lag_s=0.0 if since is None else time.monotonic() - since,
            nodes={"ready": len(ready), "lost": len(self._global.lost.nodes().keys() - ready.keys())},
        )

    def problems(self) -> dict[str, str]:
        """What the cluster has no room for, and why, in the words that messages use."""
        following = self._following
        return {**self._global.problems(), **(following.displaced if following is not None else {})}

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

    @property
    def _session(self) -> ClusterSession | None:
        following = self._following
        return following.session if following is not None else None

    def _need_session(self) -> ClusterSession:
        session = self._session
        if session is None:
            raise not_joined()
        return session

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
