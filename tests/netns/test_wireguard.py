"""Encrypted networks between nodes, as the underlay sees them; the oracles are `wg`, ping and packet sockets."""

from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import closing

import pytest
from scapy.layers.vxlan import VXLAN

from control.cluster.secrecy import tunnel_address
from datapath import netns
from tests.isolated import isolated, run
from tests.netns.tunnel_lab import (
    CLEAR,
    DEADLINE_S,
    HERE,
    SECRET,
    VNIS,
    VXLAN_PORT,
    WIREGUARD_PORTS,
    Record,
    forged,
    nodes,
    settle,
    udp_ports,
    underlay,
)
from tests.require import require
from tests.traffic import Wire, socket_in
from tests.waiting import until

pytestmark = pytest.mark.root

MARKER = b"for your eyes only"


@pytest.fixture(autouse=True)
def _wireguard():
    require("wireguard")


def send(sender, receiver, network, payload):
    with closing(receiver.listener(network)) as at_receiver, closing(sender.listener(network)) as at_sender:
        at_sender.sendto(payload, (receiver.on(network), 9))
        assert at_receiver.recv(2048) == payload


@pytest.mark.parametrize("version", [4, 6])
@isolated
def test_the_underlay_sees_wireguard_and_nothing_else(tmp_path, version):
    with nodes(tmp_path, version=version) as (a, b):
        settle([a, b])
        for network in (SECRET, CLEAR):
            a.join(network, [b])
            b.join(network, [a])
        with underlay([a, b]) as heard:
            send(a, b, CLEAR, MARKER)
        assert VXLAN_PORT in udp_ports(heard)
        assert any(MARKER in bytes(frame) for frame in heard)
        b.run(f"ip link set {CLEAR} down")
        a.run(f"ip link set {CLEAR} down")
        with underlay([a, b]) as heard:
            send(a, b, SECRET, MARKER)
            send(b, a, SECRET, MARKER[::-1])
        assert udp_ports(heard) & WIREGUARD_PORTS
        assert udp_ports(heard) <= WIREGUARD_PORTS
        assert not any(text in bytes(frame) for frame in heard for text in (MARKER, MARKER[::-1]))


@isolated
def test_wg_shows_peers_that_may_have_one_address_each(tmp_path):
    with nodes(tmp_path, count=3) as members:
        settle(members)
        for node in members:
            own, *peers = (line.split("\t") for line in node.inside("wg show lw-1 dump").splitlines())
            assert (own[1], own[2]) == (node.keys[0][1], "51881")
            assert {(p[0], p[2], p[3], p[7]) for p in peers} == {
                (other.keys[0][1], f"{other.address}:51881", f"{tunnel_address(other.id)}/32", "25")
                for other in members
                if other is not node
            }
            links = json.loads(node.inside("ip -json link"))
            assert [(link["ifname"], link["mtu"]) for link in links[1:]] == [("lw-1", 1440)]
            assert stat.S_IMODE(os.stat(tmp_path / f"keys{node.id}.json").st_mode) == 0o600


@isolated
def test_a_node_that_was_set_up_with_wg_by_hand_takes_part(tmp_path):
    with nodes(tmp_path) as (a, b):
        b.stop()
        (tmp_path / "private").write_bytes(run("wg genkey").encode())
        public = run(f"wg pubkey < {tmp_path}/private").strip()
        stranger = Record(2, "by hand", b.address, ((1, public),))
        netns.call(a.netns, lambda: a.secrecy.synchronize([stranger]))
        ((_, key),) = a.secrecy.public_keys
        for command in (
            "ip link add wg0 type wireguard",
            f"wg set wg0 listen-port 51881 private-key {tmp_path}/private peer {key} endpoint {a.address}:51881"
            f" allowed-ips {tunnel_address(1)}/32",
            f"ip addr add {tunnel_address(2)}/32 dev wg0; ip link set wg0 mtu 1440 up",
            f"ip route add {tunnel_address(1)}/32 dev wg0",
            f"ping -c1 -W10 {tunnel_address(1)}",
        ):
            b.run(command)
        b.restart()


@pytest.mark.parametrize("version", [4, 6])
@isolated
def test_keys_rotate_and_no_packet_is_lost(tmp_path, version):
    with nodes(tmp_path, version=version) as (a, b):
        settle([a, b])
        a.join(SECRET, [b])
        b.join(SECRET, [a])
        assert a.pings(b, SECRET, 3)
        before = {node.id: dict(node.keys) for node in (a, b)}
        with a.pinging(b, SECRET) as lost_by_a, b.pinging(a, SECRET) as lost_by_b:
            assert a.pings(b, SECRET, 3)
            a.secrecy.rotate()
            a.synchronize([a, b])
            assert [number for number, _ in a.keys] == [1, 2]
            assert a.pings(b, SECRET, 3)
            settle([a, b])
            assert a.pings(b, SECRET, 3)
        assert (lost_by_a, lost_by_b) == ([], [])
        for node in (a, b):
            assert [number for number, _ in node.keys] == [2]
            assert node.keys[0][1] != before[node.id][1]
            assert node.inside("wg show interfaces").split() == ["lw-0"]
            assert len(json.loads((tmp_path / f"keys{node.id}.json").read_text())) == 1


def way(sender, receiver):
    """The device that packets for the receiver go by."""
    (route,) = json.loads(sender.inside(f"ip -json route get {tunnel_address(receiver.id)}"))
    return route["dev"]


@isolated
def test_packets_go_by_different_devices_in_the_two_directions_while_keys_rotate(tmp_path):
    with nodes(tmp_path) as (a, b):
        settle([a, b])
        a.join(SECRET, [b])
        b.join(SECRET, [a])
        a.secrecy.rotate()
        a.synchronize([a, b])
        b.synchronize([a, b])
        with a.pinging(b, SECRET) as lost:
            until(lambda: a.synchronize([a, b]) and way(a, b) == "lw-0", DEADLINE_S)
            assert a.pings(b, SECRET, 5)
            assert way(b, a) == "lw-1"
        assert lost == []


def received_bytes(node):
    """Of its one peer; counting begins anew with a new peer."""
    return int(node.inside("wg show all transfer").split()[2])


@isolated
def test_a_restart_keeps_keys_sessions_and_packets(tmp_path):
    with nodes(tmp_path) as (a, b):
        settle([a, b])
        a.join(SECRET, [b])
        b.join(SECRET, [a])
        assert a.pings(b, SECRET)
        before, received = (a.keys, a.inside("ip -br link")), received_bytes(a)
        with b.pinging(a, SECRET) as lost:
            assert a.pings(b, SECRET, 3)
            a.restart()
            assert a.secrecy.public_keys == a.keys
            assert a.pings(b, SECRET, 3)
            a.synchronize([a, b])
            assert a.pings(b, SECRET, 3)
        assert lost == []
        assert (a.keys, a.inside("ip -br link")) == before
        assert received_bytes(a) > received


@isolated
def test_after_a_reboot_the_keys_are_the_same(tmp_path):
    with nodes(tmp_path) as (a, b):
        settle([a, b])
        netns.call(a.netns, a.tunnels.close)
        a.restart()
        assert a.secrecy.public_keys == a.keys
        a.synchronize([a, b])
        a.join(SECRET, [b])
        b.join(SECRET, [a])
        assert a.pings(b, SECRET)


@pytest.mark.parametrize("version", [4, 6])
@isolated
def test_nothing_leaves_in_clear_when_the_tunnel_is_gone(tmp_path, version):
    with nodes(tmp_path, version=version) as (a, b):
        settle([a, b])
        for network in (SECRET, CLEAR):
            a.join(network, [b])
            b.join(network, [a])
        a.run(f"ip route add 100.64.0.0/10 dev u; ip neigh add {tunnel_address(2)} lladdr {b.mac('u')} dev u")
        a.inside("ip link delete lw-1")
        b.inside("ip link delete lw-1")
        with underlay([a, b]) as heard, closing(a.listener(SECRET)) as at_a:
            a.run(f"ip neigh replace {b.on(SECRET)} lladdr {b.mac(SECRET)} dev {SECRET} nud permanent")
            at_a.sendto(MARKER, (b.on(SECRET), 9))
            at_a.sendto(MARKER, (f"{a.on(SECRET)}", 9))
            assert at_a.recv(100) == MARKER
            send(a, b, CLEAR, b"to show that the underlay carries what is not encrypted")
        assert {frame[VXLAN].vni for frame in heard if VXLAN in frame} == {VNIS[CLEAR]}
        assert not any(MARKER in bytes(frame) for frame in heard)
        (link,) = json.loads(a.run(f"ip -s -json link show {SECRET}"))
        assert link["stats64"]["tx"]["errors"] > 0


@pytest.mark.parametrize("version", [4, 6])
@isolated
def test_nothing_that_comes_in_clear_is_taken(tmp_path, version):
    with nodes(tmp_path, version=version) as (a, b):
        settle([a, b])
        for network in (SECRET, CLEAR):
            a.join(network, [b])
            b.join(network, [a])
        with closing(b.listener(SECRET)) as secret, closing(b.listener(CLEAR)) as clear, Wire(HERE, b.port) as wire:
            wire.send(forged(a, b, SECRET, b"forged"))
            if version == 4:
                wire.send(forged(a, b, SECRET, b"forged", destination=str(tunnel_address(2))))
            wire.send(forged(a, b, CLEAR, b"control"))
            assert clear.recv(100) == b"control"
            with closing(a.listener(SECRET)) as at_a:
                at_a.sendto(b"honest", (b.on(SECRET), 9))
            assert secret.recv(100) == b"honest"


def socket_inside(node, address=None):
    """A socket on port 9 of an address in the node's tunnels, its own unless told otherwise."""
    made = socket_in(str(node.tunnels.path), socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address or str(tunnel_address(node.id)), 9))
    made.settimeout(DEADLINE_S)
    return made


@isolated
def test_a_peer_cannot_send_with_the_address_of_another(tmp_path):
    with nodes(tmp_path, count=3) as (a, b, c):
        settle([a, b, c])
        c.inside(f"ip addr add {tunnel_address(1)}/32 dev lo")
        for node in (a, c):
            with closing(socket_inside(b)) as at_b, closing(socket_inside(node, str(tunnel_address(1)))) as forger:
                forger.sendto(node.netns.encode(), (str(tunnel_address(2)), 9))
                if node is a:
                    assert at_b.recv(200) == a.netns.encode()
                    continue
                with closing(socket_inside(c, str(tunnel_address(3)))) as honest:
                    honest.sendto(b"honest", (str(tunnel_address(2)), 9))
                assert at_b.recv(200) == b"honest"


@isolated
def test_what_others_change_is_put_right(tmp_path):
    with nodes(tmp_path) as (a, b):
        settle([a, b])
        a.join(SECRET, [b])
        b.join(SECRET, [a])
        state = "wg show all allowed-ips; wg show all endpoints; ip -4 route; ip -br link"
        before = a.inside(state)
        stranger = run("wg genkey | wg pubkey").strip()
        for harm in (
            f"wg set lw-1 peer {stranger} allowed-ips 0.0.0.0/0",
            f"wg set lw-1 peer {b.keys[0][1]} allowed-ips 0.0.0.0/0 endpoint 192.0.2.1:9",
            f"wg set lw-1 peer {b.keys[0][1]} remove",
            f"ip route delete {tunnel_address(2)}",
            "ip link set lw-1 down mtu 1300",
            "ip link delete lw-1",
        ):
            a.inside(harm)
            a.synchronize([a, b])
            assert a.inside(state) == before, harm
            assert a.pings(b, SECRET), harm


@isolated
def test_a_hundred_nodes_are_read_back_as_they_were_written(tmp_path):
    with nodes(tmp_path, count=1) as (a,):
        keys = run("for i in $(seq 100); do wg genkey | wg pubkey; done").split()
        others = [Record(i + 2, f"n{i}", a.address + i + 1, ((1, key),)) for i, key in enumerate(keys)]
        netns.call(a.netns, lambda: a.secrecy.synchronize(others))
        found = a.tunnels.look()
        assert {(p.public_key, p.endpoint, p.address) for p in found.devices["lw-1"].peers} == {
            (other.public_keys[0][1], other.address, tunnel_address(other.id)) for other in others
        }
        assert len(a.inside("wg show lw-1 peers").split()) == len(a.inside("ip -4 route").splitlines()) == 100
        a.synchronize([])
        assert a.inside("wg show lw-1 peers; ip -4 route") == ""


@isolated
def test_a_port_that_is_taken_is_named(tmp_path):
    with nodes(tmp_path, count=1) as (a,), closing(a.taken(51881)), pytest.raises(OSError, match="UDP port 51881"):
        a.synchronize([])


@isolated
def test_stopping_leaves_nothing(tmp_path):
    with nodes(tmp_path) as (a, b):
        settle([a, b])
        a.join(SECRET, [b])
        a.stop()
        assert not list(tmp_path.glob("keys1*"))
        assert not (tmp_path / "node1").exists()
        assert "5188" not in a.run("ss -Huan")
        until(lambda: SECRET not in a.run("ip -br link"), DEADLINE_S)  # namespaces are cleaned up a little later
        a.restart()
        assert a.secrecy.public_keys == ()
