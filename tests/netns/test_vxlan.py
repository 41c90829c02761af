"""VXLAN devices as the kernel shows them, what is done about those that are wrong, and what refusals say."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from ipaddress import ip_address
from subprocess import PIPE
from typing import Any

import pytest

from datapath import devices, rtnl, vxlan
from tests.isolated import isolated, run

LOCAL4, LOCAL6 = "10.99.0.1", "fd99::1"


def vtep(local: str = LOCAL4, **other: Any) -> vxlan.Vtep:
    made = {"ifname": "lx-1", "bridge": "lo-1", "vni": 4711, "local": ip_address(local), "mtu": 1430, **other}
    return vxlan.Vtep(**made)


def world() -> None:
    """An uplink with addresses, and a bridge."""
    run("ip link add eth0 type veth peer name wire")
    run(f"ip link set wire up; ip link set eth0 up; ip addr add {LOCAL4}/24 dev eth0")
    run(f"ip addr add {LOCAL6}/64 dev eth0 nodad")
    devices.add_bridge("lo-1", mac="02:4c:00:00:00:01", mtu=1430, ipv6=False)


def shown(ifname: str = "lx-1") -> Any:
    return json.loads(run(f"ip -json -d link show dev {ifname}"))[0]


def port() -> Any:
    return json.loads(run("bridge -json -d link show dev lx-1"))[0]


def settings() -> Any:
    """All that can be set, without what the kernel counts and times."""
    link, flags = shown(), port()
    kept = ("master", "mtu", "address", "inet6_addr_gen_mode", "flags")
    return [*(link.get(name) for name in kept), link["linkinfo"]["info_data"], {**flags, "ifindex": 0}]


@isolated
@pytest.mark.parametrize("local", [LOCAL4, LOCAL6])
def test_the_device_sends_from_one_address_and_learns_nothing(local: str) -> None:
    world()
    made = vtep(local)
    vxlan.add(made)
    link, is_v4 = shown(), local == LOCAL4
    assert (link["master"], link["mtu"], link["address"]) == ("lo-1", 1430, made.mac.hex(":"))
    assert "UP" in link["flags"]
    assert link["inet6_addr_gen_mode"] == "none"
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local" if is_v4 else "local6"]) == (4711, 4789, local)
    assert (data["tos"], data["ttl"], data["df"]) == ("0x1", 0, "inherit")  # 1 is "inherit" (ip-link(8))
    assert not data["learning"]
    assert (data["udp_csum"], data["udp_zero_csum6_tx"], data["udp_zero_csum6_rx"]) == (not is_v4, False, not is_v4)
    assert "link" not in link
    found = port()
    assert (found["learning"], found["flood"], found["neigh_suppress"]) == (False, False, True)
    assert (found["bcast_flood"], found["mcast_flood"], found["mcast_router"]) == (True, True, 2)
    assert vxlan.problems(made) == []


@isolated
def test_to_add_it_again_keeps_the_device_and_its_entries() -> None:
    world()
    vxlan.add(vtep())
    run("bridge fdb append 00:00:00:00:00:00 dev lx-1 dst 10.99.0.2")
    before = shown()["ifindex"]
    vxlan.add(vtep())
    assert shown()["ifindex"] == before
    assert "10.99.0.2" in run("bridge fdb show dev lx-1")


@isolated
@pytest.mark.parametrize(
    "damage",
    [
        "ip link set lx-1 mtu 1300",
        "ip link set lx-1 nomaster",
        "ip link set lx-1 address 02:00:00:00:00:09",
        "ip link set lx-1 type vxlan local 10.99.0.9",
        "ip link set lx-1 type vxlan learning",
        "ip link set lx-1 down",
        "bridge link set dev lx-1 learning on",
        "bridge link set dev lx-1 flood on",
        "bridge link set dev lx-1 neigh_suppress off",
        "bridge link set dev lx-1 mcast_router 1",
        "ip link del lx-1",
        "ip link del lx-1; ip link add lx-1 type bridge",
    ],
)
def test_what_is_wrong_is_told_and_mended(damage: str) -> None:
    world()
    vxlan.add(vtep())
    good = settings()
    run(damage)
    (problem,) = vxlan.problems(vtep())
    assert "lx-1" in problem
    vxlan.add(vtep())
    assert vxlan.problems(vtep()) == []
    assert settings() == good


@isolated
def test_a_device_that_is_removed_is_gone_and_may_be_removed_again() -> None:
    world()
    vxlan.add(vtep())
    for _ in range(2):
        vxlan.remove(vtep())
        assert "lx-1" not in run("ip link")
        assert vxlan.problems(vtep()) == ["device lx-1 is missing"]


@isolated
def test_a_vni_of_another_device_is_refused_with_its_name() -> None:
    world()
    run(f"ip link add theirs type vxlan id 4711 dstport 4789 local {LOCAL4}")
    run(f"ip link add decoy type vxlan id 4711 dstport 8472 local {LOCAL4}")
    with pytest.raises(rtnl.NetlinkError, match="VNI 4711 is used by device theirs") as caught:
        vxlan.add(vtep())
    assert caught.value.errno == errno.EEXIST
    run("ip link del theirs")
    vxlan.add(vtep())


@isolated
def test_a_vni_of_a_device_that_was_moved_away_is_refused_too() -> None:
    """As Docker's swarm does with the devices of its overlay networks."""
    world()
    run(f"ip link add theirs type vxlan id 4711 dstport 4789 local {LOCAL4}")
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        run(f"ip link set theirs netns {holder.pid}")
        with pytest.raises(rtnl.NetlinkError, match="VNI 4711 is used by a VXLAN device that was moved"):
            vxlan.add(vtep())
        holder.communicate()


@isolated
def test_a_port_that_is_taken_is_refused_with_who_has_it() -> None:
    world()
    run("ip link add theirs type vxlan external dstport 4789; ip link set theirs up")
    with pytest.raises(rtnl.NetlinkError, match="UDP port 4789 is used by VXLAN device theirs") as caught:
        vxlan.add(vtep())
    assert caught.value.errno == errno.EADDRINUSE
    run("ip link del theirs")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("", 4789))
        with pytest.raises(rtnl.NetlinkError, match="UDP port 4789 is used by another program"):
            vxlan.add(vtep())
    vxlan.add(vtep())


@isolated
def test_without_its_bridge_there_is_no_device() -> None:
    world()
    run("ip link del lo-1")
    with pytest.raises(rtnl.NetlinkError, match="device lo-1 is gone"):
        vxlan.add(vtep())
    assert "lx-1" not in run("ip link")


def test_macs_tell_networks_and_nodes_apart() -> None:
    made = [vtep(local, vni=vni) for local in (LOCAL4, "10.99.0.2", LOCAL6) for vni in (1, 2, 0xFFFFFF)]
    assert len({each.mac for each in made}) == len(made)
    for each in made:
        assert each.mac[0] & 0x03 == 0x02  # locally administered, of one station
    assert vtep(mtu=1400).mac == vtep().mac
