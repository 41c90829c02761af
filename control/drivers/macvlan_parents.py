"""The devices of the host that macvlan networks are on, and what becomes of them.

A network's parent is the device of the configured name. As long as none has it, the device that had it is followed
under its new name: endpoints on it go on working, and new ones are refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from control.drivers.base import ParentState
from control.errors import Conflict
from control.model import Network, NetworkId
from datapath import devices, parents
from datapath.link_monitor import LinkChange
from datapath.parents import Parent

LOG = logging.getLogger(__name__)

PARENT: Final = "parent"


def parent_of(network: Network) -> str:
    """The name of the network's parent, its own isolated device where it names none."""
    return network.options.get(PARENT) or mark_of(network)


def mark_of(network: Network) -> str:
    """The network's mark on a parent that Linkspan made (`datapath.parents`).

    Not dm-: that is what Docker's own macvlan driver calls the devices that it makes.
    """
    return f"lm-{network.id[:12]}"


def is_isolated(network: Network) -> bool:
    """Whether the parent is the network's own device, which leads nowhere."""
    return parent_of(network) == mark_of(network)


@dataclass(frozen=True)
class _Seen:
    """A parent as it was when it was last looked at.

    `ifindex`, `mac` and `master` stay what they were when it `is_gone`. `is_made`: by Linkspan, which makes also what
    it has never seen. `base` is, for one that is gone and could be made, the device that it would be made on (0: none),
    and whether that is up.
    """

    ifindex: int | None = None
    mac: bytes = b""
    master: int = 0
    state: str = "gone"
    is_made: bool = True
    base: tuple[int, bool] | None = None

    @property
    def is_gone(self) -> bool:
        return self.state == "gone"


class FollowedParents:
    """The parents of this host's macvlan networks, in linkspand's network namespace. Thread-safe; methods may block.

    What is remembered is which device had a network's name, and how it was when it was last looked at.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[NetworkId, _Seen] = {}

    def follow(self, network: Network, carries: Callable[[], int | None] = lambda: None) -> None:
        """Begins to follow the network's parent, which may be missing; again is harmless.

        `carries` finds, where the name leads nowhere, the ifindex of the device that has the network's endpoints.
        """
        before = self._seen.get(network.id, _Seen())
        if before.ifindex is None and parents.look(parent_of(network)) is None:
            before = _Seen(ifindex=carries(), is_made=before.is_made)
        seen = self._look(network, before)
        with self._lock:
            self._seen[network.id] = seen
        if seen.state != "up":
            LOG.warning("parent %s of network %s is %s", parent_of(network), network.name, seen.state)

    def forget(self, network: Network) -> None:
        """Harmless for a network that is not followed."""
        with self._lock:
            self._seen.pop(network.id, None)

    def find(self, network: Network) -> Parent | None:
        """The device that the network is on, whatever its name is by now."""
        for name in dict.fromkeys((parent_of(network), mark_of(network))):
            found = parents.look(name)
            if found is not None:
                return found
        with self._lock:
            seen = self._seen.get(network.id)
        return None if seen is None or seen.ifindex is None else parents.look_at(seen.ifindex)

    def ifindex(self, network: Network) -> int | None:
        """Of `find`, for less."""
        index = devices.ifindex(parent_of(network))
        if index is not None:
            return index
        found = self.find(network)
        return None if found is None else found.ifindex

    def ifname(self, network: Network) -> str:
        """What the device is called now, or was when it was there."""
        name = parent_of(network)
        if devices.ifindex(name) is not None:
            return name
        found = self.find(network)
        return name if found is None else found.ifname

    def need(self, network: Network) -> Parent:
        """The device for a new endpoint. Raises Conflict where none has the name that the network was made with."""
        found, name = self.find(network), parent_of(network)
        if found is None:
            raise Conflict(f"parent {name} of network {network.name} is gone: endpoints can join when it is back")
        if _is_renamed(network, found):
            raise Conflict(
                f"parent {name} of network {network.name} was renamed to {found.ifname}: give it its name back, "
                f"or make a network with -o {PARENT}={found.ifname}"
            )
        return found

    def state(self, network: Network) -> ParentState:
        found = self.find(network)
        is_up = found is not None and found.is_up and found.has_carrier
        return ParentState(parent_of(network), _state(network, found), is_up)

    def concerned(
        self, networks: Sequence[Network], changes: Collection[LinkChange] | None, failed: Collection[str]
    ) -> list[Network]:
        """See `Driver.concerned`; logs how the parents are, once when that changes."""
        changed = None if changes is None else _Changed(changes)
        found = []
        for network in networks:
            with self._lock:
                before = self._seen.get(network.id)
            if before is None or (changed is not None and not changed.may_concern(network, before)):
                continue
            now = self._look(network, before)
            with self._lock:
                if network.id not in self._seen:
                    continue
                self._seen[network.id] = now
            _log(network, before, now)
            was_away = changed is None or before.ifindex in changed.gone
            if _is_concerned(before, now, was_away=was_away, has_failed=network.id in failed):
                found.append(network)
        return found

    def _look(self, network: Network, before: _Seen) -> _Seen:
        found = self.find(network)
        if found is None and before.ifindex is not None:
            found = parents.look_at(before.ifindex)
        if found is not None:
            return _Seen(found.ifindex, found.mac, found.master, _state(network, found), bool(found.marks))
        base = _base(network) if before.is_made else None
        return _Seen(before.ifindex, before.mac, before.master, "gone", before.is_made, base)


class _Changed:
    """Changes of devices, by what they are looked up by."""

    def __init__(self, changes: Collection[LinkChange]) -> None:
        self.gone = frozenset(change.ifindex for change in changes if change.is_gone)
        self._indices = frozenset(change.ifindex for change in changes)
        self._names = frozenset(change.ifname for change in changes)

    def may_concern(self, network: Network, seen: _Seen) -> bool:
        name = parent_of(network)
        named = parents.split_vlan(name)
        return seen.ifindex in self._indices or name in self._names or (named is not None and named[0] in self._names)


def _base(network: Network) -> tuple[int, bool] | None:
    if is_isolated(network):
        return 0, True
    named = parents.split_vlan(parent_of(network))
    lower = None if named is None else parents.look(named[0])
    return None if lower is None else (lower.ifindex, lower.is_up)


def _is_concerned(before: _Seen, now: _Seen, *, was_away: bool, has_failed: bool) -> bool:
    """Not for whatever is told of a parent: much of it is what Linkspan's own work on it brings about."""
    if now.is_gone:
        can_be_made = now.base is not None and now.base[1]
        return can_be_made and (was_away or before != now)
    is_another = (before.ifindex, before.mac) != (now.ifindex, now.mac)
    return was_away or before.is_gone or is_another or (has_failed and before != now)


def _is_renamed(network: Network, found: Parent) -> bool:
    return parent_of(network) not in (found.ifname, *found.altnames)


def _state(network: Network, found: Parent | None) -> str:
    """In a few words, which read on from "is"."""
    if found is None:
        return "gone"
    if not _is_renamed(network, found):
        return found.state
    return f"renamed to {found.ifname}" + ("" if found.state == "up" else f", {found.state}")


def _log(network: Network, before: _Seen, now: _Seen) -> None:
    if now.state == before.state:
        return
    if now.state == "up":
        LOG.info("parent %s of network %s is up again", parent_of(network), network.name)
    else:
        LOG.warning("parent %s of network %s is %s", parent_of(network), network.name, now.state)
