"""When tunnels and keys are made, told to the cluster, left alone and ended; what they are is for others to show."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from control import encryption
from control.cluster.etcd_errors import EtcdUnavailable
from control.cluster.records import Node
from control.encryption import Encryption, Keys
from control.errors import DatapathFailed, Forbidden
from control.model import NetworkId
from tests.fake_session import node

NET, OTHER = NetworkId("n" * 64), NetworkId("o" * 64)


class FakeSecrecy:
    """Has one key as soon as it has seen the nodes; `done` is what was asked of it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.public_keys: Keys = ()
        self.failure: OSError | None = None

    def start(self, node_id: int, underlay_mtu: int, underlay_version: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.done.append(f"start {node_id} {underlay_mtu} {underlay_version}")

    def synchronize(self, nodes: Collection[Node]) -> float:
        self.done.append("nodes " + " ".join(sorted(each.name for each in nodes)))
        self.public_keys = ((1, "key"),)
        return 60.0

    def stop(self) -> None:
        self.done.append("stop")
        self.public_keys = ()


class World:
    """`nodes` are the cluster's, None when nobody can tell; `published` is what the node's record came to say."""

    def __init__(self) -> None:
        self.secrecy = FakeSecrecy()
        self.nodes: list[Node] | None = [node("a", 1), node("b", 2)]
        self.published: list[Keys] = []
        self.etcd_is_away = False
        self.encryption = Encryption(
            self.secrecy,  # type: ignore[arg-type]
            "/tunnels",
            underlay=lambda: (1500, 4),
            nodes=lambda: self.nodes,
            publish=self.publish,
        )
        self.encryption.node_id = 1

    def publish(self, keys: Keys) -> None:
        if self.etcd_is_away:
            raise EtcdUnavailable("nobody answers")
        self.published.append(keys)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(encryption, "require_available", lambda name: None)
    return World()


def test_the_first_network_brings_tunnels_and_the_last_one_ends_them(world: World) -> None:
    world.encryption.use(NET, "net")
    world.encryption.use(OTHER, "other")
    assert world.secrecy.done == ["start 1 1500 4", "nodes a b", "nodes a b"]
    assert world.published == [((1, "key"),)]
    world.encryption.release(NET)
    assert "stop" not in world.secrecy.done
    world.encryption.release(OTHER)
    assert world.secrecy.done[-1] == "stop"
    assert world.published[-1] == ()


def test_a_host_that_cannot_encrypt_makes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise Forbidden(f"network {name} is encrypted, and this host cannot encrypt")

    monkeypatch.setattr(encryption, "require_available", refuse)
    with pytest.raises(Forbidden, match="network net is encrypted"):
        world.encryption.use(NET, "net")
    assert world.secrecy.done == []
    assert world.encryption.wait_s(15.0) == 15.0


def test_what_the_kernel_refuses_names_the_network(world: World) -> None:
    world.secrecy.failure = OSError("port in use")
    with pytest.raises(DatapathFailed, match="network net cannot be encrypted: port in use"):
        world.encryption.use(NET, "net")


def test_a_restart_takes_the_tunnels_up_and_changes_nothing_before_the_cluster_was_read(world: World) -> None:
    world.nodes = None
    world.encryption.resume(NET)
    assert world.secrecy.done == ["start 1 1500 4"]
    assert world.published == []
    assert world.encryption.wait_s(15.0) <= 1.0
    world.nodes = [node("a", 1), node("c", 3)]
    world.encryption.follow(is_changed=True)
    assert world.secrecy.done == ["start 1 1500 4", "nodes a c"]
    assert world.published == [((1, "key"),)]


def test_a_restart_registers_with_the_keys_from_before_and_tells_them_no_second_time(world: World) -> None:
    world.encryption.use(NET, "net")
    again = World()
    again.nodes, again.secrecy.public_keys = None, world.secrecy.public_keys
    assert again.encryption.keys == (), "it has no tunnels yet"
    again.encryption.resume(NET)
    assert again.encryption.keys == ((1, "key"),)
    again.nodes = [node("a", 1), node("b", 2)]
    again.encryption.registered(again.encryption.keys)
    assert again.secrecy.done[-1] == "nodes a b"
    assert again.published == []


def test_a_restart_on_a_host_that_refuses_goes_on_and_tries_again(world: World) -> None:
    world.secrecy.failure = OSError("no such device")
    world.encryption.resume(NET)
    world.secrecy.failure = None
    world.encryption.follow(is_changed=True)
    assert world.secrecy.done == ["start 1 1500 4", "nodes a b"]


def test_keys_that_could_not_be_told_are_told_later_and_those_of_a_new_record_again(world: World) -> None:
    world.etcd_is_away = True
    world.encryption.use(NET, "net")
    assert world.published == []
    assert world.encryption.wait_s(15.0) <= 1.0
    world.etcd_is_away = False
    world.encryption.follow(is_changed=True)
    assert world.published == [((1, "key"),)]
    world.encryption.follow(is_changed=True)
    assert len(world.published) == 1
    world.encryption.registered(())
    assert len(world.published) == 2


def test_another_id_of_this_node_is_another_address_in_the_tunnels(world: World) -> None:
    world.encryption.use(NET, "net")
    world.encryption.node_id = 7
    world.encryption.follow(is_changed=True)
    assert "start 7 1500 4" in world.secrecy.done
    assert str(world.encryption.address) == "100.64.0.7"


def test_without_an_encrypted_network_nothing_is_followed(world: World) -> None:
    world.encryption.follow(is_changed=True)
    world.encryption.registered(())
    world.encryption.release(NET)
    assert world.secrecy.done == []
    assert world.published == []
