"""What a driver is tried with: a host of its own, records that nobody keeps, and a picture of all that is there."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import msgspec

from control.drivers.base import Driver, Join
from control.drivers.bridge import BridgeDriver
from control.drivers.host import HostDriver
from control.drivers.macvlan import MacvlanDriver
from control.drivers.none import NoneDriver
from control.model import (
    Endpoint,
    EndpointId,
    EndpointState,
    Network,
    NetworkId,
    NetworkState,
    PoolConfig,
    Sandbox,
    SandboxId,
    SandboxState,
    utcnow,
)
from datapath import netns
from datapath.accel import Accelerator
from datapath.programs import Programs
from datapath.uplink import Uplinks
from tests.hosts import Host

opened: list[Programs] = []


def bridge_driver(machine: Host, bpffs: Path) -> Driver:
    accelerator = Accelerator(bpffs, machine.run_dir)
    opened.append(accelerator.programs)
    return BridgeDriver(accelerator)


def accelerated(machine: Host) -> Driver:
    return bridge_driver(machine, machine.bpffs / "linkspan")


def unaccelerated(machine: Host) -> Driver:
    """Where programs cannot be had: there is no bpffs."""
    return bridge_driver(machine, machine.dir / "no-bpffs")


def macvlan_driver(machine: Host, bpffs: Path) -> Driver:
    programs = Programs(bpffs, machine.run_dir)
    opened.append(programs)
    return MacvlanDriver(lambda sandbox_id: str(machine.run_dir / "netns" / sandbox_id), Uplinks(programs))


def with_programs(machine: Host) -> Driver:
    return macvlan_driver(machine, machine.bpffs / "linkspan")


def without_programs(machine: Host) -> Driver:
    return macvlan_driver(machine, machine.dir / "no-bpffs")


DRIVERS: dict[str, Callable[[Host], Driver]] = {
    "bridge": accelerated,
    "bridge without eBPF": unaccelerated,
    "macvlan": with_programs,
    "macvlan without eBPF": without_programs,
    "host": lambda _: HostDriver(),
    "none": lambda _: NoneDriver(),
}
PUBLISHING, COUNTING = ("bridge",), ("bridge", "macvlan")
"""Drivers that publish ports, and that count packets."""
Test = Callable[..., None]


@dataclass
class Bench:
    """One driver, started without records, and what it is to be tried with."""

    driver: Driver
    machine: Host
    pool: ThreadPoolExecutor
    number: int = 0

    def network(self, **fields: Any) -> Network:
        self.number += 1
        has_pools = self.driver.capabilities.addresses
        four, six = IPv4Network(f"10.{self.number}.0.0/24"), IPv6Network(f"fd00:{self.number}::/64")
        pools = (PoolConfig(subnet=four, gateway=four[1]), PoolConfig(subnet=six, gateway=six[1]))
        return Network(
            id=NetworkId(secrets.token_hex(32)),
            name=f"net{self.number}",
            driver=self.driver.name,
            state=NetworkState.ACTIVE,
            created=utcnow(),
            segment=self.number,
            enable_ipv6=has_pools,
            pools=pools if has_pools else (),
            **fields,
        )

    def sandbox(self) -> Sandbox:
        return Sandbox(
            id=SandboxId(secrets.token_hex(32)),
            name="box",
            state=SandboxState.CREATED,
            created=utcnow(),
            owns_netns=self.driver.capabilities.own_netns,
        )

    def join(self, network: Network, number: int = 0, siblings: list[Endpoint] | None = None) -> Join:
        """A join of endpoint `number`, settled by the driver, to a sandbox whose namespace exists."""
        box = self.sandbox()
        path = "/proc/self/ns/net"
        if box.owns_netns:
            path = str(self.machine.run_dir / "netns" / box.id)
            netns.create(path)
        endpoint = Endpoint(
            id=EndpointId(secrets.token_hex(32)),
            network_id=network.id,
            sandbox_id=box.id,
            state=EndpointState.JOINED,
            created=utcnow(),
            slot=number,
        )
        if self.driver.capabilities.addresses:
            four, six = network.pools[0].subnet, network.pools[1].subnet
            endpoint = msgspec.structs.replace(
                endpoint,
                ifname="eth0",
                mac=f"02:42:{four[2 + number].packed.hex(':')}",
                ipv4=IPv4Interface((IPv4Address(four[2 + number]), four.prefixlen)),
                ipv6=IPv6Interface((IPv6Address(six[2 + number]), six.prefixlen)),
                link_local_ips=(IPv4Address(f"169.254.7.{number}"), IPv6Address(f"fe80::7:{number}")),
            )
        return Join(
            network=network,
            endpoint=self.driver.settle_endpoint(network, endpoint, siblings or []),
            sandbox=box,
            netns_path=path,
        )

    def engine_join(self, network: Network, number: int = 0) -> Join:
        """A join of an endpoint that a container engine owns."""
        join = self.join(network, number)
        endpoint = msgspec.structs.replace(join.endpoint, sandbox_id=SandboxId(""), ifname="lp0")
        return Join(network=network, endpoint=endpoint, sandbox=None, netns_path=None)

    def dump(self, *joins: Join) -> str:
        """All that a driver may change, as text, of the host and of the joins' sandboxes."""
        parts = [_world(), shell(f"find {self.machine.bpffs} -type f | sort"), *_maps(self.machine)]
        for join in joins:
            if join.sandbox.owns_netns:
                parts.append(shell(f"nsenter --net={join.netns_path} ip -o addr"))
                parts.append(shell(f"nsenter --net={join.netns_path} ip -o route"))
                parts.append(shell(f"nsenter --net={join.netns_path} ip -o -6 route show default"))
        return "\n".join(parts)


def shell(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _world() -> str:
    """Devices and their addresses (without what settles by itself), neighbours, FDB and the firewall."""
    links = [
        (link["ifname"], link["address"] if link.get("linkinfo", {}).get("info_kind") == "bridge" else "",
         link.get("master"), "UP" in link["flags"], link["mtu"],
         sorted(a["local"] for a in link["addr_info"] if a["scope"] != "link"))
        for link in json.loads(shell("ip -json -d addr"))
    ]  # fmt: skip
    firewall = shell("nft -s list ruleset").replace("\n", " ")
    return "\n".join(
        [*map(str, sorted(links)), shell("ip neigh show nud permanent"), " ".join(sorted(firewall.split()))]
    )


def _maps(machine: Host) -> list[str]:
    return [
        json.dumps(sorted(json.loads(shell(f"bpftool -j map dump pinned {path}")), key=json.dumps))
        for path in sorted(machine.bpffs.glob("**/maps/*"))
        if path.name in ("ep_by_if", "fdb", "neigh4", "neigh6")
    ]


def on_host(test: Test) -> Test:
    """Runs the test in the host's namespaces, and takes the firewall's table away after it."""

    @wraps(test)
    def wrapper(bench: Bench, **others: Any) -> None:
        def body() -> None:
            try:
                test(bench, **others)
            finally:
                for box in (bench.machine.run_dir / "netns").iterdir():
                    netns.delete(box)
                bench.driver.start([], [])

        bench.pool.submit(body).result(120)

    return wrapper
