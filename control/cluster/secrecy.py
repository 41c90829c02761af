"""Keys of the encrypted overlay networks: who has which, which are used, and how new ones take the place of old ones.

Keys have numbers that mean the same in the whole cluster: key N of one node speaks with key N of another, no other. A
node that finds its key old makes the next; the others see its number in etcd and make theirs. For each peer packets go
on by the old keys until there was a handshake between the new ones, which shows that both ends know both; the kernel
does it unasked. So no packet waits or is lost, however late a node hears of it. A key goes in two steps: a node that
sends nothing by it any more says so, by no longer publishing it, and when nobody publishes it, nothing comes by it.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, Protocol

from control.cluster.key_file import KEY_BYTES, Key, KeyFile, new_key
from control.errors import Forbidden
from datapath import features
from datapath.wireguard import IFNAMES, OVERHEAD_BYTES, Device, Found, Peer

LOG = logging.getLogger(__name__)

DAY_S: Final = 86_400.0
BASE_PORT: Final = 51880
"""Keys with even numbers are spoken with on this UDP port of the host, others on the next."""
VXLAN_OVERHEAD_BYTES: Final = 50
"""IPv4, UDP and VXLAN headers and the inner Ethernet header; RFC 7348, section 4."""

_FIRST_ADDRESS: Final = IPv4Address("100.64.0.0")
_IN_FLIGHT_S: Final = 5.0
"""How long packets may be under way that were sent by a key just before it was given up."""
_BUSY_S: Final = 1.0
_PATIENCE_S: Final = 60.0


class Node(Protocol):
    """What a node's record says; `public_keys` are (number, key in base64)."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> IPv4Address | IPv6Address: ...
    @property
    def public_keys(self) -> tuple[tuple[int, str], ...]: ...


class Datapath(Protocol):
    """What `datapath.wireguard.Tunnels` does."""

    def open(self, address: IPv4Address) -> None: ...
    def look(self) -> Found: ...
    def synchronize(self, wanted: Mapping[str, Device], routes: Mapping[IPv4Address, str], *, mtu: int) -> Found: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Other:
    """Another node; `tunnel` is its address in the tunnels."""

    name: str
    address: IPv4Address | IPv6Address
    tunnel: IPv4Address
    keys: Mapping[int, str]


def tunnel_address(node_id: int) -> IPv4Address:
    """The address of a node inside of the tunnels: where VXLAN packets of encrypted networks go to and come from.

    It is of the addresses for use behind address translation (RFC 6598), and seen by nobody but other nodes' tunnels.
    """
    return _FIRST_ADDRESS + node_id


def mtu(underlay_mtu: int, underlay_version: int) -> int:
    """The MTU of endpoints on an encrypted network, of that of the underlay and its IP version."""
    return underlay_mtu - OVERHEAD_BYTES[underlay_version] - VXLAN_OVERHEAD_BYTES


def unavailable() -> str | None:
    """Why this machine cannot encrypt, None when it can."""
    found = features.check("wireguard")
    return None if found.answer is features.Answer.YES else found.reason


def require_available(network: str) -> None:
    """Raises Forbidden on a machine that cannot encrypt, naming the network that needs it."""
    reason = unavailable()
    if reason is not None:
        raise Forbidden(
            f"network {network} is encrypted, and this host cannot encrypt: {reason}; "
            "load the module with `modprobe wireguard`, or run the endpoint on another node"
        )


class Secrecy:
    """A node's keys and tunnels. Thread-safe; blocks while the kernel is asked.

    It holds nothing that packets need: private keys are in a file and in the kernel, all else in the kernel alone.
    """

    def __init__(
        self, tunnels: Datapath, keys_path: Path, *, lifetime_s: float = DAY_S, now: Callable[[], float] = time.time
    ) -> None:
        """`keys_path` is a file that nobody else uses; after `lifetime_s` a key is followed by a new one."""
        self._tunnels = tunnels
        self._file = KeyFile(keys_path)
        self._lifetime_s = lifetime_s
        self._now = now
        self._lock = threading.Lock()
        self._keys: dict[int, Key] = {}
        self._public: dict[int, str] = {}
        self._given_up: set[int] = set()
        self._unused_since: dict[int, float] = {}
        self._warned_of = 0
        self._is_rotation_wanted = False

    def start(self, node_id: int, underlay_mtu: int, underlay_version: int) -> None:
        """Makes what there was before be there again, and leaves what is still there: no session is lost.

        Afterwards `public_keys` are those from before, none at the first start of all. May be repeated. Raises OSError.
        """
        with self._lock:
            self._node_id = node_id
            self._mtu = underlay_mtu - OVERHEAD_BYTES[underlay_version]
            self._keys = self._file.read()
            self._tunnels.open(tunnel_address(node_id))
            found = self._tunnels.look()
            peers = {number: found.devices[_ifname(number)].peers for number in self._present(found)}
            self._apply(peers, found.routes)

    @property
    def public_keys(self) -> tuple[tuple[int, str], ...]:
        """What this node's record is to say, as (number, public key in base64); may change with every `synchronize`."""
        with self._lock:
            return tuple((n, self._public[n]) for n in sorted(self._keys) if n not in self._given_up)

    def rotate(self) -> None:
        """Has the next `synchronize` that finds no rotation under way begin one."""
        with self._lock:
            self._is_rotation_wanted = True

    def synchronize(self, nodes: Collection[Node]) -> float:
        """Makes keys and tunnels fit the records of all nodes, of which this one's may be one.

        To be called when a node's keys or address change, and after as many seconds as it returns; `public_keys` are
        to be published then, where they are others than before. Raises OSError; may be repeated after that.
        """
        with self._lock:
            others = _with_keys(nodes, self._node_id)
            found = self._tunnels.look()
            self._give_up(found)
            self._choose_keys({number for other in others for number in other.keys}, others)
            ways = {other.tunnel: self._way_to(other, found) for other in others}
            routes = {tunnel: _ifname(number) for tunnel, number in ways.items() if number is not None}
            self._apply({number: _peers(number, others) for number in self._keys}, routes)
            self._warn(others, routes)
            age_s = self._now() - self._keys[max(self._keys)].made_at
            return _BUSY_S if len(self._keys) > 1 else max(_BUSY_S, self._lifetime_s - age_s)

    def stop(self) -> None:
        """Removes tunnels and keys, for when no network of this node's is encrypted any more; may be repeated."""
        with self._lock:
            self._tunnels.close()
            self._file.remove()
            self._keys, self._given_up, self._unused_since = {}, set(), {}

    def _give_up(self, found: Found) -> None:
        """Stops publishing an old key some time after the last peer went over to the new one."""
        now, used = self._now(), set(found.routes.values())
        for number in sorted(self._keys)[:-1]:
            if _ifname(number) in used:
                self._unused_since.pop(number, None)
            elif now - self._unused_since.setdefault(number, now) >= _IN_FLIGHT_S:
                self._given_up.add(number)

    def _choose_keys(self, published: Collection[int], others: Sequence[_Other]) -> None:
        """Has a key of the newest number that there is, or of the next when that is old; no more than one before it."""
        newest = max([*self._keys, *published, 1])
        is_settled = self._keys.keys() == {newest} and all(other.keys.keys() == {newest} for other in others)
        if is_settled and (self._is_rotation_wanted or self._now() - self._keys[newest].made_at >= self._lifetime_s):
            newest += 1
            self._is_rotation_wanted = False
        kept = {
            number: key
            for number, key in self._keys.items()
            if number >= newest - 1 and (number in published or number not in self._given_up)
        }
        if newest not in kept:
            kept[newest] = new_key(newest, self._now())
        if kept != self._keys:
            self._file.write(kept)
            self._keys = kept
            self._given_up &= kept.keys()
            self._unused_since = {n: since for n, since in self._unused_since.items() if n in kept}

    def _way_to(self, other: _Other, found: Found) -> int | None:
        """The number of the keys by which packets for the other node go: the newest that there was a handshake with."""
        present = self._present(found)
        common = sorted((n for n in self._keys if n in other.keys and n not in self._given_up), reverse=True)
        for number in common:
            if number in present and other.keys[number] in found.devices[_ifname(number)].handshakes:
                return number
        # Nobody answers yet. Packets wait in the kernel for whom it has no session with.
        for number in common:
            if found.routes.get(other.tunnel) == _ifname(number):
                return number
        return common[0] if common else None

    def _present(self, found: Found) -> set[int]:
        """The numbers of those keys that their devices have."""
        devices = found.devices
        return {
            number
            for number, key in self._keys.items()
            if _ifname(number) in devices and devices[_ifname(number)].private_key == key.private
        }

    def _apply(self, peers: Mapping[int, frozenset[Peer]], routes: Mapping[IPv4Address, str]) -> None:
        wanted = {
            _ifname(number): Device(key.private, _port(number), peers.get(number, frozenset()))
            for number, key in self._keys.items()
        }
        routes = {address: ifname for address, ifname in routes.items() if ifname in wanted}
        found = self._tunnels.synchronize(wanted, routes, mtu=self._mtu).devices
        self._public = {number: found[_ifname(number)].public_key for number in self._keys}

    def _warn(self, others: Sequence[_Other], routes: Mapping[IPv4Address, str]) -> None:
        newest = max(self._keys)
        if len(self._keys) == 1 or newest == self._warned_of:
            return
        late = [other.name for other in others if routes.get(other.tunnel) != _ifname(newest)]
        if late and self._now() - self._keys[newest].made_at > _PATIENCE_S:
            self._warned_of = newest
            LOG.warning(
                "packets to %s stay with the old key, the new one gets no answer: do firewalls let UDP port %d pass?",
                ", ".join(late),
                _port(newest),
            )


def _ifname(number: int) -> str:
    return IFNAMES[number % 2]


def _port(number: int) -> int:
    return BASE_PORT + number % 2


def _with_keys(nodes: Collection[Node], own_id: int) -> list[_Other]:
    """The other nodes that have keys, without those keys that are none."""
    others = []
    for node in nodes:
        keys = {number: key for number, key in node.public_keys if _is_key(key)}
        if len(keys) < len(node.public_keys):
            LOG.warning("node %s has published what is no key: packets to it wait for another", node.name)
        if keys and node.id != own_id:
            others.append(_Other(node.name, node.address, tunnel_address(node.id), keys))
    return others


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_BYTES
    except ValueError:
        return False


def _peers(number: int, others: Collection[_Other]) -> frozenset[Peer]:
    return frozenset(
        Peer(other.keys[number], other.address, _port(number), other.tunnel) for other in others if number in other.keys
    )
