"""Whether every node's kernel holds of overlay networks exactly what etcd has, and etcd what the nodes show.

Nothing here is linkspan's: etcd is read with etcdctl, the kernel with ip, bridge and bpftool, a node's own endpoints
through its API by curl. Every difference is a sentence that names the node and the network.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_interface
from typing import Any, Final

from tests.etcd_server import EtcdMember
from tests.hosts import wait_for
from tests.nodes import Cluster, Node

PREFIX: Final = "/linkspan/default"
UDP_PORT: Final = 4789
EVERYBODY: Final = "00:00:00:00:00:00"
"""The FDB's entry for what goes to every node; bridge(8), under "fdb append"."""


@dataclass(frozen=True)
class RemoteEndpoint:
    """An endpoint as etcd has it; addresses without their prefix length."""

    id: str
    network_id: str
    node: str
    mac: str
    addresses: frozenset[str]
    is_direct: bool


@dataclass(frozen=True)
class Stored:
    """What etcd holds: nodes' advertised addresses by name, networks' VNIs by id, endpoints, and the addresses taken,
    as (network id, address, endpoint id)."""

    nodes: dict[str, str]
    vnis: dict[str, int]
    endpoints: Sequence[RemoteEndpoint]
    taken: frozenset[tuple[str, str, str]]

    def on(self, network_id: str) -> list[RemoteEndpoint]:
        return [each for each in self.endpoints if each.network_id == network_id]


def stored(etcd: EtcdMember, prefix: str = PREFIX) -> Stored:
    """Reads all keys of a cluster at one revision."""
    listing = json.loads(etcd.run("get", "--prefix", f"{prefix}/", "-w", "json").stdout)
    records: dict[str, dict[str, str]] = {}
    for pair in listing.get("kvs", ()):
        kind, _, rest = _text(pair["key"]).removeprefix(f"{prefix}/").partition("/")
        records.setdefault(kind, {})[rest] = _text(pair.get("value", ""))
    endpoints = []
    for key, value in records.get("endpoints", {}).items():
        network_id, _, endpoint_id = key.partition("/")
        body = json.loads(value)
        addresses = frozenset(str(ip_interface(body[field]).ip) for field in ("ipv4", "ipv6") if body.get(field))
        is_direct = body.get("direct", False)
        endpoints.append(RemoteEndpoint(endpoint_id, network_id, body["node"], body["mac"], addresses, is_direct))
    return Stored(
        nodes={name: json.loads(value)["address"] for name, value in records.get("nodes", {}).items()},
        vnis={id_: json.loads(value)["vni"] for id_, value in records.get("networks", {}).items()},
        endpoints=endpoints,
        taken=frozenset(
            (network_id, address, json.loads(value)["endpoint"])
            for key, value in records.get("addresses", {}).items()
            for network_id, address in [key.split("/", 1)]
        ),
    )


def differences(cluster: Cluster, nodes: Collection[Node] | None = None) -> list[str]:
    """Everything in which etcd and the nodes (all, or those given) differ; empty when they agree."""
    store = stored(next(member for member in cluster.etcd if member.is_running))
    found = list(_compare_addresses(store))
    for node in cluster.nodes if nodes is None else nodes:
        found += [f"{node.name}: {problem}" for problem in _compare_node(node, store)]
    return found


def wait_for_agreement(cluster: Cluster, nodes: Collection[Node] | None = None, deadline_s: float = 30) -> None:
    """Waits until etcd and the nodes agree; fails with all that differs then."""
    found: list[str] = []

    def is_agreed() -> bool:
        found[:] = differences(cluster, nodes)
        return not found

    wait_for(is_agreed, lambda: "agreement of etcd and the nodes:\n" + "\n".join(found), deadline_s)


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


def _differ(what: str, want: Any, have: Any) -> Iterator[str]:
    want, have = set(want), set(have)
    if want - have:
        yield f"{what}: missing {sorted(map(str, want - have))}"
    if have - want:
        yield f"{what}: left over {sorted(map(str, have - want))}"


def _compare_addresses(store: Stored) -> Iterator[str]:
    """Every endpoint has taken its addresses, nobody else has, and every endpoint's node is alive."""
    want = {(each.network_id, address, each.id) for each in store.endpoints for address in each.addresses}
    yield from _differ("etcd's addresses", want, store.taken)
    for each in store.endpoints:
        if each.node not in store.nodes:
            yield f"etcd's endpoint {each.id[:12]} is of {each.node}, which is no node"
        if each.network_id not in store.vnis:
            yield f"etcd's endpoint {each.id[:12]} is on {each.network_id[:12]}, which is no network"


def _compare_node(node: Node, store: Stored) -> Iterator[str]:
    networks = [each for each in node.api("GET", "/networks") if each["Driver"] == "overlay"]
    listed = {each["Id"]: each["Name"] for each in networks}
    yield from _differ("overlay networks listed", store.vnis, listed)
    own = {
        (endpoint["NetworkID"], endpoint["EndpointID"], endpoint["MacAddress"])
        for sandbox in node.api("GET", "/linkspan/sandboxes?all=1")
        for endpoint in sandbox["Networks"].values()
        if endpoint["NetworkID"] in listed
    }
    yield from _differ(
        "its endpoints, in etcd",
        own,
        ((each.network_id, each.id, each.mac) for each in store.endpoints if each.node == node.name),
    )
    links = {link["ifname"]: link for link in node.ip("link")}
    built = {network_id for network_id, _, _ in own}
    wanted = {f"{kind}-{network_id[:12]}" for network_id in built for kind in ("lo", "lx")}
    yield from _differ("devices of overlay networks", wanted, (name for name in links if name[:3] in ("lo-", "lx-")))
    yield from _compare_maps(node, store, {each["Id"]: each for each in networks}, built & store.vnis.keys())
    for network_id in built & store.vnis.keys():
        problems = _compare_network(node, store, network_id, links)
        yield from (f"network {listed.get(network_id, network_id[:12])}: {problem}" for problem in problems)


def _compare_network(node: Node, store: Stored, network_id: str, links: dict[str, Any]) -> Iterator[str]:
    bridge, device = f"lo-{network_id[:12]}", f"lx-{network_id[:12]}"
    if bridge not in links or device not in links:
        return  # said before
    yield from _compare_device(node, store.vnis[network_id], bridge, links[device])
    own = {f"ls{each.id[:12]}": each.mac for each in store.on(network_id) if each.node == node.name}
    yield from (f"{port} is no port of {bridge}" for port in own if links.get(port, {}).get("master") != bridge)
    ports = json.loads(node.run("bridge", "-json", "fdb", "show", "br", bridge, "state", "static").stdout or "[]")
    yield from _differ(
        f"ports of its endpoints in the FDB of {bridge}",
        own.items(),
        ((entry["ifname"], entry["mac"]) for entry in ports if entry.get("master") and entry["ifname"] != device),
    )
    peers = [each for each in store.on(network_id) if each.node != node.name and each.node in store.nodes]
    entries = json.loads(node.run("bridge", "-json", "fdb", "show", "dev", device).stdout or "[]")
    to_nodes = [(entry["mac"], entry["dst"]) for entry in entries if "dst" in entry]
    wanted = {(each.mac, store.nodes[each.node]) for each in peers}
    wanted |= {(EVERYBODY, store.nodes[each.node]) for each in peers}
    yield from _differ(f"FDB of {device}", wanted, to_nodes)
    if len(to_nodes) != len(set(to_nodes)):
        yield f"FDB of {device} has entries twice: {to_nodes}"
    neighbours = node.ip("neigh", "show", "dev", bridge, "nud", "permanent")
    yield from _differ(
        f"neighbours of {bridge}",
        (
            (ip_address(address), each.mac)
            for each in store.on(network_id)
            for address in _answered(each, is_peer=each in peers)
        ),
        ((ip_address(entry["dst"]), entry["lladdr"]) for entry in neighbours),
    )


def _answered(endpoint: RemoteEndpoint, *, is_peer: bool) -> Iterator[str]:
    """The addresses that a bridge knows as its neighbour's; ARP and ND for peers' link-local ones are answered too."""
    yield from endpoint.addresses
    if is_peer and any(ip_address(address).version == 6 for address in endpoint.addresses):
        octets = bytes.fromhex(endpoint.mac.replace(":", ""))
        host = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
        yield str(ip_address(b"\xfe\x80" + bytes(6) + host))


def _compare_device(node: Node, vni: int, bridge: str, link: Any) -> Iterator[str]:
    data = link["linkinfo"]["info_data"]
    have = {
        "kind": link["linkinfo"]["info_kind"],
        "VNI": data.get("id"),
        "local address": data.get("local") or data.get("local6"),
        "UDP port": data.get("port"),
        "learning": bool(data.get("learning")),
        "bridge": link.get("master"),
        "up": "UP" in link["flags"],
    }
    want = {
        "kind": "vxlan",
        "VNI": vni,
        "local address": node.advertise,
        "UDP port": UDP_PORT,
        "learning": False,
        "bridge": bridge,
        "up": True,
    }
    yield from (f"{link['ifname']} has {key} {have[key]}, not {want[key]}" for key in want if have[key] != want[key])


def _compare_maps(node: Node, store: Stored, networks: dict[str, Any], built: Collection[str]) -> Iterator[str]:
    """What the programs know of peers, as (VNI, MAC, the peer's node, whether it gets direct packets): nothing wrong,
    and all that they need; and which of the node's own addresses take such packets.

    They need none of networks without programs. A peer that takes direct packets may be out of reach for them.
    """
    if node.ask("GET", "/linkspan/status").json["fallbacks"].get("ebpf"):
        return
    peers = _dump(node, "peers")
    hosts = {_u32(key): _address(value[24:40]) for key, value in (_dump(node, "nodes") if peers else ())}
    have = {
        (_u32(value[:4]), key[4:10].hex(":"), hosts.get(_u16(value[4:6])), bool(_u16(value[6:8]) & 1))
        for key, value in peers
    }
    may, must = set(), set()
    for each in store.endpoints:
        if each.network_id in built and each.node != node.name and each.node in store.nodes:
            peer = (store.vnis[each.network_id], each.mac, store.nodes[each.node])
            options = networks.get(each.network_id, {}).get("Options", {})
            may |= {(*peer, False), (*peer, each.is_direct)}
            if options.get("linkspan.direct", "off") == "off" and options.get("linkspan.accel") != "off":
                must.add((*peer, False))
    if must - have:
        yield f"map peers: missing {sorted(must - have)}"
    if have - may:
        yield f"map peers: left over {sorted(have - may)}"
    yield from _differ(
        "map direct",
        (
            (address, each.mac)
            for each in store.endpoints
            if each.node == node.name and each.is_direct
            for address in each.addresses
        ),
        ((_address(key), value[12:18].hex(":")) for key, value in _dump(node, "direct")),
    )


def _dump(node: Node, name: str) -> list[tuple[bytes, bytes]]:
    """The elements of a pinned map; none where the programs could not be loaded."""
    entries = []
    for path in node.run("find", str(node.bpffs / "linkspan"), "-path", f"*/maps/{name}", check=False).stdout.split():
        entries += json.loads(node.run("bpftool", "-j", "map", "dump", "pinned", path).stdout)
    return [(_bytes(entry["key"]), _bytes(entry["value"])) for entry in entries]


def _bytes(digits: list[str]) -> bytes:
    return bytes(int(digit, 16) for digit in digits)


def _u32(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _u16(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _address(data: bytes) -> str:
    """IPv4 stands as ::ffff:0:0/96; RFC 4291, section 2.5.5.2."""
    address = IPv6Address(data)
    return str(address.ipv4_mapped or address)
