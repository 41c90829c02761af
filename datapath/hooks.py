"""Programs at the tc hooks of a device that is not ours, beside whatever others have there.

Through tcx links where they can be had: pinned, behind all others' programs. Else through a clsact filter with a
priority and handle of its own, in a clsact qdisc that may be there already; the qdisc goes with the filters if it was
made here and nobody else has come to use it. Both outlive the process: what is attached where is known by pins, and
for clsact by empty directories, in one directory of a bpffs. Devices are known by ifindex, so a new name changes
nothing.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from pyroute2 import IPRoute

from datapath import bpf, pinned, rtnl

Attachment = Literal["clsact", "tcx"]

# tcm_parent of the two hooks of clsact (include/uapi/linux/pkt_sched.h).
_PARENTS: Final = {"in": 0xFFFFFFF2, "out": 0xFFFFFFF3}
PRIORITY: Final = 0x4C53  # behind what people number by hand, before what the kernel numbers (0xC000 and down)
_HANDLE: Final = 1
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EINVAL})


@dataclass(frozen=True)
class Hooks:
    """The hooks of devices in the calling thread's network namespace; `directory` lies on a bpffs.

    Methods raise OSError and may be called again. One thread at a time for a device. Several may share devices if their
    directories lie side by side and their `priority`, which orders clsact filters, differs.
    """

    directory: Path
    attachment: Attachment
    priority: int = PRIORITY

    def attach(self, index: int, label: str, programs: Mapping[str, tuple[str, int]]) -> None:
        """Runs a program, given as (name, descriptor), at the hook "in" (tc ingress) or "out" (tc egress) of a device.

        Programs that an earlier call has attached are replaced, without a packet in between that passes none.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if self.attachment == "tcx":
            self._drop_filters(index, label)
            for hook, (_, fd) in programs.items():
                pinned.attach(self._pin(index, hook), fd, index, partial(bpf.tcx_attach, fd, index, hook == "out"))
            return
        self._drop_links(index)
        with rtnl.Rtnl() as netlink:
            try:
                netlink.apply([_clsact_add(index, label)])
                self._qdisc_mark(index).mkdir(exist_ok=True)
            except rtnl.NetlinkError as error:
                # In an ingress qdisc a filter for the egress would run at the ingress.
                if error.errno != errno.EEXIST or not _has_clsact(index):
                    raise
            self._filters_mark(index).mkdir(exist_ok=True)
            netlink.apply(
                [_filter(index, label, hook, self.priority, name, fd) for hook, (name, fd) in programs.items()]
            )

    def detach(self, index: int, label: str) -> None:
        """Takes away what `attach` has put there, and nothing else; a device that is gone is no error."""
        self._drop_links(index)
        self._drop_filters(index, label)

    def attached(self) -> set[int]:
        """The ifindexes of all devices that `attach` was called for and `detach` was not."""
        return {int(path.name.partition("-")[0]) for path in self._entries()}

    def _entries(self) -> Iterator[Path]:
        yield from self.directory.iterdir() if self.directory.is_dir() else ()

    def _pin(self, index: int, hook: str) -> Path:
        return self.directory / f"{index}-{hook}"

    def _filters_mark(self, index: int) -> Path:
        return self.directory / f"{index}-filters"

    def _qdisc_mark(self, index: int) -> Path:
        return self.directory / f"{index}-qdisc"

    def _drop_links(self, index: int) -> None:
        for hook in _PARENTS:
            pinned.detach(self._pin(index, hook))

    def _drop_filters(self, index: int, label: str) -> None:
        if not self._filters_mark(index).exists():
            return
        with rtnl.Rtnl() as netlink:
            netlink.apply([_filter_delete(index, label, hook, self.priority) for hook in _PARENTS])
            mark = self._qdisc_mark(index)
            heirs = [
                path.parent for path in self.directory.parent.glob(f"*/{index}-filters") if path.parent != mark.parent
            ]
            if mark.exists() and heirs:
                mark.rename(heirs[0] / mark.name)
            elif mark.exists():
                if not _has_filters(index):
                    netlink.apply([rtnl.clsact_delete(index, label)])
                mark.rmdir()
        self._filters_mark(index).rmdir()


def attach_inside(netns_path: str, ifname: str, name: str, prog_fd: int, classid: int) -> None:
    """Runs a program at the egress of a device in a namespace, as a clsact filter whose class it reads as tc_classid.

    Not through a tcx link, which knows no class. It ends with the device. Replaces the one of an earlier call; raises
    OSError.
    """
    with rtnl.Rtnl(netns_path) as netlink:
        index = netlink.ifindex(ifname)
        if index is None:
            raise OSError(errno.ENODEV, f"there is no device {ifname} in {netns_path}")
        clsact = _clsact_add(index, ifname, frozenset({errno.EEXIST}))
        netlink.apply([clsact, _filter(index, ifname, "out", PRIORITY, name, prog_fd, classid)])


def _clsact_add(index: int, label: str, tolerated: frozenset[int] = frozenset()) -> rtnl.Request:
    body = struct.pack("=BxxxiIII", 0, index, rtnl.TC_H_CLSACT & 0xFFFF0000, rtnl.TC_H_CLSACT, 0)
    body += rtnl.text(rtnl.TCA_KIND, "clsact")
    return rtnl.Request(
        f"add clsact to {label}", rtnl.RTM_NEWQDISC, rtnl.NLM_F_CREATE | rtnl.NLM_F_EXCL, body, tolerated
    )


def _filter_header(index: int, hook: str, priority: int) -> bytes:
    info = priority << 16 | socket.htons(rtnl.ETH_P_ALL)
    return struct.pack("=BxxxiIII", 0, index, _HANDLE, _PARENTS[hook], info)


def _filter(
    index: int, label: str, hook: str, priority: int, name: str, prog_fd: int, classid: int = 0
) -> rtnl.Request:
    """A direct-action program (tc-bpf(8)); one that has the same place is replaced."""
    options = rtnl.nest(
        rtnl.TCA_OPTIONS,
        rtnl.u32(rtnl.TCA_BPF_FD, prog_fd),
        rtnl.text(rtnl.TCA_BPF_NAME, name),
        rtnl.u32(rtnl.TCA_BPF_FLAGS, rtnl.TCA_BPF_FLAG_ACT_DIRECT),
        *([rtnl.u32(rtnl.TCA_BPF_CLASSID, classid)] if classid else []),
    )
    body = _filter_header(index, hook, priority) + rtnl.text(rtnl.TCA_KIND, "bpf") + options
    return rtnl.Request(f"attach {name} to {label}", rtnl.RTM_NEWTFILTER, rtnl.NLM_F_CREATE, body)


def _filter_delete(index: int, label: str, hook: str, priority: int) -> rtnl.Request:
    body = _filter_header(index, hook, priority) + rtnl.text(rtnl.TCA_KIND, "bpf")
    return rtnl.Request(f"detach the program from {label}", rtnl.RTM_DELTFILTER, 0, body, _GONE)


def _has_clsact(index: int) -> bool:
    with IPRoute() as ip:
        return any(
            qdisc["handle"] == rtnl.TC_H_CLSACT & 0xFFFF0000 and qdisc.get_attr("TCA_KIND") == "clsact"
            for qdisc in ip.get_qdiscs(index=index)
        )


def _has_filters(index: int) -> bool:
    with IPRoute() as ip:
        return any(list(ip.get_filters(index=index, parent=parent)) for parent in _PARENTS.values())
