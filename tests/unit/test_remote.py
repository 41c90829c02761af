"""Networks and endpoints of an engine: calls in odd orders, what the kernel refuses, and many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path

import msgspec
import pytest

from control.drivers.base import Join
from control.errors import (
    Conflict,
    ControlError,
    DatapathFailed,
    Forbidden,
    InvalidArgument,
    NotFound,
    StoreError,
)
from control.events import Event
from control.model import Endpoint, EndpointId, EndpointState, NetworkId, NetworkSpec, PoolSpec, SandboxSpec
from control.plan import Step
from control.ports import PortWish
from control.remote import RemoteNetworks
from tests.plugin_server import EP, KEY, NET, Host, ident

N, E = NetworkId(NET), EndpointId(EP)
SPEC = NetworkSpec(
    name="net",
    enable_ipv6=True,
    pools=(
        PoolSpec(subnet=IPv4Network("10.9.0.0/16"), gateway=IPv4Address("10.9.0.1")),
        PoolSpec(subnet=IPv6Network("fd00:9::/64")),
    ),
)
MAC = "02:42:0a:09:00:02"
V4, V6 = IPv4Interface("10.9.0.2/16"), IPv6Interface("fd00:9::2/64")
WEB = [PortWish(protocol="tcp", port=80, host_port=8080)]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    host.boot().remote.create_network(N, SPEC)
    yield host
    host.controller.stop()


@pytest.fixture
def remote(host: Host) -> RemoteNetworks:
    return host.controller.remote


def create(
    remote: RemoteNetworks,
    name: str = EP,
    v4: IPv4Interface | None = V4,
    v6: IPv6Interface | None = None,
    mac: str | None = None,
    network: str = NET,
) -> Endpoint:
    return remote.create_endpoint(NetworkId(network), EndpointId(name), ipv4=v4, ipv6=v6, mac=mac, options={})


def refuses(host: Host, kind: type[ControlError], says: str, call: Callable[[], object]) -> None:
    """Asserts that the call is refused so, and changes nothing."""
    before = host.state()
    with pytest.raises(kind, match=says):
        call()
    assert host.state() == before


# -- odd orders ------------------------------------------------------------------------------------------------------


def test_taking_down_what_is_not_there_changes_nothing(host: Host, remote: RemoteNetworks) -> None:
    before = host.state()
    for network in (N, NetworkId(ident("nowhere"))):
        remote.leave(network, E)
        remote.unpublish(network, E)
        remote.delete_endpoint(network, E)
    remote.delete_network(NetworkId(ident("nowhere")))
    assert host.state() == before


def test_what_needs_an_endpoint_is_refused_without_one(host: Host, remote: RemoteNetworks) -> None:
    nowhere = NetworkId(ident("nowhere"))
    refuses(host, NotFound, "is not known on network net", lambda: remote.join(N, E, KEY))
    refuses(host, NotFound, "is not known on network net", lambda: remote.publish(N, E, WEB))
    refuses(host, NotFound, "is not known on network net", lambda: remote.endpoint(N, E))
    refuses(host, NotFound, "is not known to linkspan", lambda: remote.join(nowhere, E, KEY))
    refuses(host, NotFound, "is not known to linkspan", lambda: create(remote, network=nowhere))


def test_a_leave_before_a_join_changes_nothing(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    before = host.state()
    remote.leave(N, E)
    assert host.state() == before
    remote.join(N, E, KEY)


def test_after_a_leave_the_device_stays_for_the_engine_to_move_it_back(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    remote.leave(N, E)
    assert set(host.driver.endpoints) == {E}
    left = remote.endpoint(N, E)
    assert (left.state, left.sandbox_key) == (EndpointState.CREATED, "")
    remote.join(N, E, "/another/sandbox")
    assert remote.endpoint(N, E).sandbox_key == "/another/sandbox"


def test_a_delete_without_a_leave_takes_all_along(host: Host, remote: RemoteNetworks) -> None:
    before = host.state()
    create(remote)
    remote.join(N, E, KEY)
    remote.publish(N, E, WEB)
    remote.delete_endpoint(N, E)
    assert host.state() == before


def test_a_delete_of_the_network_takes_its_endpoints_along(host: Host, remote: RemoteNetworks) -> None:
    for number, is_joined in enumerate((True, False)):
        name = ident(number)
        create(remote, name, IPv4Interface(f"10.9.0.{number + 2}/16"))
        if is_joined:
            remote.join(N, EndpointId(name), KEY)
            remote.publish(N, EndpointId(name), WEB)
    remote.delete_network(N)
    assert host.controller.endpoints() == []
    assert not any(network.owner for network in host.controller.networks())
    assert NET not in host.driver.networks
    assert (host.driver.endpoints, host.driver.published, host.ports.held) == ({}, set(), set())


def test_a_second_sandbox_is_refused_until_the_first_is_left(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    refuses(host, Conflict, f"is in sandbox {KEY}: it must leave first", lambda: remote.join(N, E, "/other"))
    remote.leave(N, E)
    remote.join(N, E, "/other")


@pytest.mark.parametrize(
    ("v4", "v6", "mac"),
    [
        (IPv4Interface("10.9.0.3/16"), None, None),
        (IPv4Interface("10.9.0.2/24"), None, None),
        (None, V6, None),
        (V4, V6, None),
        (V4, None, "02:42:0a:09:00:03"),
    ],
)
def test_an_id_with_other_values_is_a_conflict(
    host: Host, remote: RemoteNetworks, v4: IPv4Interface | None, v6: IPv6Interface | None, mac: str | None
) -> None:
    create(remote)
    refuses(host, Conflict, "exists already, with other settings", lambda: create(remote, EP, v4, v6, mac))


@pytest.mark.parametrize("mac", [None, MAC, MAC.upper(), "02-42-0a-09-00-02"])
def test_an_id_with_the_same_values_is_the_same_endpoint(host: Host, remote: RemoteNetworks, mac: str | None) -> None:
    made = create(remote, mac=mac)
    assert made.mac == MAC
    before = host.state()
    for again in (mac, None, MAC, MAC.upper()):
        assert create(remote, mac=again) == made
    remote.join(N, E, KEY)
    assert create(remote, mac=mac).mac == MAC
    remote.delete_endpoint(N, E)
    assert host.state()["endpoints"] == []
    assert before["endpoints"] == [made]


def test_an_id_on_another_network_is_a_conflict_and_not_touched_from_there(host: Host, remote: RemoteNetworks) -> None:
    other = NetworkId(ident("other"))
    pools = (PoolSpec(subnet=IPv4Network("10.10.0.0/16")),)
    remote.create_network(other, NetworkSpec(name="other", pools=pools))
    create(remote)
    remote.join(N, E, KEY)
    address = IPv4Interface("10.10.0.2/16")
    refuses(host, Conflict, "exists already", lambda: create(remote, EP, address, network=other))
    refuses(host, NotFound, "is not known on network other", lambda: remote.join(other, E, KEY))
    before = host.state()
    for harmless in (remote.leave, remote.unpublish, remote.delete_endpoint):
        harmless(other, E)
    assert host.state() == before


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"internal": True},
        {"options": {"fake.option": "1"}},
        {"enable_ipv6": False},
        {"pools": SPEC.pools[:1]},
        {"pools": (msgspec.structs.replace(SPEC.pools[0], gateway=None), SPEC.pools[1])},
        {"pools": (msgspec.structs.replace(SPEC.pools[0], aux_addresses={"a": V4.ip}), SPEC.pools[1])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_network_with_other_values_is_a_conflict(
    host: Host, remote: RemoteNetworks, change: dict[str, object]
) -> None:
    spec = msgspec.structs.replace(SPEC, **change)
    refuses(host, Conflict, "exists already, with other settings", lambda: remote.create_network(N, spec))


def test_what_linkspan_owns_is_not_the_engines_to_change(host: Host, remote: RemoteNetworks) -> None:
    box = host.controller.create_sandbox(SandboxSpec(name="box"))
    (own,) = host.controller.sandbox_endpoints(box.id)
    bridge = host.controller.network("bridge")
    refuses(host, Conflict, "exists already", lambda: remote.create_network(bridge.id, SPEC))
    refuses(host, Conflict, "exists already", lambda: create(remote, own.id, own.ipv4))
    refuses(host, NotFound, "is not known to linkspan", lambda: create(remote, network=bridge.id))
    refuses(host, NotFound, "is not known to linkspan", lambda: remote.join(bridge.id, own.id, KEY))
    refuses(host, NotFound, "is not known to linkspan", lambda: remote.publish(bridge.id, own.id, WEB))
    before = host.state()
    remote.leave(bridge.id, own.id)
    remote.delete_endpoint(bridge.id, own.id)
    remote.delete_endpoint(N, own.id)
    remote.delete_network(bridge.id)
    assert host.state() == before


# -- addresses and names ---------------------------------------------------------------------------------------------


def test_an_endpoint_without_a_device_gives_way_to_one_with_its_address(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    remote.publish(N, E, WEB)
    host.driver.endpoints.clear()  # its sandbox is gone, with it the device
    new = create(remote, ident("new"))
    assert [endpoint.id for endpoint in host.controller.endpoints()] == [new.id]
    assert host.driver.published == set()
    assert host.ports.held == set()


def test_nobody_gives_way_to_what_is_refused(host: Host, remote: RemoteNetworks) -> None:
    create(remote, ident("leftover"), V4)
    create(remote, E, None, V6, "02:42:0a:09:00:77")
    remote.join(N, E, KEY)
    new = ident("new")
    refuses(host, Forbidden, "Address already in use", lambda: create(remote, new, V4, V6))
    refuses(host, InvalidArgument, "invalid MAC", lambda: create(remote, new, mac="nonsense"))
    refuses(host, Conflict, "MAC address .* is in use", lambda: create(remote, new, mac="02:42:0a:09:00:77"))
    refuses(host, Conflict, "first 12 digits", lambda: create(remote, EP[:12] + "0" * 52))
    outside = IPv6Interface("fd00:8::2/64")
    refuses(host, InvalidArgument, "in no subnet", lambda: create(remote, new, V4, outside))
    options = {"nonsense": "1"}
    refuses(
        host,
        InvalidArgument,
        "unknown option",
        lambda: remote.create_endpoint(N, EndpointId(new), ipv4=V4, ipv6=None, mac=None, options=options),
    )


def test_a_mac_that_is_made_from_an_address_steps_around_one_that_was_given(remote: RemoteNetworks) -> None:
    create(remote, E, IPv4Interface("10.9.0.3/16"), mac=MAC)  # as would be made from 10.9.0.2
    made = create(remote, ident(1), V4)
    assert made.mac != MAC
    assert create(remote, ident(1), V4) == made


@pytest.mark.parametrize(("v4", "v6"), [(V4, None), (IPv4Interface("10.9.0.3/16"), V6), (None, V6)])
def test_an_endpoint_with_a_device_keeps_its_address(
    host: Host, remote: RemoteNetworks, v4: IPv4Interface | None, v6: IPv6Interface | None
) -> None:
    create(remote, EP, V4, V6)
    remote.join(N, E, KEY)
    refuses(host, Forbidden, "Address already in use: .*held by endpoint", lambda: create(remote, ident(1), v4, v6))


def test_an_endpoint_that_is_joining_keeps_its_address(host: Host, remote: RemoteNetworks) -> None:
    """Its device comes while the other one looks."""
    create(remote)
    host.driver.gate = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        joining = pool.submit(remote.join, N, E, KEY)
        while remote.endpoint(N, E).state is not EndpointState.JOINING:
            pass
        creating = pool.submit(create, remote, ident("new"))
        host.driver.gate.set()
        joining.result(10)
        assert isinstance(creating.exception(10), Forbidden)
    assert remote.endpoint(N, E).state is EndpointState.JOINED


@pytest.mark.parametrize(
    ("v4", "v6", "says"),
    [
        (None, None, "has no address: use an IPAM driver that gives addresses"),
        (IPv4Interface("10.8.0.2/16"), None, "10.8.0.2 is in no subnet of network net"),
        (V4, IPv6Interface("fd00:8::2/64"), "fd00:8::2 is in no subnet"),
    ],
)
def test_addresses_that_do_not_fit_are_refused(
    host: Host, remote: RemoteNetworks, v4: IPv4Interface | None, v6: IPv6Interface | None, says: str
) -> None:
    refuses(host, InvalidArgument, says, lambda: create(remote, EP, v4, v6))


@pytest.mark.parametrize(
    ("mac", "says"),
    [
        ("nonsense", "invalid MAC address"),
        ("02:42:0a:09:00", "invalid MAC address"),
        ("ff:ff:ff:ff:ff:ff", "must be a unicast address"),
        ("01:00:5e:00:00:01", "must be a unicast address"),
        ("00:00:00:00:00:00", "must be a unicast address"),
    ],
)
def test_macs_that_no_interface_can_have_are_refused(host: Host, remote: RemoteNetworks, mac: str, says: str) -> None:
    refuses(host, InvalidArgument, says, lambda: create(remote, mac=mac))


def test_a_mac_that_another_endpoint_has_is_refused(host: Host, remote: RemoteNetworks) -> None:
    create(remote, mac=MAC)
    other = IPv4Interface("10.9.0.3/16")
    refuses(host, Conflict, "MAC address .* is in use on network net", lambda: create(remote, ident(1), other, mac=MAC))


def test_ids_that_would_share_a_device_name_are_refused(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    other = IPv4Interface("10.9.0.3/16")
    refuses(host, Conflict, "first 12 digits", lambda: create(remote, EP[:12] + "0" * 52, other))


def test_an_endpoint_of_ipv6_alone_keeps_the_mac_that_it_was_given_first(remote: RemoteNetworks) -> None:
    made = create(remote, EP, None, V6)
    assert made.mac.startswith("02:42:")
    assert create(remote, EP, None, V6) == made


def test_a_network_without_a_subnet_is_refused(host: Host, remote: RemoteNetworks) -> None:
    bare = NetworkSpec(name="bare")
    refuses(host, InvalidArgument, "has no subnet", lambda: remote.create_network(NetworkId(ident("b")), bare))


# -- ports -----------------------------------------------------------------------------------------------------------


def test_an_endpoint_keeps_its_ports_until_they_are_revoked(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    first = remote.publish(N, E, [PortWish(protocol="tcp", port=80)])
    before = host.state()
    assert remote.publish(N, E, [PortWish(protocol="tcp", port=80)]) == first
    assert remote.publish(N, E, WEB) == first
    assert remote.publish(N, E, []) == first
    assert host.state() == before
    remote.unpublish(N, E)
    assert remote.publish(N, E, WEB).ports != first.ports


def test_ports_that_the_kernel_lost_are_there_after_a_repeated_call(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    remote.publish(N, E, WEB)
    elements = set(host.driver.published)
    host.driver.published.clear()
    remote.publish(N, E, WEB)
    assert host.driver.published == elements


def test_ports_go_with_a_leave(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    joined = host.state()
    remote.publish(N, E, WEB)
    remote.leave(N, E)
    assert (host.driver.published, host.ports.held) == (set(), set())
    assert remote.endpoint(N, E).ports == ()
    remote.join(N, E, KEY)
    assert host.state() == joined


def test_ports_that_the_kernel_refuses_are_let_go_of(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    host.failing.add(("apply", "fake publish"))
    refuses(host, DatapathFailed, "ports of endpoint .* could not be published", lambda: remote.publish(N, E, WEB))
    host.failing.clear()
    assert remote.publish(N, E, WEB).ports


def test_ports_that_the_store_refuses_are_let_go_of(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    host.store.arm([0])
    refuses(host, StoreError, "no space left", lambda: remote.publish(N, E, WEB))
    assert remote.publish(N, E, WEB).ports


def test_ports_of_an_internal_network_are_not_published(host: Host, remote: RemoteNetworks) -> None:
    inner = NetworkId(ident("inner"))
    spec = NetworkSpec(name="inner", internal=True, pools=(PoolSpec(subnet=IPv4Network("10.11.0.0/16")),))
    remote.create_network(inner, spec)
    create(remote, EP, IPv4Interface("10.11.0.2/16"), network=inner)
    remote.join(inner, E, KEY)
    before = host.state()
    assert remote.publish(inner, E, WEB).ports == ()
    assert host.state() == before


# -- an endpoint whose deletion failed -------------------------------------------------------------------------------


def test_an_endpoint_whose_deletion_failed_is_gone_for_all_but_its_deletion(host: Host, remote: RemoteNetworks) -> None:
    create(remote)
    remote.join(N, E, KEY)
    host.failing.add(("revert", "fake endpoint"))
    with pytest.raises(DatapathFailed, match="could not be taken off network net whole"):
        remote.delete_endpoint(N, E)
    refuses(host, NotFound, "is not known on network net", lambda: remote.join(N, E, KEY))
    refuses(host, NotFound, "is not known on network net", lambda: remote.publish(N, E, WEB))
    remote.leave(N, E)
    remote.unpublish(N, E)
    for call in (lambda: create(remote), lambda: create(remote, ident("new")), lambda: remote.delete_network(N)):
        refuses(host, DatapathFailed, "could not be taken off network net whole", call)
    host.failing.clear()
    assert create(remote).state is EndpointState.CREATED  # which finishes the deletion
    assert host.driver.endpoints == {}


def test_the_engine_does_not_wait_for_a_device_that_is_long_in_going(host: Host, remote: RemoteNetworks) -> None:
    gone = threading.Event()
    steps = host.driver.endpoint_steps

    def slow(join: Join) -> Sequence[Step]:
        return [*steps(join), Step("wait", lambda: None, lambda: None if gone.wait(10) else pytest.fail("no end"))]

    host.driver.endpoint_steps = slow  # type: ignore[method-assign]
    create(remote)
    remote.join(N, E, KEY)
    remote.delete_endpoint(N, E)
    assert [endpoint.state for endpoint in host.controller.endpoints()] == [EndpointState.LEAVING]
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(create, remote)
        gone.set()
        assert again.result(10).state is EndpointState.CREATED


def test_what_is_left_of_a_failed_deletion_gives_way_to_another_with_its_address(
    host: Host, remote: RemoteNetworks
) -> None:
    create(remote)
    remote.join(N, E, KEY)
    host.failing.add(("revert", "fake endpoint"))
    with pytest.raises(DatapathFailed):
        remote.delete_endpoint(N, E)
    host.failing.clear()
    assert create(remote, ident("new")).ipv4 == V4
    assert [endpoint.id for endpoint in host.controller.endpoints()] == [ident("new")]


# -- events ----------------------------------------------------------------------------------------------------------


def test_events_tell_what_happened_once(host: Host, remote: RemoteNetworks) -> None:
    seen: list[Event] = []
    unsubscribe = host.controller.subscribe(seen.append)
    other = NetworkId(ident("other"))
    spec = NetworkSpec(name="other", pools=(PoolSpec(subnet=IPv4Network("10.10.0.0/16")),))
    for _ in range(2):
        remote.create_network(other, spec)
    create(remote, EP, IPv4Interface("10.10.0.2/16"), network=other)
    for _ in range(2):
        remote.join(other, E, KEY)
    for _ in range(2):
        remote.leave(other, E)
    for _ in range(2):
        remote.delete_endpoint(other, E)
        remote.delete_network(other)
    unsubscribe()
    assert [event.action for event in seen] == ["create", "connect", "disconnect", "destroy"]
    assert {event.id for event in seen} == {other}
    assert [event.attributes.get("container") for event in seen] == [None, KEY, KEY, None]
    assert {event.attributes["name"] for event in seen} == {"other"}


def test_an_endpoint_that_is_deleted_without_a_leave_is_disconnected(host: Host, remote: RemoteNetworks) -> None:
    seen: list[Event] = []
    create(remote)
    remote.join(N, E, KEY)
    host.controller.subscribe(seen.append)
    remote.delete_endpoint(N, E)
    assert [(event.action, event.attributes["container"]) for event in seen] == [("disconnect", KEY)]
