"""The contract of network drivers (control/drivers/base.py), which every driver keeps, on a host of its own.

A driver that is added gets an entry in DRIVERS.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import wraps
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control.drivers.base import Driver, Join
from control.drivers.bridge import BridgeDriver
from control.drivers.host import HostDriver
from control.drivers.macvlan import MacvlanDriver
from control.drivers.none import NoneDriver
from control.errors import Conflict, Exhausted, Forbidden, InvalidArgument, NotImplementedByDriver
from control.model import (
    Endpoint,
    EndpointId,
    EndpointSpec,
    EndpointState,
    Network,
    NetworkId,
    NetworkSpec,
    NetworkState,
    PoolConfig,
    PoolSpec,
    PublishedPort,
    Sandbox,
    SandboxId,
    SandboxState,
    utcnow,
)
from control.plan import Step, execute, undo
from datapath import netns
from datapath.accel import Accelerator
from datapath.programs import Programs
from datapath.uplink import Uplinks
from tests.hosts import Host, host

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWNET = 0x200, 0x20000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


_opened: list[Programs] = []


@pytest.fixture(autouse=True)
def _no_descriptor_stays_open() -> Iterator[None]:
    """Drivers are never closed, as a process has them to its end; with over 1,024 descriptors it has no select()."""
    yield
    while _opened:
        _opened.pop().close()


def bridge_driver(machine: Host, bpffs: Path) -> Driver:
    accelerator = Accelerator(bpffs, machine.run_dir)
    _opened.append(accelerator.programs)
    return BridgeDriver(accelerator)


def accelerated(machine: Host) -> Driver:
    return bridge_driver(machine, machine.bpffs / "linkspan")


def unaccelerated(machine: Host) -> Driver:
    """Where programs cannot be had: there is no bpffs."""
    return bridge_driver(machine, machine.dir / "no-bpffs")


def macvlan_driver(machine: Host, bpffs: Path) -> Driver:
    programs = Programs(bpffs, machine.run_dir)
    _opened.append(programs)
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


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with host() as made:
        netns_dir = made.run_dir / "netns"
        netns_dir.mkdir()
        yield made


@pytest.fixture(scope="module")
def inside(machine: Host) -> Iterator[ThreadPoolExecutor]:
    """Threads in the host's namespaces, as those of a linkspand there are."""

    def enter() -> None:
        assert _libc.unshare(_CLONE_FS) == 0
        for name, kind in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)):
            fd = os.open(f"/proc/{machine.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                assert _libc.setns(fd, kind) == 0, os.strerror(ctypes.get_errno())
            finally:
                os.close(fd)

    with ThreadPoolExecutor(8, initializer=enter) as pool:
        yield pool


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


@pytest.fixture(params=DRIVERS)
def bench(request: pytest.FixtureRequest, machine: Host, inside: ThreadPoolExecutor) -> Bench:
    made = Bench(DRIVERS[request.param](machine), machine, inside)
    inside.submit(made.driver.start, [], []).result(60)
    return made


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


@on_host
def test_networks_and_endpoints_come_and_go_without_a_trace(bench: Bench) -> None:
    network = bench.network()
    execute(bench.driver.network_steps(network))
    undo(bench.driver.network_steps(network))  # the first brings the firewall's table, which stays
    join = bench.join(network)
    before = bench.dump(join)
    execute(bench.driver.network_steps(network))
    between = bench.dump(join)
    execute(bench.driver.endpoint_steps(join))
    if bench.driver.capabilities.addresses:
        assert bench.dump(join) != between != before
        for address in ("169.254.7.0/16", "fe80::7:0/64"):
            assert f" {address} " in shell(f"nsenter --net={join.netns_path} ip -o addr show dev eth0 scope link")
    undo(bench.driver.endpoint_steps(join))
    assert bench.dump(join) == between
    undo(bench.driver.network_steps(network))
    assert bench.dump(join) == before


@on_host
def test_steps_applied_again_change_nothing(bench: Bench) -> None:
    network = bench.network()
    join = bench.join(network)
    for steps in (bench.driver.network_steps(network), bench.driver.endpoint_steps(join)):
        execute(steps)
        once = bench.dump(join)
        execute(steps)
        for step in steps:
            step.apply()
            assert bench.dump(join) == once, step.name
    undo(bench.driver.endpoint_steps(join))
    undo(bench.driver.network_steps(network))


@on_host
def test_steps_reverted_again_or_never_applied_are_no_error(bench: Bench) -> None:
    network = bench.network()
    join = bench.join(network)
    before = bench.dump(join)
    for _ in range(2):
        undo(bench.driver.endpoint_steps(join))
        undo(bench.driver.network_steps(network))
    assert bench.dump(join) == before
    execute(bench.driver.network_steps(network))
    execute(bench.driver.endpoint_steps(join))
    for _ in range(2):
        undo(bench.driver.endpoint_steps(join))
    for _ in range(2):
        undo(bench.driver.network_steps(network))


@on_host
def test_cut_off_after_any_step_the_rest_is_undone(bench: Bench) -> None:
    """By a driver that knows nothing but the records, as after a crash."""
    network = bench.network()
    execute(bench.driver.network_steps(network))
    join = bench.join(network)
    before = bench.dump(join)
    for taken in range(len(bench.driver.endpoint_steps(join)) + 1):
        execute(bench.driver.endpoint_steps(join)[:taken])
        undo(bench.driver.endpoint_steps(join))
        assert bench.dump(join) == before, taken
    undo(bench.driver.network_steps(network))
    before = bench.dump()
    for taken in range(len(bench.driver.network_steps(network)) + 1):
        execute(bench.driver.network_steps(network)[:taken])
        undo(bench.driver.network_steps(network))
        assert bench.dump() == before, taken


@on_host
def test_an_engines_endpoint_waits_in_the_hosts_namespace(bench: Bench) -> None:
    """Its device is the host's until the engine takes it away."""
    if not bench.driver.capabilities.addresses:
        return
    network = bench.network()
    execute(bench.driver.network_steps(network))
    before = bench.dump()
    join = bench.engine_join(network)
    endpoint, steps = join.endpoint, bench.driver.endpoint_steps(join)
    assert not bench.driver.remains(endpoint)
    for taken in range(len(steps) + 1):
        execute(steps[:taken])
        undo(steps)
        assert bench.dump() == before, taken
    execute(steps)
    assert bench.driver.remains(endpoint)
    joined = bench.dump()
    for step in steps:
        step.apply()
        assert bench.dump() == joined, step.name
    (peer,) = json.loads(shell("ip -json link show lp0"))
    assert (peer["address"], "UP" in peer["flags"]) == (endpoint.mac, False)
    bench.driver.start([network], [endpoint])
    assert bench.dump() == joined
    assert bench.driver.intact([network], [endpoint]) == {network.id, endpoint.id}
    shell("ip link del lp0")
    assert not bench.driver.remains(endpoint)
    undo(steps)
    assert bench.dump() == before
    undo(bench.driver.network_steps(network))


@on_host
def test_published_ports_come_and_go_apart_from_the_endpoint(bench: Bench) -> None:
    network = bench.network()
    join = bench.engine_join(network)
    ports = (
        PublishedPort(protocol="tcp", host_port=8080, port=80, count=2),
        PublishedPort(protocol="udp", host_ip=IPv4Address("127.0.0.1"), host_port=53, port=53),
    )
    join = replace(join, endpoint=msgspec.structs.replace(join.endpoint, ports=ports))
    if bench.driver.name not in PUBLISHING:
        with pytest.raises(NotImplementedByDriver, match=f"driver {bench.driver.name} publishes no ports"):
            bench.driver.publish_steps(network, join.endpoint)
        return
    steps = [*bench.driver.network_steps(network), *bench.driver.endpoint_steps(join)]
    execute(steps)
    joined = bench.dump()
    publishing = bench.driver.publish_steps(network, join.endpoint)
    for _ in range(2):
        execute(publishing)
    published = bench.dump()
    assert {"8080", "8081", "53"} <= set(published.split())
    bench.driver.start([network], [join.endpoint])
    assert bench.dump() == published
    for _ in range(2):
        undo(publishing)
    assert bench.dump() == joined
    undo(steps)


@on_host
def test_steps_name_what_they_are_about_once_each(bench: Bench) -> None:
    network = bench.network()
    join = bench.join(network)
    for steps in (bench.driver.network_steps(network), bench.driver.endpoint_steps(join)):
        names = [step.name for step in steps]
        assert len(set(names)) == len(names)
        assert all(isinstance(step, Step) and step.name for step in steps)


@on_host
def test_intact_tells_what_is_whole(bench: Bench) -> None:
    network = bench.network()
    join = bench.join(network)
    nothing_is_made = not bench.driver.network_steps(network)
    for phase, expected in (
        ("before", set()),
        ("network", {network.id}),
        ("endpoint", {network.id, join.endpoint.id}),
    ):
        if phase == "network":
            execute(bench.driver.network_steps(network))
        if phase == "endpoint":
            execute(bench.driver.endpoint_steps(join))
        found = bench.driver.intact([network], [join.endpoint])
        assert found == ({network.id, join.endpoint.id} if nothing_is_made else expected), phase
    undo(bench.driver.endpoint_steps(join))
    undo(bench.driver.network_steps(network))


@on_host
def test_endpoints_may_join_and_leave_side_by_side(bench: Bench) -> None:
    network = bench.network()
    execute(bench.driver.network_steps(network))
    joins = [bench.join(network, number) for number in range(12)]
    before = bench.dump(*joins)
    for change in (execute, undo):
        threads = [bench.pool.submit(change, bench.driver.endpoint_steps(join)) for join in joins[:7]]
        for join in joins[7:]:
            change(bench.driver.endpoint_steps(join))
        for thread in threads:
            thread.result(60)
        if change is execute:
            endpoints = [join.endpoint for join in joins]
            assert bench.driver.intact([network], endpoints) >= {endpoint.id for endpoint in endpoints}
    assert bench.dump(*joins) == before
    undo(bench.driver.network_steps(network))


@on_host
def test_a_start_with_the_records_keeps_everything_and_one_without_removes_it(bench: Bench) -> None:
    network = bench.network()
    execute(bench.driver.network_steps(network))
    undo(bench.driver.network_steps(network))
    join = bench.join(network)
    before = bench.dump(join)
    execute(bench.driver.network_steps(network))
    execute(bench.driver.endpoint_steps(join))
    made = bench.dump(join)
    bench.driver.start([network], [join.endpoint])
    assert bench.dump(join) == made
    bench.driver.start([], [])
    assert bench.dump(join) == before


@on_host
def test_settling_is_pure(bench: Bench) -> None:
    network = bench.network()
    before = bench.dump()
    join = bench.join(network)
    again = bench.driver.settle_endpoint(network, join.endpoint, [])
    assert again == join.endpoint
    assert bench.dump() == before


@on_host
def test_counters_are_those_of_the_endpoints_that_were_asked_for(bench: Bench) -> None:
    network = bench.network()
    execute(bench.driver.network_steps(network))
    joins = [bench.join(network, number) for number in range(2)]
    for join in joins:
        execute(bench.driver.endpoint_steps(join))
    if bench.driver.capabilities.addresses:
        target = joins[1].endpoint.ipv4
        assert target
        shell(f"nsenter --net={joins[0].netns_path} ping -n -c3 -i0.01 {target.ip}")
    found = bench.driver.counters([joins[0].endpoint])
    counts = bench.driver.name in COUNTING and "macvlan ebpf" not in bench.driver.status().fallbacks
    assert found.keys() == ({joins[0].endpoint.id} if counts else set())
    for counted in found.values():
        assert counted.out_fast_packets + counted.out_slow_packets >= 3
        assert counted.in_fast_packets + counted.in_slow_packets >= 3
    for join in joins:
        undo(bench.driver.endpoint_steps(join))
    undo(bench.driver.network_steps(network))
    assert bench.driver.counters([]) == {}


@on_host
def test_info_and_status_are_words(bench: Bench) -> None:
    network = bench.network()
    execute(bench.driver.network_steps(network))
    status = bench.driver.status()
    for words in (bench.driver.info(network), status.facts, status.fallbacks):
        assert all(isinstance(key, str) and isinstance(value, str) and value for key, value in words.items())
    undo(bench.driver.network_steps(network))


@pytest.mark.parametrize("option", ["linkspan.acel", "com.docker.network.bridge.host_binding_ipv4", "Parent", ""])
def test_an_unknown_option_is_refused_by_name(bench: Bench, option: str) -> None:
    with pytest.raises(InvalidArgument, match="unknown option"):
        bench.driver.validate(NetworkSpec(name="net", driver=bench.driver.name, options={option: "x"}), [])
    with pytest.raises(InvalidArgument, match="unknown option"):
        bench.driver.validate_endpoint(bench.network(), EndpointSpec(driver_options={option: "x"}))


def test_an_option_of_another_driver_is_refused(bench: Bench) -> None:
    option = "com.docker.network.bridge.enable_icc" if bench.driver.name == "macvlan" else "parent"
    with pytest.raises(InvalidArgument, match=f"unknown option '{option}'"):
        bench.driver.validate(NetworkSpec(name="net", driver=bench.driver.name, options={option: "true"}), [])


def test_an_endpoint_that_the_programs_have_no_room_for_is_refused(bench: Bench) -> None:
    if not bench.driver.capabilities.addresses:
        return
    network = bench.network()
    endpoint = Endpoint(
        id=EndpointId("e" * 64),
        network_id=network.id,
        sandbox_id=SandboxId("c" * 64),
        state=EndpointState.JOINING,
        created=utcnow(),
        slot=16383,
    )
    bench.driver.settle_endpoint(network, endpoint, [])
    with pytest.raises(Exhausted, match=f"network {network.name} cannot take another endpoint"):
        bench.driver.settle_endpoint(network, msgspec.structs.replace(endpoint, slot=16384), [])


def test_a_plain_network_and_endpoint_are_valid(bench: Bench) -> None:
    bench.driver.validate(NetworkSpec(name="net", driver=bench.driver.name), [])
    bench.driver.validate_endpoint(bench.network(), EndpointSpec())


# -- what only the bridge driver has -----------------------------------------------------------------------------


@pytest.fixture
def bridge(machine: Host, inside: ThreadPoolExecutor) -> Bench:
    return Bench(unaccelerated(machine), machine, inside)


MTU = "com.docker.network.driver.mtu"
NAME = "com.docker.network.bridge.name"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value)
          for option in ("linkspan.accel", "com.docker.network.bridge.enable_icc",
                         "com.docker.network.bridge.enable_ip_masquerade")
          for value in ("", "yes", "2", "tru", "on ")),
        *((MTU, value) for value in ("", "0", "67", "65536", "-1", "1500.0", "9k", "\u0661\u0665\u0660\u0660")),
        *((NAME, value) for value in ("", ".", "..", "all", "a/b", "a b", "a:b", "sixteen-letters-", "tab\t")),
        *(("com.docker.network.container_iface_prefix", value) for value in ("", "0eth", "a b", "elevenchars", "ü")),
    ],
)  # fmt: skip
def test_a_malformed_option_is_refused_with_its_value(bridge: Bench, option: str, value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        bridge.driver.validate(NetworkSpec(name="net", options={option: value}), [])
    assert option in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_mtu_that_ipv6_cannot_live_with_is_refused(bridge: Bench) -> None:
    for mtu, is_fine in (("1279", False), ("1280", True)):
        spec = NetworkSpec(name="net", enable_ipv6=True, options={MTU: mtu})
        if is_fine:
            bridge.driver.validate(spec, [])
        else:
            with pytest.raises(InvalidArgument, match="1280"):
                bridge.driver.validate(spec, [])
        bridge.driver.validate(msgspec.structs.replace(spec, enable_ipv6=False), [])


def test_a_device_name_that_is_taken_is_refused(bridge: Bench) -> None:
    """By a device of the host, or by another network, whose bridge may not be there yet."""
    with pytest.raises(Conflict, match="device lo exists"):
        bridge.driver.validate(NetworkSpec(name="net", options={NAME: "lo"}), [])
    named = bridge.network(options={NAME: "mine"})
    unnamed = bridge.network()
    for other, name in ((named, "mine"), (unnamed, f"br-{unnamed.id[:12]}")):
        with pytest.raises(Conflict, match=f"{name}.*network {other.name}"):
            bridge.driver.validate(NetworkSpec(name="net", options={NAME: name}), [named, unnamed])
    bridge.driver.validate(NetworkSpec(name="net", options={NAME: "other"}), [named, unnamed])


def test_a_subnet_of_another_network_is_refused_even_where_ranges_do_not_meet(bridge: Bench) -> None:
    other = bridge.network()
    half = PoolSpec(subnet=IPv4Network("10.1.0.128/25"))
    with pytest.raises(Forbidden, match=rf"Pool overlaps with other one .*{other.name}"):
        bridge.driver.validate(NetworkSpec(name="net", pools=(half,)), [other])
    bridge.driver.validate(NetworkSpec(name="net", pools=(PoolSpec(subnet=IPv4Network("10.2.0.0/24")),)), [other])


@pytest.mark.parametrize("value", ["", ".", "lo", "a/b", "a b", "sixteen-letters-", "all"])
def test_a_malformed_interface_name_is_refused(bridge: Bench, value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"endpoint\.ifname"):
        bridge.driver.validate_endpoint(
            bridge.network(), EndpointSpec(driver_options={"com.docker.network.endpoint.ifname": value})
        )


def test_endpoints_fill_one_bridge_after_another_and_then_no_more_fit(
    bridge: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.drivers.bridge.SHARD_CAPACITY", 2)
    monkeypatch.setattr("control.drivers.bridge.MAX_SHARDS", 3)
    network, joined = bridge.network(), list[Endpoint]()
    raw = Endpoint(
        id=EndpointId("e" * 64),
        network_id=network.id,
        sandbox_id=SandboxId("c" * 64),
        state=EndpointState.JOINING,
        created=utcnow(),
        ifname="eth0",
    )
    for _ in range(6):
        joined.append(bridge.driver.settle_endpoint(network, raw, joined))
    assert [endpoint.shard for endpoint in joined] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(Exhausted, match=f"network {network.name} cannot take another endpoint: 6 are on it"):
        bridge.driver.settle_endpoint(network, raw, joined)
    # Room that is given back is used again, nearest to the gateway first.
    assert bridge.driver.settle_endpoint(network, raw, joined[1:]).shard == 0
    full = msgspec.structs.replace(raw, slot=16384)
    with pytest.raises(Exhausted):
        bridge.driver.settle_endpoint(network, full, [])


@on_host
def test_a_sandbox_that_lost_its_bridge_or_device_is_told_what_to_do(bench: Bench) -> None:
    if not bench.driver.capabilities.addresses:
        return
    network = bench.network()
    join = bench.join(network)
    with pytest.raises(Conflict, match=rf"(bridge br|parent lm)-{network.id[:12]} of network {network.name} is gone"):
        execute(bench.driver.endpoint_steps(join))
    execute(bench.driver.network_steps(network))
    execute(bench.driver.endpoint_steps(join))
    shell(f"nsenter --net={join.netns_path} ip link set eth0 name renamed")
    with pytest.raises(Conflict, match="device eth0 is gone from sandbox box"):
        bench.driver.endpoint_steps(join)[-1].apply()
    undo(bench.driver.endpoint_steps(join))
    undo(bench.driver.network_steps(network))


def test_constructors_only_store(tmp_path: Path) -> None:
    before = threading.active_count(), sorted(os.listdir("/proc/self/fd")), list(tmp_path.iterdir())
    BridgeDriver(Accelerator(tmp_path / "bpf", tmp_path / "run"))
    MacvlanDriver(str, Uplinks(Programs(tmp_path / "bpf", tmp_path / "run")))
    HostDriver()
    NoneDriver()
    assert (threading.active_count(), sorted(os.listdir("/proc/self/fd")), list(tmp_path.iterdir())) == before
