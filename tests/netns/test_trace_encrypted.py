"""What a trace says of an encrypted network, on any kernel: a veth stands for WireGuard's device."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, ip_interface
from pathlib import Path

import pytest

from control.drivers import walk_bridge, walk_overlay
from control.drivers.walk import Names, Walk
from control.drivers.walk_hooks import Running
from control.model import Endpoint, EndpointId, EndpointState, Network, NetworkId, NetworkState, SandboxId
from datapath import frames, netns
from datapath.vxlan import Peer
from datapath.wireguard import IFNAMES, Tunnels
from tests.isolated import isolated, run

pytestmark = pytest.mark.root

PEER_MAC, PEER, NODE = "02:42:0a:09:00:02", IPv4Address("10.9.0.2"), "100.64.0.2"
OWN = IPv4Address("10.9.0.1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NETWORK = Network(
    id=NetworkId("ab" * 32), name="secret", driver="overlay", state=NetworkState.ACTIVE, created=NOW, segment=1,
    scope="global", options={"encrypted": ""},
)  # fmt: skip
ENDPOINT = Endpoint(
    id=EndpointId("1" * 64), network_id=NETWORK.id, sandbox_id=SandboxId(""), state=EndpointState.JOINED, created=NOW,
    ipv4=ip_interface("10.9.0.1/24"), mac="02:42:0a:09:00:01", host_ifname="ls0", ifname="eth0",
    sandbox_key="/run/netns/web",
)  # fmt: skip


def follow(tunnels: Tunnels) -> Walk:
    walk = walk_of(PEER_MAC, OWN, PEER)
    walk_bridge.follow(walk, way_into(tunnels))
    return walk


def arrive(tunnels: Tunnels) -> Walk:
    walk = walk_of(ENDPOINT.mac, PEER, OWN)
    sender = Peer(frames.mac_of(PEER_MAC), (PEER,), IPv4Address(NODE))
    arrival = walk_overlay.Arrival(sender, IPv4Address("100.64.0.1"), uplink=0, vxlan="lx-b")
    walk_overlay.arrive(walk, way_into(tunnels), arrival, None)
    return walk


def walk_of(mac: str, source: IPv4Address, destination: IPv4Address) -> Walk:
    names = Names([ENDPOINT], {NETWORK.id: NETWORK}, {}, {IPv4Address(NODE): "n2"})
    frame = frames.packet((bytes(6), frames.mac_of(mac)), (source, destination), "icmp", 0)
    return Walk(NETWORK, ENDPOINT, "/run/netns/web", names, frame, source, destination, "icmp", 0)


def way_into(tunnels: Tunnels) -> walk_bridge.Way:
    return walk_bridge.Way(None, Running(lambda name: 0), "for this test", tunnels=str(tunnels.path))


@isolated
def test_packets_for_other_nodes_are_the_kernel_s_and_wireguard_s(tmp_path: Path) -> None:
    tunnels = Tunnels(tmp_path / "tunnels" / "wireguard")
    tunnels.open(IPv4Address("100.64.0.1"))
    host = tmp_path / "host"
    netns.create(host)
    try:
        for command in (
            "ip link add lo-b type bridge",
            "ip link set lo-b up",
            "ip link add ls0 type veth peer name eth0",
            "ip link set ls0 master lo-b up",
        ):
            run(f"nsenter --net={host} {command}")
        run(f"nsenter --net={tunnels.path} ip link add lx-b netns {host} type vxlan id 7 dstport 4789 local 100.64.0.1")
        run(f"nsenter --net={host} ip link set lx-b master lo-b up")
        run(f"nsenter --net={host} bridge fdb add {PEER_MAC} dev lx-b dst {NODE} self static")
        run(f"nsenter --net={host} bridge fdb add {PEER_MAC} dev lx-b master static")
        lost, closed = (netns.call(host, partial(each, tunnels)) for each in (follow, arrive))
        assert lost.end is not None
        assert closed.end is not None
        assert (lost.end.outcome, lost.end.text) == ("lost", f"there is no route to {NODE}")
        assert (closed.end.outcome, f"no tunnel to n2 ({NODE})" in closed.end.text) == ("lost", True)
        run(f"nsenter --net={tunnels.path} ip link add {IFNAMES[0]} type veth peer name far")
        run(f"nsenter --net={tunnels.path} ip link set {IFNAMES[0]} up")
        run(f"nsenter --net={tunnels.path} ip route add {NODE} dev {IFNAMES[0]}")
        run(f"nsenter --net={host} bridge fdb add {ENDPOINT.mac} dev ls0 master static")
        run(f"nsenter --net={host} ip link set lx-b up")
        walk, back = (netns.call(host, partial(each, tunnels)) for each in (follow, arrive))
    finally:
        netns.delete(host)
        tunnels.close()
    told = {step.decision: step.text for step in walk.steps}
    assert told["encrypted"].startswith("network secret is encrypted: what is for other nodes is the kernel's alone")
    assert told["route"] == f"route {NODE}/32 in the tunnels' namespace: by {IFNAMES[0]}"
    assert walk.end is not None
    assert (walk.end.outcome, walk.end.path) == ("sent", "slow")
    assert walk.end.text.startswith(f"leaves for n2 ({NODE}) encrypted by WireGuard device {IFNAMES[0]} (slow path)")
    told = {step.decision: step.text for step in back.steps}
    assert "network secret is encrypted: what is from other nodes is the kernel's alone" in told["encrypted"]
    assert [step.device for step in back.steps][:3] == [IFNAMES[0], "lx-b", "lx-b"]
    assert told["fdb"] == f"bridge fdb: {ENDPOINT.mac} is behind ls0"
    assert back.end is not None
    assert (back.end.outcome, back.end.text) == ("delivered", "arrives at eth0 of web (slow path)")
