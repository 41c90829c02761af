"""Devices that are made again in the sandboxes of a container engine, which has set them up once and does not again."""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial

import msgspec

from control.drivers.base import Join
from control.drivers.options import IFACE_PREFIX
from datapath import devices, links, netns, rtnl


def is_there(sandbox_key: str) -> bool:
    """Whether the engine's sandbox is a network namespace still."""
    if not sandbox_key:
        return False
    try:
        rtnl.Rtnl(sandbox_key).close()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return False
        raise
    return True


def prepare_as_engine(join: Join, netns_path: str, device: links.LinkInfo) -> Join:
    """Gives the device the name and the settings that an engine would; the join under that name.

    The name, unless it has one, is the network's prefix and the first number that is free, so what left last finds its
    own place. IPv6 is turned on for devices that have it, as Docker turns it off for all others. Raises NetlinkError.
    """
    name = device.ifname
    if name == join.endpoint.ifname:
        with rtnl.Rtnl(netns_path) as netlink:
            taken = {link.ifname for link in links.dump(netlink.fileno())}
            prefix = join.network.options.get(IFACE_PREFIX, "eth")
            name = next(free for number in range(len(taken) + 1) if (free := f"{prefix}{number}") not in taken)
            netlink.apply([rtnl.link_rename(device.ifindex, device.ifname, name)])
    if join.endpoint.ipv6 is not None:
        netns.call(netns_path, partial(devices.enable_ipv6, name))
    return replace(join, endpoint=msgspec.structs.replace(join.endpoint, ifname=name))
