"""Leases through the whole controller, with a server that does as it is told and a clock that is set by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP

from control.controller import NetworkController
from control.drivers.base import Join
from control.errors import (
    AddressInUse,
    Conflict,
    ControlError,
    DatapathFailed,
    DeadlineExceeded,
    Forbidden,
    InvalidArgument,
    StoreError,
)
from control.leases import Clock, Lease, hostname_of
from control.model import Endpoint, EndpointSpec, Network, NetworkSpec, PoolSpec, Sandbox, SandboxSpec, from_json
from control.plan import Step
from control.store.base import Put
from datapath.dhcp_message import FOR_EVER
from tests.dhcp_server import Server
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore
from tests.waiting import until

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
V4 = IPv4Network("192.168.32.0/24")
FIRST, SECOND = IPv4Address("192.168.32.100"), IPv4Address("192.168.32.101")


class LanDriver(FakeDriver):
    """A driver whose networks have DHCP servers. Joins with an address in `in_use` fail as they do on a real link."""

    def __init__(self) -> None:
        super().__init__()
        self.in_use: set[IPv4Address] = set()

    def dhcp_link(self, network: Network | NetworkSpec) -> str:
        return "eth1"

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        def look() -> None:
            ipv4 = join.endpoint.ipv4
            if ipv4 is not None and ipv4.ip in self.in_use:
                raise AddressInUse(f"{ipv4.ip} is in use", ipv4.ip)

        return [self._step("look", look, lambda: None), *super().endpoint_steps(join)]


class LastingStore(MemoryStore):
    """As a file, which is there for the next linkspand when one has closed it."""

    def close(self) -> None:
        return


class HandClock:
    """Time that goes on by `advance` alone."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def clock(self) -> Clock:
        return Clock(
            now=lambda: START + timedelta(seconds=self.elapsed_s),
            uptime=lambda: self.elapsed_s,
            wait=lambda condition, _: condition.wait(0.01),
        )

    def advance(self, seconds: float) -> None:
        self.elapsed_s += seconds


@dataclass
class World:
    run_dir: Path
    server: Server = field(default_factory=Server)
    driver: LanDriver = field(default_factory=LanDriver)
    store: LastingStore = field(default_factory=LastingStore)
    hand: HandClock = field(default_factory=HandClock)
    controllers: list[NetworkController] = field(default_factory=list)

    @property
    def controller(self) -> NetworkController:
        return self.controllers[-1]

    def start(self) -> NetworkController:
        """A linkspand on the same store and kernel, as after the death of the one before."""
        made = fake_controller(
            self.run_dir, self.driver, self.store, dhcp=self.server.client(), clock=self.hand.clock()
        )
        self.controllers.append(made)
        made.start()
        return made

    def network(self, **changed: Any) -> Network:
        spec = NetworkSpec(**{"name": "pub", "driver": "bridge", "ipam_driver": "dhcp", **changed})
        return self.controller.create_network(spec)[0]

    def sandbox(self, name: str = "web", **changed: Any) -> Sandbox:
        return self.controller.create_sandbox(SandboxSpec(name=name, networks=(("pub", EndpointSpec(**changed)),)))

    def endpoint(self, sandbox: Sandbox) -> Endpoint:
        (endpoint,) = self.controller.sandbox_endpoints(sandbox.id)
        return endpoint

    def leases(self) -> dict[str, Lease]:
        return {id_: from_json(Lease, body) for id_, body in self.store.read("dhcp")}

    def lease(self) -> Lease:
        (lease,) = self.leases().values()
        return lease


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.start()
    yield made
    for controller in made.controllers:
        controller.stop()


# -- networks --------------------------------------------------------------------------------------------------------


def test_a_network_learns_its_subnet_and_gateway_and_keeps_no_address(world: World) -> None:
    (pool,) = world.network().pools
    assert (pool.subnet, pool.gateway) == (IPv4Network("192.168.32.0/24"), IPv4Address("192.168.32.1"))
    assert world.server.kinds() == ["discover"]


def test_what_the_user_gives_is_not_asked_for(world: World) -> None:
    given = PoolSpec(subnet=IPv4Network("192.168.32.0/25"), gateway=IPv4Address("192.168.32.9"))
    (pool,) = world.network(pools=(given,)).pools
    assert (pool.subnet, pool.gateway) == (given.subnet, given.gateway)
    assert world.server.heard == []


def test_a_subnet_without_gateway_gets_the_server_s_or_none(world: World) -> None:
    given = PoolSpec(subnet=IPv4Network("192.168.32.0/25"))
    assert world.network(pools=(given,)).pools[0].gateway == IPv4Address("192.168.32.1")
    world.controller.remove_network("pub")
    world.server.extra = [("subnet_mask", "255.255.255.0")]
    assert world.network().pools[0].gateway is None
    world.sandbox()


def test_a_network_can_be_made_from_a_configuration_with_leases(world: World) -> None:
    world.network(name="settings", config_only=True)
    assert world.server.heard == []
    network = world.controller.create_network(NetworkSpec(name="pub", config_from="settings"))[0]
    assert network.pools[0].subnet == V4
    assert world.endpoint(world.sandbox()).ipv4 == IPv4Interface(f"{FIRST}/24")


def test_an_ipv6_subnet_stays_with_the_default_ipam(world: World) -> None:
    subnet = IPv6Network("fd00:32::/64")
    world.network(enable_ipv6=True, pools=(PoolSpec(subnet=subnet),))
    endpoint = world.endpoint(world.sandbox())
    assert endpoint.ipv4 == IPv4Interface("192.168.32.100/24")
    assert endpoint.ipv6 is not None
    assert endpoint.ipv6.ip in subnet


@pytest.mark.parametrize(
    ("changed", "kind", "why"),
    [
        ({"enable_ipv4": False, "enable_ipv6": True}, InvalidArgument, "gives IPv4 addresses"),
        ({"ipam_options": {"a": "b"}}, InvalidArgument, "unknown option 'a'"),
        ({"options": {"a": "b"}}, InvalidArgument, "unknown option 'a'"),
        ({"pools": (PoolSpec(gateway=FIRST),)}, InvalidArgument, "must have a corresponding subnet"),
        ({"pools": (PoolSpec(ip_range=V4),)}, InvalidArgument, "must have a corresponding subnet"),
        ({"pools": (PoolSpec(subnet=V4, ip_range=V4),)}, InvalidArgument, "leave --ip-range and --aux-address out"),
        ({"pools": (PoolSpec(subnet=V4, aux_addresses={"a": FIRST}),)}, InvalidArgument, "leave --ip-range and"),
        ({"pools": (PoolSpec(subnet=V4), PoolSpec(subnet=IPv4Network("10.0.0.0/8")))}, InvalidArgument, "one IPv4"),
        ({"pools": (PoolSpec(subnet=IPv4Network("10.0.0.0/8")),)}, Conflict, "offers 192.168.32.100, which is not in"),
        ({"driver": "null"}, Forbidden, "only one instance"),
        ({"name": "bridge"}, Forbidden, "predefined"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(
    world: World, changed: dict[str, Any], kind: type[ControlError], why: str
) -> None:
    before = world.controller.networks()
    with pytest.raises(kind, match=why):
        world.network(**changed)
    assert world.controller.networks() == before
    assert world.driver.networks == {network.id for network in before if network.driver == "bridge"}
    assert list(world.store.read("pool")) == [each for each in world.store.read("pool") if b"192.168" not in each[1]]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ([], "does not say which subnet it is for: give --subnet"),
        ([("subnet_mask", "255.255.255.128"), ("router", "192.168.32.200")], "not in subnet 192.168.32.0/25: give --g"),
    ],
)
def test_a_server_that_says_too_little_or_wrong_is_refused(world: World, extra: list[Any], why: str) -> None:
    world.server.extra = extra
    with pytest.raises(Conflict, match=why):
        world.network()


def test_no_server_is_an_error_in_bounded_time_and_nothing_is_left(world: World) -> None:
    world.server.is_silent = True
    with pytest.raises(DeadlineExceeded, match=r"network pub could not be created: no DHCP server on eth1.*--subnet"):
        world.network()
    assert world.server.elapsed_s == 10
    assert not any(network.name == "pub" for network in world.controller.networks())


def test_a_driver_without_servers_says_so(tmp_path: Path) -> None:
    controller = fake_controller(tmp_path)
    controller.start()
    with pytest.raises(InvalidArgument, match="no DHCP server can be reached from a network of driver bridge"):
        controller.create_network(NetworkSpec(name="pub", ipam_driver="dhcp"))
    controller.stop()


# -- joining and leaving ---------------------------------------------------------------------------------------------


def test_an_endpoint_has_its_lease_s_address_and_mac_and_gives_it_back(world: World) -> None:
    network = world.network()
    sandbox = world.sandbox("my_web.1")
    endpoint = world.endpoint(sandbox)
    assert endpoint.ipv4 == IPv4Interface(f"{FIRST}/24")
    assert world.server.leases == {endpoint.mac: str(FIRST)}
    assert world.server.heard[-1].options["hostname"] == b"my-web-1"
    lease = world.leases()[endpoint.id]
    assert (lease.address, lease.mac, lease.expires) == (FIRST, endpoint.mac, START + timedelta(seconds=120))
    shown = world.controller.network_info(network)["linkspan.leases"]
    assert shown == f"{FIRST} ({endpoint.id[:12]}) from 192.168.32.1 until 2026-11-24T12:02:00Z"
    world.controller.remove_sandbox(sandbox.id)
    assert world.server.leases == {}
    assert world.leases() == {}
    assert "linkspan.leases" not in world.controller.network_info(network)
    world.controller.remove_network("pub")


def test_a_wanted_address_is_had_or_refused(world: World) -> None:
    world.network()
    assert world.endpoint(world.sandbox(ipv4=IPv4Address("192.168.32.110"))).ipv4 == IPv4Interface("192.168.32.110/24")
    world.server.offers = "192.168.32.5"
    with pytest.raises(
        Conflict, match=r"sandbox other could not be .* offered is 192.168.32.5 \(192.168.32.1\) instead"
    ):
        world.sandbox("other", ipv4=IPv4Address("192.168.32.111"))
    assert len(world.server.leases) == len(world.leases()) == 1


def test_an_offer_outside_the_network_is_not_taken(world: World) -> None:
    world.network()
    world.server.offers = "10.0.0.1"
    with pytest.raises(Conflict, match=r"offered is 10.0.0.1"):
        world.sandbox()
    assert world.server.leases == {}


def test_no_server_fails_the_join_in_bounded_time(world: World) -> None:
    world.network()
    world.server.is_silent = True
    with pytest.raises(DeadlineExceeded, match=r"sandbox web .* network pub: no DHCP server on eth1 gave"):
        world.sandbox()
    assert world.server.elapsed_s == 20
    assert world.controller.sandboxes() == []


def test_a_join_that_fails_gives_its_address_back(world: World) -> None:
    world.network()
    world.driver.failing["endpoint"] = OSError("no")
    with pytest.raises(DatapathFailed):
        world.sandbox()
    assert world.server.kinds()[-1] == "release"
    assert world.server.leases == world.leases() == {}


def test_an_address_that_somebody_has_is_declined_and_another_got(world: World) -> None:
    world.network()
    world.driver.in_use = {FIRST, SECOND}
    assert world.endpoint(world.sandbox()).ipv4 == IPv4Interface("192.168.32.102/24")
    assert world.server.declined == {str(FIRST), str(SECOND)}
    assert "release" not in world.server.kinds()
    assert len(world.leases()) == 1


def test_an_address_that_ipam_knows_of_is_declined(world: World) -> None:
    world.network(pools=(PoolSpec(subnet=V4, gateway=FIRST),))
    with pytest.raises(Forbidden, match="already in use"):
        world.sandbox()
    assert world.server.declined == {str(FIRST)}
    assert world.endpoint(world.sandbox()).ipv4 == IPv4Interface(f"{SECOND}/24")


def test_a_join_that_cannot_be_asks_no_server(world: World) -> None:
    world.network()
    sandbox = world.sandbox()
    heard = len(world.server.heard)
    with pytest.raises(Forbidden, match="already exists"):
        world.controller.connect("pub", sandbox.id)
    with pytest.raises(InvalidArgument, match="no configured subnet contains it"):
        world.sandbox("other", ipv4=IPv4Address("10.0.0.1"))
    with pytest.raises(InvalidArgument, match="invalid MAC"):
        world.sandbox("other", mac="nonsense")
    with pytest.raises(Conflict, match=r"MAC address .* is in use"):
        world.sandbox("other", mac=world.endpoint(sandbox).mac)
    assert len(world.server.heard) == heard


def test_many_joins_at_once_all_get_addresses_of_their_own(world: World) -> None:
    world.network()
    world.server.pool = list(range(10, 90))
    failures: list[BaseException] = []

    def join(number: int) -> None:
        try:
            world.sandbox(f"box{number}")
        except ControlError as error:
            failures.append(error)

    threads = [threading.Thread(target=join, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    addresses = {lease.address for lease in world.leases().values()}
    # Two may be offered the same, of which the server refuses one, who asks again.
    assert len(addresses) + len(failures) == 20
    assert failures == []


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


@pytest.mark.parametrize(
    ("name", "hostname"),
    [("web", "web"), ("my_web.1", "my-web-1"), ("a" * 100, "a" * 63), ("x-_", "x"), ("1", "1")],
)
def test_hostnames_are_labels(name: str, hostname: str) -> None:
    assert hostname_of(name) == hostname
