"""Keys and their rotation on an imaginary underlay; tests/netns/test_wireguard.py shows the same on a kernel."""

from __future__ import annotations

import base64
import hashlib
import logging
import stat
import tempfile
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.cluster import secrecy
from control.cluster.key_file import KeyFile, new_key
from control.cluster.secrecy import Secrecy, mtu, require_available, tunnel_address, unavailable
from control.errors import Forbidden
from datapath import features
from datapath.wireguard import Found, FoundDevice, Peer

IN_FLIGHT_S = 4
"""How long the underlay may keep a packet."""


@dataclass(frozen=True)
class Record:
    id: int
    name: str
    address: IPv4Address
    public_keys: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Packet:
    """Who sent it with which public key, and to whom."""

    source: IPv4Address
    key: str
    to: Peer


class Kernel:
    """A host's tunnels, by what WireGuard does with packets."""

    def __init__(self) -> None:
        self.address: IPv4Address | None = None
        self.devices: dict[str, FoundDevice] = {}
        self.routes: dict[IPv4Address, str] = {}

    def open(self, address):
        self.address = address

    def look(self):
        return Found(dict(self.devices), dict(self.routes))

    def synchronize(self, wanted, routes, *, mtu):
        assert set(routes.values()) <= wanted.keys()
        before, self.devices, self.routes = self.devices, {}, dict(routes)
        for ifname, device in wanted.items():
            old = before.get(ifname)
            is_same = old is not None and (old.private_key, old.port) == (device.private_key, device.port)
            keys = frozenset(peer.public_key for peer in device.peers)
            public = base64.b64encode(hashlib.sha256(device.private_key.encode()).digest()).decode()
            met = old.handshakes & keys if is_same else frozenset()
            self.devices[ifname] = FoundDevice(
                device.private_key, device.port, device.peers, public, keys, met, mtu, is_up=True
            )
        return self.look()

    def close(self):
        self.__init__()

    def takes(self, packet: Packet) -> bool:
        """Whether a packet that was encrypted like this comes in, after a handshake if need be."""
        return any(
            (own.public_key, own.port) == (packet.to.public_key, packet.to.port)
            and any((peer.public_key, peer.address) == (packet.key, packet.source) for peer in own.peers)
            for own in self.devices.values()
        )

    def packet(self, destination: IPv4Address) -> Packet | None:
        """What is sent there now; None when nothing can be."""
        device = self.devices.get(self.routes.get(destination, ""))
        to = [peer for peer in device.peers if peer.address == destination] if device else []
        return Packet(self.address, device.public_key, to[0]) if to else None

    def meet(self, other: Kernel) -> None:
        """The handshakes that are possible between two hosts."""
        for one, two in ((self, other), (other, self)):
            for ifname, device in one.devices.items():
                met = {
                    peer.public_key
                    for peer in device.peers
                    if peer.address == two.address and two.takes(Packet(one.address, device.public_key, peer))
                }
                one.devices[ifname] = replace(device, handshakes=device.handshakes | met)


class Node:
    """A node with what it last read of etcd."""

    def __init__(self, cluster: Cluster, id: int) -> None:
        self.cluster, self.id, self.kernel = cluster, id, Kernel()
        self.view: list[Record] = []
        self.restart()

    def restart(self):
        path = self.cluster.folder / f"keys{self.id}"
        self.secrecy = Secrecy(self.kernel, path, lifetime_s=1000, now=lambda: self.cluster.now_s)
        self.secrecy.start(self.id, 1500, 4)

    def synchronize(self):
        return self.secrecy.synchronize(self.view)

    def publish(self):
        address = IPv4Address(f"10.0.0.{self.id}")
        self.cluster.records[self.id] = Record(self.id, f"node{self.id}", address, self.secrecy.public_keys)

    def read(self):
        self.view = list(self.cluster.records.values())

    def round(self):
        self.read()
        self.synchronize()
        self.publish()

    def rotate(self):
        self.secrecy.rotate()

    def meet(self):
        for other in self.cluster.nodes:
            self.kernel.meet(other.kernel)

    def wait(self):
        self.cluster.now_s += 2

    @property
    def numbers(self):
        return [number for number, _ in self.secrecy.public_keys]


class Cluster:
    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.now_s = folder, 1_000_000.0
        self.records: dict[int, Record] = {}
        self.nodes = [Node(self, id) for id in range(1, count + 1)]
        self._sent: dict[tuple[int, int], dict[Packet, float]] = {}

    def settle(self) -> None:
        for _ in range(12):
            for node in self.nodes:
                for act in (node.round, node.meet, node.wait):
                    act()
                    self.check()

    def check(self) -> None:
        """Everybody sends to everybody, once they have come to know each other; what is under way arrives."""
        for one, two in permutations(self.nodes, 2):
            packet = one.kernel.packet(two.kernel.address)
            is_taken = packet is not None and two.kernel.takes(packet)
            sent = self._sent.setdefault((one.id, two.id), {})
            assert is_taken or not sent, f"node {one.id} sends {packet} to node {two.id}"
            if is_taken:
                sent[packet] = self.now_s
            for old, when_s in sent.items():
                if self.now_s - when_s < IN_FLIGHT_S:
                    assert two.kernel.takes(old), f"node {one.id} has sent {old} to node {two.id}"


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path, 3)
    made.settle()
    return made


def test_nodes_agree_on_one_key_each(cluster):
    assert [node.numbers for node in cluster.nodes] == [[1]] * 3
    assert len({node.secrecy.public_keys for node in cluster.nodes}) == 3
    for node in cluster.nodes:
        (device,) = node.kernel.devices.values()
        assert {peer.address for peer in device.peers} == {tunnel_address(o.id) for o in cluster.nodes if o is not node}
        assert (device.port, device.mtu) == (51881, 1440)


def test_one_old_key_has_all_nodes_take_the_next(cluster):
    before = [node.secrecy.public_keys for node in cluster.nodes]
    cluster.now_s += 1000
    cluster.nodes[0].synchronize()
    assert [node.numbers for node in cluster.nodes] == [[1, 2], [1], [1]]
    cluster.settle()
    assert [node.numbers for node in cluster.nodes] == [[2]] * 3
    assert not {key for keys in before for _, key in keys} & {
        key for node in cluster.nodes for _, key in node.secrecy.public_keys
    }
    assert all(list(node.kernel.devices) == ["lw-0"] for node in cluster.nodes)


def test_an_old_key_goes_when_nobody_sends_by_it_any_more(tmp_path):
    cluster = Cluster(tmp_path, 2)
    cluster.settle()
    a, b = cluster.nodes
    a.rotate()
    for node in (a, b, a):
        node.round()
    a.meet()
    assert (a.kernel.routes, b.kernel.routes) == ({tunnel_address(2): "lw-1"}, {tunnel_address(1): "lw-1"})
    b.synchronize()
    assert b.kernel.routes == {tunnel_address(1): "lw-0"}
    b.round()
    assert b.numbers == [1, 2], "packets by the old key may be under way"
    cluster.now_s += 5
    b.round()
    assert b.numbers == [2]
    b.round()
    assert b.kernel.devices.keys() == {"lw-0", "lw-1"}, "the other node sends by the old key still"
    cluster.check()
    a.round()
    assert a.kernel.routes == {tunnel_address(2): "lw-0"}
    cluster.now_s += 5
    a.round()
    cluster.now_s += 5
    a.round()
    assert a.kernel.devices.keys() == {"lw-0"}
    b.round()
    assert b.kernel.devices.keys() == {"lw-0"}


ACTS = ("read", "synchronize", "publish", "rotate", "restart", "wait", *3 * ("meet",), *4 * ("round",))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 1)), max_size=60))
def test_no_packet_is_lost_whatever_comes_first(acts):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        made = Cluster(Path(folder), 2)
        made.settle()
        made.nodes[0].rotate()
        for name, index in acts:
            getattr(made.nodes[index], name)()
            made.check()
        made.settle()
        made.settle()
        (numbers,) = {tuple(node.numbers) for node in made.nodes}
        assert len(numbers) == 1


def test_a_node_without_answer_keeps_its_way_and_is_named_once(cluster, caplog):
    a, b, late = cluster.nodes
    a.rotate()
    for _ in range(50):
        for node in (a, b):
            node.read()
            node.synchronize()
            node.publish()
            node.wait()
        a.kernel.meet(b.kernel)
        cluster.check()
    assert (a.numbers, b.numbers, late.numbers) == ([1, 2], [1, 2], [1])
    assert (a.kernel.routes[tunnel_address(2)], a.kernel.routes[tunnel_address(3)]) == ("lw-0", "lw-1")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert warnings[0].startswith("packets to node3 stay with the old key")
    assert "UDP port 51880" in warnings[0]
    cluster.settle()
    assert [node.numbers for node in cluster.nodes] == [[2]] * 3


def test_a_start_changes_nothing_before_the_others_are_known(cluster):
    node = cluster.nodes[0]
    before, keys = node.kernel.look(), node.secrecy.public_keys
    node.restart()
    assert (node.kernel.look(), node.secrecy.public_keys) == (before, keys)


def test_after_a_reboot_the_keys_are_there_before_the_others_are_known(cluster):
    node = cluster.nodes[0]
    keys = node.secrecy.public_keys
    node.kernel.close()
    node.restart()
    assert node.secrecy.public_keys == keys
    assert [len(device.peers) for device in node.kernel.devices.values()] == [0]


def test_a_newcomer_takes_the_newest_key_there_is(cluster):
    cluster.nodes[0].rotate()
    cluster.nodes[0].synchronize()
    cluster.nodes[0].publish()
    cluster.nodes.append(Node(cluster, 4))
    newcomer = cluster.nodes[3]
    newcomer.read()
    newcomer.synchronize()
    assert newcomer.numbers == [2]
    cluster.settle()
    assert newcomer.kernel.routes.keys() == {tunnel_address(id) for id in (1, 2, 3)}


def test_a_node_that_was_away_for_long_has_no_use_for_its_old_key(cluster):
    away = cluster.nodes.pop()
    record = cluster.records.pop(away.id)
    cluster._sent.clear()
    for _ in range(3):
        cluster.nodes[0].rotate()
        cluster.settle()
    assert cluster.nodes[0].numbers == [4]
    cluster.nodes.append(away)
    cluster.records[away.id] = record
    cluster.settle()
    assert [node.numbers for node in cluster.nodes] == [[4]] * 3


def test_it_says_when_it_wants_to_be_called_again(cluster):
    node = cluster.nodes[0]
    age_s = cluster.now_s - 1_000_000
    assert node.synchronize() == 1000 - age_s
    node.rotate()
    assert node.synchronize() == 1.0


def test_a_node_that_leaves_is_forgotten(cluster):
    node = cluster.nodes[0]
    node.view = [record for record in node.view if record.id != 3]
    node.synchronize()
    assert node.kernel.routes.keys() == {tunnel_address(2)}
    assert [len(device.peers) for device in node.kernel.devices.values()] == [1]


@pytest.mark.parametrize("key", ["", "no key", base64.b64encode(b"short").decode(), "é" * 44])
def test_what_is_no_key_stops_nothing_else(cluster, key, caplog):
    node = cluster.nodes[0]
    node.view = [replace(record, public_keys=((1, key),)) if record.id == 3 else record for record in node.view]
    node.synchronize()
    assert node.kernel.routes.keys() == {tunnel_address(2)}
    assert "node3 has published what is no key" in caplog.text


def test_stopping_forgets_the_keys(cluster):
    node = cluster.nodes[0]
    node.secrecy.stop()
    node.secrecy.stop()
    assert node.kernel.look() == Found()
    assert node.secrecy.public_keys == ()
    assert not list(cluster.folder.glob("keys1*"))


def test_keys_are_read_as_they_were_written_and_by_nobody_else(tmp_path):
    file = KeyFile(tmp_path / "keys")
    assert file.read() == {}
    keys = {number: new_key(number, 5.5) for number in (1, 2)}
    (tmp_path / "keys.new").write_text("of a linkspand that died")
    file.write(keys)
    assert KeyFile(tmp_path / "keys").read() == keys
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]
    assert keys[1].private not in repr(keys)
    raw = base64.b64decode(keys[1].private)
    assert (len(raw), raw[0] & 7, raw[31] >> 6) == (32, 0, 1)
    assert keys[1].private != keys[2].private


def test_a_damaged_file_is_told_of_and_not_used(tmp_path, caplog):
    (tmp_path / "keys").write_text('[{"number": 1')
    with caplog.at_level(logging.ERROR):
        assert KeyFile(tmp_path / "keys").read() == {}
    assert f"{tmp_path / 'keys'} is damaged" in caplog.text


@pytest.mark.parametrize(("id", "address"), [(1, "100.64.0.1"), (258, "100.64.1.2"), (65535, "100.64.255.255")])
def test_tunnel_addresses(id, address):
    assert tunnel_address(id) == ip_address(address)


def test_mtus_leave_room_for_all_headers():
    # 1500 - 20 (IPv4) or 40 (IPv6) - 8 (UDP) - 32 (WireGuard) - 20 (IPv4) - 8 (UDP) - 8 (VXLAN) - 14 (Ethernet)
    assert (mtu(1500, 4), mtu(1500, 6)) == (1390, 1370)


def test_a_host_that_cannot_encrypt_says_why(monkeypatch):
    def check(answer):
        found = features.Check("wireguard", answer, "the kernel is built without wireguard", "", None)
        monkeypatch.setattr(secrecy.features, "check", lambda name: found if name == "wireguard" else None)

    check(features.Answer.YES)
    assert unavailable() is None
    require_available("web")
    for answer in (features.Answer.NO, features.Answer.UNKNOWN):
        check(answer)
        assert unavailable() == "the kernel is built without wireguard"
        with pytest.raises(Forbidden, match="network web is encrypted, and this host cannot encrypt: the kernel is"):
            require_available("web")
