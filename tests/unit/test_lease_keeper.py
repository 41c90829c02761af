"""Leases that are kept: renewed, moved, lost and had again, also over a restart of linkspand."""

from __future__ import annotations

import threading
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP

from control.errors import StoreError
from control.store.base import Put
from datapath.dhcp_message import FOR_EVER
from tests.leasing import FIRST, SECOND, START, World, leasing_world
from tests.waiting import until

world = leasing_world


# -- keeping ---------------------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_with_its_server_when_half_of_it_is_over(world: World) -> None:
    world.network()
    world.sandbox()
    before = len(world.server.heard)
    world.hand.advance(61)
    until(lambda: world.lease().expires == START + timedelta(seconds=61 + 120))
    (said,) = world.server.heard[before:]
    assert (said.kind, said.address, said.frame.dst) == ("request", str(FIRST), world.server.mac)


def test_a_lease_is_not_renewed_before_its_time(world: World) -> None:
    world.network()
    world.sandbox()
    lease = world.lease()
    assert lease.renew_at is not None
    assert lease.rebind_at is not None
    assert 54 <= (lease.renew_at - START).total_seconds() <= 60
    assert 94 <= (lease.rebind_at - START).total_seconds() <= 105


def test_a_silent_server_s_lease_is_asked_of_all_then_lost_then_had_again(world: World) -> None:
    network = world.network()
    world.sandbox()
    heard = world.server.heard
    world.server.is_silent = True
    before = len(heard)
    world.hand.advance(61)
    until(lambda: len(heard) > before)
    assert heard[-1].frame.dst == world.server.mac
    world.hand.advance(45)
    until(lambda: heard[-1].frame.dst == "ff:ff:ff:ff:ff:ff")
    assert heard[-1].frame[BOOTP].ciaddr == str(FIRST)
    world.hand.advance(15)
    until(lambda: heard[-1].kind == "discover")
    assert "LOST since 2026-11-24T12:02:00Z" in world.controller.network_info(network)["linkspan.leases"]
    assert world.controller.lease_states() == [(network, "lost")]
    assert world.lease().address == FIRST
    world.server.is_silent = False

    def is_back() -> bool:
        world.hand.advance(10)
        expires = world.lease().expires
        return expires is not None and expires > world.hand.clock().now()

    until(is_back)
    assert world.lease().address == FIRST
    assert world.controller.lease_states() == [(network, "kept")]


def test_a_lease_whose_server_cannot_answer_the_endpoint_alone_is_confirmed_as_after_a_restart(world: World) -> None:
    """The answer to that is a broadcast, which is heard wherever the others go."""
    world.network()
    world.server.lease_s = 120_000
    world.sandbox()
    answers = world.server.answers

    def broadcasts(frame: bytes) -> list[bytes]:
        return [answer for answer in answers(frame) if answer[:6] == b"\xff" * 6]

    world.server.answers = broadcasts  # type: ignore[method-assign]
    expires = world.lease().expires
    before = len(world.server.heard)

    world.hand.advance(61_000)
    until(lambda: len(world.server.heard) > before)
    world.hand.advance(45_000)

    def is_confirmed() -> bool:
        world.hand.advance(20)
        return world.lease().expires != expires

    until(is_confirmed)
    said = [(each.frame.dst != world.server.mac, each.frame[BOOTP].ciaddr) for each in world.server.heard[before:]]
    assert list(dict.fromkeys(said)) == [(False, str(FIRST)), (True, str(FIRST)), (True, "0.0.0.0")]
    assert "discover" not in world.server.kinds()[before:]


def refuse_once_and_give_another(world: World) -> None:
    """As a server does that has lost its leases, and the address to somebody else."""
    world.server.refuses = True
    world.server.pool = [150]
    world.server.leases.clear()
    say = world.server.say

    def and_relent(packet: Any, kind: str, address: str) -> bytes:
        world.server.refuses = False
        return say(packet, kind, address)

    world.server.say = and_relent  # type: ignore[method-assign]


def test_an_endpoint_whose_lease_is_refused_moves_to_the_next_address(world: World) -> None:
    network = world.network()
    sandbox, other = world.sandbox(), world.sandbox("other")
    endpoint = world.endpoint(sandbox)
    world.controller.remove_sandbox(other.id)
    refuse_once_and_give_another(world)
    world.hand.advance(61)
    until(lambda: world.lease().address == IPv4Address("192.168.32.150") and world.lease().left is None)
    moved = world.endpoint(sandbox)
    assert moved.ipv4 == IPv4Interface("192.168.32.150/24")
    assert (moved.id, moved.mac, moved.slot, moved.ifname) == (
        endpoint.id,
        endpoint.mac,
        endpoint.slot,
        endpoint.ifname,
    )
    assert world.driver.endpoints[endpoint.id].endpoint.ipv4 == moved.ipv4
    assert world.server.leases == {endpoint.mac: "192.168.32.150"}
    hosts = Path(world.controller.paths(sandbox).hosts)
    until(lambda: "192.168.32.150\tweb" in hosts.read_text() and str(FIRST) not in hosts.read_text())
    # The address before is free for others.
    world.server.pool = [100]
    assert world.endpoint(world.sandbox("next")).ipv4 == IPv4Interface(f"{FIRST}/24")
    assert world.controller.pool_usage(network)["192.168.32.0/24"][0] == 5


def test_a_move_to_an_address_that_somebody_has_goes_on_to_another(world: World) -> None:
    network = world.network()
    sandbox = world.sandbox()
    refuse_once_and_give_another(world)
    world.server.pool = [150, 151]
    world.driver.in_use = {IPv4Address("192.168.32.150")}

    def has_moved() -> bool:
        world.hand.advance(5)
        return world.lease().address == IPv4Address("192.168.32.151") and world.lease().left is None

    world.hand.advance(56)
    until(has_moved)
    assert world.endpoint(sandbox).ipv4 == IPv4Interface("192.168.32.151/24")
    assert world.server.declined == {"192.168.32.150"}
    (join,) = world.driver.endpoints.values()
    assert join.endpoint.ipv4 == IPv4Interface("192.168.32.151/24")
    assert world.controller.pool_usage(network)["192.168.32.0/24"][0] == 4


def test_a_move_that_fails_is_gone_on_with(world: World) -> None:
    world.network()
    sandbox = world.sandbox()
    refuse_once_and_give_another(world)
    world.driver.failing["endpoint"] = OSError("no")
    world.hand.advance(61)
    until(lambda: world.lease().left == IPv4Interface(f"{FIRST}/24"))
    assert world.endpoint(sandbox).ipv4 == IPv4Interface("192.168.32.150/24")
    del world.driver.failing["endpoint"]

    def is_over() -> bool:
        world.hand.advance(5)
        return world.lease().left is None

    until(is_over)
    (join,) = world.driver.endpoints.values()
    assert join.endpoint.ipv4 == IPv4Interface("192.168.32.150/24")


def test_a_move_that_linkspand_died_in_is_ended_by_the_next(world: World) -> None:
    world.network()
    world.sandbox()
    refuse_once_and_give_another(world)
    world.driver.failing["endpoint"] = OSError("no")
    world.hand.advance(61)
    until(lambda: world.lease().left is not None)
    world.controller.stop()
    del world.driver.failing["endpoint"]
    world.start()
    until(lambda: world.lease().left is None)
    (join,) = world.driver.endpoints.values()
    assert join.endpoint.ipv4 == IPv4Interface("192.168.32.150/24")


def test_a_host_without_threads_to_spare_costs_a_delay_and_no_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.network()
    world.server.lease_s = 120_000
    world.sandbox()
    start, refused = threading.Thread.start, threading.Event()

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == "lease" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    expires = world.lease().expires
    world.hand.advance(61_000)

    def is_renewed() -> bool:
        world.hand.advance(100)
        return world.lease().expires != expires

    until(is_renewed)
    assert refused.is_set()
    assert "discover" not in world.server.kinds()[3:]


def test_a_lease_for_ever_is_never_renewed(world: World) -> None:
    network = world.network()
    world.server.lease_s = FOR_EVER
    world.sandbox()
    heard = len(world.server.heard)
    assert world.lease().expires is None
    assert world.controller.network_info(network)["linkspan.leases"].endswith("from 192.168.32.1 for ever")
    world.hand.advance(10**9)
    world.controller.stop()
    world.start().stop()
    assert len(world.server.heard) == heard


def test_an_answer_that_comes_after_the_endpoint_left_is_given_back(world: World) -> None:
    world.network()
    sandbox = world.sandbox()
    answers, is_asked, may_answer = world.server.answers, threading.Event(), threading.Event()

    def slowly(frame: bytes) -> list[bytes]:
        if not is_asked.is_set():
            is_asked.set()
            assert may_answer.wait(10)
        return answers(frame)

    world.server.answers = slowly  # type: ignore[method-assign]
    world.hand.advance(61)
    assert is_asked.wait(10)
    world.controller.remove_sandbox(sandbox.id)
    assert world.server.leases == {}
    may_answer.set()
    until(lambda: world.server.kinds()[-3:] == ["release", "request", "release"])
    assert world.server.leases == world.leases() == {}


# -- after a restart -------------------------------------------------------------------------------------------------


def test_a_lease_outlives_linkspand_and_nobody_is_asked_before_it_is_time(world: World) -> None:
    world.network()
    world.sandbox()
    heard = len(world.server.heard)
    lease = world.lease()
    world.controller.stop()
    world.hand.advance(20)
    world.start()
    assert world.lease() == lease
    assert len(world.server.heard) == heard
    world.hand.advance(41)
    until(lambda: world.lease().expires == START + timedelta(seconds=61 + 120))


def test_a_lease_past_its_time_to_renew_is_confirmed_at_start(world: World) -> None:
    world.network()
    world.sandbox()
    world.controller.stop()
    world.hand.advance(110)
    world.start()
    until(lambda: world.lease().expires == START + timedelta(seconds=110 + 120))
    said = world.server.heard[-1]
    assert (said.kind, said.address, said.frame[BOOTP].ciaddr) == ("request", str(FIRST), "0.0.0.0")


def test_a_lease_that_ended_meanwhile_is_asked_for_anew(world: World) -> None:
    world.network()
    world.sandbox()
    world.controller.stop()
    world.hand.advance(1000)
    world.start()
    until(lambda: world.lease().expires == START + timedelta(seconds=1000 + 120))
    assert world.server.kinds()[-2:] == ["discover", "request"]


def test_an_endpoint_whose_mac_has_changed_gets_a_lease_for_that(world: World) -> None:
    world.network()
    sandbox = world.sandbox()
    endpoint = world.endpoint(sandbox)
    world.controller.stop()
    other = "02:00:00:00:00:99"
    body = dict(world.store.read("endpoint"))[endpoint.id].replace(endpoint.mac.encode(), other.encode())
    world.store.write([Put("endpoint", endpoint.id, body)])
    world.hand.advance(61)
    world.start()
    until(lambda: world.lease().mac == other and world.lease().left is None)
    assert world.endpoint(sandbox).ipv4 == IPv4Interface(f"{SECOND}/24")
    assert world.server.leases[other] == str(SECOND)


def test_a_join_that_linkspand_died_in_gives_its_address_back(world: World) -> None:
    world.network()
    sandbox = world.sandbox()
    endpoint = world.endpoint(sandbox)
    world.controller.stop()
    body = dict(world.store.read("endpoint"))[endpoint.id].replace(b'"joined"', b'"joining"')
    world.store.write([Put("endpoint", endpoint.id, body)])
    world.start()
    assert world.server.kinds()[-1] == "release"
    assert world.server.leases == world.leases() == {}


def test_a_lease_without_endpoint_is_dropped_and_a_damaged_one_named(world: World) -> None:
    world.network()
    world.sandbox()
    ((endpoint_id, body),) = world.store.read("dhcp")
    world.controller.stop()
    world.store.write([Put("dhcp", "f" * 64, body)])
    world.start().stop()
    assert list(world.leases()) == [endpoint_id]
    world.store.write([Put("dhcp", endpoint_id, b"{}")])
    with pytest.raises(StoreError, match="stored lease of endpoint"):
        world.start()
