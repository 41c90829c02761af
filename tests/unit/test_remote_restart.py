"""Every call of an engine's whole life cut short at every point, and a linkspand that starts on what was left.

The life is played through once to learn its store writes and steps; then one thing at a time goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control.controller import NetworkController
from control.errors import ControlError, NotFound
from control.model import (
    Endpoint,
    EndpointId,
    EndpointState,
    Network,
    NetworkId,
    NetworkSpec,
    NetworkState,
    PoolSpec,
    to_json,
)
from control.ports import PortWish
from control.store.base import Put
from tests.fakes import FakeDriver
from tests.plugin_server import EP, KEY, NET, Crash, Host

N, E = NetworkId(NET), EndpointId(EP)
POOL, V4 = "docker/10.9.0.0/16", IPv4Interface("10.9.0.2/16")
MAC = "02:42:0a:09:00:02"
SPEC = NetworkSpec(name="net", pools=(PoolSpec(subnet=IPv4Network("10.9.0.0/16"), gateway=IPv4Address("10.9.0.1")),))
WISHES = [PortWish(protocol="tcp", port=80, host_port=8080), PortWish(protocol="udp", port=53)]

Call = Callable[[NetworkController], Any]


def pool(c: NetworkController) -> str:
    return c.remote_ipam.request_pool(ip_network("10.9.0.0/16"), None, v6=False).id


def gateway(c: NetworkController) -> str:
    return str(c.remote_ipam.request_address(POOL, IPv4Address("10.9.0.1"), gateway=True, mac=""))


def create_network(c: NetworkController) -> str:
    return c.remote.create_network(N, SPEC).state


def address(c: NetworkController) -> str:
    return str(c.remote_ipam.request_address(POOL, V4.ip, gateway=False, mac=MAC))


def create_endpoint(c: NetworkController) -> tuple[str, ...]:
    made = c.remote.create_endpoint(N, E, ipv4=V4, ipv6=None, mac=MAC, options={})
    return made.mac, made.ifname, made.host_ifname


def join(c: NetworkController) -> str:
    return c.remote.join(N, E, KEY)[1].ifname


def publish(c: NetworkController) -> list[str]:
    return [port.protocol for port in c.remote.publish(N, E, WISHES).ports]


def unpublish(c: NetworkController) -> None:
    c.remote.unpublish(N, E)


def leave(c: NetworkController) -> None:
    c.remote.leave(N, E)


def delete_endpoint(c: NetworkController) -> None:
    c.remote.delete_endpoint(N, E)


def release_address(c: NetworkController) -> None:
    c.remote_ipam.release_address(POOL, V4.ip)


def release_gateway(c: NetworkController) -> None:
    c.remote_ipam.release_address(POOL, IPv4Address("10.9.0.1"))


def release_pool(c: NetworkController) -> None:
    c.remote_ipam.release_pool(POOL)


def delete_network(c: NetworkController) -> None:
    c.remote.delete_network(N)


MAKING: list[Call] = [pool, gateway, create_network, address, create_endpoint, join, publish]
ENDING: list[Call] = [
    unpublish,
    leave,
    delete_endpoint,
    release_address,
    release_gateway,
    release_pool,
    delete_network,
]
LIFE = [*MAKING, *ENDING]
ANSWERS: dict[Call, Any] = {
    pool: POOL,
    gateway: "10.9.0.1/16",
    create_network: "active",
    address: "10.9.0.2/16",
    create_endpoint: (MAC, f"lp{EP[:12]}", f"ls{EP[:12]}"),
    join: f"lp{EP[:12]}",
    publish: ["tcp", "udp"],
}
each_call = pytest.mark.parametrize("call", LIFE, ids=[call.__name__ for call in LIFE])


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[[], Host]]:
    made: list[Host] = []

    def make() -> Host:
        made.append(Host(tmp_path / str(len(made))))
        made[-1].boot()
        return made[-1]

    yield make
    for host in made:
        host.controller.stop()


def play(host: Host, calls: Sequence[Call]) -> None:
    for call in calls:
        assert call(host.controller) == ANSWERS.get(call), call.__name__


def before(call: Call) -> list[Call]:
    return LIFE[: LIFE.index(call)]


def after(call: Call) -> list[Call]:
    return LIFE[LIFE.index(call) + 1 :]


def whole_life_leaves_nothing(host: Host, rest: Sequence[Call], empty: dict[str, Any]) -> None:
    play(host, rest)
    assert host.state() == empty
    host.boot()  # what the store has is what memory had
    assert host.state() == empty


def writes_and_steps(host: Host, call: Call) -> tuple[int, list[tuple[str, str]]]:
    """What the call does when all goes well, at the point of the life where it belongs."""
    play(host, before(call))
    host.store.arm()
    host.steps.clear()
    play(host, [call])
    return host.store.writes, list(host.steps)


def test_a_life_leaves_nothing(hosts: Callable[[], Host]) -> None:
    host = hosts()
    empty = host.state()
    play(host, MAKING)
    state = host.state()
    assert (len(state["endpoints"]), len(state["networks"])) == (1, len(empty["networks"]) + 1)
    assert state["kernel"][1] == {EP}
    assert {(protocol, number) for protocol, _, number in state["ports"]} > {("tcp", 8080)}
    whole_life_leaves_nothing(host, ENDING, empty)


@pytest.mark.parametrize("call", LIFE[1:], ids=[call.__name__ for call in LIFE[1:]])
def test_repeated_calls_answer_the_same_and_change_nothing(hosts: Callable[[], Host], call: Call) -> None:
    host = hosts()
    empty = host.state()
    play(host, [*before(call), call])
    once = host.state()
    play(host, [call, call])
    assert host.state() == once
    whole_life_leaves_nothing(host, after(call), empty)


@each_call
def test_repeated_calls_are_recognised_after_a_restart(hosts: Callable[[], Host], call: Call) -> None:
    host = hosts()
    empty = host.state()
    play(host, [*before(call), call])
    once = host.state()
    host.boot()
    assert host.state() == once
    assert host.controller.status()["broken"] == {}
    play(host, [call])
    assert host.state() == once
    whole_life_leaves_nothing(host, after(call), empty)


@each_call
def test_a_failed_store_write_is_told_and_the_call_can_be_repeated(hosts: Callable[[], Host], call: Call) -> None:
    writes, _ = writes_and_steps(hosts(), call)
    for failing in [range(number, number + length) for number in range(writes) for length in (1, 9)]:
        host = hosts()
        empty = host.state()
        play(host, before(call))
        host.store.arm(failing)
        with pytest.raises(ControlError, match="no space left on device"):
            call(host.controller)
        host.store.arm()
        whole_life_leaves_nothing(host, [call, *after(call)], empty)


@each_call
def test_a_failed_step_is_told_and_the_call_can_be_repeated(hosts: Callable[[], Host], call: Call) -> None:
    _, steps = writes_and_steps(hosts(), call)
    for step in steps:
        host = hosts()
        empty = host.state()
        play(host, before(call))
        was = host.state()
        host.failing.add(step)
        with pytest.raises(ControlError, match="Device or resource busy"):
            call(host.controller)
        if call in MAKING:
            assert host.state() == was
        host.failing.clear()
        whole_life_leaves_nothing(host, [call, *after(call)], empty)


@each_call
def test_a_failed_step_that_cannot_be_undone_is_made_good_by_a_repetition(
    hosts: Callable[[], Host], call: Call
) -> None:
    _, steps = writes_and_steps(hosts(), call)
    for _, name in steps:
        host = hosts()
        empty = host.state()
        play(host, before(call))
        host.failing |= {("apply", name), ("revert", name)}
        with pytest.raises(ControlError, match="Device or resource busy"):
            call(host.controller)
        host.failing.clear()
        whole_life_leaves_nothing(host, [call, *after(call)], empty)


@each_call
def test_an_engine_that_goes_on_after_a_failure_leaves_nothing(hosts: Callable[[], Host], call: Call) -> None:
    """The engine does not repeat what was refused: it takes down what it had made, or goes on taking down."""
    writes, steps = writes_and_steps(hosts(), call)
    faults: list[tuple[Sequence[int], set[tuple[str, str]]]] = [(range(n, n + 1), set()) for n in range(writes)]
    faults += [((), {step}) for step in steps]
    for failing, refused in faults:
        host = hosts()
        empty = host.state()
        play(host, before(call))
        host.store.arm(failing)
        host.failing |= refused
        with pytest.raises(ControlError):
            call(host.controller)
        host.store.arm()
        host.failing.clear()
        rest = ENDING[ENDING.index(call) + 1 :] if call in ENDING else ENDING
        for each in rest:
            with suppress(NotFound):
                each(host.controller)
        left = host.state()
        if call in (release_address, release_gateway, release_pool, delete_network):
            play(host, [call])  # nothing else comes that could end it
            left = host.state()
        assert left == empty


@each_call
def test_a_linkspand_killed_half_way_is_followed_by_one_that_goes_on(hosts: Callable[[], Host], call: Call) -> None:
    writes, steps = writes_and_steps(hosts(), call)
    for number, stores_first in [(number, first) for number in range(writes) for first in (False, True)]:
        host = hosts()
        empty = host.state()
        play(host, before(call))
        host.store.arm(crashing=number, stores_first=stores_first)
        with pytest.raises(Crash):
            call(host.controller)
        host.store.arm()
        host.boot()
        assert host.controller.status()["broken"] == {}
        whole_life_leaves_nothing(host, [call, *after(call)], empty)
    for step in steps:
        host = hosts()
        empty = host.state()
        play(host, before(call))
        host.crashing.add(step)
        with pytest.raises(Crash):
            call(host.controller)
        host.crashing.clear()
        host.boot()
        whole_life_leaves_nothing(host, [call, *after(call)], empty)


# -- an endpoint in each state ---------------------------------------------------------------------------------------


def endpoint(host: Host) -> Endpoint:
    (found,) = host.controller.endpoints()
    return found


def crash(host: Host, call: Call, step: tuple[str, str]) -> None:
    host.crashing.add(step)
    with pytest.raises(Crash):
        call(host.controller)
    host.crashing.clear()


def test_an_endpoint_that_was_created_is_kept(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, before(join))
    was = endpoint(host)
    assert was.state is EndpointState.CREATED
    host.boot()
    assert endpoint(host) == was
    assert host.driver.endpoints == {}


def test_an_endpoint_that_was_joining_is_as_before_its_join(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, before(join))
    was = endpoint(host)
    crash(host, join, ("apply", f"store endpoint {EP[:12]} as joined"))
    assert endpoint(host).state is EndpointState.JOINING
    assert set(host.driver.endpoints) == {EP}
    host.boot()
    assert endpoint(host) == was
    assert host.driver.endpoints == {}


def test_an_endpoint_that_had_joined_is_kept_with_its_ports(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, MAKING)
    was, kernel, held = endpoint(host), dict(host.driver.endpoints), set(host.ports.held)
    published = set(host.driver.published)
    host.boot()
    assert endpoint(host) == was
    assert was.state is EndpointState.JOINED
    assert host.driver.endpoints == kernel
    assert host.driver.published == published
    assert host.ports.held == held
    assert len(held) == 2


def what_it_has(host: Host) -> tuple[Any, ...]:
    """What there is of endpoints, anywhere, and what they have taken."""
    leases = {key for key in host.state()["store"] if key[0] in ("lease", "endpoint")}
    driver = host.driver
    return host.controller.endpoints(), leases, set(driver.endpoints), set(driver.published), set(host.ports.held)


def test_an_endpoint_that_had_joined_and_lost_its_device_is_gone_with_all_it_had(hosts: Callable[[], Host]) -> None:
    """Its engine gave it up while nobody listened; the address and the ports are for the next one."""
    host = hosts()
    play(host, before(address))
    without = what_it_has(host)
    play(host, [address, create_endpoint, join, publish])
    host.driver.endpoints.clear()
    host.boot()
    assert what_it_has(host) == without
    play(host, [release_address, delete_endpoint])
    assert what_it_has(host) == without
    play(host, [address, create_endpoint, join, publish])


def test_an_endpoint_that_never_joined_is_given_a_minute(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, before(address))
    without = what_it_has(host)
    play(host, [address, create_endpoint])
    host.boot()
    was = endpoint(host)
    old = msgspec.structs.replace(was, created=was.created - timedelta(minutes=1))
    host.store.write([Put("endpoint", was.id, to_json(old))])
    host.boot()
    assert what_it_has(host) == without


def test_a_device_that_goes_while_linkspand_runs_is_made_again_by_the_next_join(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, MAKING)
    host.driver.endpoints.clear()
    play(host, [join])
    assert set(host.driver.endpoints) == {EP}
    assert endpoint(host).ports == ()
    assert host.ports.held == set()
    play(host, [publish])


def test_an_endpoint_that_was_leaving_is_gone(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, before(delete_endpoint))
    crash(host, delete_endpoint, ("revert", "fake endpoint"))
    assert endpoint(host).state is EndpointState.LEAVING
    host.boot()
    assert host.controller.endpoints() == []
    assert host.driver.endpoints == {}
    play(host, [delete_endpoint])


def test_an_endpoint_that_was_being_deleted_without_a_leave_is_gone_with_its_ports(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, MAKING)
    crash(host, delete_endpoint, ("revert", "fake endpoint"))
    host.boot()
    assert host.controller.endpoints() == []
    assert host.driver.published == set()
    assert host.ports.held == set()


def test_a_network_that_was_being_made_or_removed_is_gone(hosts: Callable[[], Host]) -> None:
    for call in (create_network, delete_network):
        host = hosts()
        empty = host.controller.networks()
        play(host, before(call))
        phase = "apply" if call is create_network else "revert"
        crash(host, call, (phase, "fake network"))
        (left,) = [network for network in host.controller.networks() if network.owner]
        assert left.state is not NetworkState.ACTIVE
        host.boot()
        assert host.controller.networks() == empty
        assert NET not in host.driver.networks


class Sick(FakeDriver):
    """Finds nothing whole, although every device is there."""

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> set[str]:
        return set()


def test_an_endpoint_that_is_not_whole_is_mended_where_it_is(tmp_path: Path) -> None:
    host = Host(tmp_path, Sick())
    host.boot()
    play(host, MAKING)
    was, (old,) = endpoint(host), host.driver.endpoints.values()
    host.boot()
    (new,) = host.driver.endpoints.values()
    assert endpoint(host) == was
    assert new is not old
    assert host.ports.held
    host.failing.add(("apply", "fake endpoint"))
    host.boot()
    assert f"endpoint {EP[:12]}" in host.controller.status()["broken"]
    assert set(host.driver.endpoints) == {EP}  # what works goes on
    host.controller.stop()


def test_a_port_that_somebody_took_meanwhile_is_told_and_stops_no_start(hosts: Callable[[], Host]) -> None:
    host = hosts()
    play(host, MAKING)
    was = endpoint(host)
    host.ports.taken.add(("tcp", 8080))
    host.boot()
    assert "in use by nginx (process 7)" in host.controller.status()["broken"][f"endpoint {EP[:12]}"]
    assert endpoint(host) == was
    assert {protocol for protocol, _, _ in host.ports.held} == {"udp"}
    play(host, ENDING)
    assert host.ports.held == set()


def test_an_endpoint_that_resists_at_start_can_still_be_joined_or_deleted(hosts: Callable[[], Host]) -> None:
    for rest in ([join, publish, *ENDING], ENDING):
        host = hosts()
        play(host, before(join))
        crash(host, join, ("apply", f"store endpoint {EP[:12]} as joined"))
        host.failing.add(("revert", "fake endpoint"))
        host.boot()
        assert "Device or resource busy" in host.controller.status()["broken"][f"endpoint {EP[:12]}"]
        host.failing.clear()
        play(host, rest)
        assert host.controller.endpoints() == []
