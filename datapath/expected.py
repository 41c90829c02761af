"""Devices as they are to be, and what one namespace has instead.

A `Snapshot` is a handful of dumps, so that thousands of devices are compared for little more than one. What a device
has besides is no difference, but for addresses of the host's own devices, which nobody else gives them.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import MappingProxyType

from datapath import links, rtnl, rtnl_read
from datapath.rtnl_read import BridgePort

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it is to be. `code` tells its kind and never changes its meaning."""

    code: str
    what: str


@dataclass(frozen=True)
class Device:
    """A device that is to be up; None stands for whatever it has.

    `master` is the bridge it is a port of; `fdb` the MACs that the bridge is to know behind it; `neighbours` are
    permanent; `gateways` those of default routes. With `is_ours_alone` it has no other addresses than `addresses` and
    link-local ones.
    """

    ifname: str
    kind: str | None = None
    master: str | None = None
    mac: bytes | None = None
    mtu: int | None = None
    port: BridgePort | None = None
    addresses: Collection[Interface] = ()
    fdb: Collection[bytes] = ()
    neighbours: Mapping[Address, bytes] = field(default_factory=lambda: MappingProxyType({}))
    gateways: Collection[Address] = ()
    is_ours_alone: bool = False


class Snapshot:
    """What a network namespace holds, each table as it is when it is first asked for. A context manager.

    Raises OSError when the namespace at `netns_path` (None: the calling thread's) is not there.
    """

    def __init__(self, netns_path: str | None = None) -> None:
        self._netlink = rtnl.Rtnl(netns_path)
        self.links = {link.ifname: link for link in links.dump(self._netlink.fileno())}

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exc: object) -> None:
        self._netlink.close()

    def differences(self, device: Device) -> Iterator[Difference]:
        """What is not as `device` says; of one that is missing no more than that."""
        link = self.links.get(device.ifname)
        if link is None:
            yield Difference("device-missing", "the device is missing")
            return
        if device.kind is not None and link.kind != device.kind:
            yield Difference("name-taken", f"it is no {device.kind} device, but {link.kind or 'another'}")
            return
        if not link.flags & rtnl.IFF_UP:
            yield Difference("device-down", "the device is down")
        if device.mac is not None and link.mac != device.mac:
            yield Difference("device-mac", f"its MAC is {link.mac.hex(':')}, not {device.mac.hex(':')}")
        if device.mtu is not None and link.mtu != device.mtu:
            yield Difference("device-mtu", f"its MTU is {link.mtu}, not {device.mtu}")
        if device.master is not None:
            yield from self._of_port(device, link)
        yield from self._of_addresses(device, link.ifindex)

    def _of_port(self, device: Device, link: links.LinkInfo) -> Iterator[Difference]:
        master = self.links.get(device.master or "")
        if master is None or link.master != master.ifindex:
            yield Difference("device-elsewhere", f"it is no port of bridge {device.master}")
            return
        has = self._ports.get(link.ifindex)
        if device.port is not None and has is not None:
            for name in ("learning", "unicast_flood", "isolated"):
                wanted = getattr(device.port, name)
                if getattr(has, name) != wanted:
                    yield Difference("port-setting", f"as a bridge port it has {name} {'off' if wanted else 'on'}")
        for mac in device.fdb:
            if mac not in self._fdb.get(link.ifindex, ()):
                yield Difference("fdb-missing", f"bridge {device.master} does not know {mac.hex(':')} behind it")

    def _of_addresses(self, device: Device, index: int) -> Iterator[Difference]:
        has = self._addresses.get(index, set())
        for address in device.addresses:
            if address not in has:
                yield Difference("address-missing", f"address {address} is missing")
        if device.is_ours_alone:
            for address in sorted(has.difference(device.addresses), key=str):
                if not address.is_link_local:
                    yield Difference("address-extra", f"address {address} is not Linkspan's")
        known = self._neighbours.get(index, {}) if device.neighbours else {}
        for each, mac in device.neighbours.items():
            found = known.get(each)
            if found is None or found.mac != mac or not found.is_permanent:
                state = "is missing" if found is None else f"is {found.mac.hex(':') or 'unknown'}, not {mac.hex(':')}"
                yield Difference("neighbour-missing", f"neighbour {each} {state}")
        for gateway in device.gateways:
            if gateway not in self._routes.get(index, ()):
                yield Difference("route-missing", f"the default route by {gateway} is missing")

    @cached_property
    def _addresses(self) -> dict[int, set[Interface]]:
        return rtnl_read.addresses(self._netlink)

    @cached_property
    def _routes(self) -> dict[int, set[Address]]:
        return rtnl_read.default_routes(self._netlink)

    @cached_property
    def _neighbours(self) -> dict[int, dict[Address, rtnl_read.Neighbour]]:
        return rtnl_read.neighbours(self._netlink)

    @cached_property
    def _fdb(self) -> dict[int, set[bytes]]:
        return rtnl_read.static_fdb(self._netlink)

    @cached_property
    def _ports(self) -> dict[int, BridgePort]:
        return rtnl_read.bridge_ports(self._netlink)


def differences_in(netns_path: str, device: Device) -> list[Difference]:
    """Those of one device in a namespace, which may be gone; raises OSError for anything else."""
    try:
        with Snapshot(netns_path) as snapshot:
            return list(snapshot.differences(device))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        return [Difference("sandbox-missing", f"the network namespace {netns_path} is gone")]
