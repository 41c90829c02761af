"""A batch of rtnetlink requests as a join sends it (docs/adr/0002): building it, and having the kernel do it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_interface

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.world import World, output_of
from datapath import rtnl

MAC = bytes.fromhex("0242ac120002")
ADDRESS, ADDRESS6, GATEWAY = ip_interface("10.97.0.2/24"), ip_interface("fd00:97::2/64"), ip_interface("10.97.0.1/24")


def host_batch() -> list[rtnl.Request]:
    """What a join asks of the host's namespace."""
    return [
        rtnl.veth_add("ls0", master=2, peer_ifname="eth0", peer_netns_fd=5, peer_mac=MAC, mtu=1500),
        rtnl.bridge_port(7, "ls0", learning=False, unicast_flood=False, isolated=False),
        rtnl.fdb_add(7, "ls0", MAC),
        rtnl.link_no_auto_address(7, "ls0"),
        rtnl.link_up(7, "ls0"),
        rtnl.clsact_add(7, "ls0", 1, 2),
    ]


def sandbox_batch(index: int) -> list[rtnl.Request]:
    """What a join asks of the sandbox's namespace; all of it can be asked again."""
    return [
        rtnl.link_no_auto_address(index, "eth0"),
        rtnl.addr_add(index, "eth0", ADDRESS),
        rtnl.addr_add(index, "eth0", ADDRESS6),
        rtnl.link_up(index, "eth0"),
        rtnl.default_route_add(index, "eth0", GATEWAY.ip.packed),
    ]


def note(benchmark: BenchmarkFixture, requests: int) -> None:
    benchmark.extra_info.update(kernel=platform.release(), cpus=os.cpu_count(), requests=requests)


def test_the_batches_of_a_join_are_packed(benchmark: BenchmarkFixture) -> None:
    requests = benchmark(lambda: host_batch() + sandbox_batch(2))
    assert all(len(request.body) % 4 == 0 for request in requests), "netlink's alignment"
    assert MAC in requests[0].body
    assert ADDRESS.ip.packed in requests[7].body
    note(benchmark, len(requests))


@pytest.fixture
def netns(machine: World) -> Iterator[str]:
    """The path, as seen from outside the world, of a namespace with a veth pair's end eth0."""
    made = machine.netns("netlink")
    machine.ip(made, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    machine.ip(made, "link", "set", "peer0", "up")
    yield str(machine.seen(made))
    machine.ip(made, "link", "delete", "eth0")


def test_a_batch_is_done_in_a_sandbox(benchmark: BenchmarkFixture, netns: str) -> None:
    with closing(rtnl.Rtnl(netns)) as netlink:
        index = netlink.ifindex("eth0")
        assert index is not None
        requests = sandbox_batch(index)
        benchmark(netlink.apply, requests)
    assert shown(netns, "address", "show", "dev", "eth0") == {str(ADDRESS), str(ADDRESS6)}
    assert shown(netns, "route", "show", "default") == {str(GATEWAY.ip)}
    note(benchmark, len(requests))


def shown(netns: str, *command: str) -> set[str]:
    """The addresses with their prefix, or the gateways, that ip(8) shows in the namespace."""
    entries = json.loads(output_of(["nsenter", f"--net={netns}", "ip", "-json", *command]))
    addresses = {f"{one['local']}/{one['prefixlen']}" for entry in entries for one in entry.get("addr_info", ())}
    return addresses | {entry["gateway"] for entry in entries if "gateway" in entry}
