"""What a linkspan leaves on a host when every network and sandbox that a user made is gone: nothing.

The predefined networks stay as long as the host: the bridge `linkspan0`, its gateway and its set elements, the maps and
the programs. Looked at with ip, nft, bpftool and find, not through linkspan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from datapath.loader import sources
from tests.hosts import ROOT, Host

OWN = "linkspan0"
MAPS = set(re.findall(r'LS_(?:COUNT_)?MAP\("\w+", [^,]+, [^,]+, (\w+),', (ROOT / "bpf/maps.h").read_text()))
PROGRAMS = tuple(f"{name}-" for name in sources.PROGRAMS)


def purge(host: Host) -> None:
    """Removes every sandbox and network that can be removed, through the API."""
    for sandbox in host.api("GET", "/linkspan/sandboxes?all=1"):
        host.api("DELETE", f"/linkspan/sandboxes/{sandbox['Id']}?force=1")
    for network in host.api("GET", "/networks"):
        if network["Name"] not in ("bridge", "host", "none"):
            host.api("DELETE", f"/networks/{network['Id']}")


def leaks(host: Host, ignore: Collection[str] = ()) -> list[str]:
    """What is left, in words; `ignore` names devices that the test itself made."""
    return [
        *_files(host),
        *_devices(host, {"lo", OWN, *ignore}),
        *_firewall(host),
        *_pins(host),
        *_maps(host),
    ]


def _files(host: Host) -> list[str]:
    return [
        f"file {path}"
        for directory in ("netns", "sandboxes")
        for path in host.run("find", str(host.run_dir / directory), "-mindepth", "1", check=False).stdout.split()
    ]


def _devices(host: Host, expected: Collection[str]) -> list[str]:
    found = [f"device {link['ifname']}" for link in host.ip("link") if link["ifname"] not in expected]
    found += [
        f"address {address['local']} on {link['ifname']}"
        for link in host.ip("addr")
        if link["ifname"] not in expected
        for address in link["addr_info"]
    ]
    found += [
        f"route {route['dst']} dev {route['dev']}"
        for version in ("-4", "-6")
        for route in host.ip(version, "route", "show", "table", "all")
        if route.get("dev") not in expected
    ]
    found += [
        f"neighbour {neighbour['dst']} on {neighbour['dev']}"
        for version in ("-4", "-6")
        for neighbour in host.ip(version, "neigh", "show", "nud", "permanent")
    ]
    return found


def _firewall(host: Host) -> list[str]:
    listing = host.run("nft", "-j", "list", "table", "inet", "linkspan", check=False)
    if listing.returncode:
        return []
    own = {f"{route['dst']}" for route in host.ip("-4", "route", "show", "dev", OWN)}
    found = []
    for item in json.loads(listing.stdout)["nftables"]:
        for element in item.get("set", {}).get("elem", ()):
            text = json.dumps(element)
            prefix = element.get("prefix") if isinstance(element, dict) else None
            if OWN not in text and (prefix is None or f"{prefix['addr']}/{prefix['len']}" not in own):
                found.append(f"element {text} of set {item['set']['name']}")
    return found


def _pins(host: Host) -> list[str]:
    root = host.bpffs / "linkspan"
    found = []
    for path in host.run("find", str(root), "-type", "f", "-printf", "%P\\n", check=False).stdout.split():
        directory, _, name = path.rpartition("/")
        is_map = (directory == "abi-1/maps" and name in MAPS) or (directory, name) == ("abi-1/trace", "decisions")
        is_expected = is_map or (directory in ("abi-1/progs", "abi-1/trace") and name.startswith(PROGRAMS))
        if not is_expected:
            found.append(f"pin {path}")
    return found


def map_dump(host: Host, name: str) -> list[Any]:
    """A map's elements as bpftool shows them; empty when the map is not there."""
    path = host.bpffs / "linkspan/abi-1/maps" / name
    done = host.run("bpftool", "-j", "map", "dump", "pinned", str(path), check=False)
    return list(json.loads(done.stdout)) if done.returncode == 0 else []


def _maps(host: Host) -> list[str]:
    # Not ep_drops: as all that is counted, they stay in their slot until another endpoint takes it.
    names = ("ep_by_if", "fdb", "parents", "stations", "neigh6")
    found = [f"{name} {element}" for name in names for element in map_dump(host, name)]
    gateways = map_dump(host, "neigh4")
    return found + [f"neigh4 {element}" for element in gateways[1:]]
