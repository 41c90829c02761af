"""Parents of macvlan devices: how one looks, and those that Linkspan makes itself.

Two kinds of parents are made here, in the daemon's own network namespace: 802.1Q sub-interfaces of a device, and
isolated devices, which swallow what is sent out of them. A network that uses what was made here puts its mark on it, a
name of the form lm-<twelve hex digits>: an isolated device is called that, a sub-interface has it as an altname for
each of its networks. So the kernel alone remembers who made a sub-interface, and which of its networks is the last.

Functions block, may be called from any thread, and may be repeated.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection
from dataclasses import dataclass
from threading import Lock
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from datapath import devices, links, rtnl

ISOLATED_KINDS: Final = ("dummy", "ifb")
"""Kinds of devices without another end, best first; either lets nothing through that is sent out of it."""
MAX_VLAN_ID: Final = 4094
DEFAULT_MTU: Final = 1500

_MARK: Final = re.compile(r"lm-[0-9a-f]{12}")
_ARPHRD_ETHER: Final = 1
_IFF_LOOPBACK, _IFF_LOWER_UP = 0x8, 0x10000
_sub_interfaces: Final = Lock()


@dataclass(frozen=True)
class Parent:
    """A device of this namespace, as it was when it was looked at.

    `kind` is as in `ip -d link` ("" for lo and hardware); `master` is the ifindex of the bridge or bond it is a port of
    (0: none).
    """

    ifindex: int
    ifname: str
    altnames: frozenset[str]
    mac: bytes
    mtu: int
    kind: str
    master: int
    is_ethernet: bool
    is_loopback: bool
    is_up: bool
    has_carrier: bool

    @property
    def state(self) -> str:
        """In a word or two, for people."""
        return "down" if not self.is_up else "up" if self.has_carrier else "up, no carrier"

    @property
    def marks(self) -> frozenset[str]:
        """The marks of the networks that use it; there are none on what was not made here."""
        return frozenset(name for name in (self.ifname, *self.altnames) if _MARK.fullmatch(name))


def look(ifname: str) -> Parent | None:
    """The device of that name or altname, or None. Raises NetlinkError."""
    index = devices.ifindex(ifname)
    return None if index is None else look_at(index)


def look_at(index: int) -> Parent | None:
    """The device of that ifindex, or None. Raises NetlinkError."""
    try:
        with IPRoute(strict_check=True) as ip:
            (link,) = ip.get_links(index)
    except Pyroute2Error as error:
        if error.code == errno.ENODEV:
            return None
        raise rtnl.NetlinkError(error.code, f"cannot look at device {index}: {error.args[1]}") from error
    names = link.get_attr("IFLA_PROP_LIST")
    return Parent(
        ifindex=index,
        ifname=link.get_attr("IFLA_IFNAME"),
        altnames=frozenset(names.altnames() if names else ()),
        mac=bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
        mtu=link.get_attr("IFLA_MTU"),
        kind=link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        master=link.get_attr("IFLA_MASTER") or 0,
        is_ethernet=link["ifi_type"] == _ARPHRD_ETHER,
        is_loopback=bool(link["flags"] & _IFF_LOOPBACK),
        is_up=bool(link["flags"] & rtnl.IFF_UP),
        has_carrier=bool(link["flags"] & _IFF_LOWER_UP),
    )


def split_vlan(ifname: str) -> tuple[str, int] | None:
    """The device and the VLAN id of a sub-interface's name, as in eth1.50; None for a name of another form."""
    lower, dot, number = ifname.rpartition(".")
    if not (lower and dot and number.isascii() and number.isdecimal()):
        return None
    return lower, int(number)


def add_isolated(mark: str, *, mtu: int = DEFAULT_MTU) -> None:
    """A device, up, that leads nowhere; raises NetlinkError (EOPNOTSUPP) where the kernel has none of ISOLATED_KINDS.

    Not a veth pair: its other end would be the host's, which answers ARP for all its addresses wherever it is asked.
    """
    with rtnl.Rtnl() as netlink:
        for kind in ISOLATED_KINDS:
            try:
                netlink.apply([rtnl.link_add(mark, kind, mtu=mtu)])
            except rtnl.NetlinkError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                continue
            index = devices.need_ifindex(mark)
            netlink.apply([rtnl.link_no_auto_address(index, mark), rtnl.link_up(index, mark)])
            return
    raise rtnl.NetlinkError(
        errno.EOPNOTSUPP, f"cannot add {mark}: this kernel has devices of none of the kinds {', '.join(ISOLATED_KINDS)}"
    )


def hold_vlan(ifname: str, mark: str) -> None:
    """Makes the sub-interface where it is missing, up; puts the mark on it unless somebody else made it.

    Device and mark come in one system call, so no end of linkspand comes between them. Raises NetlinkError.
    """
    named = split_vlan(ifname)
    if named is None:
        raise ValueError(f"{ifname} is no name of a sub-interface")
    with _sub_interfaces:
        found = look(ifname)
        if found is not None and not found.marks:
            return
        requests = [rtnl.altname_add(ifname, mark)]
        if found is None:
            lower, vlan_id = named
            requests.insert(0, rtnl.vlan_add(ifname, lower=devices.need_ifindex(lower), vlan_id=vlan_id))
        with rtnl.Rtnl() as netlink:
            netlink.apply(requests)
            index = devices.need_ifindex(ifname)
            netlink.apply([rtnl.link_no_auto_address(index, ifname), rtnl.link_up(index, ifname)])


def release_vlan(mark: str) -> None:
    """Takes the mark off its sub-interface, and deletes that with its last one; harmless where none has the mark."""
    with _sub_interfaces:
        found = look(mark)
        if found is None or found.ifname == mark:
            return
        is_last = found.marks == {mark}
        request = rtnl.link_delete(found.ifname) if is_last else rtnl.altname_delete(found.ifname, mark)
        with rtnl.Rtnl() as netlink:
            netlink.apply([request])


def sweep(known: Collection[str]) -> None:
    """Removes what was made here for networks whose marks are not `known`."""
    for link in links.dump():
        if link.kind in ISOLATED_KINDS and _MARK.fullmatch(link.ifname) and link.ifname not in known:
            devices.delete_links([link.ifname])
        elif link.kind == "vlan":
            found = look(link.ifname)
            for mark in found.marks - set(known) if found is not None else ():
                release_vlan(mark)
