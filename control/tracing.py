"""Tracing: one packet of an endpoint, followed through the real programs and the kernel's own tables.

What a sandbox's kernel does first is asked there: by which route, and which MAC the next hop has. Then the endpoint's
driver follows the frame (`Driver.trace`). Nothing is sent, and nothing that anybody else sees is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from control.deps import Deps
from control.drivers import walk_host
from control.drivers.walk import KERNEL, End, Names, Step, Walk, is_for
from control.errors import DatapathFailed, Forbidden, InvalidArgument, NotFound
from control.model import Address, Endpoint, EndpointState, Network
from control.records import Records
from datapath import frames, kernel_path, loader
from datapath.frames import Protocol

DEFAULT_PORT: Final = 80
_PROTOCOLS: Final[Mapping[str, Protocol]] = {"tcp": "tcp", "udp": "udp", "icmp": "icmp"}


@dataclass(frozen=True)
class TraceRequest:
    """What to trace: from a sandbox or endpoint, to one or to an address; `mac` and `ip` forge the sender's.

    Or as it arrives here, for an endpoint of this host or a port of the host that stands for one: from the address of
    another machine, or from an endpoint of another node, by its name or address.

    `protocol` is tcp, udp or icmp; `port` is for the first two, 0 for a usual one.
    """

    source: str
    destination: str
    protocol: str = "icmp"
    port: int = 0
    mac: str = ""
    ip: str = ""


@dataclass(frozen=True)
class Trace:
    """A packet's way: what it was, the steps in order, and the end."""

    packet: str
    network: str
    driver: str
    steps: tuple[Step, ...]
    end: End


@dataclass(frozen=True)
class _Asked:
    """What packet; `mac` and `ip` are the forged sender's, `port` 0 without ports."""

    protocol: Protocol
    port: int
    mac: bytes | None
    ip: Address | None


class Tracing:
    """`nodes` and `elsewhere` are the cluster's: nodes' addresses on the underlay and in the tunnels, by name, and a
    network's endpoints on other nodes by address, with their names. Thread-safe."""

    def __init__(
        self,
        deps: Deps,
        records: Records,
        nodes: Callable[[], Mapping[str, tuple[Address, Address]]],
        elsewhere: Callable[[Network], Mapping[Address, tuple[str, ...]]],
    ) -> None:
        self._deps = deps
        self._records = records
        self._nodes = nodes
        self._elsewhere = elsewhere

    def trace(self, request: TraceRequest) -> Trace:
        """Raises InvalidArgument, NotFound, Forbidden, NotImplementedByDriver, and DatapathFailed for what the kernel
        does not tell. The first trace after linkspand's programs were new blocks for a second and more."""
        protocol = _PROTOCOLS.get(request.protocol)
        if protocol is None:
            raise InvalidArgument(f"invalid protocol {request.protocol!r}: use {', '.join(_PROTOCOLS)}")
        if not 0 <= request.port <= 65535:
            raise InvalidArgument(f"invalid port {request.port}: ports are 1 to 65535")
        if protocol == "icmp" and request.port:
            raise InvalidArgument("icmp has no ports: leave the port out, or give tcp or udp")
        port = 0 if protocol == "icmp" else request.port or DEFAULT_PORT
        ip = _address(request.ip, "address") if request.ip else None
        asked = _Asked(protocol, port, _mac(request.mac), ip)
        origin = _as_address(request.source) or self._on_other_node(request)
        try:
            if origin is not None:
                return self._trace_arrival(origin, request.destination, asked)
            candidates = self._candidates(request.source)
            return self._trace(candidates, self._destination(request.destination, candidates), asked)
        except (OSError, loader.LoaderError) as error:
            raise DatapathFailed(f"the packet cannot be traced: {error}") from error

    # -- whose packet, and where to ------------------------------------------------------------------------------

    def _candidates(self, ref: str) -> list[Endpoint]:
        """The endpoints that a sandbox, NETWORK/SANDBOX or endpoint stands for."""
        found = self._endpoints(ref)
        for endpoint in found:
            network = self._network(endpoint)
            if not self._deps.driver_of(network).capabilities.addresses:
                raise Forbidden(
                    f"{ref} is on network {network.name}, whose driver {network.driver} has no path of its own: "
                    + ("it uses the host's stack" if network.driver == "host" else "nothing leaves such a sandbox")
                )
            if endpoint.state is not EndpointState.JOINED:
                raise Forbidden(
                    f"endpoint {endpoint.id[:12]} of {ref} is {endpoint.state}, not joined to a sandbox: "
                    "trace it when its sandbox has it"
                )
        return found

    def _endpoints(self, ref: str) -> list[Endpoint]:
        address = _as_address(ref)
        if address is not None:
            found = [each for each in self._records.endpoints() if is_for(each, address)]
            if not found:
                raise NotFound(f"no endpoint of this host has {address}: `linkspan ps` lists sandboxes")
            return found
        network_ref, slash, name = ref.partition("/")
        if slash:
            network = self._records.network(network_ref)
            found = [each for each in self._endpoints(name) if each.network_id == network.id]
            if not found:
                raise NotFound(f"sandbox {name} is not on network {network.name}: connect it first")
            return found
        try:
            sandbox = self._records.sandbox(ref)
        except NotFound:
            by_id = [each for each in self._records.endpoints() if len(ref) >= 4 and each.id.startswith(ref)]
            if len(by_id) > 1:
                raise InvalidArgument(f"{ref} is ambiguous: {len(by_id)} endpoints begin so") from None
            if not by_id:
                raise NotFound(f"no sandbox or endpoint {ref}: `linkspan ps` lists sandboxes") from None
            return by_id
        found = self._records.in_sandbox(sandbox.id)
        if not found:
            raise Forbidden(f"sandbox {sandbox.name} is on no network: connect it to one first")
        return found

    def _on_other_node(self, request: TraceRequest) -> Address | None:
        """The address that an endpoint of another node sends from, where the source is called as one that is on a
        network with the destination; None where it is an endpoint of this host, or nobody's name."""
        network_ref, _, name = request.source.rpartition("/")
        try:
            self._endpoints(request.source)
            return None
        except NotFound:
            networks = [self._records.network(network_ref)] if network_ref else self._records.networks()
        called = [
            (network.id, address)
            for network in networks
            for address, names in self._others(network).items()
            if name in (*names, str(address))
        ]
        receivers = self._endpoints(request.destination) if called else []
        reached = {(each.network_id, address.version) for each in receivers for address in each.addresses}
        for network_id, address in called:
            if (network_id, address.version) in reached:
                return address
        if called:
            raise NotFound(f"{request.destination} is on no network with {request.source}, which is on another node")
        return None

    def _others(self, network: Network) -> Mapping[Address, tuple[str, ...]]:
        """The endpoints of other nodes on a network, with their names."""
        return self._elsewhere(network) if network.is_global else {}

    def _destination(self, ref: str, sources: list[Endpoint]) -> Address:
        """The address that a sandbox, an endpoint, a node, or an address stands for, on a network of a source if it
        is on one."""
        known = _as_address(ref)
        if known is not None:
            return known
        networks = {each.network_id for each in sources}
        for network_id in networks:
            for address, names in self._others(self._records.network(network_id)).items():
                if ref in names:
                    return address
        if ref in self._nodes():
            return self._nodes()[ref][0]
        found = self._endpoints(ref)
        shared = [each for each in found if each.network_id in networks] or found
        if len(shared) > 1:
            each_way = ", ".join(f"{self._network(each).name}/{ref}" for each in shared)
            raise InvalidArgument(f"{ref} is on several networks: say which, as in {each_way}")
        if not shared[0].addresses:
            raise Forbidden(f"{ref} has no address on network {self._network(shared[0]).name}")
        return shared[0].addresses[0]

    def _network(self, endpoint: Endpoint) -> Network:
        return self._records.network(endpoint.network_id)

    def _netns(self, endpoint: Endpoint) -> str:
        return endpoint.sandbox_key or self._deps.files.netns_path(endpoint.sandbox_id)

    # -- the way -------------------------------------------------------------------------------------------------

    def _trace(self, candidates: list[Endpoint], destination: Address, asked: _Asked) -> Trace:
        names = self._names()
        path = self._netns(candidates[0])
        way = kernel_path.route(destination, netns_path=path)
        endpoint = self._by_route(candidates, way, destination)
        network = self._network(endpoint)
        source = asked.ip or self._source(endpoint, destination)
        own = frames.mac_of(endpoint.mac)
        walk = Walk(network, endpoint, path, names, b"", source, destination, asked.protocol, asked.port)
        inside = partial(walk.say, KERNEL, endpoint.ifname, place=walk.inside)
        if source.version != destination.version:
            raise InvalidArgument(f"{source} cannot send to {destination}: they are of different families")
        if way is None:
            inside("no_route", f"no route to {destination}")
            walk.finish("lost", "", f"the kernel of {walk.sender} has no route to {destination}")
        elif way.type == "local":
            walk.finish("delivered", "", f"{destination} is {walk.sender}'s own: the packet never leaves its stack")
        else:
            via = f" via {way.gateway}" if way.gateway else ""
            inside("route", f"route {way.matched}: by {way.ifname}{via}")
            to = self._next_hop_mac(walk, way, own)
            if to is not None:
                macs = (asked.mac or own, to)
                walk.frame = frames.packet(macs, (source, destination), asked.protocol, asked.port)
                self._deps.driver_of(network).trace(walk)
        return _told(walk, f"{walk.sender} ({source}) to {destination}")

    def _trace_arrival(self, origin: Address, ref: str, asked: _Asked) -> Trace:
        """A packet that another machine has sent to the first of the endpoints with an address of the family, or an
        endpoint of another node to the one on its network."""
        source, wanted, names = asked.ip or origin, _as_address(ref), self._names()
        candidates = self._candidates(ref if wanted is None else str(self._behind(wanted, source, asked)))
        reached = [(each, to) for each in candidates for to in each.addresses if to.version == source.version]
        if not reached or (wanted is not None and wanted.version != source.version):
            raise InvalidArgument(f"the destination has no IPv{source.version} address for {source} to send to")
        near = [each for each in reached if origin in self._others(self._network(each[0]))]
        endpoint, destination = (near or reached)[0]
        network = self._network(endpoint)
        owner = names.find(lambda each: each.network_id == network.id and is_for(each, origin))
        if owner is not None:
            raise InvalidArgument(f"{origin} is {names.of(owner)}'s on network {network.name}: begin there")
        walk = Walk(
            network=network,
            endpoint=endpoint,
            netns_path=self._netns(endpoint),
            names=names,
            frame=b"",
            source=source,
            destination=wanted or destination,
            protocol=asked.protocol,
            port=asked.port,
            origin=origin,
        )
        self._deps.driver_of(network).trace_arrival(walk, asked.mac)
        called = next(iter(self._others(network).get(origin, ())), "")
        whose = f"{called} ({source}), of another node," if called else f"{source}, outside of this host,"
        return _told(walk, f"{whose} to {names.of(endpoint)} ({walk.destination})")

    def _behind(self, to: Address, source: Address, asked: _Asked) -> Address:
        """The address of the endpoint that is published at an address of the host's; any other address is its own."""
        way = kernel_path.route(to)
        if way is None or way.type != "local":
            return to
        inner = walk_host.published(source, to, asked.protocol, asked.port)
        if inner is None:
            what = f"{asked.protocol} port {asked.port}" if asked.port else asked.protocol
            raise NotFound(f"what comes for {to}, {what}, is the host's own: no sandbox has published that")
        return inner

    def _by_route(self, candidates: list[Endpoint], way: kernel_path.Route | None, destination: Address) -> Endpoint:
        """The endpoint whose device the sandbox's own route leads by."""
        if way is None or way.type == "local":
            return candidates[0]
        found = [each for each in candidates if each.ifname == way.ifname]
        if found:
            return found[0]
        whole = self._records.in_sandbox(candidates[0].sandbox_id) if candidates[0].sandbox_id else []
        others = [self._network(each).name for each in whole if each.ifname == way.ifname]
        leads = f"by {way.ifname}, to network {others[0]}" if others else f"by {way.ifname}"
        raise InvalidArgument(f"the route to {destination} leads {leads}: trace from that endpoint")

    def _source(self, endpoint: Endpoint, destination: Address) -> Address:
        """The address that the sandbox would send from."""
        way = kernel_path.route(destination, netns_path=self._netns(endpoint))
        if way is not None and way.source is not None:
            return way.source
        of_family = [each for each in endpoint.addresses if each.version == destination.version]
        if not of_family:
            raise InvalidArgument(
                f"endpoint {endpoint.id[:12]} has no IPv{destination.version} address to send to {destination} from"
            )
        return of_family[0]

    def _next_hop_mac(self, walk: Walk, way: kernel_path.Route, own: bytes) -> bytes | None:
        """The MAC that the frame gets: known, or found by a question that is traced first. None ends the walk."""
        inside = partial(walk.say, KERNEL, walk.endpoint.ifname, place=walk.inside)
        if way.type == "broadcast":
            inside("broadcast", f"{walk.destination} is a broadcast address: for all")
            return frames.BROADCAST
        if way.type == "multicast" or walk.destination.is_multicast:
            return frames.group_mac(walk.destination)
        hop = way.gateway or walk.destination
        known = kernel_path.neighbour(hop, way.ifindex, netns_path=walk.netns_path)
        if known is not None:
            inside("neighbour", f"neighbour {hop} is {known[0].hex(':')} ({known[1]})")
            return known[0]
        kind = "ARP" if isinstance(hop, IPv4Address) else "neighbour discovery"
        inside("question", f"{hop} is no known neighbour: {kind} asks for its MAC first")
        frame = frames.question(own, self._asker(walk, hop), hop)
        question = replace(walk, frame=frame, destination=hop, is_question=True, end=None)
        self._deps.driver_of(walk.network).trace(question)  # its steps are the walk's: one list
        assert question.end is not None
        by = walk.steps[-1].by if question.end.path == "fast" else KERNEL
        walk.say(by, "", question.end.outcome, question.end.text)
        if question.answer is None:
            walk.end = replace(question.end, text=f"{question.end.text}; the packet waits for the MAC of {hop}")
        return question.answer

    def _asker(self, walk: Walk, hop: Address) -> Address:
        """A forged source asks as itself: the kernel asks from an address of the device's."""
        return next((each for each in walk.endpoint.addresses if each.version == hop.version), walk.source)

    def _names(self) -> Names:
        return Names(
            endpoints=self._records.endpoints(),
            networks={network.id: network for network in self._records.networks()},
            sandboxes={sandbox.id: sandbox.name for sandbox in self._records.sandboxes()},
            nodes={address: name for name, addresses in self._nodes().items() for address in addresses},
        )


def _told(walk: Walk, ends: str) -> Trace:
    """The walk as it was told; `ends` says whose packet to whom it is."""
    network = walk.network
    end = walk.end or End("unknown", "", f"the driver {network.driver} does not tell where it ends")
    ports = f" port {walk.port}" if walk.port else ""
    return Trace(f"{walk.protocol}{ports} from {ends}", network.name, network.driver, tuple(walk.steps), end)


def _as_address(ref: str) -> Address | None:
    """The address that somebody is called by; None for a name."""
    try:
        return ip_address(ref)
    except ValueError:
        return None


def _mac(text: str) -> bytes | None:
    try:
        raw = frames.mac_of(text) if text else None
    except ValueError:
        raw = b""
    if raw is not None and len(raw) != 6:
        raise InvalidArgument(f"invalid MAC address {text!r}: use six pairs of hex digits with colons")
    return raw


def _address(text: str, what: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise InvalidArgument(f"invalid {what} {text!r}") from error
