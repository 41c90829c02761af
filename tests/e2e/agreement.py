"""Whether a host's kernel, files, maps, firewall and store hold exactly what its API shows.

Every source is read with somebody else's tool: ip, bpftool, nft, find, and SQLite on a copy of the state file.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_interface
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from datapath.loader.pins import SHAPES
from tests.hosts import Host

_ICC: Final = "com.docker.network.bridge.enable_icc"
_ACCEL: Final = "linkspan.accel"
_BRIDGE_NAME: Final = "com.docker.network.bridge.name"
_SETTLED: Final = {"network": {"active"}, "endpoint": {"joined"}, "sandbox": {"created", "running", "exited"}}
_LISTS: Final = ("/networks", "/linkspan/sandboxes?all=1")
Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """What the API shows: networks of the driver bridge, sandboxes, and (network, sandbox, endpoint) of every join."""

    networks: list[Any]
    sandboxes: list[Any]

    @property
    def bridges(self) -> list[Any]:
        return [network for network in self.networks if network["Driver"] == "bridge"]

    def joins(self) -> Iterator[tuple[Any, Any, Any]]:
        by_id = {network["Id"]: network for network in self.bridges}
        for sandbox in self.sandboxes:
            for endpoint in sandbox["Networks"].values():
                if endpoint["NetworkID"] in by_id:
                    yield by_id[endpoint["NetworkID"]], sandbox, endpoint


def shown(host: Host) -> Shown:
    return Shown(*(sorted(host.ask("GET", path).json, key=itemgetter("Name")) for path in _LISTS))


def stored(host: Host) -> Records:
    """The records by kind and id, from a copy, because a running linkspand keeps its state file locked."""
    with tempfile.TemporaryDirectory() as directory:
        for file in host.seen(host.state_dir).glob("linkspan.db*"):
            shutil.copy(file, directory)
        with sqlite3.connect(Path(directory, "linkspan.db")) as connection:
            rows = connection.execute("SELECT kind, id, body FROM records").fetchall()
        connection.close()
    records: Records = {kind: {} for kind in ("network", "endpoint", "sandbox", "pool", "lease", "counted", "meta")}
    for kind, id_, body in rows:
        records[kind][id_] = json.loads(body)
    return records


def assert_agreement(host: Host) -> None:
    """Fails with everything that differs."""
    api, store = shown(host), stored(host)
    problems = [
        *_compare_store(api, store),
        *_compare_devices(host, api),
        *_compare_sandboxes(host, api),
        *_compare_maps(host, api, store),
        *_compare_firewall(host, api),
    ]
    assert not problems, "\n".join(problems)


def _differ(what: str, want: Any, have: Any) -> Iterator[str]:
    want, have = set(want), set(have)
    if want - have:
        yield f"{what}: missing {sorted(map(str, want - have))}"
    if have - want:
        yield f"{what}: left over {sorted(map(str, have - want))}"


def _compare_store(api: Shown, store: Records) -> Iterator[str]:
    endpoints = [endpoint for sandbox in api.sandboxes for endpoint in sandbox["Networks"].values()]
    yield from _differ("stored networks", (n["Id"] for n in api.networks), store["network"])
    yield from _differ("stored sandboxes", (s["Id"] for s in api.sandboxes), store["sandbox"])
    yield from _differ("stored endpoints", (e["EndpointID"] for e in endpoints), store["endpoint"])
    for kind, settled in _SETTLED.items():
        for id_, record in store[kind].items():
            if record["state"] not in settled:
                yield f"{kind} {id_[:12]} is {record['state']}"
    pools = {pool["pool_id"]: network for network in store["network"].values() for pool in network["pools"]}
    yield from _differ("stored pools", pools, store["pool"])
    addresses = {
        text
        for endpoint in store["endpoint"].values()
        for interface in (endpoint["ipv4"], endpoint["ipv6"])
        if interface
        for text in [str(ip_interface(interface).ip)]
    }
    for network in api.networks:
        for pool in network["IPAM"]["Config"]:
            addresses |= {pool["Gateway"], *pool.get("AuxiliaryAddresses", {}).values()}
    yield from _differ("leases", addresses, (id_.rpartition("|")[2] for id_ in store["lease"]))


def _bridge(network: Any) -> str:
    return network["Options"].get(_BRIDGE_NAME) or f"br-{network['Id'][:12]}"


def _host_end(endpoint: Any) -> str:
    return f"ls{endpoint['EndpointID'][:12]}"


def _compare_devices(host: Host, api: Shown) -> Iterator[str]:
    links = {link["ifname"]: link for link in host.ip("link") if link["ifname"] != "lo"}
    want: dict[str, str | None] = {_bridge(network): None for network in api.bridges}
    want |= {_host_end(endpoint): _bridge(network) for network, _, endpoint in api.joins()}
    yield from _differ("devices", want, links)
    for name, master in want.items():
        if name in links and links[name].get("master") != master:
            yield f"{name} is a port of {links[name].get('master')}, not of {master}"
        if name in links and "UP" not in links[name]["flags"]:
            yield f"{name} is down"
    addresses = {link["ifname"]: _addresses(link) for link in host.ip("address")}
    for network in api.bridges:
        gateways = {pool["Gateway"] for pool in network["IPAM"]["Config"]}
        yield from _differ(f"addresses of {_bridge(network)}", gateways, addresses.get(_bridge(network), set()))


def _addresses(link: Any) -> set[str]:
    return {each["local"] for each in link["addr_info"] if each.get("scope") == "global"}


def _all_addresses(link: Any) -> set[str]:
    return {each["local"] for each in link["addr_info"]}


def _compare_sandboxes(host: Host, api: Shown) -> Iterator[str]:
    own = {Path(sandbox["NetnsPath"]).name: sandbox for sandbox in api.sandboxes if sandbox["OwnsNetns"]}
    files = host.run("find", str(host.run_dir / "netns"), "-mindepth", "1").stdout.split()
    yield from _differ("namespaces", own, (Path(file).name for file in files))
    directories = (host.run_dir / "sandboxes").iterdir()
    yield from _differ("sandboxes' files", (s["Id"] for s in api.sandboxes), (path.name for path in directories))
    for sandbox in own.values():
        inside = json.loads(host.run(*_in(sandbox), "ip", "-json", "address").stdout)
        found = {link["ifname"]: _all_addresses(link) for link in inside if link["ifname"] != "lo"}
        wanted = {
            endpoint["InterfaceName"]: {*_usual(endpoint), *_link_locals(endpoint)}
            for endpoint in sandbox["Networks"].values()
            if endpoint["InterfaceName"]
        }
        if found != wanted:
            yield f"sandbox {sandbox['Name']} has {found} inside, not {wanted}"


def _in(sandbox: Any) -> list[str]:
    return ["nsenter", f"--net={sandbox['NetnsPath']}"]


def _compare_maps(host: Host, api: Shown, store: Records) -> Iterator[str]:
    """Nothing to compare where the programs could not be loaded: the API says so."""
    if host.ask("GET", "/linkspan/status").json["fallbacks"].get("ebpf"):
        return
    segment = {id_: network["segment"] for id_, network in store["network"].items()}
    indexes = {link["ifname"]: link["ifindex"] for link in host.ip("link")}
    joins = [(n, e) for n, _, e in api.joins() if n["Options"].get(_ACCEL) != "off"]
    maps = {name: _dump(host, name) for name in ("ep_by_if", "fdb", "neigh4", "neigh6")}
    yield from _differ(
        "map ep_by_if", (indexes.get(_host_end(e)) for _, e in joins), (_u32(key) for key, _ in maps["ep_by_if"])
    )
    yield from _differ(
        "map fdb",
        ((segment[n["Id"]], e["MacAddress"], indexes.get(_host_end(e))) for n, e in joins),
        ((_u32(key), key[4:10].hex(":"), _u32(value)) for key, value in maps["fdb"]),
    )
    neighbours = {
        (segment[network["Id"]], ip_address(text))
        for network, endpoint in joins
        for text in (*(_usual(endpoint) if network["Options"].get(_ICC) != "false" else ()), *_link_locals(endpoint))
    }
    neighbours |= {(segment[n["Id"]], ip_address(pool["Gateway"])) for n in api.bridges for pool in n["IPAM"]["Config"]}
    have = {(_u32(key), ip_address(key[4:])) for name in ("neigh4", "neigh6") for key, _ in maps[name]}
    yield from _differ("maps neigh4 and neigh6", neighbours, have)
    pins = host.run("find", str(host.bpffs / "linkspan"), "-type", "f").stdout.split()
    yield from _differ("pinned maps", SHAPES, (Path(pin).name for pin in pins if Path(pin).parent.name != "progs"))


def _usual(endpoint: Any) -> list[str]:
    """What every endpoint has, its IPv6 with the link-local address that RFC 4291, appendix A, makes of its MAC."""
    addresses = [text for text in (endpoint["IPAddress"], endpoint["GlobalIPv6Address"]) if text]
    if not endpoint["GlobalIPv6Address"]:
        return addresses
    mac = bytes.fromhex(endpoint["MacAddress"].replace(":", ""))
    own = IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])
    return [*addresses, str(own)]


def _link_locals(endpoint: Any) -> list[str]:
    """What it was given besides."""
    return list((endpoint["IPAMConfig"] or {}).get("LinkLocalIPs", ()))


def _dump(host: Host, name: str) -> list[tuple[bytes, bytes]]:
    (path,) = host.run("find", str(host.bpffs / "linkspan"), "-path", f"*/maps/{name}").stdout.split()
    entries = json.loads(host.run("bpftool", "-j", "map", "dump", "pinned", path).stdout)
    return [(_bytes(entry["key"]), _bytes(entry["value"])) for entry in entries]


def _bytes(digits: list[str]) -> bytes:
    return bytes(int(digit, 16) for digit in digits)


def _u32(data: bytes) -> int:
    return int.from_bytes(data[:4], "little")


def _compare_firewall(host: Host, api: Shown) -> Iterator[str]:
    listing = json.loads(host.run("nft", "-j", "list", "table", "inet", "linkspan").stdout)["nftables"]
    sets = {entry["set"]["name"]: entry["set"].get("elem", []) for entry in listing if "set" in entry}
    yield from _differ("firewall's bridges", map(_bridge, api.bridges), sets["bridges"])
    want = {
        (str(ip_interface(pool["Subnet"]).network), _bridge(network))
        for network in api.bridges
        for pool in network["IPAM"]["Config"]
    }
    have = set()
    for element in [*sets["own4"], *sets["own6"]]:
        subnet, bridge = element["concat"]
        have.add((f"{subnet['prefix']['addr']}/{subnet['prefix']['len']}", bridge))
    yield from _differ("firewall's subnets", want, have)
