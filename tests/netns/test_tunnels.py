"""The namespace of the tunnels, on any kernel; tests/netns/test_wireguard.py has what WireGuard is needed for."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

import pytest

from datapath import netns
from datapath.wireguard import Found, Tunnels
from tests.isolated import isolated, run

pytestmark = pytest.mark.root


@pytest.fixture
def tunnels(tmp_path):
    return Tunnels(tmp_path / "tunnels" / "wireguard")


def inside(tunnels, command):
    return run(f"nsenter --net={tunnels.path} {command}")


def addresses(tunnels):
    (lo,) = json.loads(inside(tunnels, "ip -json -4 addr"))
    return {f"{info['local']}/{info['prefixlen']}" for info in lo["addr_info"]}


@isolated
def test_it_has_the_address_of_the_node_and_nothing_else(tunnels):
    for address in ("100.64.0.1", "100.64.0.1", "100.64.1.2"):
        tunnels.open(IPv4Address(address))
        assert addresses(tunnels) == {"127.0.0.1/8", f"{address}/32"}
    assert tunnels.look() == Found()
    tunnels.close()
    tunnels.close()
    assert tunnels.look() == Found()
    assert not tunnels.path.parent.exists()


@isolated
def test_packets_may_come_by_another_way_than_they_go_and_go_no_further(tunnels):
    tunnels.open(IPv4Address("100.64.0.1"))
    for name in ("ip_forward", "conf.all.rp_filter", "conf.default.rp_filter"):
        inside(tunnels, f"sysctl -qw net.ipv4.{name}=1")
    tunnels.open(IPv4Address("100.64.0.1"))
    for name in ("ip_forward", "conf.all.rp_filter", "conf.default.rp_filter", "conf.lo.forwarding"):
        assert inside(tunnels, f"sysctl -n net.ipv4.{name}").strip() == "0", name
    tunnels.close()


@isolated
def test_a_vxlan_device_made_there_has_its_socket_there_and_ends_with_the_namespace(tunnels, tmp_path):
    host = tmp_path / "host"
    netns.create(host)
    tunnels.open(IPv4Address("100.64.0.1"))
    inside(tunnels, f"ip link add x netns {host} type vxlan id 5000 dstport 4789 local 100.64.0.1")
    run(f"nsenter --net={host} ip link set x up")
    assert "4789" in inside(tunnels, "ss -Huan")
    assert run(f"nsenter --net={host} ss -Huan") == ""
    tunnels.close()
    netns.delete(host)
