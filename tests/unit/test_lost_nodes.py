"""Nodes whose lease has ended: what is known of them stays as long as they answer, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from control.cluster.records import RemoteEndpoint
from control.lost_nodes import LostNodes
from control.model import Address, EndpointId, NetworkId
from tests.fake_session import node, remote
from tests.waiting import until

NET = NetworkId("n" * 64)
B = node("b", 2)


class World:
    """`there` are the addresses that answer; `asked` counts the questions; `forgotten` are the networks told of."""

    def __init__(self) -> None:
        self.there: set[Address] = set()
        self.asked = 0
        self.forgotten: list[set[NetworkId]] = []
        self.lost = LostNodes(self.answers, self.forgotten.append)

    def answers(self, address: Address) -> bool:
        self.asked += 1
        return address in self.there

    def endpoints(self, **known: RemoteEndpoint) -> set[str]:
        return set(self.lost.endpoints(NET, {EndpointId(id_): each for id_, each in known.items()}))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("control.lost_nodes.ASK_EVERY_S", 0.01)
    made = World()
    yield made
    made.lost.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "lost-nodes"]


def test_a_node_that_answers_is_remembered(world: World) -> None:
    world.there.add(B.address)
    world.lost.keep(B, NET, {"e1": remote("b", 5)})
    until(lambda: world.asked > 10)
    assert world.endpoints() == {"e1"}
    assert world.lost.nodes() == {"b": B}
    assert world.forgotten == []


def test_a_node_that_does_not_answer_is_forgotten_after_three_questions(world: World) -> None:
    world.lost.keep(B, NET, {"e1": remote("b", 5)})
    until(lambda: world.forgotten == [{NET}])
    assert world.asked == 3
    assert world.endpoints() == set()
    assert world.lost.nodes() == {}


def test_one_missed_answer_is_forgiven(world: World) -> None:
    world.there.add(B.address)
    world.lost.keep(B, NET, {"e1": remote("b", 5)})
    until(lambda: world.asked > 3)
    world.there.clear()
    before = world.asked
    until(lambda: world.asked > before)
    world.there.add(B.address)
    until(lambda: world.asked > before + 10)
    assert world.endpoints() == {"e1"}


def test_after_a_stop_it_can_go_on(world: World) -> None:
    world.lost.stop()
    world.lost.keep(B, NET, {"e1": remote("b", 5)})
    until(lambda: world.forgotten == [{NET}])
    world.lost.stop()
    world.lost.stop()


def test_endpoints_that_are_known_again_are_forgotten_here(world: World) -> None:
    world.there.add(B.address)
    world.lost.keep(B, NET, {"e1": remote("b", 5), "e2": remote("b", 6)})
    assert world.endpoints(e1=remote("b", 5)) == {"e2"}
    assert world.endpoints() == {"e2"}


def test_an_address_that_another_has_by_now_is_not_the_lost_one_s(world: World) -> None:
    world.there.add(B.address)
    world.lost.keep(B, NET, {"e1": remote("b", 5)})
    assert world.endpoints(e9=remote("c", 5)) == set()


def test_a_node_that_came_back_without_its_endpoints_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.lost_nodes._RETURN_WITHIN_S", 0.05)
    world.there.add(B.address)
    world.lost.keep(B, NET, {"e1": remote("b", 5)})
    world.lost.returned("b")
    assert world.endpoints() == {"e1"}  # it is about to tell of them
    until(lambda: world.forgotten == [{NET}])
    assert world.endpoints() == set()
