"""The programs on the parents of macvlan endpoints: attached, and told which endpoints (stations) there are.

They police and count what stations send, and let the host and the stations reach each other where `host_access` is
on (bpf/tc_parent_out.c says how). Programs and maps outlive the process; `start` takes up what is there. Where programs
cannot be had, `problem` says why and every other method does nothing: stations then have the kernel's macvlan alone.

A packet for a group (broadcast, multicast) is counted for its sender, not for those that macvlan hands it to; a
station's device counts all that it gets.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Final, Literal

from datapath import abi, devices, features, loader
from datapath.attached import Expected
from datapath.expected import Difference
from datapath.hooks import Attachment, Hooks, attach_inside
from datapath.maps import Maps
from datapath.programs import Programs
from datapath.switch import PROGRAM_XDP, Switch, Switching

LOG = logging.getLogger(__name__)

PROGRAM_OUT: Final = "ls_parent_out"
PROGRAM_IN: Final = "ls_parent_in"
PROGRAM_SWITCH: Final = "ls_switch_in"
PROGRAM_LIMIT: Final = "ls_station_out"
_SIOCGIFHWADDR: Final = 0x8927


@dataclass(frozen=True)
class Station:
    """What the programs know of one macvlan endpoint.

    `slot` is unique among all endpoints of this machine. `mode` is macvlan's. Without `host_access` it cannot reach the
    host even where its parent allows that. It may send from `link_locals` besides the three addresses; one that
    `is_engines`, from all link-local addresses that are no other's. `broadcast_limit` is in packets a second, 0 for
    none. With a `host_ifname` it is a veth pair with this host end on a switched parent, else a macvlan device.
    """

    slot: int
    mac: bytes
    ip4: IPv4Address | None
    ip6: IPv6Address | None
    ip6_ll: IPv6Address | None
    mode: str = "bridge"
    host_access: bool = True
    link_locals: tuple[IPv4Address | IPv6Address, ...] = ()
    is_engines: bool = False
    broadcast_limit: int = 0
    host_ifname: str = ""

    def record(self, ifindex: int) -> abi.Endpoint:
        return abi.Endpoint(
            segment=abi.PARENT_SEGMENT | ifindex,
            slot=self.slot,
            ip4=self.ip4,
            mac=self.mac,
            flags=(abi.EP_FAST if self.host_access else 0)
            | (abi.EP_SWITCHED if self.host_ifname else abi.EP_LIMITED if self.broadcast_limit else 0)
            | (abi.EP_ENGINE if self.is_engines else 0)
            | {"bridge": abi.EP_BRIDGED, "vepa": abi.EP_VEPA}.get(self.mode, 0),
            ip6=self.ip6,
            ip6_ll=self.ip6_ll,
        )

    def neighbours(self) -> dict[IPv4Address | IPv6Address, abi.Neighbour]:
        """Those that the host is answered for, or else those alone that packets may be from."""
        if not self.host_access:
            return dict.fromkeys(self.link_locals, abi.Neighbour(mac=self.mac, flags=abi.NEIGH_SILENT))
        addresses = [address for address in (self.ip4, self.ip6, self.ip6_ll) if address is not None]
        return dict.fromkeys([*addresses, *self.link_locals], abi.Neighbour(mac=self.mac, flags=0))


class Uplinks:
    """Thread-safe after `start`. Methods raise OSError naming the map, program or device.

    Parents are given by name and remembered by ifindex: a name stands for the device that has it, or else for the one
    that had it when it was attached.
    """

    def __init__(self, programs: Programs, attachment: Literal["auto", "clsact", "tcx"] = "auto") -> None:
        """`auto` means tcx links where the kernel has them (6.6), clsact filters elsewhere."""
        self.programs = programs
        self._switch = Switch(programs)
        self._wanted = attachment
        self._maps: Maps | None = None
        self._lock = threading.Lock()
        self._known: dict[str, int] = {}
        self.problem: str | None = "not started"
        self.fallbacks: dict[str, str] = {}
        self.attachment: Attachment = "clsact"

    def start(
        self,
        stations_by_parent: Mapping[str, Sequence[Station]],
        host_access: Mapping[str, bool],
        switched: Mapping[str, Switching] = MappingProxyType({}),
    ) -> None:
        """Makes the maps hold exactly these stations, and the programs run on the named parents alone.

        A parent without an entry in `host_access` has none. One that does not exist, or does not take the programs, is
        passed over and named in `fallbacks`. Never raises: see `problem`.
        """
        self.attachment = self._choose()
        names = sorted({*stations_by_parent, *host_access})
        try:
            self._maps = self.programs.load()
        except (OSError, loader.LoaderError) as error:
            self._give_up(str(error), logging.DEBUG)  # the accelerator of the bridges warns of the same
            return
        try:
            self._known = {name: index for name in names if (index := devices.ifindex(name)) is not None}
            self._fill(stations_by_parent, host_access)
            if self.programs.are_new and any(each.host_ifname for all_ in stations_by_parent.values() for each in all_):
                self._switch.renew()
            self._clear()
        except OSError as error:
            self._give_up(str(error), logging.WARNING)
            return
        self.problem = None
        for name in names:
            try:
                self._run_on(devices.need_ifindex(name), name, switched.get(name))
            except OSError as error:
                self.fallbacks[f"parent {name}"] = str(error)
                LOG.warning("parent %s has no eBPF programs: %s", name, error)

    def _choose(self) -> Attachment:
        if self._wanted == "auto":
            return "tcx" if features.check("tcx").answer is features.Answer.YES else "clsact"
        return self._wanted

    def _give_up(self, problem: str, level: int) -> None:
        """Detaches what an earlier linkspan has attached: nobody keeps its maps up to date."""
        self.problem = problem
        self.fallbacks["ebpf"] = problem
        LOG.log(level, "macvlan stations cannot reach their host and are not policed: %s", problem)
        for index in self._hooks.attached():
            try:
                self._hooks.detach(index, f"ifindex {index}")
            except OSError as error:
                LOG.error("programs of an earlier linkspan may still run on ifindex %d: %s", index, error)

    def _fill(self, stations_by_parent: Mapping[str, Sequence[Station]], host_access: Mapping[str, bool]) -> None:
        maps = self._open_maps()
        stations = {self._known[name]: list(each) for name, each in stations_by_parent.items() if name in self._known}
        keys = {(index, station.mac) for index, each in stations.items() for station in each}
        addresses = {
            (abi.PARENT_SEGMENT | index, address)
            for index, each in stations.items()
            for station in each
            for address in station.neighbours()
        }
        self._switch.prune(
            maps,
            stations,
            [abi.StationKey(index, each.mac) for index, all_ in stations.items() for each in all_ if each.host_ifname],
        )
        strays = [key for key in maps.stations() if (key.ifindex, key.mac) not in keys]
        for key in strays:
            maps.station_delete(key.ifindex, key.mac)
        for segment, address in maps.neighbours(at_parents=True):
            if (segment, address) not in addresses:
                maps.neighbour_delete(segment, address)
        for index in maps.parents():
            if index not in self._known.values():
                maps.parent_delete(index)
        for name, index in self._known.items():
            self._put_parent(index, name, host_access.get(name, False))
            for station in stations.get(index, ()):
                self._put(index, station)

    def _clear(self) -> None:
        for index in self._hooks.attached() - set(self._known.values()):
            self._hooks.detach(index, f"ifindex {index}")

    def attach(self, parent: str, host_access: bool, switching: Switching | None = None) -> None:
        """Runs the programs on a parent, which is a switched one if it says how.

        To be called again when `host_access` changes or the parent has got another MAC. The host cannot be reached
        through a parent in passthru mode, all of whose packets go to the one station.
        """
        if self.problem:
            return
        with self._lock:
            index = devices.need_ifindex(parent)
            self._know(parent, index)
            self._put_parent(index, parent, host_access)
            self._run_on(index, parent, switching)

    def detach(self, parent: str) -> None:
        """Takes the programs off a parent, and makes them forget its stations; the parent may be gone."""
        if self.problem:
            return
        with self._lock:
            index = self._index(parent)
            if index is not None:
                self._forget(index, parent)
                self._known = {name: known for name, known in self._known.items() if known != index}

    def add(self, parent: str, station: Station) -> None:
        """Tells the programs of a station on a parent that they run on, to go on from what its slot holds."""
        if self.problem:
            return
        index = self._index(parent)
        if index is None:
            raise OSError(f"no programs run on the parent {parent}: it was not attached")
        self._put(index, station)

    def remove(self, parent: str, station: Station) -> None:
        """Makes the programs forget a station; on a parent that is not attached there is none."""
        if self.problem:
            return
        index = self._index(parent)
        known = None if index is None else self._open_maps().station(index, station.mac)
        if index is not None and known is not None and known.slot == station.slot:
            for address in station.neighbours():
                self._open_maps().neighbour_delete(known.segment, address)
            self._remove(index, known)

    def limit_device(self, netns_path: str, ifname: str, slot: int) -> None:
        """Has a station's macvlan device drop what it sends to everybody past its limit.

        `ifname` is the device in that namespace, and loses the program in any other.
        """
        if not self.problem:
            attach_inside(netns_path, ifname, PROGRAM_LIMIT, self.programs[PROGRAM_LIMIT], slot)

    @property
    def are_new(self) -> bool:
        """Whether the programs at stations' devices, which `start` does not see to, are to be replaced."""
        return not self.problem and self.programs.are_new

    def stations(self, parent: str) -> int:
        """How many stations the programs know on a parent."""
        index = None if self.problem else self._index(parent)
        return 0 if index is None else sum(key.ifindex == index for key in self._open_maps().stations())

    def knows(self, parent: str, mac: bytes) -> bool:
        """Whether the programs know a station with that MAC on the device that is the parent now."""
        index = None if self.problem else devices.ifindex(parent)
        return index is not None and self._open_maps().station(index, mac) is not None

    def has_host_access(self, parent: str, also: Station) -> bool:
        """Whether any station on the parent, or `also`, may reach the host."""
        index = None if self.problem else self._index(parent)
        if also.host_access or index is None:
            return also.host_access
        known = self._open_maps().stations()
        return any(key.ifindex == index and record.flags & abi.EP_FAST for key, record in known.items())

    def differences(self, parent: str, stations: Sequence[Station]) -> list[tuple[bytes, Difference]]:
        """What the maps hold other than they are to of these stations on a parent, with the station's MAC; changes
        nothing."""
        index = None if self.problem else devices.ifindex(parent)
        if index is None:
            return []
        maps, found = self._open_maps(), []
        for station in stations:
            record = station.record(index)
            has = maps.station(index, station.mac)
            if has != record:
                found.append((station.mac, _difference("map stations", has)))
            for address, neighbour in station.neighbours().items():
                held = maps.neighbour(record.segment, address)
                if held != neighbour:
                    found.append((station.mac, _difference(f"map neigh at {address}", held)))
        if stations and index not in maps.parents():
            found.append((stations[0].mac, Difference("map-missing", f"map parents does not have {parent}")))
        return found

    def extra(self, stations_by_parent: Mapping[str, Sequence[Station]]) -> list[abi.StationKey]:
        """The stations that the maps hold besides these."""
        if self.problem:
            return []
        wanted = {
            (index, station.mac)
            for parent, stations in stations_by_parent.items()
            if (index := self._index(parent)) is not None
            for station in stations
        }
        return [key for key in self._open_maps().stations() if (key.ifindex, key.mac) not in wanted]

    def drop(self, keys: Sequence[abi.StationKey]) -> None:
        """Makes the programs forget stations that nobody knows."""
        for key in keys:
            record = self._open_maps().station(key.ifindex, key.mac)
            if record is not None:
                self._remove(key.ifindex, record)

    def attachments(self, parent: str, switching: Switching | None) -> list[Expected]:
        """What runs at a parent's hooks when all is well."""
        if self.problem or f"parent {parent}" in self.fallbacks:
            return []
        into = [PROGRAM_IN if switching is None else PROGRAM_SWITCH]
        if switching is not None and switching.hook == "xdp":
            into.insert(0, PROGRAM_XDP)
        found = [Expected(parent, "ingress", name, self.programs.id(name)) for name in into]
        return [*found, Expected(parent, "egress", PROGRAM_OUT, self.programs.id(PROGRAM_OUT))]

    def counters(self) -> tuple[dict[int, abi.Counters], dict[int, dict[str, int]]]:
        """(counters, drops by reason) by slot, of all stations."""
        if self.problem:
            return {}, {}
        maps = self._open_maps()
        slots = maps.station_slots()
        return maps.counters(slots), {slot: drops for slot, drops in maps.drops().items() if slot in slots}

    def generic(self, parent: str) -> str | None:
        """Why a parent that is to run XDP natively runs it generic, or None."""
        return self._switch.generic.get(parent)

    def facts(self) -> Mapping[str, str]:
        return {**self.programs.facts(), "parent attachment": self.attachment}

    @property
    def _hooks(self) -> Hooks:
        return Hooks(self.programs.bpffs_dir / "parents", self.attachment)

    def _index(self, parent: str) -> int | None:
        index = devices.ifindex(parent)
        return index if index in self._known.values() else self._known.get(parent)

    def _know(self, parent: str, index: int) -> None:
        """Gives the name to this device; another that had it is forgotten if gone, else kept under its new name."""
        before = self._known.get(parent)
        if before is not None and before != index:
            try:
                self._known[socket.if_indextoname(before)] = before
            except OSError:
                self._forget(before, parent)
        self._known[parent] = index

    def _run_on(self, index: int, parent: str, switching: Switching | None) -> None:
        names = {"out": PROGRAM_OUT, "in": PROGRAM_IN if switching is None else PROGRAM_SWITCH}
        self._hooks.attach(index, parent, {hook: (name, self.programs[name]) for hook, name in names.items()})
        if switching is not None:
            self._switch.open(self._open_maps(), index, parent, switching)

    def _put_parent(self, index: int, parent: str, host_access: bool) -> None:
        flags = abi.PARENT_HOST if host_access else 0
        record = abi.Parent(segment=abi.PARENT_SEGMENT | index, mac=_mac(parent), flags=flags)
        self._open_maps().parent_put(index, record)

    def _put(self, index: int, station: Station) -> None:
        maps = self._open_maps()
        record = station.record(index)
        known = maps.station(index, station.mac)
        maps.limit_put(station.slot, station.broadcast_limit)
        maps.station_put(index, record)
        if station.host_ifname:
            self._switch.put(maps, station.host_ifname, record)
        kept = station.neighbours()
        if known is not None and known != record:
            for (segment, address), neighbour in maps.neighbours(at_parents=True).items():
                if (segment, neighbour.mac) == (record.segment, station.mac) and address not in kept:
                    maps.neighbour_delete(segment, address)
        for address, neighbour in kept.items():
            maps.neighbour_put(record.segment, address, neighbour)

    def _remove(self, index: int, record: abi.Endpoint) -> None:
        maps = self._open_maps()
        maps.station_delete(index, record.mac)
        if record.flags & abi.EP_SWITCHED:
            self._switch.remove(maps, record)

    def _forget(self, index: int, parent: str) -> None:
        maps = self._open_maps()
        maps.parent_delete(index)
        for key, record in maps.stations().items():
            if key.ifindex == index:
                self._remove(index, record)
        for segment, address in maps.neighbours(at_parents=True):
            if segment == abi.PARENT_SEGMENT | index:
                maps.neighbour_delete(segment, address)
        self._switch.close(maps, index, parent)
        self._hooks.detach(index, parent)

    def _open_maps(self) -> Maps:
        if self._maps is None:
            raise RuntimeError("the uplinks were not started")
        return self._maps


def _difference(where: str, has: object) -> Difference:
    if has is None:
        return Difference("map-missing", f"{where} does not have it")
    return Difference("map-wrong", f"{where} has other facts than its record")


def _mac(ifname: str) -> bytes:
    """The device's address (netdevice(7), SIOCGIFHWADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        reply = fcntl.ioctl(control, _SIOCGIFHWADDR, struct.pack("16s24x", ifname.encode()))
    return bytes(struct.unpack_from("=18x6s", reply)[0])
