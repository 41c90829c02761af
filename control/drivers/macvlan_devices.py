"""The kernel's macvlan devices: one for each endpoint, made straight into its sandbox. Design: docs/adr/0010."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

from control.drivers import inside, returned
from control.drivers.base import Join
from control.drivers.inside import mac_bytes
from control.drivers.macvlan_options import broadcast_limit, mode_of
from control.drivers.macvlan_parents import FollowedParents, parent_of
from control.drivers.options import MTU
from control.errors import Conflict
from control.model import Endpoint, EndpointId, Network, NetworkId, SandboxId, waiting_ifname
from control.plan import Step
from datapath import devices, links, netns, rtnl
from datapath.uplink import Uplinks

LOG = logging.getLogger(__name__)

_OUR_WAITING: Final = re.compile(r"lp[0-9a-f]{12}")
"""A device that waits for a container engine to move it away."""


class MacvlanDevices:
    """`netns_path` tells where a sandbox's namespace is."""

    def __init__(self, netns_path: Callable[[SandboxId], str], parents: FollowedParents, uplinks: Uplinks) -> None:
        self._netns_path = netns_path
        self._parents = parents
        self._uplinks = uplinks

    def network_steps(self, network: Network) -> Sequence[Step]:
        return ()

    def step(self, join: Join, where: str) -> Step:
        """Makes the endpoint's device, in its sandbox or for its engine."""
        return Step(
            f"create macvlan {join.endpoint.ifname} on {parent_of(join.network)} {where}",
            partial(self._add, join),
            partial(self._delete, join),
            kind="macvlan",
        )

    def find(self, endpoint: Endpoint, lower: int | None = None) -> links.LinkInfo | None:
        """The endpoint's device, wherever it is; on the device with the ifindex `lower`, if that is known."""
        return next(filter(None, (_find_in(path, endpoint, lower) for path in self._places(endpoint))), None)

    def lower_of(self, endpoints: Sequence[Endpoint]) -> int | None:
        """The ifindex of the device that the endpoints' devices are on."""
        found = filter(None, map(self.find, endpoints))
        return next((link.peer for link in found), None)

    def remains(self, endpoint: Endpoint) -> bool:
        return self.find(endpoint) is not None

    def has_network(self, network: Network) -> bool:
        return True

    def whole(
        self, joined: Sequence[tuple[Network, Endpoint]], lower: Mapping[NetworkId, int | None]
    ) -> set[EndpointId]:
        """The ids of the endpoints whose devices are set up on their parents, which have the ifindexes in `lower`.

        One whose parent was renamed is whole: its device is as good as before.
        """
        return {endpoint.id for network, endpoint in joined if self._is_whole(endpoint, lower[network.id])}

    def _is_whole(self, endpoint: Endpoint, lower: int | None) -> bool:
        link = self.find(endpoint, lower)
        is_set_up = link is not None and (endpoint.is_remote or link.flags & rtnl.IFF_UP)
        return link is not None and bool(is_set_up) and lower in (None, link.peer)

    def sweep(self, networks: Collection[Network], endpoints: Collection[Endpoint]) -> None:
        """Deletes devices that wait for an engine where no record knows of them."""
        waiting = {endpoint.ifname for endpoint in endpoints if endpoint.is_remote}
        devices.delete_links(
            [
                link.ifname
                for link in links.dump()
                if link.kind == "macvlan" and _OUR_WAITING.fullmatch(link.ifname) and link.ifname not in waiting
            ]
        )

    def set_up(self, join: Join, netns_path: str) -> None:
        """The inside of the sandbox; one of an engine's is set up as the engine had it."""
        if join.sandbox is None:
            found = _find_in(netns_path, join.endpoint, self._parents.ifindex(join.network))
            if found is None:
                return
            join = returned.prepare_as_engine(join, netns_path, found)
        try:
            inside.set_up(join, netns_path)
        except rtnl.NetlinkError as error:
            # macvlan_open: the MAC is the parent's, or that of another device on it.
            if error.errno in (errno.EADDRINUSE, errno.EBUSY):
                raise Conflict(
                    f"MAC address {join.endpoint.mac} is in use on {parent_of(join.network)}: choose another"
                ) from error
            raise

    def limit(self, network: Network, endpoint: Endpoint, netns_path: str) -> None:
        """Has the device drop what it sends to everybody past the network's limit.

        Like police, that is worth a warning if it cannot be had, and no more. A device that is moved to another
        namespace loses its filters on the way (net/core/dev.c, dev_shutdown).
        """
        what, rate = f"limit of broadcasts of network {network.name}", broadcast_limit(network)
        try:
            found = _find_in(netns_path, endpoint, None)
            if found is not None and rate:
                self._uplinks.limit_device(netns_path, found.ifname, endpoint.slot)
            self._uplinks.fallbacks.pop(what, None)
        except OSError as error:
            self._uplinks.fallbacks[what] = str(error)
            LOG.warning("net=%s: endpoint %s may flood the others: %s", network.name, endpoint.id[:12], error)

    def _add(self, join: Join) -> None:
        network, endpoint = join.network, join.endpoint
        made_as = _name_at_first(join)
        # Also on a parent that has another name by now, or is gone for the moment.
        if self.find(endpoint, self._parents.ifindex(network)) is None:
            self._make(join, made_as)
        if made_as != endpoint.ifname:
            _rename(join, made_as)

    def _make(self, join: Join, ifname: str) -> None:
        network, endpoint = join.network, join.endpoint
        parent = self._parents.need(network)
        try:
            with netns.opened(join.netns_path) as netns_fd, rtnl.Rtnl() as netlink:
                netlink.apply(
                    [
                        rtnl.macvlan_add(
                            ifname,
                            lower=parent.ifindex,
                            mode=mode_of(network),
                            mac=mac_bytes(endpoint.mac),
                            mtu=int(network.options[MTU]) if MTU in network.options else None,
                            netns_fd=netns_fd,
                        )
                    ]
                )
        except rtnl.NetlinkError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(
                    f"parent {parent.ifname} of network {network.name} is in use by something else than macvlan "
                    f"devices: {error}"
                ) from error
            raise

    def _delete(self, join: Join) -> None:
        lower = self._parents.ifindex(join.network)
        for path in self._places(join.endpoint):
            found = _find_in(path, join.endpoint, lower)
            if found is not None:
                with rtnl.Rtnl(path) as netlink:
                    netlink.apply([rtnl.link_delete(found.ifname)])

    def _places(self, endpoint: Endpoint) -> list[str | None]:
        """The namespaces where the device may be: None is linkspand's, where it waits for an engine."""
        if not endpoint.is_remote:
            return [self._netns_path(endpoint.sandbox_id)]
        return [None, endpoint.sandbox_key] if endpoint.sandbox_key else [None]


def _name_at_first(join: Join) -> str:
    """What a device is called until it is in its sandbox.

    Before Linux 6.15 the kernel makes none in another namespace with a name that a device of its parent's has
    (rtnl_newlink), and a parent `eth0` is as usual as an `eth0` inside.
    """
    return join.endpoint.ifname if join.netns_path is None else waiting_ifname(join.endpoint.id)


def _rename(join: Join, made_as: str) -> None:
    """Gives a new device in the sandbox, or one of a start that was cut short, its own name."""
    with rtnl.Rtnl(join.netns_path) as netlink:
        index = netlink.ifindex(made_as)
        if index is None:
            return
        try:
            netlink.apply([rtnl.link_rename(index, made_as, join.endpoint.ifname)])
        except rtnl.NetlinkError as error:
            netlink.apply([rtnl.link_delete(made_as)])
            if error.errno == errno.EEXIST:
                taken = f"sandbox {join.holder} has a device {join.endpoint.ifname} already: {error}"
                raise Conflict(taken) from error
            raise


def _find_in(path: str | None, endpoint: Endpoint, lower: int | None) -> links.LinkInfo | None:
    """The endpoint's device in a namespace, known by its name, or by its MAC on the device `lower` (None: on any) where
    it was given another name."""
    try:
        with rtnl.Rtnl(path) as netlink:
            if path is None and netlink.ifindex(endpoint.ifname) is None:
                return None
            found = [link for link in links.dump(netlink.fileno()) if link.kind == "macvlan"]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # the namespace is gone
            return None
        raise
    mac = mac_bytes(endpoint.mac)
    by_name = [link for link in found if link.ifname == endpoint.ifname]
    by_mac = [link for link in found if path is not None and link.mac == mac and lower in (None, link.peer)]
    return next(iter(by_name + by_mac), None)
