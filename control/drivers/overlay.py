"""The driver `overlay`: on every node with endpoints a bridge as the driver `bridge` makes it, and a VXLAN device.

A network is everywhere and exists nowhere: a node builds it when its first endpoint joins, and takes it down after the
last has left. The VXLAN device alone carries all traffic between nodes (RFC 7348); the programs take unicast past it.
Every node has the gateway's addresses, with the same MAC: each is the way out for its own endpoints.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import msgspec

from control.cluster import secrecy
from control.cluster_spec import VNI_LIST, not_joined
from control.drivers import overlay_direct, overlay_mtu, walk_bridge, walk_overlay
from control.drivers.base import Capabilities, DriverStatus, Join, Problem
from control.drivers.bridge import SHARD_CAPACITY, Beside, BridgeDriver
from control.drivers.bridge_names import BRIDGE_MACS, bridge_name
from control.drivers.inside import mac_bytes
from control.drivers.options import ACCEL, ENCRYPTED, MTU, is_encrypted
from control.drivers.overlay_options import DIRECT, OPTIONS, VNI
from control.drivers.overlay_ways import Ways
from control.drivers.peering import Encrypting, Peering
from control.drivers.walk import Walk
from control.errors import Conflict, Exhausted, InvalidArgument, NotFound
from control.locks import KeyedLocks
from control.model import Address, Endpoint, EndpointSpec, Network, NetworkId, NetworkSpec
from control.plan import Step, execute, undo
from datapath import accel, devices, links, vxlan
from datapath.announce import Announcer
from datapath.attached import Expected
from datapath.fast_peers import FastPeers
from datapath.link_monitor import LinkChange
from datapath.vxlan import Peer, Vtep
from datapath.vxlan_peers import PeerTable

LOG = logging.getLogger(__name__)

_OUR_DEVICE: Final = re.compile(r"l[ox]-[0-9a-f]{12}")


@dataclass
class _Built:
    """A network that is on this node, for the endpoints in `users`; `peers` are what its tables were last told."""

    users: dict[str, Endpoint] = field(default_factory=dict)
    table: PeerTable | None = None
    peers: dict[bytes, Peer] | None = None

    def owners(self) -> dict[Address, bytes]:
        """The MACs of this node's endpoints by their addresses, without the link-local ones."""
        return {address: mac_bytes(each.mac) for each in self.users.values() for address in each.addresses}


class OverlayDriver(BridgeDriver):
    """Bridges with VXLAN devices, their entries for peers, and what the programs know of those. Thread-safe.

    `bridges` is the host's driver for bridge networks, started after this one: both share programs and firewall.
    """

    name = "overlay"
    capabilities = Capabilities(scope="global")
    options = OPTIONS

    def __init__(
        self,
        accelerator: accel.Accelerator,
        bridges: BridgeDriver,
        peering: Peering,
        fast: FastPeers,
        *,
        default_accel: bool = True,
        default_masquerade: bool = True,
    ) -> None:
        super().__init__(accelerator, default_accel=default_accel, default_masquerade=default_masquerade)
        self._bridges = bridges
        self._peering = peering
        self._fast = fast
        self._announcer = Announcer()
        self._locks = KeyedLocks()
        self._built: dict[NetworkId, _Built] = {}
        self._is_started = False
        self._ways = Ways(peering)

    # -- checking ------------------------------------------------------------------------------------------------

    def validate(self, spec: NetworkSpec, others: Sequence[Network]) -> None:
        super().validate(spec, others)
        self.wanted_vni(spec)
        if spec.ipam_driver != "default":
            raise InvalidArgument(
                f"the driver overlay takes no IPAM driver {spec.ipam_driver}: the cluster gives out the addresses"
            )
        if is_encrypted(spec) and spec.options.get(DIRECT) == "on":
            raise InvalidArgument(f"options {ENCRYPTED} and {DIRECT}=on exclude each other: leave one out")
        self._need_address(spec.name)

    def wanted_vni(self, spec: NetworkSpec) -> int:
        asked = {int(spec.options[option]) for option in (VNI, VNI_LIST) if option in spec.options}
        if len(asked) > 1:
            raise InvalidArgument(f"options {VNI} and {VNI_LIST} name different VNIs: give one")
        return next(iter(asked), 0)

    def settle_spec(self, spec: NetworkSpec) -> NetworkSpec:
        """With an MTU that packets of all nodes like this one fit in."""
        if MTU in spec.options:
            return spec
        there = self._underlay_mtu(self._need_address(spec.name))
        mtu = there - self._overhead(spec, there)
        return msgspec.structs.replace(spec, options={**spec.options, MTU: str(mtu)})

    def validate_endpoint(self, network: Network, spec: EndpointSpec) -> None:
        super().validate_endpoint(network, spec)
        address = self._need_address(network.name)
        if is_encrypted(network):
            secrecy.require_available(network.name)
        there = self._underlay_mtu(address)
        needed = int(network.options[MTU]) + self._overhead(network, there)
        if there < needed:
            raise Conflict(
                f"network {network.name} cannot be joined on this node: its MTU of {network.options[MTU]} takes one of "
                f"{needed} on the underlay, and the device with {address} has {there}: raise that, or make the network "
                f"with a smaller -o {MTU}="
            )

    def settle_endpoint(self, network: Network, endpoint: Endpoint, siblings: Sequence[Endpoint]) -> Endpoint:
        if len(siblings) >= SHARD_CAPACITY:
            raise Exhausted(
                f"network {network.name} cannot take another endpoint on this node: {len(siblings)} are here, and its "
                "bridge has room for no more"
            )
        return super().settle_endpoint(network, endpoint, siblings)

    def _need_address(self, network_name: str) -> Address:
        if self._peering.address is None:
            raise not_joined(network_name)
        return self._peering.address

    def _underlay_mtu(self, address: Address) -> int:
        ifname = devices.holder(address)
        if ifname is None:
            raise Conflict(f"address {address}, which this node is known by, is gone from this host: add it again")
        return devices.mtu(ifname)

    def _overhead(self, network: Network | NetworkSpec, underlay_mtu: int) -> int:
        version = self._need_address(network.name).version
        if is_encrypted(network):
            return underlay_mtu - secrecy.mtu(underlay_mtu, version)
        return vxlan.OVERHEAD_BYTES[version]

    # -- a network on this node ----------------------------------------------------------------------------------

    def network_steps(self, network: Network) -> Sequence[Step]:
        """None for a network that has no endpoint here: it does not exist then."""
        built = self._built.get(network.id)
        return self._steps_here(network) if built is not None and built.users else ()

    def _steps_here(self, network: Network) -> Sequence[Step]:
        vtep = self._vtep(network)
        return [
            *super().network_steps(network),
            *([self._tunnels_step(network)] if is_encrypted(network) else ()),
            Step(
                f"create VXLAN device {vtep.ifname}",
                partial(vxlan.add, vtep),
                partial(vxlan.remove, vtep),
                kind="vxlan",
            ),
            Step(
                f"tell {vtep.ifname} of the endpoints on other nodes",
                partial(self._follow_anew, network),
                partial(self._fast.close, network.segment),
                kind="peers",
            ),
        ]

    def _tunnels_step(self, network: Network) -> Step:
        return Step(
            f"have tunnels for network {network.name}",
            lambda: self._need_encrypting(network).use(network.id, network.name),
            lambda: self._need_encrypting(network).release(network.id),
            kind="tunnels",
        )

    def _need_encrypting(self, network: Network) -> Encrypting:
        self._need_address(network.name)
        assert self._peering.encrypting is not None
        return self._peering.encrypting

    def _vtep(self, network: Network) -> Vtep:
        """One of an encrypted network has its socket among the tunnels: what it sends cannot leave but by one."""
        local, socket_in = self._need_address(network.name), None
        if is_encrypted(network):
            encrypting = self._need_encrypting(network)
            local, socket_in = encrypting.address, encrypting.tunnels
        return Vtep(
            ifname=self._vtep_name(network),
            bridge=bridge_name(network),
            vni=network.vni,
            local=local,
            mtu=int(network.options[MTU]),
            socket_in=socket_in,
        )

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        network, id_ = join.network, join.endpoint.id
        build = Step(
            f"have network {network.name} on this node",
            partial(self._use, network, join.endpoint),
            partial(self._release, network, id_),
            kind="network_here",
        )
        return [build, *super().endpoint_steps(join)]

    def _use(self, network: Network, endpoint: Endpoint) -> None:
        with self._locks.held(network.id):
            built = self._built.setdefault(network.id, _Built())
            if not built.users:
                execute(self._steps_here(network))
            built.users[endpoint.id] = endpoint
            self._admit(network, built)

    def _release(self, network: Network, endpoint_id: str) -> None:
        """Before `start` nobody knows who else uses the network: what nobody does is removed there."""
        if not self._is_started:
            return
        with self._locks.held(network.id):
            built = self._built.get(network.id)
            if built is None:
                return
            built.users.pop(endpoint_id, None)
            if built.users:
                self._admit(network, built)
            else:
                undo(self._steps_here(network))
                del self._built[network.id]

    # -- peers ---------------------------------------------------------------------------------------------------

    def peers_changed(self, network: Network, *, anew: bool = False) -> None:
        with self._locks.held(network.id):
            built = self._built.get(network.id)
            if built is None or not built.users:
                return
            if anew:
                self._fast.close(network.segment)
                execute(self._steps_here(network))
            else:
                self._follow(network, built)

    def _follow_anew(self, network: Network) -> None:
        """The tables are as new: what they were told before is gone with the devices, or was never there."""
        built = self._built[network.id]
        built.table = built.peers = None
        self._follow(network, built)

    def _follow(self, network: Network, built: _Built) -> None:
        self._admit(network, built)
        found = self._peering.peers(network.id)
        if found is None:
            return
        if built.table is None:
            built.table = PeerTable(self._vtep(network), self._announcer)
        peers, before = {peer.mac: peer for peer in found}, built.peers
        built.peers = None  # until all of it has been done
        if before is None:
            built.table.synchronize(peers.values())
        elif peers != before:
            built.table.change(
                added=[peer for mac, peer in peers.items() if before.get(mac) != peer],
                removed=[peer for mac, peer in before.items() if mac not in peers],
            )
        built.peers = peers
        if self._is_fast(network):
            self._fast.synchronize(network.segment, network.vni, *self._ways.to_peers(peers.values()))

    def _is_fast(self, network: Network) -> bool:
        """Whether the programs carry packets to other nodes; those of encrypted networks are the tunnels' alone."""
        return self._is_accelerated(network) and not is_encrypted(network)

    # -- direct packets ------------------------------------------------------------------------------------------

    def takes_direct(self, network: Network) -> bool:
        return self._fast.admits(network.segment)

    def _admit(self, network: Network, built: _Built) -> None:
        """Has the programs take, and send, direct packets for this node's endpoints, where the network has such."""
        if not self._is_fast(network):
            return
        uplink = self._ways.uplink() if network.options.get(DIRECT, "off") != "off" else None
        if uplink is None:
            self._fast.refuse(network.segment)
        else:
            self._fast.admit(network.segment, uplink, built.owners())

    def _direct_facts(self, network: Network) -> str:
        """In words, which nodes get direct packets, and what is in the way of the others."""
        obstacle, facts = self._direct(network)
        if obstacle:
            return f"no: {obstacle}"
        return ", ".join(f"{node}: {facts[node]}" for node in sorted(facts, key=str)) or "no other node has endpoints"

    def _direct(self, network: Network) -> tuple[str, Mapping[Address, str]]:
        """(why no packet is direct, else what `overlay_direct.facts` says of nodes)"""
        if is_encrypted(network) or not self._is_accelerated(network):
            return f"the network is {'encrypted' if is_encrypted(network) else f'without programs ({ACCEL})'}", {}
        if not self._fast.admits(network.segment):
            return self._fast.problem or f"no program runs on an Ethernet device with {self._peering.address}", {}
        found = self._ways.to_peers(self._peering.peers(network.id) or ())
        return "", overlay_direct.facts(*found, self._peering.address)

    def _not_direct(self, network: Network, node: Address) -> str:
        obstacle, facts = self._direct(network)
        return obstacle or overlay_direct.reason(node, facts.get(node, ""))

    # -- looking whether all is right ----------------------------------------------------------------------------

    def differences(self, network: Network) -> list[str]:
        with self._locks.held(network.id):
            built, found = self._built.get(network.id), self._peering.peers(network.id)
            if built is None or found is None:
                return []
            vtep = self._vtep(network)
            problems = vxlan.problems(vtep)
            if not problems:
                problems += [str(each) for each in PeerTable(vtep, self._announcer).differences(found)]
            if self._is_fast(network):
                problems += self._fast.differences(network.segment, network.vni, *self._ways.to_peers(found))
            return problems

    def examine(self, networks: Sequence[Network], joins: Sequence[Join]) -> list[Problem]:
        here = [network for network in networks if network.id in self._built]
        found = super().examine(here, joins)
        for network in here:
            if self._peering.address is not None:
                nodes = {peer.node for peer in self._peering.peers(network.id) or ()}
                found_ways = () if is_encrypted(network) else map(self._ways.to, nodes)
                ways = [way for way in found_ways if way is not None]
                found += overlay_mtu.problems(network, self._peering.address, partial(self._overhead, network), ways)
        return found

    def examine_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Problem]:
        return []  # the driver bridge sees to it

    def mend_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        self._fast.run_again()

    def attachments(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Expected]:
        return super().attachments(networks, endpoints) + self._fast.attachments()

    def devices(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> Mapping[str, str]:
        here = [network for network in networks if network.id in self._built]
        return {**super().devices(here, endpoints), **{self._vtep_name(network): network.id for network in here}}

    def concerned(
        self, networks: Sequence[Network], changes: Collection[LinkChange] | None, failed: Collection[str]
    ) -> list[Network]:
        """No network is on a device of the host; the ways to other nodes are."""
        if self._ways.forget(changes):
            self._peering.wake()
        return []

    # -- start and looking ---------------------------------------------------------------------------------------

    def start(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Takes up what is on this node, and deletes devices of networks that have no endpoint here."""
        for endpoint in endpoints:
            self._built.setdefault(endpoint.network_id, _Built()).users[endpoint.id] = endpoint
        here = [network for network in networks if network.id in self._built]
        present = {link.ifname: link for link in links.dump()}
        self._bridges.keep(
            Beside(
                ports=self._ports(here, endpoints, present),
                gateways=here,
                policies=self._policies(here, endpoints),
                ifnames={endpoint.host_ifname for endpoint in endpoints},
            )
        )
        known = {name for network in here for name in (bridge_name(network), self._vtep_name(network))}
        devices.delete_links([name for name, link in present.items() if _is_ours(name, link) and name not in known])
        self._fast.start({network.segment for network in here if self._is_fast(network)})
        for network in here:
            self._admit(network, self._built[network.id])
            if is_encrypted(network) and self._peering.encrypting is not None:
                self._peering.encrypting.resume(network.id)
        self._is_started = True

    def _vtep_name(self, network: Network) -> str:
        return f"lx-{network.id[:12]}"

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> set[str]:
        present = {link.ifname: link for link in links.dump()}
        whole = super().intact(networks, endpoints)
        for network in networks:
            if network.id not in self._built:
                whole.add(network.id)
            elif self._vtep_name(network) not in present:
                whole.discard(network.id)
        return whole

    def info(self, network: Network) -> dict[str, str]:
        if network.id not in self._built:
            return {"linkspan.here": "no endpoint on this node"}
        facts = {**super().info(network), "linkspan.vxlan": self._vtep_name(network)}
        if is_encrypted(network):
            facts["linkspan.tunnels"] = "WireGuard"
        elif self._is_accelerated(network) and self._fast.problem:
            facts["linkspan.path"] = f"kernel VXLAN to other nodes: {self._fast.problem}"
        if network.options.get(DIRECT, "off") != "off":
            facts[DIRECT] = self._direct_facts(network)
        return facts

    def _trace_way(self, network: Network) -> walk_bridge.Way:
        tunnels = self._need_encrypting(network).tunnels if is_encrypted(network) else None
        may_be_direct = network.options.get(DIRECT, "off") != "off"
        not_direct = partial(self._not_direct, network) if may_be_direct else None
        return replace(super()._trace_way(network), tunnels=tunnels, not_direct=not_direct)

    def trace_arrival(self, walk: Walk, mac: bytes | None) -> None:
        network, origin = walk.network, walk.origin or walk.source
        local, found = self._need_address(network.name), self._peering.peers(network.id) or ()
        sender = next((peer for peer in found if origin in peer.addresses), None)
        own = (each for each in (walk.endpoint.ipv4, walk.endpoint.ipv6) if each is not None)
        if sender is None and not any(origin in each.network for each in own):
            super().trace_arrival(walk, mac)
            return
        if sender is None:
            raise NotFound(f"no endpoint of another node is known that has {origin} on network {network.name}")
        way = None if is_encrypted(network) else self._ways.to(sender.node)
        arrival = walk_overlay.Arrival(
            sender,
            local,
            uplink=0 if way is None else way.ifindex,
            vxlan=self._vtep_name(network),
            problem=self._fast.problem or "",
            not_direct=self._not_direct_from(network, sender, origin),
        )
        walk_overlay.arrive(walk, self._trace_way(network), arrival, mac)

    def _not_direct_from(self, network: Network, sender: Peer, origin: Address) -> str | None:
        """Why a peer's packets come in VXLAN, empty where they do not; None on a network without direct packets."""
        if network.options.get(DIRECT, "off") == "off":
            return None
        if origin.is_link_local:
            return f"{origin} says nothing of the network"
        obstacle, facts = self._direct(network)
        fact = facts.get(sender.node, "")
        return obstacle or ("" if fact == overlay_direct.YES else overlay_direct.reason(sender.node, fact))

    def status(self) -> DriverStatus:
        if self._peering.address is None:
            return DriverStatus({"cluster": "not joined"})
        if self._fast.problem:
            return DriverStatus({"path": "kernel VXLAN"}, {"ebpf-overlay": self._fast.problem})
        return DriverStatus(
            {"path": "eBPF", "attachment of uplinks": self._fast.attachment}, dict(self._fast.fallbacks)
        )


def _is_ours(name: str, link: links.LinkInfo) -> bool:
    """Whether the device is one that only this driver makes."""
    if _OUR_DEVICE.fullmatch(name) is None:
        return False
    return link.kind in ("bridge", "vxlan") and link.mac[:2] in (BRIDGE_MACS[0], vxlan.MAC_PREFIX)
