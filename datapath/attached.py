"""Which programs are attached to the devices of a network namespace, whoever has attached them, in the order in which
packets meet them: XDP, then tcx, then clsact filters by priority.

Source: Linux net/core/dev.c (__netif_receive_skb_core, sch_handle_ingress, sch_handle_egress).
"""

from __future__ import annotations

import pwd
import re
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from datapath import bpf, rtnl, rtnl_read
from datapath.rtnl_read import Clsact, Filter, Xdp

Hook = Literal["ingress", "egress"]

_PARENTS: Final[Mapping[Hook, int]] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}


@dataclass(frozen=True, slots=True)
class Expected:
    """The program that is to run at a hook of a device: its name, and the id of the one that is loaded."""

    ifname: str
    hook: Hook
    name: str
    id: int


@dataclass(frozen=True, slots=True)
class Attached:
    """One program at a hook, or a tc filter without one, whose `id` is 0 and `name` its kind.

    `how` is "native XDP", "generic XDP", "tcx" or "clsact"; `priority` is the filter's.
    """

    hook: Hook
    how: str
    id: int
    name: str
    priority: int = 0

    def __str__(self) -> str:
        what = f"program {self.name} (id {self.id})" if self.id else f"a {self.name} filter"
        return f"{what} at the {self.hook} by {self.how}"


class Hooks:
    """The hooks of all devices of the calling thread's network namespace, as they are when this is made.

    Raises NetlinkError, and OSError without CAP_BPF. Close to what `tc filter` and `bpftool net` show, for less.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._blocks: dict[int, list[Filter]] = {}
        with rtnl.Rtnl() as netlink:
            self._xdp: dict[int, Xdp] = rtnl_read.xdp(netlink)
            self._clsact: dict[int, Clsact] = rtnl_read.clsacts(netlink)

    def blocks(self, index: int) -> tuple[int, int]:
        """The shared blocks of a device's clsact qdisc, 0 for none: that of its ingress, that of its egress."""
        found = self._clsact.get(index)
        return (0, 0) if found is None else (found.ingress_block, found.egress_block)

    def at(self, index: int, hook: Hook) -> list[Attached]:
        """The programs at one hook of a device, in the order in which they run; none of a device that is gone."""
        found = []
        if hook == "ingress" and (xdp := self._xdp.get(index)) is not None:
            found.append(self._program(hook, f"{'generic' if xdp.is_generic else 'native'} XDP", xdp.program))
        found += [self._program(hook, "tcx", each) for each in bpf.tcx_programs(index, hook == "egress")]
        for each in self._filters(index, hook):
            if each.program:
                found.append(self._program(hook, "clsact", each.program, each.priority))
            else:
                found.append(Attached(hook, "clsact", 0, each.kind, each.priority))
        return found

    def in_block(self, block: int) -> list[Filter]:
        """The filters of a shared block, asked for once."""
        if block not in self._blocks:
            with rtnl.Rtnl() as netlink:
                self._blocks[block] = rtnl_read.block_filters(netlink, block)
        return self._blocks[block]

    def _filters(self, index: int, hook: Hook) -> list[Filter]:
        clsact = self._clsact.get(index)
        if clsact is None or (clsact.kind == "ingress" and hook == "egress"):
            return []
        block = clsact.ingress_block if hook == "ingress" else clsact.egress_block
        if block:
            return self.in_block(block)
        with rtnl.Rtnl() as netlink:
            return rtnl_read.filters(netlink, index, _PARENTS[hook])

    def _program(self, hook: Hook, how: str, id: int, priority: int = 0) -> Attached:
        if id not in self._names:
            info = bpf.prog_by_id(id)
            self._names[id] = "(gone)" if info is None else info.name or "(no name)"
        return Attached(hook, how, id, self._names[id], priority)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a program comes from, as far as the kernel tells: the processes that hold it, as `holders` has them, who
    has loaded it, and when (UTC)."""

    held_by: tuple[str, ...]
    user: str
    loaded: datetime


def origins(ids: Collection[int]) -> dict[int, Origin]:
    """Of those programs that are still there; raises OSError."""
    who, found = holders(ids), {}
    for id in ids:
        info = bpf.prog_by_id(id)
        if info is not None:
            ago = timedelta(microseconds=(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - info.loaded_ns) // 1000)
            loaded = (datetime.now(UTC) - ago).replace(microsecond=0)
            found[id] = Origin(tuple(who.get(id, ())), _user(info.user_id), loaded)
    return found


def _user(id: int) -> str:
    try:
        return pwd.getpwuid(id).pw_name
    except KeyError:
        return f"user {id}"


def holders(ids: Collection[int]) -> dict[int, list[str]]:
    """The processes that have one of these programs open, or a link of it, as "cilium-agent (process 7)".

    None for one that only its device or a pin holds. Looks at every descriptor of every process (proc(5), fdinfo).
    """
    found: defaultdict[int, list[str]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/fdinfo/*"):
        try:
            said = re.search(r"^prog_id:\s+(\d+)$", path.read_text(), re.MULTILINE)
            if said is not None and int(said[1]) in ids:
                pid = path.parts[2]
                who = f"{Path('/proc', pid, 'comm').read_text().strip()} (process {pid})"
                if who not in found[int(said[1])]:
                    found[int(said[1])].append(who)
        except OSError:  # it has ended, or closed it
            continue
    return dict(found)
