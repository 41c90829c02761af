"""The endpoint programs on this host: loaded, attached, and told which endpoints there are.

Programs and maps outlive the process, so `start` takes up what is there, brings it in line and swaps in newer programs
without a packet being lost. Where programs cannot be had, `problem` says why and every other method does nothing: the
networks work without them.

Programs are attached through two tc blocks that the clsact qdiscs of all host ends share (tc(8)): an attachment costs
one netlink message, and one replaced filter changes the program of all endpoints at once. A tcx link waits for an RCU
grace period with the rtnl lock held, about 11 ms on an idle host, in which no other join gets on (docs/adr/0003).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, Literal

from datapath import abi, accel_state, bpf, devices, loader, pinned, rtnl
from datapath.accel_state import Gateways
from datapath.attached import Expected
from datapath.expected import Difference
from datapath.latency import DEFAULT_SAMPLE_EVERY
from datapath.maps import Maps
from datapath.programs import Programs

LOG = logging.getLogger(__name__)

MAX_SLOTS: Final = abi.MAX_ENDPOINTS
BLOCK_OUT: Final = 0x4C530001
BLOCK_IN: Final = 0x4C530002
PROGRAM_OUT: Final = "ls_ep_out"
PROGRAM_IN: Final = "ls_ep_in"

Attachment = Literal["clsact", "tcx"]


@dataclass(frozen=True)
class Port:
    """What the programs know of one endpoint.

    `ifname` is its host end; `is_connected` lets it exchange packets with the other endpoints of its segment. It may
    send from `link_locals` besides the three addresses; one that `is_engines`, from all link-local addresses that are
    no other endpoint's. On an overlay network it exchanges packets with peers (datapath.fast_peers) too.
    """

    ifname: str
    segment: int
    slot: int
    mac: bytes
    ip4: IPv4Address | None
    ip6: IPv6Address | None
    ip6_ll: IPv6Address | None
    is_connected: bool
    link_locals: tuple[IPv4Address | IPv6Address, ...] = ()
    is_engines: bool = False
    is_overlay: bool = False

    def record(self) -> abi.Endpoint:
        return abi.Endpoint(
            segment=self.segment,
            slot=self.slot,
            ip4=self.ip4,
            mac=self.mac,
            flags=(abi.EP_FAST if self.is_connected else 0)
            | (abi.EP_ENGINE if self.is_engines else 0)
            | (abi.EP_OVERLAY if self.is_overlay else 0),
            ip6=self.ip6,
            ip6_ll=self.ip6_ll,
        )

    def neighbours(self) -> dict[IPv4Address | IPv6Address, abi.Neighbour]:
        """Those that are answered for, or else those alone that packets may be from."""
        if not self.is_connected:
            return dict.fromkeys(self.link_locals, abi.Neighbour(mac=self.mac, flags=abi.NEIGH_SILENT))
        addresses = [address for address in (self.ip4, self.ip6, self.ip6_ll) if address is not None]
        return dict.fromkeys([*addresses, *self.link_locals], abi.Neighbour(mac=self.mac, flags=0))


class Accelerator:
    """Thread-safe after `start`. Methods raise OSError naming the map, program or device.

    `programs` is what others that use the same bpffs directory share with it.
    """

    def __init__(
        self,
        bpffs_dir: Path,
        run_dir: Path,
        attachment: Literal["auto", "clsact", "tcx"] = "auto",
        *,
        sample_every: int = DEFAULT_SAMPLE_EVERY,
    ) -> None:
        self.programs = Programs(bpffs_dir, run_dir, sample_every)
        self._links_dir = bpffs_dir / "links"
        self.attachment: Attachment = "tcx" if attachment == "tcx" else "clsact"
        self.problem: str | None = "not started"
        self.fallbacks: dict[str, str] = {}
        self._maps: Maps | None = None

    def start(self, ports: Sequence[Port]) -> None:
        """Loads what is missing and makes the maps hold exactly `ports`, whose host ends all exist.

        New programs are swapped in only after their maps are complete. Never raises: see `problem`.
        """
        try:
            self._maps = self.programs.load()
            self._fill(ports)
            self._swap(ports)
            self.programs.prune()
            self.problem = None
        except (OSError, loader.LoaderError) as error:
            self.problem = str(error)
            self.fallbacks["ebpf"] = self.problem
            LOG.warning("no eBPF programs, networks use the kernel's own path: %s", error)
            self._retire()

    def _retire(self) -> None:
        """Detaches what an earlier linkspan has attached.

        Programs whose maps nobody keeps up to date would send packets to endpoints that have gone.
        """
        self._maps = None
        try:
            with rtnl.Rtnl() as netlink:
                netlink.apply([rtnl.block_clear(BLOCK_OUT), rtnl.block_clear(BLOCK_IN)])
            self._drop_links(keep=())
        except OSError as error:
            LOG.error("programs of an earlier linkspan may still run on endpoints: %s", error)

    def facts(self) -> Mapping[str, str]:
        return self.programs.facts()

    def _fill(self, ports: Sequence[Port]) -> None:
        maps = self._open_maps()
        by_index = {devices.need_ifindex(port.ifname): port for port in ports}
        for index, port in by_index.items():
            self._put(index, port)
        maps.keep_only(
            ifindexes=by_index.keys(),
            fdb={(port.segment, port.mac) for port in ports},
            neighbours={(port.segment, address) for port in ports for address in port.neighbours()},
        )

    def _swap(self, ports: Sequence[Port]) -> None:
        """Puts the loaded programs on the host ends that are there already, in the place of older ones, whichever way
        those are attached."""
        indexes = {port.ifname: devices.need_ifindex(port.ifname) for port in ports}
        if self.attachment == "tcx":
            for ifname, index in indexes.items():
                self._attach_tcx(index, ifname)
            self._drop_links(keep=indexes.keys())
            with rtnl.Rtnl() as netlink:
                netlink.apply([rtnl.clsact_delete(index, ifname) for ifname, index in indexes.items()])
            return
        if ports:  # else there is no shared block
            qdiscs = [rtnl.clsact_add(index, ifname, BLOCK_OUT, BLOCK_IN) for ifname, index in indexes.items()]
            with rtnl.Rtnl() as netlink:
                netlink.apply(
                    [
                        *qdiscs,
                        rtnl.block_program(BLOCK_OUT, self.programs[PROGRAM_OUT], PROGRAM_OUT, replace=True),
                        rtnl.block_program(BLOCK_IN, self.programs[PROGRAM_IN], PROGRAM_IN, replace=True),
                    ]
                )
        self._drop_links(keep=())

    def _drop_links(self, keep: Collection[str]) -> None:
        """Detaches the tcx links of all host ends but these."""
        for pin in self._links_dir.iterdir() if self._links_dir.is_dir() else ():
            if pin.name.rpartition("-")[0] not in keep:
                pinned.detach(pin)

    def attach(self, port: Port) -> None:
        """Tells the programs of the endpoint and runs them on its host end, to go on from what its slot holds."""
        if self.problem:
            return
        index = devices.need_ifindex(port.ifname)
        self._put(index, port)
        if self.attachment == "tcx":
            self._attach_tcx(index, port.ifname)
            return
        with rtnl.Rtnl() as netlink:
            netlink.apply(
                [
                    rtnl.clsact_add(index, port.ifname, BLOCK_OUT, BLOCK_IN),
                    rtnl.block_program(BLOCK_OUT, self.programs[PROGRAM_OUT], PROGRAM_OUT, replace=False),
                    rtnl.block_program(BLOCK_IN, self.programs[PROGRAM_IN], PROGRAM_IN, replace=False),
                ]
            )

    def detach(self, port: Port) -> None:
        """Makes the programs forget the endpoint; on its host end, which is about to go, they then do nothing."""
        if self.problem:
            return
        maps = self._open_maps()
        maps.fdb_delete(port.segment, port.mac)
        for address in port.neighbours():
            maps.neighbour_delete(port.segment, address)
        index = devices.ifindex(port.ifname)
        if index is not None:
            maps.endpoint_delete(index)
        else:
            maps.endpoint_delete_slot(port.slot)
        for direction in ("out", "in"):
            (self._links_dir / f"{port.ifname}-{direction}").unlink(missing_ok=True)

    def add_gateway(self, segment: int, address: IPv4Address | IPv6Address, mac: bytes) -> None:
        """Has ARP requests and neighbour solicitations for a gateway answered by the programs."""
        if self._maps is not None:
            self._maps.neighbour_put(segment, address, abi.Neighbour(mac=mac, flags=abi.NEIGH_ROUTER))

    def delete_gateway(self, segment: int, address: IPv4Address | IPv6Address) -> None:
        if self._maps is not None:
            self._maps.neighbour_delete(segment, address)

    def differences(self, ports: Sequence[Port], gateways: Gateways) -> list[tuple[str, Difference]]:
        """What the maps hold other than they are to, when these are all endpoints and gateways, with the host end
        concerned ("" for none); changes nothing. Host ends that are gone are passed over."""
        if self.problem:
            return []
        maps, by_index = self._open_maps(), _by_index(ports)
        found = list(accel_state.missing(maps, by_index, gateways))
        extras = accel_state.extra(maps, by_index, gateways)
        return found + [("", Difference("map-extra", each.what)) for each in extras]

    def mend(self, ports: Sequence[Port], gateways: Gateways) -> None:
        """Deletes what the maps have too much, pins again what was unpinned, and puts the loaded programs in the place
        of others' that were attached under their name. `ports` are all that there are, or are coming."""
        if self.problem:
            return
        by_index = _by_index(ports)
        for each in list(accel_state.extra(self._open_maps(), by_index, gateways)):
            each.delete()
        self.programs.pin_again()
        self._swap(list(by_index.values()))

    def attachments(self, ports: Sequence[Port]) -> list[Expected]:
        """What runs at these host ends when all is well."""
        if self.problem:
            return []
        out, into = self.programs.id(PROGRAM_OUT), self.programs.id(PROGRAM_IN)
        found = [Expected(port.ifname, "ingress", PROGRAM_OUT, out) for port in ports]
        return found + [Expected(port.ifname, "egress", PROGRAM_IN, into) for port in ports]

    def counters(self) -> tuple[dict[int, abi.Counters], dict[int, dict[str, int]]]:
        """(counters, drops by reason) by slot, of the slots that an endpoint has."""
        if self.problem:
            return {}, {}
        maps = self._open_maps()
        return maps.counters(maps.endpoint_slots()), maps.drops()

    def knows(self, ifname: str) -> bool:
        """Whether the programs count for the endpoint behind a host end."""
        index = None if self.problem else devices.ifindex(ifname)
        return index is not None and self._open_maps().endpoint(index) is not None

    def _put(self, index: int, port: Port) -> None:
        """Senders are known before receivers, so that nobody is sent what would be dropped on the way back."""
        maps = self._open_maps()
        maps.endpoint_put(index, port.record())
        maps.fdb_put(port.segment, port.mac, abi.FdbEntry(ifindex=index, slot=port.slot))
        for address, neighbour in port.neighbours().items():
            maps.neighbour_put(port.segment, address, neighbour)

    def _attach_tcx(self, index: int, ifname: str) -> None:
        """One link a direction, pinned; an existing link gets the new program in place."""
        self._links_dir.mkdir(exist_ok=True)
        for program, direction in ((PROGRAM_OUT, "out"), (PROGRAM_IN, "in")):
            pin = self._links_dir / f"{ifname}-{direction}"
            fd, is_egress = self.programs[program], direction == "in"
            pinned.attach(pin, fd, index, partial(bpf.tcx_attach, fd, index, is_egress))

    def _open_maps(self) -> Maps:
        if self._maps is None:
            raise RuntimeError("the accelerator was not started")
        return self._maps


def _by_index(ports: Sequence[Port]) -> dict[int, Port]:
    return {index: port for port in ports if (index := devices.ifindex(port.ifname)) is not None}
