"""What the underlay says of the way to a node, and who answers there, against ip(8) and the topology itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TypeVar

import pytest

from datapath import netns, ping, rtnl, underlay
from tests.netns.underlay import ROUTER4, ROUTER6, Node, Underlay, world

pytestmark = pytest.mark.xdist_group("underlay")
T = TypeVar("T")


@pytest.fixture(scope="module")
def made() -> Iterator[Underlay]:
    with world() as each:
        yield each


@pytest.fixture(scope="module")
def near(made: Underlay) -> Node:
    return made.node()


@pytest.fixture(scope="module")
def neighbour(made: Underlay) -> Node:
    return made.node()


@pytest.fixture(scope="module")
def far(made: Underlay) -> Node:
    return made.node(mtu=1400, is_far=True)


@pytest.mark.parametrize("version", [4, 6])
def test_a_neighbour_is_on_link(near: Node, neighbour: Node, version: int) -> None:
    found = near.call(lambda: underlay.route(neighbour.address(version)))
    link = near.shown("ip -json link show dev eth0")[0]
    assert (found.ifname, found.ifindex, found.mac.hex(":")) == ("eth0", link["ifindex"], link["address"])
    assert (found.mtu, found.source) == (1500, near.address(version))
    assert (found.gateway, found.is_local, found.is_on_link) == (None, False, True)


@pytest.mark.parametrize(("version", "router"), [(4, ROUTER4), (6, ROUTER6)])
def test_a_node_elsewhere_is_behind_a_gateway(near: Node, far: Node, version: int, router: str) -> None:
    found = near.call(lambda: underlay.route(far.address(version)))
    assert (str(found.gateway), found.is_local, found.is_on_link) == (router, False, False)


@pytest.mark.parametrize("version", [4, 6])
def test_the_mtu_is_the_routes_where_that_is_less(near: Node, far: Node, version: int) -> None:
    target, prefix = far.address(version), 32 if version == 4 else 128
    near.run(f"ip route add {target}/{prefix} via {ROUTER4 if version == 4 else ROUTER6} mtu 1300")
    assert near.call(lambda: underlay.route(target)).mtu == 1300
    near.run(f"ip route del {target}/{prefix}")
    # ... and what the kernel was told by a router on the way.
    near.run(f"ping -n -c1 -W1 -Mdo -s1440 {target}", check=False)
    assert near.call(lambda: underlay.route(target)).mtu == 1400


@pytest.mark.parametrize(("version", "other"), [(4, "10.99.0.77/24"), (6, "fd99::77/64")])
def test_the_source_is_the_one_asked_for(near: Node, neighbour: Node, version: int, other: str) -> None:
    near.run(f"ip addr add {other} dev eth0" + (" nodad" if version == 6 else ""))
    source, target = ip_address(other.partition("/")[0]), neighbour.address(version)
    assert near.call(lambda: underlay.route(target, source)).source == source
    assert near.call(lambda: underlay.owns(source))
    near.run(f"ip addr del {other} dev eth0")
    assert not near.call(lambda: underlay.owns(source))
    with pytest.raises(rtnl.NetlinkError, match=f"no route to {target} from {source}"):
        near.call(lambda: underlay.route(target, source))


@pytest.mark.parametrize("version", [4, 6])
def test_own_addresses_are_told_from_others(near: Node, neighbour: Node, version: int) -> None:
    assert near.call(lambda: underlay.owns(near.address(version)))
    assert not near.call(lambda: underlay.owns(neighbour.address(version)))
    own = near.call(lambda: underlay.route(near.address(version)))
    assert (own.is_local, own.is_on_link) == (True, False)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_no_way_is_said_with_the_address(address: str) -> None:
    target = ip_address(address)
    with pytest.raises(rtnl.NetlinkError, match=f"no route to {target}"):
        netns.call(None, lambda: underlay.route(target))
    assert not netns.call(None, lambda: underlay.owns(target))
    assert not netns.call(None, lambda: ping.answers(target, timeout_s=5))


def timed(function: Callable[[], T]) -> tuple[T, float]:
    start = time.monotonic()
    return function(), time.monotonic() - start


@pytest.mark.parametrize("version", [4, 6])
def test_nodes_answer_pings_and_strangers_do_not(near: Node, neighbour: Node, far: Node, version: int) -> None:
    source = near.address(version)
    for node in (near, neighbour, far):
        assert near.call(lambda node=node: ping.answers(node.address(version), source, 5))
        assert near.call(lambda node=node: ping.answers(node.address(version), timeout_s=5))
    stranger = ip_address("10.99.0.200" if version == 4 else "fd99::c8")
    answered, took_s = near.call(lambda: timed(lambda: ping.answers(stranger, source, 0.2)))
    assert not answered
    assert took_s < 5
    with pytest.raises(OSError, match="Cannot assign requested address"):
        near.call(lambda: ping.answers(neighbour.address(version), stranger, 5))


@pytest.mark.parametrize("version", [4, 6])
def test_the_answer_of_another_ping_is_none(near: Node, neighbour: Node, version: int) -> None:
    """Somebody else's pings to the same address are answered all the time; ours is not let through."""
    target, name = neighbour.address(version), "icmp" if version == 4 else "icmpv6"
    other = near.host.popen("ping", "-n", "-q", "-i0.002", "-s", "8", str(target))
    try:
        near.run(
            f"nft add table inet no{version}; add chain inet no{version} out {{ type filter hook output priority 0; }}"
        )
        near.run(f"nft add rule inet no{version} out {name} type echo-request {name} id 0 drop")
        assert not near.call(lambda: ping.answers(target, timeout_s=0.3))
    finally:
        near.run(f"nft delete table inet no{version}")
        other.terminate()
        other.wait()
    assert near.call(lambda: ping.answers(target, timeout_s=5))
