"""What dockerd and linkspand leave on a host when every container and network that a user made is gone: nothing.

docker0 and linkspan0, the networks that every host has, stay, and with them their addresses and rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.docker.lab import Lab
from tests.e2e.agreement import stored
from tests.leaks import leaks
from tests.netns.outside import UPLINK

PREDEFINED = {"bridge", "host", "none"}


def leftovers(lab: Lab) -> list[str]:
    """What is left, in words; looked for in the kernel, in Linkspan's store and in Docker's."""
    return [*leaks(lab.host, ignore=("docker0", UPLINK)), *_firewall(lab), *_docker(lab), *_store(lab)]


def _firewall(lab: Lab) -> Iterator[str]:
    listing = lab.host.run("nft", "-j", "list", "table", "inet", "linkspan", check=False)
    for item in json.loads(listing.stdout or "{}").get("nftables", ()):
        if "map" in item:
            yield from (f"element {element} of map {item['map']['name']}" for element in item["map"].get("elem", ()))
    for command in ("iptables-save", "ip6tables-save"):
        for line in lab.host.run(command, check=False).stdout.splitlines():
            if " br-" in line or " ls" in line:
                yield f"{command}: {line}"


def _docker(lab: Lab) -> Iterator[str]:
    yield from (f"container {name}" for name in lab.docker("ps", "-aq").stdout.split())
    names = lab.docker("network", "ls", "--format", "{{.Name}}").stdout.split()
    yield from (f"Docker's network {name}" for name in set(names) - PREDEFINED)


def _store(lab: Lab) -> Iterator[str]:
    """The networks `bridge`, `host` and `none` of Linkspan's own have records, a pool and a gateway."""
    records = stored(lab.host)
    own = [network for network in records["network"].values() if network["name"] in PREDEFINED]
    yield from (f"stored network {id_}" for id_ in records["network"].keys() - {network["id"] for network in own})
    pools = {pool["pool_id"]: pool for network in own for pool in network["pools"]}
    yield from (f"stored pool {id_}" for id_ in records["pool"].keys() - pools.keys())
    gateways = {pool["gateway"] for pool in pools.values()}
    yield from (f"stored lease {id_}" for id_ in records["lease"] if id_.rpartition("|")[2] not in gateways)
    for kind in ("endpoint", "sandbox"):
        yield from (f"stored {kind} {id_}" for id_ in records[kind])
