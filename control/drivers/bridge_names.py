"""What the devices of a network with Linux bridges are called, and their MACs: settled by the network alone, so others'
devices can be told from them."""

from __future__ import annotations

import re
from typing import Final

from control.model import Network
from datapath import links

DEFAULT_BRIDGE: Final = "linkspan0"
"""The Linux bridge of the predefined network."""

NAME: Final = "com.docker.network.bridge.name"
BRIDGE_MACS: Final = (b"\x02\x4c", b"\x02\x4d")
"""How the addresses of our bridges begin: those with the gateway's addresses, and further shards."""
OVERLAY: Final = "overlay"
"""The other driver that makes bridges."""
_OUR_VETH: Final = re.compile(r"(ls|[tu]\d\d)[0-9a-f]{12}")
_OUR_BRIDGE: Final = re.compile(r"(br-|s\d\d)[0-9a-f]{12}")
_PREFIXES: Final = {OVERLAY: "lo-"}
"""How the names of bridges begin, by driver, where that is not br-."""


def bridge_name(network: Network, shard: int = 0) -> str:
    """The Linux bridge of a shard; shard 0 has the gateway's addresses."""
    if shard == 0:
        return network.options.get(NAME, f"{_PREFIXES.get(network.driver, 'br-')}{network.id[:12]}")
    return f"s{shard:02d}{network.id[:12]}"


def trunk_names(network: Network, shard: int) -> tuple[str, str]:
    """The veth pair that joins a shard to shard 0: the end there, and the end at the shard."""
    return f"t{shard:02d}{network.id[:12]}", f"u{shard:02d}{network.id[:12]}"


def bridge_mac(network: Network) -> str:
    """A locally administered address that the network's id settles, so that no look-up is needed to know it."""
    return f"{BRIDGE_MACS[0].hex(':')}:{network.id[0:2]}:{network.id[2:4]}:{network.id[4:6]}:{network.id[6:8]}"


def is_ours(link: links.LinkInfo) -> bool:
    """Whether the device is one that only the driver bridge makes; a bridge that was named by a user cannot be told."""
    if link.kind == "veth":
        return _OUR_VETH.fullmatch(link.ifname) is not None
    has_our_name = link.ifname == DEFAULT_BRIDGE or _OUR_BRIDGE.fullmatch(link.ifname) is not None
    return link.kind == "bridge" and has_our_name and link.mac[:2] in BRIDGE_MACS
