"""Devices that are made again in the sandboxes of a container engine, which has set them up once and does not again."""

from __future__ import annotations

import errno
from dataclasses import replace

import msgspec

from control.drivers.base import Join
from control.drivers.options import IFACE_PREFIX
from datapath import links, rtnl


def is_there(sandbox_key: str) -> bool:
    """Whether the engine's sandbox is a network namespace still."""
    try:
        rtnl.Rtnl(sandbox_key or None).close()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return False
        raise
    return bool(sandbox_key)


def name_as_engine(join: Join, netns_path: str, device: links.LinkInfo) -> Join:
    """Gives the device the name that an engine would, unless it has one; the join under that name.

    That is the network's prefix and the first number that is free, so what left last finds its own place. Raises
    NetlinkError.
    """
    name = device.ifname
    if name == join.endpoint.ifname:
        with rtnl.Rtnl(netns_path) as netlink:
            taken = {link.ifname for link in links.dump(netlink.fileno())}
            prefix = join.network.options.get(IFACE_PREFIX, "eth")
            name = next(free for number in range(len(taken) + 1) if (free := f"{prefix}{number}") not in taken)
            netlink.apply([rtnl.link_rename(device.ifindex, device.ifname, name)])
    return replace(join, endpoint=msgspec.structs.replace(join.endpoint, ifname=name))
