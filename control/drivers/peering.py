"""What the driver overlay gets to know of the cluster that this node is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from control.model import Address, NetworkId
from datapath.vxlan import Peer


class Encrypting(Protocol):
    """Tunnels to the other nodes, for encrypted networks; see `control.encryption.Encryption`."""

    @property
    def tunnels(self) -> str:
        """The path of the namespace whose VXLAN packets go by the tunnels."""

    @property
    def address(self) -> Address:
        """This node's among the tunnels."""

    def use(self, network_id: NetworkId, network_name: str) -> None: ...
    def resume(self, network_id: NetworkId) -> None: ...
    def release(self, network_id: NetworkId) -> None: ...


class Peering:
    """Filled in by whoever is in touch with the cluster; the driver only reads, and calls.

    `address` is where the other nodes send this one's packets, None while it is in no cluster. `peers` gives the
    endpoints of a network on other nodes, None as long as nobody can tell: what is known of them then stays. `wake` is
    called when the ways to other nodes may have changed. `encrypting` is there where `address` is.
    """

    def __init__(self) -> None:
        self.address: Address | None = None
        self.peers: Callable[[NetworkId], Sequence[Peer] | None] = lambda _: None
        self.wake: Callable[[], None] = lambda: None
        self.encrypting: Encrypting | None = None
