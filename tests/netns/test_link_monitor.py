"""The monitor of devices, on the kernel's own messages; the oracle of indices is `ip`."""

from __future__ import annotations

import json
import select
import subprocess
from contextlib import closing

import pytest

from datapath.link_monitor import LinkChange, LinkMonitor
from tests.isolated import isolated, run
from tests.waiting import until

pytestmark = pytest.mark.root


def index(ifname: str) -> int:
    return int(json.loads(run(f"ip -json link show dev {ifname}"))[0]["ifindex"])


def is_readable(monitor: LinkMonitor, wait_s: float = 0) -> bool:
    return bool(select.select([monitor], [], [], wait_s)[0])


def told(monitor: LinkMonitor) -> set[LinkChange]:
    """What a readable monitor says."""
    assert is_readable(monitor, 5)
    changes = monitor.changes()
    assert changes is not None
    return changes


@isolated
def test_devices_that_come_change_and_leave_are_told_by_name_and_index() -> None:
    with closing(LinkMonitor()) as monitor:
        run("ip link add v0 type veth peer name v1")
        first, second = index("v0"), index("v1")
        assert told(monitor) == {LinkChange(first, "v0", False), LinkChange(second, "v1", False)}
        for command in ("up", "address 02:00:00:00:00:01", "mtu 1400", "promisc on", "down"):
            run(f"ip link set v0 {command}")
            assert LinkChange(first, "v0", False) in told(monitor), command
        run("ip link set v0 name v9")
        assert LinkChange(first, "v9", False) in told(monitor)
        run("ip link delete v9")
        assert {LinkChange(first, "v9", True), LinkChange(second, "v1", True)} <= told(monitor)
        assert monitor.changes() == set()


@isolated
def test_a_device_that_moves_to_another_namespace_is_gone_here() -> None:
    run("ip link add v0 type veth peer name v1")
    first = index("v0")
    command = ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as elsewhere, closing(LinkMonitor()) as monitor:
        assert elsewhere.stdout is not None
        elsewhere.stdout.readline()
        run(f"ip link set v0 netns {elsewhere.pid}")
        assert LinkChange(first, "v0", True) in told(monitor)
        elsewhere.kill()


@isolated
def test_the_ports_of_a_bridge_are_told_of_as_devices_alone() -> None:
    """A port has a message of its own, of the family AF_BRIDGE, when its settings change."""
    run("ip link add br0 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br0")
    with closing(LinkMonitor()) as monitor:
        monitor.changes()
        run("bridge link set dev v0 learning off")
        assert is_readable(monitor, 5)
        assert monitor.changes() == set()


@isolated
def test_addresses_and_routes_are_not_told_of() -> None:
    run("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up")
    with closing(LinkMonitor()) as monitor:
        until(lambda: json.loads(run("ip -json link show dev v0"))[0]["operstate"] == "UP")
        monitor.changes()
        run("ip addr add 10.0.0.1/24 dev v0; ip route add 10.9.0.0/16 via 10.0.0.2; ip neigh add 10.0.0.3 dev v0 "
            "lladdr 02:00:00:00:00:03")  # fmt: skip
        assert not is_readable(monitor)


@isolated
def test_more_than_there_is_room_for_may_have_been_anything_and_what_follows_is_told_again() -> None:
    with closing(LinkMonitor(1 << 16)) as monitor:
        run("ip -batch -", input="".join(f"link add v{n} type veth peer name w{n}\n" for n in range(100)))
        assert monitor.changes() is None
        assert monitor.changes() == set()
        run("ip link delete v7")
        assert "v7" in {change.ifname for change in told(monitor)}


def test_closing_twice_is_harmless() -> None:
    monitor = LinkMonitor()
    monitor.close()
    monitor.close()
