"""The driver `macvlan`: endpoints with a MAC and addresses of their own on a network that is there already.

An endpoint is a macvlan device of the kernel's, made straight into its sandbox, on the network's parent: a device of
the host, an 802.1Q sub-interface of one, or an isolated device that leads nowhere. The parent keeps its addresses,
settings and hooks. The gateway is a router of the existing network. Design: docs/adr/0010.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import msgspec

from control.drivers import macvlan_expected, macvlan_options, macvlan_veth, returned, walk_macvlan
from control.drivers.base import (
    Capabilities,
    Driver,
    DriverStatus,
    EndpointCounters,
    Join,
    ParentState,
    Problem,
)
from control.drivers.inside import mac_bytes
from control.drivers.macvlan_devices import MacvlanDevices
from control.drivers.macvlan_options import (
    BROADCAST_LIMIT,
    CONFLICT_CHECK,
    DEVICE,
    HOST_ACCESS,
    MACVLAN,
    PASSTHRU,
    VETH,
    broadcast_limit,
    is_checked,
    is_switched,
    mode_of,
    parent_hook,
)
from control.drivers.macvlan_parents import PARENT, FollowedParents, is_isolated, mark_of, parent_of
from control.drivers.macvlan_programs import ParentPrograms
from control.drivers.macvlan_veth import VethPairs
from control.drivers.options import ACCEL, IFNAME, MTU, check_endpoint, check_network, is_on
from control.drivers.parent import check_mtu_of_parent, mtu_problems, usable_parent
from control.drivers.walk import Walk
from control.drivers.walk_hooks import Running
from control.errors import AddressInUse, Conflict, Exhausted, Forbidden, InvalidArgument, NotImplementedByDriver
from control.model import Endpoint, EndpointSpec, EndpointState, Network, NetworkSpec, PoolSpec, SandboxId
from control.plan import Step
from datapath import accel, conflict, devices, parents, rtnl
from datapath.attached import Expected
from datapath.expected import Snapshot
from datapath.link_monitor import LinkChange
from datapath.uplink import Uplinks


class MacvlanDriver(Driver):
    """The macvlan endpoints of one host, and the programs on their parents.

    `netns_path` tells where a sandbox's namespace is.
    """

    name = "macvlan"
    capabilities = Capabilities(existing=True)

    def __init__(self, netns_path: Callable[[SandboxId], str], uplinks: Uplinks, *, default_accel: bool = True) -> None:
        self._netns_path = netns_path
        self._uplinks = uplinks
        self._parents = FollowedParents()
        self._programs = ParentPrograms(self._parents, uplinks, default_accel=default_accel)
        self._macvlan = MacvlanDevices(netns_path, self._parents, uplinks)
        self._veth = VethPairs(self._parents, uplinks)

    def _devices(self, network: Network) -> MacvlanDevices | VethPairs:
        return self._veth if is_switched(network) else self._macvlan

    def _device_of(self, endpoint: Endpoint) -> MacvlanDevices | VethPairs:
        return self._veth if endpoint.host_ifname else self._macvlan

    # -- checking ------------------------------------------------------------------------------------------------

    def validate(self, spec: NetworkSpec, others: Sequence[Network]) -> None:
        check_network(spec, macvlan_options.CHECKS)
        ifname = spec.options.get(PARENT)
        if mode_of(spec) == PASSTHRU and is_on(spec, HOST_ACCESS, False):
            raise InvalidArgument(
                f"option {HOST_ACCESS}=on cannot be had in mode {PASSTHRU}, where the one endpoint has the parent to "
                "itself: use another mode"
            )
        self._check_overlaps(spec, ifname, others)
        on_it = [
            other for other in others if ifname and other.driver == self.name and other.options.get(PARENT) == ifname
        ]
        macvlan_veth.check(spec, on_it, self._uplinks)
        if not ifname:
            return
        for other in on_it:
            if PASSTHRU in (mode_of(spec), mode_of(other)):
                raise Conflict(
                    f"parent {ifname} has network {other.name} in mode {mode_of(other)}: "
                    f"a network in mode {PASSTHRU} shares its parent with no other"
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
        if mode_of(network) == PASSTHRU and not is_parents:
            raise InvalidArgument(
                f"MAC address {spec.mac} cannot be had on network {network.name}: in mode {PASSTHRU} an endpoint has "
                f"that of the parent {parent_of(network)}"
            )
        if mode_of(network) != PASSTHRU and is_parents:
            raise Conflict(f"MAC address {mac} is in use by the parent {parent_of(network)}: choose another")

    def settle_endpoint(self, network: Network, endpoint: Endpoint, siblings: Sequence[Endpoint]) -> Endpoint:
        if endpoint.slot >= accel.MAX_SLOTS:
            raise Exhausted(
                f"network {network.name} cannot take another endpoint: this host has room for {accel.MAX_SLOTS}"
            )
        mac = endpoint.mac
        if mode_of(network) == PASSTHRU:
            if siblings:
                raise Exhausted(
                    f"network {network.name} cannot take another endpoint: in mode {PASSTHRU} one has the parent "
                    f"{parent_of(network)} to itself"
                )
            found = self._parents.find(network)
            mac = found.mac.hex(":") if found is not None else mac
        ifname = endpoint.driver_options.get(IFNAME, endpoint.ifname)
        host = macvlan_veth.host_ifname(endpoint.id) if is_switched(network) else ""
        return msgspec.structs.replace(endpoint, ifname=ifname, mac=mac, host_ifname=host)

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
            kind="parent",
        )
        return [self._parent_step(network), follow, *self._devices(network).network_steps(network)]

    def _parent_step(self, network: Network) -> Step:
        ifname, mark = parent_of(network), mark_of(network)
        if ifname == mark:
            mtu = int(network.options.get(MTU, parents.DEFAULT_MTU))
            return Step(
                f"create the isolated parent {mark}",
                partial(parents.add_isolated, mark, mtu=mtu),
                partial(devices.delete_links, [mark]),
                kind="parent",
            )
        if parents.split_vlan(ifname) is not None:
            return Step(
                f"create the sub-interface {ifname} unless it is there",
                partial(parents.hold_vlan, ifname, mark),
                partial(parents.release_vlan, mark),
                kind="parent",
            )
        return Step(
            f"look for the parent {ifname}", partial(self._require_parent, network), lambda: None, kind="parent"
        )

    def _require_parent(self, network: Network) -> None:
        self._parents.need(network)

    # -- an endpoint ---------------------------------------------------------------------------------------------

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        endpoint = join.endpoint
        where = f"in sandbox {join.holder}" if join.netns_path is not None else "for its engine"
        steps = [self._devices(join.network).step(join, where)]
        # Once joined an endpoint has its addresses, would answer itself, and is not to go if others have taken them.
        if endpoint.state is EndpointState.JOINING and is_checked(join.network):
            what = f"look for others with the addresses of {endpoint.ifname} {where}"
            steps.insert(0, Step(what, partial(self._look, join), lambda: None, kind="conflict_check"))
        if self._programs.are_for(join.network):
            steps.append(
                Step(
                    f"tell the programs on {parent_of(join.network)} of {endpoint.ifname} {where}",
                    partial(self._programs.tell, join.network, endpoint),
                    partial(self._programs.forget, join.network, endpoint),
                    kind="programs",
                )
            )
        if join.netns_path is not None:
            steps.append(
                Step(
                    f"set up {endpoint.ifname} {where}",
                    partial(self._set_up, join, join.netns_path),
                    lambda: None,
                    kind="inside",
                )
            )
        return steps

    def _look(self, join: Join) -> None:
        """Raises AddressInUse."""
        network, endpoint = join.network, join.endpoint
        parent = self._parents.need(network)
        if self._device_of(endpoint).remains(endpoint):
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
                    is_passthru=mode_of(network) == PASSTHRU,
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

    def _set_up(self, join: Join, netns_path: str) -> None:
        if self._programs.are_for(join.network):
            self._devices(join.network).limit(join.network, join.endpoint, netns_path)
        self._devices(join.network).set_up(join, netns_path)

    def moved_in(self, network: Network, endpoint: Endpoint) -> None:
        if self._programs.are_for(network):
            self._devices(network).limit(network, endpoint, endpoint.sandbox_key)

    def publish_steps(self, network: Network, endpoint: Endpoint) -> Sequence[Step]:
        raise NotImplementedByDriver(
            f"the driver {self.name} publishes no ports: endpoints of network {network.name} have addresses of the "
            "existing network, where all their ports are reachable; leave the published ports out"
        )

    # -- start and looking ---------------------------------------------------------------------------------------

    def start(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Deletes parents and devices that Linkspan made where no record knows of them, and runs the programs."""
        for kind in (self._macvlan, self._veth):
            kind.sweep(networks, endpoints)
        parents.sweep({mark_of(network) for network in networks})
        for network in networks:
            on_it = [endpoint for endpoint in endpoints if endpoint.network_id == network.id]
            self._parents.follow(network, partial(self._macvlan.lower_of, on_it))
        present = [endpoint for endpoint in endpoints if endpoint.state is not EndpointState.CREATED]
        self._programs.start(networks, present)
        by_id = {network.id: network for network in networks}
        for endpoint in present:
            network = by_id[endpoint.network_id]
            if not self._programs.are_for(network):
                continue
            # An engine may have moved the device meanwhile. Filters in sandboxes are as they were, but may be outdated.
            if endpoint.state is EndpointState.JOINED and (endpoint.is_remote or self._uplinks.are_new):
                path = endpoint.sandbox_key or self._netns_path(endpoint.sandbox_id)
                self._devices(network).limit(network, endpoint, path)

    def remains(self, endpoint: Endpoint) -> bool:
        return self._device_of(endpoint).remains(endpoint)

    def lost(self, endpoint: Endpoint) -> bool:
        return endpoint.is_remote and returned.is_there(endpoint.sandbox_key) and not self.remains(endpoint)

    def parent(self, network: Network) -> ParentState:
        return self._parents.state(network)

    def concerned(
        self, networks: Sequence[Network], changes: Collection[LinkChange] | None, failed: Collection[str]
    ) -> list[Network]:
        return self._parents.concerned(networks, changes, failed)

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> set[str]:
        by_id = {network.id: network for network in networks}
        lower = {network.id: self._parents.ifindex(network) for network in networks}
        whole: set[str] = {
            network.id
            for network in networks
            if lower[network.id] is not None and self._devices(network).has_network(network)
        }
        joined = [(by_id[endpoint.network_id], endpoint) for endpoint in endpoints]
        for kind in (self._macvlan, self._veth):
            whole |= kind.whole([pair for pair in joined if self._devices(pair[0]) is kind], lower)
        return whole

    # -- looking whether all is right ----------------------------------------------------------------------------

    def examine(self, networks: Sequence[Network], joins: Sequence[Join]) -> list[Problem]:
        """A parent that is gone or down is told of by `parent`; its endpoints can be no better."""
        found = [each for network in networks for each in mtu_problems(network, self._parents.find(network))]
        up = [join for join in joins if self._parents.state(join.network).is_up]
        with Snapshot() as snapshot:
            found += macvlan_expected.problems(snapshot, up)
        return [*found, *self._programs.problems(joins)]

    def examine_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Problem]:
        return [
            Problem(
                "map-extra", "maps", f"map stations has {key.mac.hex(':')} at ifindex {key.ifindex}, which nobody has"
            )
            for key in self._programs.extra(self._own(networks), endpoints)
        ]

    def mend_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        self._programs.mend(self._own(networks), endpoints)

    def _own(self, networks: Sequence[Network]) -> list[Network]:
        return [network for network in networks if network.driver == self.name]

    def attachments(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Expected]:
        return self._programs.attachments(networks, endpoints)

    def devices(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> Mapping[str, str]:
        return {self._parents.ifname(network): network.id for network in networks}

    def info(self, network: Network) -> dict[str, str]:
        found = self._parents.find(network)
        facts = {
            "linkspan.parent": parent_of(network),
            "linkspan.parent_state": self._parents.state(network).state,
            "linkspan.macvlan_mode": mode_of(network),
            DEVICE: VETH if is_switched(network) else MACVLAN,
            "linkspan.path": self._programs.path(network),
            "linkspan.host_access": self._programs.host_access(network),
        }
        if found is not None and found.marks:
            facts["linkspan.parent_made"] = "isolated" if is_isolated(network) else "802.1Q sub-interface"
        facts[BROADCAST_LIMIT] = self._programs.broadcast_limit(network)
        if CONFLICT_CHECK in network.options:
            facts[CONFLICT_CHECK] = "on" if is_checked(network) else "off"
        return facts

    def trace(self, walk: Walk) -> None:
        walk_macvlan.follow(walk, self._trace_way(walk))

    def trace_arrival(self, walk: Walk, mac: bytes | None) -> None:
        walk_macvlan.arrive(walk, self._trace_way(walk), mac)

    def _trace_way(self, walk: Walk) -> walk_macvlan.Way:
        network, networks = walk.network, walk.names.networks
        bridged = [
            each
            for each in walk.names.endpoints
            if self.shares_link(network, other := networks[each.network_id]) and mode_of(other) == "bridge"
        ]
        is_off = not self._programs.are_for(network)
        problem = f"network {network.name} has {ACCEL}=off" if is_off else self._programs.problem(network)
        return walk_macvlan.Way(
            parent=self._parents.ifname(network),
            bridged=bridged,
            mode=mode_of(network),
            tracer=None if problem else self._uplinks.programs.tracer,
            running=Running(self._uplinks.programs.id),
            why=problem or "",
            is_limited=broadcast_limit(network) > 0,
            is_xdp=parent_hook(network) == "xdp",
        )

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


def _check_overlap(pool: PoolSpec, other: Network) -> None:
    for taken in other.pools:
        if pool.subnet is None or pool.subnet.version != taken.subnet.version:
            continue
        if pool.subnet.overlaps(taken.subnet):
            raise Forbidden(
                "Pool overlaps with other one on this address space: "
                f"{pool.subnet} with {taken.subnet} of network {other.name}; choose another, or another parent"
            )
