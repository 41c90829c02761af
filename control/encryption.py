"""Encryption between nodes, as long as an encrypted network has endpoints here: when keys are made, told, and ended.

How keys follow each other is `control.cluster.secrecy`'s, which knows nothing of etcd; here it meets the node's record.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from control.cluster.records import Node
from control.cluster.secrecy import Secrecy, require_available, tunnel_address
from control.errors import ControlError, DatapathFailed
from control.model import Address, NetworkId

LOG = logging.getLogger(__name__)

_RETRY_S: Final = 1.0

Keys = tuple[tuple[int, str], ...]


class Encryption:
    """Implements `control.drivers.peering.Encrypting`. Thread-safe.

    `node_id` is this node's, 0 as long as it has none; `underlay` gives the MTU in bytes of the device with its
    address, and that address's IP version; `nodes` are those of the cluster, None as long as nobody can tell, and what
    there is of tunnels then stays; `publish` writes this node's public keys, and raises ControlError.
    """

    def __init__(
        self,
        secrecy: Secrecy,
        tunnels: str,
        *,
        underlay: Callable[[], tuple[int, int]],
        nodes: Callable[[], Collection[Node] | None],
        publish: Callable[[Keys], None],
    ) -> None:
        self.node_id = 0
        self.tunnels = tunnels
        self._secrecy = secrecy
        self._underlay, self._nodes, self._publish = underlay, nodes, publish
        self._lock = threading.RLock()
        self._users: set[NetworkId] = set()
        self._started_as = 0
        self._published: Keys | None = None
        self._due = 0.0

    @property
    def address(self) -> Address:
        return tunnel_address(self.node_id)

    def use(self, network_id: NetworkId, network_name: str) -> None:
        """Has tunnels for the network; raises Forbidden on a host that cannot encrypt, DatapathFailed."""
        require_available(network_name)
        with self._lock:
            self._users.add(network_id)
            try:
                self._start()
                self._synchronize()
            except OSError as error:
                raise DatapathFailed(f"network {network_name} cannot be encrypted: {error}") from error

    def resume(self, network_id: NetworkId) -> None:
        """Takes up the tunnels of a network that has been there before linkspand was. Never raises: what fails now is
        tried again."""
        with self._lock:
            self._users.add(network_id)
        self.follow(is_changed=True)

    def release(self, network_id: NetworkId) -> None:
        """Ends tunnels and keys with the last network; raises OSError."""
        with self._lock:
            self._users.discard(network_id)
            if self._users or not self._started_as:
                return
            self._secrecy.stop()
            self._started_as = 0
            self._tell(())

    def _start(self) -> None:
        if self._started_as != self.node_id:
            self._secrecy.start(self.node_id, *self._underlay())
            self._started_as = self.node_id
            self._published = None

    def follow(self, *, is_changed: bool) -> None:
        """Takes up what nodes publish, when something of that is changed or it is time; never raises."""
        with self._lock:
            if not self._users or not (is_changed or time.monotonic() >= self._due):
                return
            try:
                self._start()
                self._synchronize()
            except OSError as error:
                self._due = time.monotonic() + _RETRY_S
                LOG.error("the tunnels of encrypted networks are not as they are to be: %s", error)

    def wait_s(self, at_most: float) -> float:
        """For how long nothing is to be done unasked."""
        with self._lock:
            return max(0.0, min(at_most, self._due - time.monotonic())) if self._users else at_most

    @property
    def keys(self) -> Keys:
        """The public keys that the node's record is to have from its first moment on: with a node that publishes none
        the others end their sessions."""
        with self._lock:
            return self._secrecy.public_keys if self._started_as else ()

    def registered(self, keys: Keys) -> None:
        """Takes up that the node's record is new, and has these keys."""
        with self._lock:
            self._published = keys
        self.follow(is_changed=True)

    def _synchronize(self) -> None:
        nodes = self._nodes()
        if nodes is None:
            self._due = time.monotonic() + _RETRY_S
            return
        self._due = time.monotonic() + self._secrecy.synchronize(nodes)
        self._tell(self._secrecy.public_keys)

    def _tell(self, keys: Keys) -> None:
        if keys == self._published:
            return
        try:
            self._publish(keys)
        except ControlError as error:
            self._due = min(self._due, time.monotonic() + _RETRY_S)
            LOG.warning("the keys of this node are not published yet: %s", error)
        else:
            self._published = keys
