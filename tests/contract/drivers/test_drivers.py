"""The contract of network drivers (control/drivers/base.py), which every driver keeps, on a host of its own.

A driver that is added gets an entry in DRIVERS.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
import pytest

from control.drivers.bridge import BridgeDriver
from control.drivers.host import HostDriver
from control.drivers.macvlan import MacvlanDriver
from control.drivers.none import NoneDriver
from control.errors import Conflict, Exhausted, InvalidArgument, NotImplementedByDriver
from control.model import (
    Endpoint,
    EndpointId,
    EndpointSpec,
    EndpointState,
    NetworkSpec,
    PublishedPort,
    SandboxId,
    utcnow,
)
from control.plan import Step, execute, undo
from datapath.accel import Accelerator
from datapath.programs import Programs
from datapath.uplink import Uplinks
from tests.contract.drivers.bench import COUNTING, PUBLISHING, Bench, on_host, shell

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


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
