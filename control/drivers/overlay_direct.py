"""In words, what keeps packets for another node in VXLAN on a network that may go without (docs/adr/0019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from control.model import Address
from datapath.fast_peers import NO_MAC, Way
from datapath.vxlan import Peer

YES: Final = "yes"


def facts(peers: Iterable[Peer], ways: Mapping[Address, Way], own: Address | None) -> dict[Address, str]:
    """Whether packets for each node's endpoints are direct: `YES`, or "no, " and why. `own` is this node's address."""
    found = {}
    for peer in peers:
        way = ways.get(peer.node)
        if peer.is_direct:
            found[peer.node] = YES
        elif way is None or way.local_mac == NO_MAC:
            found[peer.node] = f"no, it is not on the layer 2 segment of {own}"
        else:
            found[peer.node] = "no, it does not take them"
    return found


def reason(node: Address, fact: str) -> str:
    """Why one packet for a node is not direct. What is from an endpoint's first address for another's alone can be."""
    if fact == YES:
        return f"{node} may not have heard of the sender yet, or an address is not its endpoint's first"
    return f"{node}: {fact.removeprefix('no, ')}" if fact else f"{node} has no endpoint that is known"
