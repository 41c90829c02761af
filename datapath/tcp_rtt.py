"""Round trips of the endpoints' own TCP connections, as TCP measures them for itself: no packet is sent for it.

A program at the root of the cgroups sees connections when they are established, and from then on the round trips of
those whose own address is in the map tcp_locals (bpf/sockops_tcp_rtt.c). The link that keeps it there is pinned, so it
goes on without this process. Where it cannot be had, `problem` says why and every other method does nothing.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from datapath import bpf, cgroups, features, loader, netns, pinned
from datapath.abi import TcpLocalKey
from datapath.attached import Attached
from datapath.bpf import Map
from datapath.programs import Programs

LOG = logging.getLogger(__name__)

PROGRAM: Final = "ls_tcp_rtt"
FEATURE: Final = "tcp-rtt"
_U32: Final = struct.Struct("=I")


@dataclass(frozen=True)
class End:
    """An endpoint's end of connections: the addresses that it has in the namespace at `netns_path`."""

    slot: int
    netns_path: str
    addresses: tuple[IPv4Address | IPv6Address, ...]


def lacking() -> str | None:
    """What this host lacks for it, None for nothing."""
    checks = (features.check("cgroup2"), features.check("tcp_rtt"))
    return next((check.reason for check in checks if check.answer is features.Answer.NO), None)


def left_out(*, is_on: bool) -> Collection[str]:
    """The programs that are not to be loaded: without cause, nothing is asked of the kernel that it would refuse."""
    return () if is_on and lacking() is None else (PROGRAM,)


class TcpRtt:
    """Thread-safe after `start`. Methods raise OSError naming the map or namespace."""

    def __init__(self, programs: Programs, *, is_on: bool = True) -> None:
        self._programs = programs
        self._is_on = is_on
        # Not among the links of devices, of which those are removed that no device is known for.
        self._pin = programs.bpffs_dir / "tcp_rtt"
        self._locals: Map | None = None
        self.problem: str | None = "not started"
        self.fallbacks: dict[str, str] = {}

    def start(self, ends: Sequence[End], renewed: Collection[int] = ()) -> int:
        """Has the connections of exactly these ends timed, and returns for how many the map said otherwise, although it
        was being timed before.

        Namespaces are looked into only where something is amiss, or for slots that are `renewed`: theirs were made
        again. Never raises: see `problem`.
        """
        differences = 0
        self.problem = self._hindrance()
        if self.problem is None:
            try:
                count = self._bring_in_line(ends, renewed, leave=())
                differences = count if self._pin.exists() else 0
                self._attach()
            except OSError as error:
                self._lack(str(error))
        if self.problem is not None:
            self._end()
        return differences

    def _hindrance(self) -> str | None:
        try:
            maps = self._programs.load()
        except (OSError, loader.LoaderError) as error:
            return str(error)  # which the drivers tell
        self._locals = maps.table("tcp_locals")
        if not self._is_on:
            return "metrics.tcp-rtt is false"
        reason = lacking() or self._programs.refused.get(PROGRAM)
        if reason is not None:
            self._lack(reason)
        return reason

    def _lack(self, reason: str) -> None:
        self.problem = self.fallbacks[FEATURE] = reason
        LOG.warning("round trips of TCP connections are not timed: %s", reason)

    def _attach(self) -> None:
        with _root() as cgroup:
            prog = self._programs[PROGRAM]
            pinned.attach(self._pin, prog, os.fstat(cgroup).st_ino, partial(bpf.sock_ops_attach, prog, cgroup))

    def _end(self) -> None:
        """Takes away what an earlier linkspan has left."""
        try:
            if self._pin.exists():
                pinned.detach(self._pin)
            if self._locals is not None:
                for keys in self._held().values():
                    self._delete(keys)
        except OSError as error:
            LOG.error("%s of an earlier linkspan may still run: %s", PROGRAM, error)

    def add(self, end: End) -> None:
        """Has the connections timed that are established from now on."""
        if not self.problem:
            self._put(end.slot, _keys(end))

    def remove(self, end: End) -> None:
        """The opposite of `add`; whatever the slot has is removed when the namespace is gone."""
        if self.problem:
            return
        try:
            was_there = [self._table.delete(key.pack()) for key in _keys(end)]
        except OSError:
            was_there = []
        if not was_there or not all(was_there):
            self._delete(self._held().get(end.slot, set()))

    def differences(self, ends: Sequence[End], leave: Collection[int]) -> list[tuple[int, str]]:
        """What is other than it is to be, with the slot concerned (-1: that of no end); changes nothing. Slots to
        `leave` are those of endpoints that are coming or going."""
        if self.problem:
            return []
        found = []
        if not any(each.id == self._programs.id(PROGRAM) for each in self.attached()) or not self._pin.exists():
            found.append((-1, f"{PROGRAM} is not kept at the root of the cgroups"))
        held = self._held()
        for end in ends:
            if held.pop(end.slot, set()) != _keys_if_any(end):
                found.append((end.slot, "map tcp_locals has other addresses than the endpoint"))
        extra = sorted(slot for slot in held if slot not in leave)
        return found + [(-1, f"map tcp_locals has addresses of slot {slot}, which no endpoint has") for slot in extra]

    def mend(self, ends: Sequence[End], leave: Collection[int]) -> None:
        """Puts right what `differences` finds."""
        if not self.problem:
            self._bring_in_line(ends, [end.slot for end in ends], leave)
            self._attach()

    def attached(self) -> list[Attached]:
        """All programs at the hook, whosever they are, in the order in which they run; none where ours cannot be."""
        if self.problem:
            return []
        with _root() as cgroup:
            ids = bpf.sock_ops_programs(cgroup)
        infos = [info for id_ in ids if (info := bpf.prog_by_id(id_)) is not None]
        return [Attached("sock_ops", "cgroup", info.id, info.name) for info in infos]

    def is_ours(self, program: Attached) -> bool:
        return not self.problem and program.id == self._programs.id(PROGRAM)

    @property
    def place(self) -> str:
        """The hook's, for messages."""
        return str(cgroups.root() or "cgroups")

    def _bring_in_line(self, ends: Sequence[End], doubted: Collection[int], leave: Collection[int]) -> int:
        """Returns how many slots were other than they are to be."""
        held, count, doubted = self._held(), 0, set(doubted)
        for end in ends:
            keys = held.pop(end.slot, set())
            is_one_netns = len({key.netns_cookie for key in keys}) == 1
            if is_one_netns and {key.address for key in keys} == set(end.addresses) and end.slot not in doubted:
                continue
            wanted = _keys_if_any(end)
            self._delete(keys - wanted)
            self._put(end.slot, wanted - keys)
            count += keys != wanted
        for slot, keys in held.items():
            if slot not in leave:
                self._delete(keys)
                count += 1
        return count

    def _held(self) -> dict[int, set[TcpLocalKey]]:
        found: defaultdict[int, set[TcpLocalKey]] = defaultdict(set)
        for key, value in self._table.items():
            found[_U32.unpack(value)[0]].add(TcpLocalKey.unpack(key))
        return found

    def _put(self, slot: int, keys: Collection[TcpLocalKey]) -> None:
        for key in keys:
            self._table.update(key.pack(), _U32.pack(slot))

    def _delete(self, keys: Collection[TcpLocalKey]) -> None:
        for key in keys:
            self._table.delete(key.pack())

    @property
    def _table(self) -> Map:
        if self._locals is None:
            raise RuntimeError("round trips are not being timed")
        return self._locals


def _keys(end: End) -> set[TcpLocalKey]:
    cookie = netns.cookie(end.netns_path)
    return {TcpLocalKey(cookie, address) for address in end.addresses}


def _keys_if_any(end: End) -> set[TcpLocalKey]:
    """Those that an end has whose namespace may be gone, which others tell."""
    try:
        return _keys(end)
    except OSError:
        return set()


@contextmanager
def _root() -> Iterator[int]:
    """A descriptor of the root of the cgroups; raises OSError."""
    root = cgroups.root()
    if root is None:
        raise FileNotFoundError("no cgroup2 file system is mounted")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
