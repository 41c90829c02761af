"""What the driver overlay gets to know of the cluster that this node is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from control.model import Address, NetworkId
from datapath.vxlan import Peer


class Peering:
    """Filled in by whoever is in touch with the cluster; the driver only reads, and calls.

    `address` is where the other nodes send this one's packets, None while it is in no cluster. `peers` gives the
    endpoints of a network on other nodes, None as long as nobody can tell: what is known of them then stays. `wake` is
    called when the ways to other nodes may have changed.
    """

    def __init__(self) -> None:
        self.address: Address | None = None
        self.peers: Callable[[NetworkId], Sequence[Peer] | None] = lambda _: None
        self.wake: Callable[[], None] = lambda: None
