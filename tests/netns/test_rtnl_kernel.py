"""rtnetlink batches against the kernel: what ip, bridge and tc then show, and what refusals say."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from datapath import bpf, devices, netns, rtnl
from tests.isolated import isolated, run
from tests.require import require

MAC = bytes.fromhex("0242ac120002")
MAC_TEXT = "02:42:ac:12:00:02"


def shown(command: str) -> Any:
    return json.loads(run(command) or "[]")


def link(ifname: str) -> Any:
    return shown(f"ip -json -d link show dev {ifname}")[0]


def index(ifname: str) -> int:
    return int(link(ifname)["ifindex"])


def apply(*requests: rtnl.Request, at: str | None = None) -> None:
    with rtnl.Rtnl(at) as netlink:
        netlink.apply(requests)


def sandbox(tmp_path: Path) -> str:
    """A namespace, pinned on a file system of this test's own."""
    run(f"mount -t tmpfs sandboxes {tmp_path}")
    path = str(tmp_path / "sandbox")
    netns.create(path)
    return path


def join(tmp_path: Path, mtu: int = 1400) -> str:
    """A bridge br0 with the port ls0, whose peer eth0 is in a namespace; returns the namespace's path."""
    path = sandbox(tmp_path)
    run("ip link add br0 type bridge")
    fd = os.open(path, os.O_RDONLY)
    try:
        apply(rtnl.veth_add("ls0", master=index("br0"), peer_ifname="eth0", peer_netns_fd=fd, peer_mac=MAC, mtu=mtu))
    finally:
        os.close(fd)
    return path


def inside(path: str, command: str) -> Any:
    return shown(f"nsenter --net={path} {command}")


@isolated
def test_a_veth_pair_is_made_in_one_request(tmp_path: Path) -> None:
    path = join(tmp_path)
    host, peer = link("ls0"), inside(path, "ip -json -d link show dev eth0")[0]
    assert (host["linkinfo"]["info_kind"], host["master"], host["mtu"]) == ("veth", "br0", 1400)
    assert (peer["linkinfo"]["info_kind"], peer["address"], peer["mtu"]) == ("veth", MAC_TEXT, 1400)
    assert "UP" not in host["flags"] + peer["flags"]
    assert host["link_index"] == peer["ifindex"]
    apply(rtnl.link_delete("ls0"))
    assert [each["ifname"] for each in inside(path, "ip -json link")] == ["lo"]


@isolated
def test_a_bridge_port_gets_its_settings_and_its_mac(tmp_path: Path) -> None:
    join(tmp_path)
    port = index("ls0")
    for learning, flood, isolated_ in ((False, False, True), (True, True, False)):
        apply(rtnl.bridge_port(port, "ls0", learning=learning, unicast_flood=flood, isolated=isolated_))
        (found,) = shown("bridge -json -d link show dev ls0")
        assert (found["learning"], found["flood"], found["isolated"]) == (learning, flood, isolated_)
    for _ in range(2):
        apply(rtnl.fdb_add(port, "ls0", MAC))
        entries = [entry for entry in shown("bridge -json fdb show dev ls0") if entry["mac"] == MAC_TEXT]
        assert [(entry["master"], entry["state"]) for entry in entries] == [("br0", "static")]
    for _ in range(2):
        apply(rtnl.fdb_delete(port, "ls0", MAC))
        assert MAC_TEXT not in run("bridge fdb show dev ls0")


@isolated
def test_an_fdb_entry_moves_to_the_port_that_asks_last(tmp_path: Path) -> None:
    join(tmp_path)
    run("ip link add other type veth peer name other-peer")
    run("ip link set other master br0")
    apply(rtnl.fdb_add(index("other"), "other", MAC), rtnl.fdb_add(index("ls0"), "ls0", MAC))
    entries = [entry for entry in shown("bridge -json fdb show br br0") if entry["mac"] == MAC_TEXT]
    assert [entry["ifname"] for entry in entries] == ["ls0"]


@isolated
def test_links_go_up_and_get_no_address_of_their_own(tmp_path: Path) -> None:
    join(tmp_path)
    apply(rtnl.link_no_auto_address(index("ls0"), "ls0"), rtnl.link_up(index("ls0"), "ls0"))
    assert "UP" in link("ls0")["flags"]
    assert link("ls0")["inet6_addr_gen_mode"] == "none"
    assert devices.is_up("ls0")
    assert not devices.is_up("br0")
    assert not devices.is_up("missing")


@isolated
def test_addresses_neighbours_and_default_routes_are_set_in_the_sandbox_and_may_be_repeated(tmp_path: Path) -> None:
    path = join(tmp_path)
    with rtnl.Rtnl(path) as netlink:
        eth0 = netlink.ifindex("eth0")
        assert eth0 is not None
        assert netlink.ifindex("missing") is None
    gateways = IPv4Address("10.9.0.1"), IPv6Address("fd09::1")
    for _ in range(2):
        apply(
            *(rtnl.addr_add(eth0, "eth0", ip_interface(a)) for a in ("10.9.0.2/22", "fd09::2/64", "fe80::2/64")),
            rtnl.link_up(eth0, "eth0"),
            *(rtnl.neighbour_add(eth0, "eth0", gateway, MAC) for gateway in gateways),
            *(rtnl.default_route_add(eth0, "eth0", gateway.packed) for gateway in gateways),
            at=path,
        )
    infos = inside(path, "ip -json addr show dev eth0")[0]["addr_info"]
    found = {(info["local"], info["prefixlen"], info["scope"], info.get("nodad", False)) for info in infos}
    assert found >= {
        ("10.9.0.2", 22, "global", False),
        ("fd09::2", 64, "global", True),
        ("fe80::2", 64, "link", True),
    }
    assert not [info for info in infos if info.get("tentative")]
    for version, gateway in (("-4", "10.9.0.1"), ("-6", "fd09::1")):
        (route,) = inside(path, f"ip -json {version} route show default")
        assert (route["gateway"], route["dev"]) == (gateway, "eth0")
        neighbours = inside(path, f"ip -json {version} neigh show nud permanent")
        assert [(n["dst"], n["lladdr"]) for n in neighbours] == [(gateway, MAC_TEXT)]
    for _ in range(2):
        apply(*(rtnl.neighbour_delete(eth0, "eth0", gateway) for gateway in gateways), at=path)
        assert inside(path, "ip -json neigh show nud permanent") == []


@isolated
def test_a_default_route_takes_the_place_of_another(tmp_path: Path) -> None:
    path = join(tmp_path)
    run(f"nsenter --net={path} ip link add eth1 type dummy || nsenter --net={path} ip link add eth1 type veth")
    for number, ifname in enumerate(("eth0", "eth1")):
        with rtnl.Rtnl(path) as netlink:
            found = netlink.ifindex(ifname)
            assert found
            netlink.apply(
                [
                    rtnl.addr_add(found, ifname, ip_interface(f"10.{number}.0.2/24")),
                    rtnl.link_up(found, ifname),
                    rtnl.default_route_add(found, ifname, IPv4Address(f"10.{number}.0.1").packed),
                ]
            )
    (route,) = inside(path, "ip -json route show default")
    assert (route["gateway"], route["dev"]) == ("10.1.0.1", "eth1")


def program(verdict: int) -> int:
    """A tc program that returns its verdict."""
    insns = struct.pack("<BBhi", 0xB7, 0, 0, verdict) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    return bpf.prog_load(insns, bpf.ProgType.SCHED_CLS, name=f"verdict{verdict}")


def block_programs(block: int) -> list[tuple[str, int]]:
    options = [f["options"] for f in shown(f"tc -json filter show block {block}") if "options" in f]
    return [(each["bpf_name"], each["prog"]["id"]) for each in options]


@isolated
def test_a_program_is_put_in_a_shared_block_kept_and_replaced(tmp_path: Path) -> None:
    require("clsact")
    join(tmp_path)
    port, first, second = index("ls0"), program(0), program(1)
    try:
        for _ in range(2):
            apply(rtnl.clsact_add(port, "ls0", 11, 12))
        (qdisc,) = [q for q in shown("tc -json qdisc show dev ls0") if q["kind"] == "clsact"]
        assert (qdisc["ingress_block"], qdisc["egress_block"]) == (11, 12)
        apply(rtnl.block_program(11, first, "mine", replace=False))
        apply(rtnl.block_program(11, second, "mine", replace=False))
        assert block_programs(11) == [("mine", bpf.prog_id(first))]
        apply(rtnl.block_program(11, second, "mine", replace=True))
        assert block_programs(11) == [("mine", bpf.prog_id(second))]
        for _ in range(2):
            apply(rtnl.block_clear(11), rtnl.block_clear(13))
            assert block_programs(11) == []
        for _ in range(2):
            apply(rtnl.clsact_delete(port, "ls0"))
            assert "clsact" not in run("tc qdisc show dev ls0")
    finally:
        os.close(first)
        os.close(second)


@isolated
def test_a_bridge_is_made_with_its_mac_and_mtu_and_may_be_made_again(tmp_path: Path) -> None:
    for _ in range(2):
        devices.add_bridge("br0", mac="02:4c:00:00:00:01", mtu=9000, ipv6=False)
        devices.add_addresses("br0", [ip_interface("10.9.0.1/24")])
    found = link("br0")
    assert (found["address"], found["mtu"], "UP" in found["flags"]) == ("02:4c:00:00:00:01", 9000, True)
    assert [a["local"] for a in shown("ip -json addr show dev br0")[0]["addr_info"]] == ["10.9.0.1"]
    devices.add_bridge("br1", mac="02:4d:00:00:00:01", mtu=9000, ipv6=False)
    for isolated_ in (True, False):
        devices.add_trunk("up", "br0", "down", "br1", mtu=9000, isolated=isolated_)
        (port,) = shown("bridge -json -d link show dev up")
        assert (port["master"], port["isolated"], port["learning"]) == ("br0", isolated_, True)
    assert link("down")["master"] == "br1"
    for _ in range(2):
        devices.delete_links(["up", "br0", "br1", "never-there"])
    assert [each["ifname"] for each in shown("ip -json link")] == ["lo"]


REFUSED: dict[str, tuple[Callable[[], rtnl.Request], int, str]] = {
    "veth that is there": (
        lambda: rtnl.veth_add("ls0", master=0, peer_ifname="p", peer_netns_fd=os.open("/proc/thread-self/ns/net", 0),
                              peer_mac=MAC, mtu=1500),
        errno.EEXIST,
        "cannot add veth ls0 with peer p: File exists",
    ),
    "link that is not there": (lambda: rtnl.link_up(4711, "ls9"), errno.ENODEV, "cannot set ls9 up: No such device"),
    "port of no bridge": (
        lambda: rtnl.fdb_add(index("eth9"), "eth9", MAC), errno.EOPNOTSUPP, f"cannot add {MAC_TEXT} to the FDB of eth9",
    ),
    "multicast MAC of a neighbour's FDB": (
        lambda: rtnl.fdb_add(index("ls0"), "ls0", b"\1" * 5), errno.EINVAL, "to the FDB of ls0: Invalid argument",
    ),
    "gateway that is not on the link": (
        lambda: rtnl.default_route_add(index("lo"), "lo", IPv4Address("192.0.2.1").packed),
        errno.ENETUNREACH,
        "cannot add the default route via 192.0.2.1 dev lo: Network is unreachable: Nexthop has invalid gateway",
    ),
    "block that is not there": (
        lambda: rtnl.block_program(77, 0, "p", replace=True), errno.EINVAL, "cannot attach p to block 77: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@isolated
def test_refusals_name_the_request_and_give_the_kernels_words(tmp_path: Path, case: str) -> None:
    join(tmp_path)
    run("ip link add eth9 type veth peer name eth8")
    make, code, text = REFUSED[case]
    with pytest.raises(rtnl.NetlinkError) as caught:
        apply(make())
    assert caught.value.errno == code
    assert text in str(caught.value)


@isolated
def test_a_batch_goes_on_past_a_refusal_and_reports_the_first(tmp_path: Path) -> None:
    join(tmp_path)
    with rtnl.Rtnl() as netlink:
        with pytest.raises(rtnl.NetlinkError, match="set first up"):
            netlink.apply(
                [
                    rtnl.link_delete("never-there"),
                    rtnl.link_up(4711, "first"),
                    rtnl.link_up(4712, "second"),
                    rtnl.link_up(index("ls0"), "ls0"),
                ]
            )
        assert "UP" in link("ls0")["flags"]
        # And the socket is not out of step.
        netlink.apply([rtnl.link_delete("ls0")])
        netlink.apply([])
    assert not devices.ifindex("ls0")


@isolated
def test_a_batch_of_thousands_is_acknowledged_one_by_one(tmp_path: Path) -> None:
    run("ip link add br0 type bridge")
    bridge = index("br0")
    requests = [rtnl.neighbour_add(bridge, "br0", IPv4Address("10.0.0.0") + number, MAC) for number in range(1, 2001)]
    apply(*requests)
    assert len(shown("ip -json neigh show dev br0 nud permanent")) == 2000


@isolated
def test_a_device_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(rtnl.NetlinkError, match="device ls7 is gone"):
        devices.need_ifindex("ls7")
    with pytest.raises(OSError, match="No such device"):
        devices.mtu("ls7")


@isolated
def test_routes_and_the_default_mtu_are_those_that_ip_shows(tmp_path: Path) -> None:
    assert devices.default_mtu() == 1500
    assert devices.routed_networks() == []
    run("ip link add eth9 mtu 1420 type veth peer name eth8")
    run("ip addr add 10.20.0.5/16 dev eth9; ip link set eth9 up; ip link set eth8 up")
    run("ip route add default via 10.20.0.1; ip route add 198.51.100.0/24 via 10.20.0.1")
    run("ip route add 224.0.0.0/4 dev eth9")
    run("ip -6 addr add 2001:db8::5/64 dev eth9 nodad")
    assert devices.default_mtu() == 1420
    assert sorted(map(str, devices.routed_networks())) == ["10.20.0.0/16", "198.51.100.0/24", "2001:db8::/64"]
