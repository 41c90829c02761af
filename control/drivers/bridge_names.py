"""What the devices of a network with Linux bridges are called, and their MACs: settled by the network alone."""

from __future__ import annotations

from typing import Final

from control.model import Network

DEFAULT_BRIDGE: Final = "linkspan0"
"""The Linux bridge of the predefined network."""

NAME: Final = "com.docker.network.bridge.name"
BRIDGE_MACS: Final = (b"\x02\x4c", b"\x02\x4d")
"""How the addresses of our bridges begin: those with the gateway's addresses, and further shards."""
OVERLAY: Final = "overlay"
"""The other driver that makes bridges."""
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
