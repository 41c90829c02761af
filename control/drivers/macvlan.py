"""The driver `macvlan`: endpoints with a MAC and addresses of their own on a network that is there already.

An endpoint is a macvlan device of the kernel's, made straight into its sandbox, on the network's parent: a device of
the host, an 802.1Q sub-interface of one, or an isolated device that leads nowhere. The parent keeps its addresses,
settings and hooks. The gateway is a router of the existing network. Design: docs/adr/0010.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from control.addressing import link_local
from control.drivers import inside, macvlan_veth, returned
from control.drivers.base import Capabilities, Driver, DriverStatus, EndpointCounters, Join, ParentState
from control.drivers.inside import mac_bytes
from control.drivers.macvlan_parents import PARENT, FollowedParents, is_isolated, mark_of, parent_of
from control.drivers.macvlan_veth import DEVICE, is_switched, switching
from control.drivers.options import (
    ACCEL,
    IFACE_PREFIX,
    IFNAME,
    MTU,
    Check,
    check_boolean,
    check_endpoint,
    check_ifname,
    check_mtu,
    check_network,
    check_prefix,
    check_rate,
    is_on,
)
from control.drivers.parent import check_mtu_of_parent, usable_parent
from control.errors import (
    AddressInUse,
    Conflict,
    Exhausted,
    Forbidden,
    InvalidArgument,
    NotImplementedByDriver,
)
from control.model import Endpoint, EndpointSpec, EndpointState, Network, NetworkSpec, PoolSpec, SandboxId
from control.plan import Step
from datapath import accel, conflict, devices, links, parents, rtnl
from datapath.link_monitor import LinkChange
from datapath.uplink import Station, Uplinks

LOG = logging.getLogger(__name__)

MODE: Final = "macvlan_mode"
CONFLICT_CHECK: Final = "linkspan.conflict_check"
HOST_ACCESS: Final = "linkspan.host_access"
BROADCAST_LIMIT: Final = "linkspan.broadcast_limit"
DEFAULT_BROADCAST_LIMIT: Final = 100
"""Packets a second. Address resolution needs a few now and then; 500 endpoints get a copy of each."""
_PASSTHRU: Final = "passthru"
_OUR_WAITING: Final = re.compile(r"lp[0-9a-f]{12}")
"""A device that waits for a container engine to move it away."""


def _check_parent(option: str, value: str) -> None:
    if value:
        check_ifname(option, value)


def _check_mode(option: str, value: str) -> None:
    if value and value not in rtnl.MACVLAN_MODES:
        raise InvalidArgument(
            f"invalid value {value!r} for option {option}: use one of {', '.join(sorted(rtnl.MACVLAN_MODES))}"
        )


_OPTIONS: Final[Mapping[str, Check]] = {
    PARENT: _check_parent,
    MODE: _check_mode,
    ACCEL: check_boolean,
    CONFLICT_CHECK: check_boolean,
    HOST_ACCESS: check_boolean,
    BROADCAST_LIMIT: check_rate,
    macvlan_veth.DEVICE: macvlan_veth.check_device,
    macvlan_veth.PARENT_HOOK: macvlan_veth.check_hook,
    MTU: check_mtu,
    IFACE_PREFIX: check_prefix,
}


def mode_of(network: Network | NetworkSpec) -> str:
    """The macvlan mode, `bridge` unless the network says otherwise."""
    return network.options.get(MODE) or "bridge"


def _is_checked(network: Network) -> bool:
    """Whether addresses are looked for before they are given out. On an isolated parent IPAM knows everybody."""
    return not is_isolated(network) and is_on(network, CONFLICT_CHECK)


def _has_host_access(network: Network | NetworkSpec) -> bool:
    """Whether the host and the network's endpoints reach each other; in bridge mode unless it is turned off.

    An isolated parent has no address of the host's.
    """
    return bool(network.options.get(PARENT)) and is_on(network, HOST_ACCESS, mode_of(network) == "bridge")


class MacvlanDriver(Driver):
    """The kernel's macvlan devices of one host, and the programs on their parents.

    `netns_path` tells where a sandbox's namespace is.
    """

    name = "macvlan"
    capabilities = Capabilities(existing=True)

    def __init__(self, netns_path: Callable[[SandboxId], str], uplinks: Uplinks, *, default_accel: bool = True) -> None:
        self._netns_path = netns_path
        self._uplinks = uplinks
        self._default_accel = default_accel
        self._uplinks_lock = threading.Lock()
        self._parents = FollowedParents()

    # -- checking ------------------------------------------------------------------------------------------------

    def validate(self, spec: NetworkSpec, others: Sequence[Network]) -> None:
        check_network(spec, _OPTIONS)
        ifname = spec.options.get(PARENT)
        if mode_of(spec) == _PASSTHRU and is_on(spec, HOST_ACCESS, False):
            raise InvalidArgument(
                f"option {HOST_ACCESS}=on cannot be had in mode {_PASSTHRU}, where the one endpoint has the parent to "
                "itself: use another mode"
            )
        self._check_overlaps(spec, ifname, others)
        on_it = [
            other for other in others if ifname and other.driver == self.name and other.options.get(PARENT) == ifname
        ]
        macvlan_veth.check(spec, mode_of(spec), ifname, on_it, self._uplinks)
        if not ifname:
            return
        for other in on_it:
            if _PASSTHRU in (mode_of(spec), mode_of(other)):
                raise Conflict(
                    f"parent {ifname} has network {other.name} in mode {mode_of(other)}: "
                    f"a network in mode {_PASSTHRU} shares its parent with no other"
                )
        check_mtu_of_parent(spec, usable_parent(ifname))

    def _check_overlaps(self, spec: NetworkSpec, ifname: str | None, others: Sequence[Network]) -> None:
        """Networks on other parents are other networks, which may have the same subnets; those of other drivers are the
        host's own."""
        for other in others:
            if other.driver == self.name and (not ifname or other.options.get(PARENT) != ifname):
                continue
            for pool in spec.pools:
                _check_overlap(pool, other)

    def validate_endpoint(self, network: Network, spec: EndpointSpec) -> None:
        check_endpoint(self.name, spec)
        if spec.mac is None:
            return
        mac = spec.mac.strip().lower().replace("-", ":")
        found = self._parents.find(network)
        is_parents = found is not None and found.mac.hex(":") == mac
        if mode_of(network) == _PASSTHRU and not is_parents:
            raise InvalidArgument(
                f"MAC address {spec.mac} cannot be had on network {network.name}: in mode {_PASSTHRU} an endpoint has "
                f"that of the parent {parent_of(network)}"
            )
        if mode_of(network) != _PASSTHRU and is_parents:
            raise Conflict(f"MAC address {mac} is in use by the parent {parent_of(network)}: choose another")

    def settle_endpoint(self, network: Network, endpoint: Endpoint, siblings: Sequence[Endpoint]) -> Endpoint:
        if endpoint.slot >= accel.MAX_SLOTS:
            raise Exhausted(
                f"network {network.name} cannot take another endpoint: this host has room for {accel.MAX_SLOTS}"
            )
        mac = endpoint.mac
        if mode_of(network) == _PASSTHRU:
            if siblings:
                raise Exhausted(
                    f"network {network.name} cannot take another endpoint: in mode {_PASSTHRU} one has the parent "
                    f"{parent_of(network)} to itself"
                )
            found = self._parents.find(network)
            mac = found.mac.hex(":") if found is not None else mac
        ifname = endpoint.driver_options.get(IFNAME, endpoint.ifname)
        if is_switched(network):
            endpoint = macvlan_veth.settle(endpoint)
        return msgspec.structs.replace(endpoint, ifname=ifname, mac=mac)

    def shares_link(self, network: Network, other: Network) -> bool:
        return other.driver == self.name and parent_of(other) == parent_of(network)

    def dhcp_link(self, network: Network | NetworkSpec) -> str:
        ifname = network.options.get(PARENT)
        if not ifname:
            raise InvalidArgument(f"nobody answers DHCP on an isolated parent: give -o {PARENT}=")
        return self._parents.ifname(network) if isinstance(network, Network) else ifname

    # -- a network -----------------------------------------------------------------------------------------------

    def network_steps(self, network: Network) -> Sequence[Step]:
        follow = Step(
            f"follow the parent {parent_of(network)}",
            partial(self._parents.follow, network),
            partial(self._parents.forget, network),
        )
        steps = [self._parent_step(network), follow]
        if is_switched(network):
            steps += macvlan_veth.network_steps(network, partial(self._parents.need, network))
        return steps

    def _parent_step(self, network: Network) -> Step:
        ifname, mark = parent_of(network), mark_of(network)
        if ifname == mark:
            mtu = int(network.options.get(MTU, parents.DEFAULT_MTU))
            return Step(
                f"create the isolated parent {mark}",
                partial(parents.add_isolated, mark, mtu=mtu),
                partial(devices.delete_links, [mark]),
            )
        if parents.split_vlan(ifname) is not None:
            return Step(
                f"create the sub-interface {ifname} unless it is there",
                partial(parents.hold_vlan, ifname, mark),
                partial(parents.release_vlan, mark),
            )
        return Step(f"look for the parent {ifname}", partial(self._require_parent, network), lambda: None)

    def _require_parent(self, network: Network) -> None:
        self._parents.need(network)

    # -- an endpoint ---------------------------------------------------------------------------------------------

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        endpoint = join.endpoint
        where = f"in sandbox {join.holder}" if join.netns_path is not None else "for its engine"
        steps = [
            macvlan_veth.device_step(join, partial(self._parents.need, join.network))
            if is_switched(join.network)
            else Step(
                f"create macvlan {endpoint.ifname} on {parent_of(join.network)} {where}",
                partial(self._add, join),
                partial(self._delete, join),
            )
        ]
        # Once joined an endpoint has its addresses, would answer itself, and is not to go if others have taken them.
        if endpoint.state is EndpointState.JOINING and _is_checked(join.network):
            what = f"look for others with the addresses of {endpoint.ifname} {where}"
            steps.insert(0, Step(what, partial(self._look, join), lambda: None))
        if self._is_accelerated(join.network):
            station = _station(join.network, endpoint)
            steps.append(
                Step(
                    f"tell the programs on {parent_of(join.network)} of {endpoint.ifname} {where}",
                    partial(self._tell, join.network, station),
                    partial(self._forget, join.network, station),
                )
            )
        if join.netns_path is not None:
            if self._is_accelerated(join.network) and not is_switched(join.network):
                steps.append(
                    Step(
                        f"limit the broadcasts of {endpoint.ifname} {where}",
                        partial(self._limit, join.network, endpoint, join.netns_path),
                        lambda: None,
                    )
                )
            set_up = partial(macvlan_veth.set_up_inside if is_switched(join.network) else _set_up_inside, join)
            if join.sandbox is None:
                set_up = partial(self._set_up_for_engine, join)
            what = f"set up {endpoint.ifname} in sandbox {join.holder}"
            steps.append(Step(what, partial(set_up, join.netns_path), lambda: None))
        return steps

    def _look(self, join: Join) -> None:
        """Raises AddressInUse."""
        network, endpoint = join.network, join.endpoint
        parent = self._parents.need(network)
        if self._find(endpoint, parent.ifindex) is not None:
            return
        addresses = [each.ip for each in (endpoint.ipv4, endpoint.ipv6) if each is not None]
        addresses += endpoint.link_local_ips
        holder = conflict.on_host(addresses)
        # Without a carrier there is nobody to ask.
        if holder is None and parent.is_up and parent.has_carrier:
            try:
                holder = conflict.on_link(
                    parent.ifindex,
                    addresses,
                    mac=mac_bytes(endpoint.mac),
                    is_passthru=mode_of(network) == _PASSTHRU,
                )
            except rtnl.NetlinkError as error:
                # The parent or the MAC is in use: the endpoint's own device is refused as well, with the reason.
                if error.errno not in (errno.EBUSY, errno.EADDRINUSE):
                    raise
        if holder is not None:
            place = f"this host's {holder.ifname}" if holder.ifname else parent.ifname
            raise AddressInUse(
                f"address {holder.address} is in use on {place} by {holder.mac.hex(':')}; choose another, or "
                f"-o {CONFLICT_CHECK}=off for the network",
                holder.address,
            )

    def _add(self, join: Join) -> None:
        network, endpoint = join.network, join.endpoint
        # Also on a parent that has another name by now, or is gone for the moment.
        if self._find(endpoint, self._parents.ifindex(network)) is not None:
            return
        parent = self._parents.need(network)
        netns_fd = None if join.netns_path is None else os.open(join.netns_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with rtnl.Rtnl() as netlink:
                netlink.apply(
                    [
                        rtnl.macvlan_add(
                            endpoint.ifname,
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
            if error.errno == errno.EEXIST:
                raise Conflict(f"sandbox {join.holder} has a device {endpoint.ifname} already: {error}") from error
            raise
        finally:
            if netns_fd is not None:
                os.close(netns_fd)

    def _set_up_for_engine(self, join: Join, netns_path: str) -> None:
        found = _find_in(netns_path, join.endpoint, self._parents.ifindex(join.network))
        if found is not None:
            _set_up_inside(returned.prepare_as_engine(join, netns_path, found), netns_path)

    def _delete(self, join: Join) -> None:
        lower = self._parents.ifindex(join.network)
        for path in self._places(join.endpoint):
            found = _find_in(path, join.endpoint, lower)
            if found is not None:
                with rtnl.Rtnl(path) as netlink:
                    netlink.apply([rtnl.link_delete(found.ifname)])

    def _tell(self, network: Network, station: Station) -> None:
        """The programs run on a parent as long as they know of an endpoint there.

        A parent that does not take them costs host access and police, not the endpoint.
        """
        parent = self._parents.ifname(network)
        with self._uplinks_lock:
            try:
                access = self._uplinks.has_host_access(parent, station)
                self._uplinks.attach(parent, access, switching(network))
                self._uplinks.add(parent, station)
                self._uplinks.fallbacks.pop(f"parent {parent}", None)
            except OSError as error:
                if is_switched(network):
                    raise
                self._uplinks.fallbacks[f"parent {parent}"] = str(error)
                LOG.warning("parent %s has no eBPF programs: %s", parent, error)

    def _forget(self, network: Network, station: Station) -> None:
        parent = self._parents.ifname(network)
        with self._uplinks_lock:
            self._uplinks.remove(parent, station)
            if not self._uplinks.stations(parent):
                self._uplinks.detach(parent)
                self._uplinks.fallbacks.pop(f"parent {parent}", None)

    def _limit(self, network: Network, endpoint: Endpoint, netns_path: str) -> None:
        """Like police, it is worth a warning if it cannot be had, and no more."""
        what = f"limit of broadcasts of network {network.name}"
        try:
            found = _find_in(netns_path, endpoint, None)
            if found is not None:
                self._uplinks.limit_device(netns_path, found.ifname, _station(network, endpoint))
            self._uplinks.fallbacks.pop(what, None)
        except OSError as error:
            self._uplinks.fallbacks[what] = str(error)
            LOG.warning("net=%s: endpoint %s may flood the others: %s", network.name, endpoint.id[:12], error)

    def moved_in(self, network: Network, endpoint: Endpoint) -> None:
        """A device that is moved to another namespace loses its filters on the way (net/core/dev.c, dev_shutdown)."""
        if self._is_accelerated(network) and not is_switched(network):
            self._limit(network, endpoint, endpoint.sandbox_key)

    def _is_accelerated(self, network: Network) -> bool:
        return is_switched(network) or is_on(network, ACCEL, self._default_accel)

    def _places(self, endpoint: Endpoint) -> list[str | None]:
        """The namespaces where the device may be: None is linkspand's, where it waits for an engine."""
        if not endpoint.is_remote:
            return [self._netns_path(endpoint.sandbox_id)]
        return [None, endpoint.sandbox_key] if endpoint.sandbox_key else [None]

    def _find(self, endpoint: Endpoint, lower: int | None = None) -> links.LinkInfo | None:
        return next(filter(None, (_find_in(path, endpoint, lower) for path in self._places(endpoint))), None)

    def publish_steps(self, network: Network, endpoint: Endpoint) -> Sequence[Step]:
        raise NotImplementedByDriver(
            f"the driver {self.name} publishes no ports: endpoints of network {network.name} have addresses of the "
            "existing network, where all their ports are reachable; leave the published ports out"
        )

    # -- start and looking ---------------------------------------------------------------------------------------

    def start(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Deletes parents that Linkspan made and devices that wait for an engine where no record knows of them."""
        waiting = {endpoint.ifname for endpoint in endpoints if endpoint.is_remote}
        devices.delete_links(
            [
                link.ifname
                for link in links.dump()
                if link.kind == "macvlan" and _OUR_WAITING.fullmatch(link.ifname) and link.ifname not in waiting
            ]
        )
        macvlan_veth.sweep(networks, endpoints)
        parents.sweep({mark_of(network) for network in networks})
        for network in networks:
            on_it = [endpoint for endpoint in endpoints if endpoint.network_id == network.id]
            self._parents.follow(network, partial(self._lower_of, on_it))
        by_id = {network.id: network for network in networks}
        stations: dict[str, list[Station]] = {}
        for endpoint in endpoints:
            network = by_id[endpoint.network_id]
            if self._is_accelerated(network) and endpoint.state is not EndpointState.CREATED:
                stations.setdefault(self._parents.ifname(network), []).append(_station(network, endpoint))
        access = {parent: any(station.host_access for station in each) for parent, each in stations.items()}
        switched = {parent_of(network): how for network in networks if (how := switching(network)) is not None}
        self._uplinks.start(stations, access, switched)
        if self._uplinks.are_new:
            for endpoint in endpoints:
                network = by_id[endpoint.network_id]
                is_limited = self._is_accelerated(network) and not is_switched(network)
                if endpoint.state is EndpointState.JOINED and is_limited:
                    path = endpoint.sandbox_key or self._netns_path(endpoint.sandbox_id)
                    self._limit(network, endpoint, path)

    def _lower_of(self, endpoints: Sequence[Endpoint]) -> int | None:
        """The ifindex of the device that the endpoints' devices are on."""
        found = filter(None, map(self._find, endpoints))
        return next((link.peer for link in found), None)

    def remains(self, endpoint: Endpoint) -> bool:
        if endpoint.host_ifname:
            return macvlan_veth.remains(endpoint)
        return self._find(endpoint) is not None

    def lost(self, endpoint: Endpoint) -> bool:
        return endpoint.is_remote and returned.is_there(endpoint.sandbox_key) and self._find(endpoint) is None

    def parent(self, network: Network) -> ParentState:
        return self._parents.state(network)

    def concerned(
        self, networks: Sequence[Network], changes: Collection[LinkChange] | None, failed: Collection[str]
    ) -> list[Network]:
        return self._parents.concerned(networks, changes, failed)

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> set[str]:
        """An endpoint whose parent was renamed is whole: its device is as good as before."""
        indices = {network.id: self._parents.ifindex(network) for network in networks}
        whole: set[str] = {
            network.id
            for network in networks
            if indices[network.id] is not None and (not is_switched(network) or macvlan_veth.has_bridge(network))
        }
        by_id = {network.id: network for network in networks}
        for endpoint in endpoints:
            if endpoint.host_ifname:
                if self._is_switched_whole(by_id[endpoint.network_id], endpoint):
                    whole.add(endpoint.id)
                continue
            lower = indices[endpoint.network_id]
            link = self._find(endpoint, lower)
            is_set_up = link is not None and (endpoint.is_remote or link.flags & rtnl.IFF_UP)
            if link is not None and is_set_up and lower in (None, link.peer):
                whole.add(endpoint.id)
        return whole

    def _is_switched_whole(self, network: Network, endpoint: Endpoint) -> bool:
        known = self._uplinks.problem or self._uplinks.knows(self._parents.ifname(network), mac_bytes(endpoint.mac))
        return bool(known) and macvlan_veth.is_whole(network, endpoint)

    def info(self, network: Network) -> dict[str, str]:
        found = self._parents.find(network)
        facts = {
            "linkspan.parent": parent_of(network),
            "linkspan.parent_state": self._parents.state(network).state,
            "linkspan.macvlan_mode": mode_of(network),
            DEVICE: macvlan_veth.VETH if is_switched(network) else self.name,
            "linkspan.path": self._path(network),
            "linkspan.host_access": self._host_access(network),
        }
        if found is not None and found.marks:
            facts["linkspan.parent_made"] = "isolated" if is_isolated(network) else "802.1Q sub-interface"
        facts[BROADCAST_LIMIT] = self._shown_limit(network)
        if CONFLICT_CHECK in network.options:
            facts[CONFLICT_CHECK] = "on" if _is_checked(network) else "off"
        return facts

    def _path(self, network: Network) -> str:
        if not self._is_accelerated(network):
            return f"kernel macvlan ({ACCEL}=off)"
        problem = self._problem(network)
        if is_switched(network):
            return f"none: {problem}" if problem else f"eBPF switch ({self._uplinks.attachment}{self._hook(network)})"
        if problem:
            return f"kernel macvlan: {problem}"
        return f"kernel macvlan, eBPF on the parent ({self._uplinks.attachment})"

    def _hook(self, network: Network) -> str:
        how = switching(network)
        if how is None or how.hook == "tc":
            return ""
        reason = self._uplinks.generic(parent_of(network))
        return f", generic XDP: {reason}" if reason else ", native XDP"

    def _shown_limit(self, network: Network) -> str:
        limit = _broadcast_limit(network) if self._is_accelerated(network) and not self._uplinks.problem else 0
        return f"{limit} packets/s" if limit else "none"

    def _host_access(self, network: Network) -> str:
        if not _has_host_access(network):
            return "off"
        accelerated = self._is_accelerated(network)
        problem = self._problem(network) if accelerated else f"it takes the programs ({ACCEL}=off)"
        return f"off: {problem}" if problem else "on"

    def _problem(self, network: Network) -> str | None:
        """Why there are no programs on the network's parent."""
        return self._uplinks.problem or self._uplinks.fallbacks.get(f"parent {self._parents.ifname(network)}")

    def counters(self, endpoints: Sequence[Endpoint]) -> dict[str, EndpointCounters]:
        """From the programs on the parents. What macvlan hands to a group's members is counted for its sender alone."""
        by_slot, drops = self._uplinks.counters()
        return {
            endpoint.id: EndpointCounters(**vars(by_slot[endpoint.slot]), drops=drops.get(endpoint.slot, {}))
            for endpoint in endpoints
            if endpoint.slot in by_slot
        }

    def status(self) -> DriverStatus:
        if self._uplinks.problem:
            return DriverStatus({"path": "kernel macvlan"}, {"macvlan ebpf": self._uplinks.problem})
        facts = {"path": "kernel macvlan, eBPF on the parents", **self._uplinks.facts()}
        return DriverStatus(facts, self._uplinks.fallbacks)


def _broadcast_limit(network: Network) -> int:
    """Packets a second that an endpoint may send to everybody; 0 for no limit."""
    return int(network.options.get(BROADCAST_LIMIT, DEFAULT_BROADCAST_LIMIT))


def _station(network: Network, endpoint: Endpoint) -> Station:
    return Station(
        slot=endpoint.slot,
        mac=mac_bytes(endpoint.mac),
        ip4=endpoint.ipv4.ip if endpoint.ipv4 else None,
        ip6=endpoint.ipv6.ip if endpoint.ipv6 else None,
        ip6_ll=link_local(endpoint.mac).ip if endpoint.ipv6 else None,
        link_locals=endpoint.link_local_ips,
        mode=mode_of(network),
        host_access=_has_host_access(network),
        is_engines=endpoint.is_remote,
        broadcast_limit=_broadcast_limit(network),
        host_ifname=endpoint.host_ifname,
    )


def _check_overlap(pool: PoolSpec, other: Network) -> None:
    for taken in other.pools:
        if pool.subnet is None or pool.subnet.version != taken.subnet.version:
            continue
        if pool.subnet.overlaps(taken.subnet):
            raise Forbidden(
                "Pool overlaps with other one on this address space: "
                f"{pool.subnet} with {taken.subnet} of network {other.name}; choose another, or another parent"
            )


def _set_up_inside(join: Join, netns_path: str) -> None:
    try:
        inside.set_up(join, netns_path)
    except rtnl.NetlinkError as error:
        # macvlan_open: the MAC is the parent's, or that of another device on it.
        if error.errno in (errno.EADDRINUSE, errno.EBUSY):
            raise Conflict(
                f"MAC address {join.endpoint.mac} is in use on {parent_of(join.network)}: choose another"
            ) from error
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
