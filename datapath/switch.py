"""Switched parents: stations that are veth pairs, for which programs do what a macvlan device does.

    sandbox eth0 -- veth -- host end (ls_switch_out, ls_switch_to)        parent (ls_switch_in, ls_parent_out) -- wire
                                     port of a bridge that copies packets for groups

The bridge has no address and takes nothing in: ls_switch_out leaves nothing for the kernel. Programs at the host ends
are in two tc blocks that all host ends share, as those of bridge networks are (docs/adr/0003). At the parent unicast
for stations is taken by tc or, where that is asked for, by XDP before the kernel makes a packet of it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from datapath import abi, bpf, devices, pinned, rtnl
from datapath.maps import Maps
from datapath.programs import Programs

LOG = logging.getLogger(__name__)

BLOCK_OUT: Final = 0x4C530003
BLOCK_TO: Final = 0x4C530004
PROGRAM_OUT: Final = "ls_switch_out"
PROGRAM_TO: Final = "ls_switch_to"
PROGRAM_XDP: Final = "ls_switch_xdp"

Hook = Literal["tc", "xdp"]


@dataclass(frozen=True)
class Switching:
    """How the stations of a parent are switched: by which bridge, and what takes packets for them from the wire."""

    bridge: str
    hook: Hook = "tc"


class Switch:
    """The programs and map entries of switched stations. Methods raise OSError and may be called again."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self.generic: dict[str, str] = {}
        """Parents whose XDP program the driver does not run itself, and what it said."""

    @property
    def _directory(self) -> Path:
        return self._programs.bpffs_dir / "switches"

    def open(self, maps: Maps, index: int, parent: str, switching: Switching) -> None:
        """Has the programs of a parent know its bridge, and runs the XDP program there if that is asked for."""
        maps.flooder_put(index, devices.need_ifindex(switching.bridge))
        if switching.hook == "xdp":
            self._attach_xdp(index, parent)
        else:
            self._detach_xdp(index, parent)

    def close(self, maps: Maps, index: int, parent: str) -> None:
        maps.flooder_delete(index)
        self._detach_xdp(index, parent)

    def _attach_xdp(self, index: int, parent: str) -> None:
        """In the driver where it can, else generic, which costs what XDP is to save: that is said in `generic`."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        fd, pin = self._programs[PROGRAM_XDP], self._directory / str(index)
        try:
            pinned.attach(pin, fd, index, lambda: bpf.xdp_attach(fd, index))
            self.generic.pop(parent, None)
        except OSError as error:
            # ERANGE: a packet of the device's MTU does not fit a page (drivers/net/veth.c, veth_xdp_set)
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE):
                raise
            pinned.attach(pin, fd, index, lambda: bpf.xdp_attach(fd, index, generic=True))
            self.generic[parent] = str(error)
            LOG.warning("parent %s runs XDP generic, not native: %s", parent, error)

    def _detach_xdp(self, index: int, parent: str) -> None:
        pinned.detach(self._directory / str(index))
        self.generic.pop(parent, None)

    def put(self, maps: Maps, host_ifname: str, station: abi.Endpoint) -> None:
        """Tells the programs of a station, and runs them at its host end; the parent takes in what is for it."""
        host_end, parent = devices.need_ifindex(host_ifname), station.segment & ~abi.PARENT_SEGMENT
        maps.endpoint_put(host_end, station)
        maps.fdb_put(station.segment, station.mac, abi.FdbEntry(ifindex=host_end, slot=station.slot))
        with rtnl.Rtnl() as netlink:
            netlink.apply(
                [
                    rtnl.clsact_add(host_end, host_ifname, BLOCK_OUT, BLOCK_TO),
                    rtnl.block_program(BLOCK_OUT, self._programs[PROGRAM_OUT], PROGRAM_OUT, replace=False),
                    rtnl.block_program(BLOCK_TO, self._programs[PROGRAM_TO], PROGRAM_TO, replace=False),
                    rtnl.mac_filter_add(parent, f"ifindex {parent}", station.mac),
                ]
            )

    def remove(self, maps: Maps, station: abi.Endpoint) -> None:
        """Makes the programs forget a station; its devices may be gone."""
        parent = station.segment & ~abi.PARENT_SEGMENT
        entry = maps.fdb_entry(station.segment, station.mac)
        maps.fdb_delete(station.segment, station.mac)
        if entry is not None:
            maps.endpoint_delete(entry.ifindex)
        with rtnl.Rtnl() as netlink:
            netlink.apply([rtnl.mac_filter_delete(parent, f"ifindex {parent}", station.mac)])

    def renew(self) -> None:
        """Puts the loaded programs in the place of an earlier linkspan's, at all host ends at once."""
        with rtnl.Rtnl() as netlink:
            netlink.apply(
                [
                    rtnl.block_program(BLOCK_OUT, self._programs[PROGRAM_OUT], PROGRAM_OUT, replace=True),
                    rtnl.block_program(BLOCK_TO, self._programs[PROGRAM_TO], PROGRAM_TO, replace=True),
                ]
            )

    def prune(self, maps: Maps, parents: Iterable[int], stations: Iterable[abi.StationKey]) -> None:
        """Deletes what the maps have of switched stations that are none of these, and of parents."""
        kept, open_ = {(abi.PARENT_SEGMENT | key.ifindex, key.mac) for key in stations}, set(parents)
        for key, entry in maps.fdb(at_parents=True).items():
            if (key.segment, key.mac) in kept:
                continue
            if key.mac != b"\xff" * 6:
                maps.fdb_delete(key.segment, key.mac)
                maps.endpoint_delete(entry.ifindex)
            elif key.segment & ~abi.PARENT_SEGMENT not in open_:
                maps.flooder_delete(key.segment & ~abi.PARENT_SEGMENT)
        for pin in self._directory.iterdir() if self._directory.is_dir() else ():
            if int(pin.name) not in open_:
                pinned.detach(pin)
