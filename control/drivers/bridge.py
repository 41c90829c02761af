"""The driver `bridge`: a Linux bridge with the gateway's addresses, a veth pair an endpoint, eBPF on its host end.

The Linux devices carry all traffic by themselves. The programs check senders, answer for neighbours and take unicast
between endpoints past the bridge; with `linkspan.accel=off` they are left out and nothing else is different.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_interface
from typing import ClassVar, Final

import msgspec

from control.addressing import link_local
from control.drivers import bridge_expected, bridge_shared, inside, ports_of_bridge, walk_bridge
from control.drivers.base import Capabilities, Driver, DriverStatus, EndpointCounters, Join, Problem
from control.drivers.bridge_names import (
    BRIDGE_MACS,
    NAME,
    bridge_mac,
    bridge_name,
    is_ours,
    trunk_names,
)
from control.drivers.inside import mac_bytes
from control.drivers.options import (
    ACCEL,
    ICC,
    IFACE_PREFIX,
    IFNAME,
    MASQUERADE,
    MTU,
    Check,
    check_boolean,
    check_endpoint,
    check_ifname,
    check_mtu,
    check_network,
    check_prefix,
    is_on,
)
from control.drivers.walk import Walk
from control.drivers.walk_hooks import Running
from control.errors import Conflict, Exhausted, Forbidden, InvalidArgument
from control.model import Endpoint, EndpointSpec, Network, NetworkSpec
from control.plan import Step
from datapath import accel, devices, docker_firewall, links, nft, rtnl
from datapath.attached import Expected
from datapath.expected import Snapshot

SHARD_CAPACITY: Final = 1000
"""Endpoints on one Linux bridge. The kernel allows 1,023 ports (BR_MAX_PORTS); the rest is for trunks of shards."""
MAX_SHARDS: Final = 20

_NOT_IN_RULES: Final = re.compile(r"[\"'\\]|\+$")
"""What nft(8) and iptables(8) would not take for a part of a device's name."""


def _check_ifname(option: str, value: str) -> None:
    check_ifname(option, value)
    if _NOT_IN_RULES.search(value):
        raise InvalidArgument(f"invalid device name {value!r} for option {option}: no quotes, no \\, no + at its end")
    if devices.ifindex(value) is not None:
        raise Conflict(f"device {value} exists on this host: choose another name for option {option}")


_OPTIONS: Final[Mapping[str, Check]] = {
    ACCEL: check_boolean,
    NAME: _check_ifname,
    ICC: check_boolean,
    MASQUERADE: check_boolean,
    MTU: check_mtu,
    IFACE_PREFIX: check_prefix,
}


@dataclass(frozen=True)
class Beside:
    """What another driver has of the things that all drivers with bridges share: programs, firewall, veth pairs.

    `gateways` are the networks whose gateways the programs answer for.
    """

    ports: Sequence[accel.Port]
    gateways: Sequence[Network]
    policies: Sequence[nft.Policy]
    ifnames: Collection[str]


class BridgeDriver(Driver):
    """Bridges, veth pairs, the nftables table and the endpoint programs of one host."""

    name = "bridge"
    capabilities = Capabilities()
    options: ClassVar[Mapping[str, Check]] = _OPTIONS

    def __init__(self, accelerator: accel.Accelerator, *, default_accel: bool = True, default_masquerade: bool = True):
        self._accel = accelerator
        self._default_accel = default_accel
        self._default_masquerade = default_masquerade
        self._beside: list[Beside] = []

    def keep(self, beside: Beside) -> None:
        """Has `start`, which comes after it, leave what another driver has as it is to be."""
        self._beside.append(beside)

    # -- checking ------------------------------------------------------------------------------------------------

    def validate(self, spec: NetworkSpec, others: Sequence[Network]) -> None:
        check_network(spec, self.options)
        for other in others:  # also those whose device is not there yet
            if spec.options.get(NAME) == bridge_name(other):
                raise Conflict(
                    f"{spec.options[NAME]} is the bridge of network {other.name}: choose another name for option {NAME}"
                )
        for pool in spec.pools:
            for other in others:
                for taken in other.pools:
                    same = pool.subnet is not None and pool.subnet.version == taken.subnet.version
                    if same and pool.subnet is not None and pool.subnet.overlaps(taken.subnet):
                        raise Forbidden(
                            "Pool overlaps with other one on this address space: "
                            f"{pool.subnet} with {taken.subnet} of network {other.name}; a subnet has one bridge"
                        )

    def validate_endpoint(self, network: Network, spec: EndpointSpec) -> None:
        check_endpoint(self.name, spec)

    def settle_endpoint(self, network: Network, endpoint: Endpoint, siblings: Sequence[Endpoint]) -> Endpoint:
        used = Counter(sibling.shard for sibling in siblings)
        shard = next((number for number in range(MAX_SHARDS) if used[number] < SHARD_CAPACITY), None)
        if shard is None or endpoint.slot >= accel.MAX_SLOTS:
            raise Exhausted(
                f"network {network.name} cannot take another endpoint: {len(siblings)} are on it, "
                f"and this host has room for {min(MAX_SHARDS * SHARD_CAPACITY, accel.MAX_SLOTS)}"
            )
        ifname = endpoint.driver_options.get(IFNAME, endpoint.ifname)
        return msgspec.structs.replace(endpoint, ifname=ifname, host_ifname=f"ls{endpoint.id[:12]}", shard=shard)

    # -- a network -----------------------------------------------------------------------------------------------

    def network_steps(self, network: Network) -> Sequence[Step]:
        bridge = bridge_name(network)
        return [
            Step(
                f"create bridge {bridge}",
                partial(self._add_bridge, network),
                partial(self._delete_bridges, network),
                kind="bridge",
            ),
            Step(
                f"let {bridge} through the firewall",
                partial(self._open_firewall, network),
                partial(self._close_firewall, network),
                kind="firewall",
            ),
            Step(
                f"answer for the gateways of {network.name}",
                partial(self._add_gateways, network),
                partial(self._delete_gateways, network),
                kind="gateways",
            ),
        ]

    def _add_bridge(self, network: Network) -> None:
        mtu = int(network.options[MTU]) if MTU in network.options else devices.default_mtu()
        bridge = bridge_name(network)
        devices.add_bridge(bridge, mac=bridge_mac(network), mtu=mtu, ipv6=network.enable_ipv6)
        devices.add_addresses(
            bridge, [ip_interface(f"{p.gateway}/{p.subnet.prefixlen}") for p in network.pools if p.gateway is not None]
        )

    def _delete_bridges(self, network: Network) -> None:
        trunks = [trunk_names(network, shard)[0] for shard in range(1, MAX_SHARDS)]
        devices.delete_links([*trunks, *(bridge_name(network, shard) for shard in reversed(range(MAX_SHARDS)))])

    def _open_firewall(self, network: Network) -> None:
        if not network.internal:
            devices.enable_forwarding(ipv6=network.enable_ipv6)
        nft.add(self._policy(network, [0]))
        docker_firewall.admit([bridge_name(network)])
        if not network.internal:
            nft.allow_loopback(bridge_name(network))

    def _close_firewall(self, network: Network) -> None:
        policy = self._policy(network, range(MAX_SHARDS))
        nft.remove(policy)
        docker_firewall.dismiss(policy.bridges)

    def _policies(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[nft.Policy]:
        return bridge_shared.policies(networks, endpoints, default_masquerade=self._default_masquerade)

    def _policy(self, network: Network, shards: Sequence[int]) -> nft.Policy:
        return bridge_shared.policy(network, shards, default_masquerade=self._default_masquerade)

    def _add_gateways(self, network: Network) -> None:
        for pool in network.pools:
            if pool.gateway is not None:
                self._accel.add_gateway(network.segment, pool.gateway, mac_bytes(bridge_mac(network)))

    def _delete_gateways(self, network: Network) -> None:
        for pool in network.pools:
            if pool.gateway is not None:
                self._accel.delete_gateway(network.segment, pool.gateway)

    # -- an endpoint ---------------------------------------------------------------------------------------------

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        network, endpoint, host = join.network, join.endpoint, join.endpoint.host_ifname
        steps = []
        if endpoint.shard:
            steps.append(
                Step(
                    f"join shard {endpoint.shard} to bridge {bridge_name(network)}",
                    partial(self._add_shard, network, endpoint.shard),
                    lambda: None,  # other endpoints use it; it goes with the network
                    kind="shard",
                )
            )
        steps += [
            Step(
                f"create veth {host} on {bridge_name(network, endpoint.shard)}",
                partial(ports_of_bridge.add_veth, join, bridge_name(network, endpoint.shard)),
                partial(devices.delete_links, [host]),
                kind="veth",
            ),
            Step(
                f"set up bridge port {host}",
                partial(self._set_up_port, network, endpoint),
                partial(self._forget_port, network, endpoint),
                kind="port",
            ),
        ]
        if self._is_accelerated(network):
            port = self._port(network, endpoint)
            steps.append(
                Step(
                    f"attach the programs to {host}",
                    lambda: self._accel.attach(port),
                    lambda: self._accel.detach(port),
                    kind="programs",
                )
            )
        if join.netns_path is not None:
            steps.append(
                Step(
                    f"set up {endpoint.ifname} in sandbox {join.holder}",
                    partial(_set_up_inside, join, join.netns_path),
                    lambda: None,
                    kind="inside",
                )
            )
        return steps

    def _add_shard(self, network: Network, shard: int) -> None:
        root, bridge = bridge_name(network), bridge_name(network, shard)
        up, down = trunk_names(network, shard)
        if devices.is_up(down):  # the last thing that is done here
            return
        mtu = devices.mtu(root)
        mac = f"{BRIDGE_MACS[1].hex(':')}:{shard:02x}:{network.id[0:2]}:{network.id[2:4]}:{network.id[4:6]}"
        devices.add_bridge(bridge, mac=mac, mtu=mtu, ipv6=False)
        nft.add(self._policy(network, [0, shard]))
        docker_firewall.admit([bridge])
        devices.add_trunk(up, root, down, bridge, mtu=mtu, isolated=not is_on(network, ICC))

    def _set_up_port(self, network: Network, endpoint: Endpoint) -> None:
        """The port knows its one MAC: nothing is learned, and nothing that is for others is flooded into it.

        An address of its own, which the kernel would give it, has no use and would be announced to the sandbox. The
        host knows the endpoint as its neighbour, as the sandbox knows its gateway: to ask would disturb all others, and
        the namespaces of a machine share room for no more than 1,024 neighbours that were learned (gc_thresh3).
        """
        host, mac, bridge = endpoint.host_ifname, mac_bytes(endpoint.mac), bridge_name(network)
        index, bridge_index = devices.need_ifindex(host), devices.need_ifindex(bridge)
        requests = [
            rtnl.bridge_port(index, host, learning=False, unicast_flood=False, isolated=not is_on(network, ICC)),
            rtnl.fdb_add(index, host, mac),
            rtnl.link_no_auto_address(index, host),
            rtnl.link_up(index, host),
        ]
        requests += [rtnl.neighbour_add(bridge_index, bridge, address, mac) for address in endpoint.addresses]
        if endpoint.shard:
            trunk, _ = trunk_names(network, endpoint.shard)
            requests.append(rtnl.fdb_add(devices.need_ifindex(trunk), trunk, mac))
        with rtnl.Rtnl() as netlink:
            netlink.apply(requests)

    def _forget_port(self, network: Network, endpoint: Endpoint) -> None:
        """What the first bridge knows of the endpoint; all else goes with the port."""
        bridge, (trunk, _) = bridge_name(network), trunk_names(network, endpoint.shard)
        bridge_index, trunk_index = devices.ifindex(bridge), devices.ifindex(trunk) if endpoint.shard else None
        requests = []
        if bridge_index is not None:
            requests += [rtnl.neighbour_delete(bridge_index, bridge, address) for address in endpoint.addresses]
        if trunk_index is not None:
            requests.append(rtnl.fdb_delete(trunk_index, trunk, mac_bytes(endpoint.mac)))
        with rtnl.Rtnl() as netlink:
            netlink.apply(requests)

    def _port(self, network: Network, endpoint: Endpoint) -> accel.Port:
        return accel.Port(
            ifname=endpoint.host_ifname,
            segment=network.segment,
            slot=endpoint.slot,
            mac=mac_bytes(endpoint.mac),
            ip4=endpoint.ipv4.ip if endpoint.ipv4 else None,
            ip6=endpoint.ipv6.ip if endpoint.ipv6 else None,
            ip6_ll=link_local(endpoint.mac) if endpoint.ipv6 else None,
            link_locals=endpoint.link_local_ips,
            is_connected=is_on(network, ICC),
            is_engines=endpoint.is_remote,
            is_overlay=network.is_global,
        )

    def publish_steps(self, network: Network, endpoint: Endpoint) -> Sequence[Step]:
        publications, host = bridge_shared.publications([endpoint]), endpoint.host_ifname
        return [
            Step(
                f"let {host} reach itself", partial(nft.allow_hairpin, host), lambda: None, kind="hairpin"
            ),  # goes with the port
            Step(
                f"publish {', '.join(map(str, endpoint.ports))}",
                partial(nft.publish, publications),
                partial(nft.unpublish, publications),
                kind="publish",
            ),
        ]

    def _is_accelerated(self, network: Network) -> bool:
        return is_on(network, ACCEL, self._default_accel)

    # -- start and looking ---------------------------------------------------------------------------------------

    def start(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Loads the programs, brings maps and firewall in line with the records, and deletes devices nobody knows."""
        by_id = {network.id: network for network in networks}
        present = {link.ifname: link for link in links.dump()}
        ports = self._ports(networks, endpoints, present)
        self._accel.start([*ports, *(port for other in self._beside for port in other.ports)])
        for network in (*networks, *(network for other in self._beside for network in other.gateways)):
            self._add_gateways(network)
        shards = bridge_shared.shards(networks, endpoints)
        policies = self._policies(networks, endpoints) + [policy for other in self._beside for policy in other.policies]
        if policies or nft.exists():
            nft.synchronize(policies, bridge_shared.publications(endpoints))
        docker_firewall.synchronize([bridge for policy in policies for bridge in policy.bridges])
        known = {endpoint.host_ifname for endpoint in endpoints}
        known.update(*(other.ifnames for other in self._beside))
        for id_, numbers in shards.items():
            for shard in numbers:
                known |= {bridge_name(by_id[id_], shard), *trunk_names(by_id[id_], shard)}
        devices.delete_links([name for name, link in present.items() if is_ours(link) and name not in known])

    def _ports(
        self, networks: Sequence[Network], endpoints: Sequence[Endpoint], present: Container[str]
    ) -> list[accel.Port]:
        """What the programs are to know of the endpoints whose host end is there."""
        by_id = {network.id: network for network in networks}
        return [
            self._port(by_id[endpoint.network_id], endpoint)
            for endpoint in endpoints
            if endpoint.host_ifname in present and self._is_accelerated(by_id[endpoint.network_id])
        ]

    def restore_firewall(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Docker's FORWARD policy is new with each of its starts, and DOCKER-USER with its first."""
        policies = self._policies(networks, endpoints)
        nft.restore(policies, bridge_shared.publications(endpoints))
        docker_firewall.admit([bridge for policy in policies for bridge in policy.bridges])

    def remains(self, endpoint: Endpoint) -> bool:
        return ports_of_bridge.remains(endpoint)

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> set[str]:
        present = {link.ifname: link for link in links.dump()}
        by_id = {network.id: network for network in networks}
        whole: set[str] = {network.id for network in networks if bridge_name(network) in present}
        for endpoint in endpoints:
            if ports_of_bridge.is_whole(endpoint, bridge_name(by_id[endpoint.network_id], endpoint.shard), present):
                whole.add(endpoint.id)
        return whole

    # -- looking whether all is right ----------------------------------------------------------------------------

    def examine(self, networks: Sequence[Network], joins: Sequence[Join]) -> list[Problem]:
        with Snapshot() as snapshot:
            return list(bridge_expected.problems(snapshot, networks, joins))

    def examine_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Problem]:
        bridged, on_them = bridge_shared.bridged(networks, endpoints)
        ports = self._ports(bridged, on_them, {link.ifname for link in links.dump()})
        by_port = {endpoint.host_ifname: endpoint.id for endpoint in on_them}
        found = [
            Problem(each.code, ifname or "maps", each.what, by_port.get(ifname, ""))
            for ifname, each in self._accel.differences(ports, bridge_shared.gateways(bridged))
        ]
        policies = self._policies(bridged, on_them)
        for what, is_extra in nft.differences(policies, bridge_shared.publications(on_them)):
            found.append(Problem("firewall-extra" if is_extra else "firewall-missing", "nftables", what))
        if docker_firewall.differs([bridge for policy in policies for bridge in policy.bridges]):
            what = "Docker's firewall does not let through exactly Linkspan's bridges"
            found.append(Problem("firewall-missing", "iptables", what))
        pins = self._accel.programs.unpinned()
        return found + [Problem("pin-missing", str(path), "nothing is pinned there") for path in pins]

    def mend_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        bridged, on_them = bridge_shared.bridged(networks, endpoints)
        policies = self._policies(bridged, on_them)
        if policies:
            nft.synchronize(policies, bridge_shared.publications(on_them))
        docker_firewall.synchronize([bridge for policy in policies for bridge in policy.bridges])
        for network in bridged:
            self._add_gateways(network)
        ports = self._ports(bridged, on_them, {link.ifname for link in links.dump()})
        self._accel.mend(ports, bridge_shared.gateways(bridged))

    def attachments(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Expected]:
        return self._accel.attachments(self._ports(networks, endpoints, {link.ifname for link in links.dump()}))

    def devices(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> Mapping[str, str]:
        bridges = {bridge_name(network): network.id for network in networks}
        return {**bridges, **{endpoint.host_ifname: endpoint.id for endpoint in endpoints}}

    def info(self, network: Network) -> dict[str, str]:
        facts = {"linkspan.bridge": bridge_name(network)}
        if not self._is_accelerated(network):
            facts["linkspan.path"] = f"kernel bridge ({ACCEL}=off)"
        elif self._accel.problem:
            facts["linkspan.path"] = f"kernel bridge: {self._accel.problem}"
        else:
            facts["linkspan.path"] = f"eBPF ({self._accel.attachment})"
        return facts

    def counters(self, endpoints: Sequence[Endpoint]) -> dict[str, EndpointCounters]:
        """From the programs where they run, else from the host ends' own counters, which know one path only."""
        by_slot, drops = self._accel.counters()
        is_missing = any(endpoint.slot not in by_slot for endpoint in endpoints)
        present = {link.ifname: link for link in links.dump()} if is_missing else {}
        found: dict[str, EndpointCounters] = {}
        for endpoint in endpoints:
            counted, link = by_slot.get(endpoint.slot), present.get(endpoint.host_ifname)
            if counted is not None:
                found[endpoint.id] = EndpointCounters(**vars(counted), drops=drops.get(endpoint.slot, {}))
            elif link is not None:
                found[endpoint.id] = _counted_by(link)
        return found

    def last_counters(self, endpoint: Endpoint) -> EndpointCounters | None:
        if self._accel.knows(endpoint.host_ifname):
            return None
        link = next((link for link in links.dump() if link.ifname == endpoint.host_ifname), None)
        return None if link is None else _counted_by(link)

    def trace(self, walk: Walk) -> None:
        walk_bridge.follow(walk, self._trace_way(walk.network))

    def trace_arrival(self, walk: Walk, mac: bytes | None) -> None:
        walk_bridge.arrive(walk, self._trace_way(walk.network), mac)

    def _trace_way(self, network: Network) -> walk_bridge.Way:
        programs = self._accel.programs
        why = self._accel.problem if self._is_accelerated(network) else f"network {network.name} has {ACCEL}=off"
        return walk_bridge.Way(None if why else programs.tracer, Running(programs.id), why or "")

    def status(self) -> DriverStatus:
        if self._accel.problem:
            return DriverStatus({"path": "kernel bridge"}, {"ebpf": self._accel.problem})
        return DriverStatus(
            {"path": "eBPF", "attachment": self._accel.attachment, **self._accel.facts()}, self._accel.fallbacks
        )


def _counted_by(link: links.LinkInfo) -> EndpointCounters:
    """What a host end has counted: packets that left the sandbox came in there."""
    return EndpointCounters(
        out_slow_packets=link.rx_packets,
        out_slow_bytes=link.rx_bytes,
        in_slow_packets=link.tx_packets,
        in_slow_bytes=link.tx_bytes,
    )


def _set_up_inside(join: Join, netns_path: str) -> None:
    inside.set_up(join, netns_path, gateway_mac=mac_bytes(bridge_mac(join.network)))
    devices.take_note_of_carrier(join.endpoint.host_ifname)
