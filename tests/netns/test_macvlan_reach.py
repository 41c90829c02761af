"""Who reaches whom on macvlan networks, in every mode: exactly as with devices made by hand with `ip link`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.hosts import Host, host
from tests.leaks import leaks, purge
from tests.netns.lan import PARENT, SUBNETS, Lan, Node, Reach, lan, parent_state, reach
from tests.traffic import Place, Station

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def ours() -> Iterator[Lan]:
    """A host with linkspan on it; what its parent was like is what it is like at the end."""
    with host() as machine, lan(machine) as made:
        before = parent_state(machine)
        machine.start("--metrics-listen", "off")
        yield made
        purge(machine)
        assert parent_state(machine) == before
        assert leaks(machine, ignore={PARENT}) == []


@pytest.fixture(scope="module")
def theirs() -> Iterator[Lan]:
    """The same without linkspan."""
    with host(bpffs=False) as machine, lan(machine) as made:
        yield made


def endpoint_addresses(number: int, on: int) -> tuple[str, str]:
    return f"192.168.{32 + on}.{20 + number}", f"fd00:{32 + on}::{20 + number}"


def by_linkspan(
    net: Lan, modes: Sequence[str], endpoints: Sequence[int], *more: str, host_access: str = "off"
) -> list[Node]:
    """Endpoints with ip numbers, each on the network that `endpoints` names; networks are called net0, net1."""
    machine: Host = net.host.place.host
    for number, (mode, (subnet4, subnet6)) in enumerate(zip(modes, SUBNETS, strict=False)):
        options = ("-o", f"parent={PARENT}", "-o", f"macvlan_mode={mode}", *more)
        if host_access:
            options += ("-o", f"linkspan.host_access={host_access}")
        subnets = ("--ipv6", "--subnet", subnet4, "--subnet", subnet6)
        machine.linkspan("network", "create", "-d", "macvlan", *options, *subnets, f"net{number}")
    nodes = []
    for number, on in enumerate(endpoints):
        ip4, ip6 = endpoint_addresses(number, on)
        machine.sandbox(f"e{number}", f"net{on}", IPAMConfig={"IPv4Address": ip4, "IPv6Address": ip6})  # type: ignore[arg-type]
        station = Station(machine, f"e{number}")
        assert (station.ip4, station.ip6) == (ip4, ip6)
        nodes.append(Node(station, ip4, ip6))
    return nodes


def by_hand(net: Lan, modes: Sequence[str], endpoints: Sequence[int]) -> list[Node]:
    machine: Host = net.host.place.host
    nodes = []
    for number, on in enumerate(endpoints):
        ip4, ip6 = endpoint_addresses(number, on)
        box = net.machine()
        place = Place(machine, f"e{number}", f"/proc/{box.pid}/ns/net", "eth0")
        link = ("link", "add", "link", PARENT, "name", "eth0", "netns", str(box.pid), "type", "macvlan")
        machine.run("ip", *link, "mode", modes[on])
        place.run("ip", "addr", "add", f"{ip4}/24", "dev", "eth0")
        place.run("ip", "addr", "add", f"{ip6}/64", "dev", "eth0", "nodad")
        place.run("ip", "link", "set", "eth0", "up")
        nodes.append(Node(place, ip4, ip6))
    return nodes


def reach_of(net: Lan, endpoints: Sequence[Node]) -> Reach:
    nodes = [*endpoints, net.host, net.router]
    for node in nodes:
        node.open_up()
    return reach(nodes)


def clear(net: Lan, endpoints: Sequence[Node]) -> None:
    for node in endpoints:
        if isinstance(node.place, Station):
            continue
        node.place.run("ip", "link", "delete", "eth0")
    if endpoints and isinstance(endpoints[0].place, Station):
        purge(net.host.place.host)


@pytest.mark.parametrize(
    ("modes", "endpoints", "is_reflected", "joined"),
    [
        pytest.param(["bridge", "bridge"], [0, 0, 1], False, {(0, 1), (0, 2), (1, 2)}, id="bridge"),
        pytest.param(["private", "private"], [0, 0, 1], False, set(), id="private"),
        pytest.param(["private", "private"], [0, 0, 1], True, set(), id="private-reflected"),
        pytest.param(["vepa", "vepa"], [0, 0, 1], False, set(), id="vepa"),
        pytest.param(["vepa", "vepa"], [0, 0, 1], True, {(0, 1), (0, 2), (1, 2)}, id="vepa-reflected"),
        pytest.param(["bridge", "private"], [0, 0, 1], False, {(0, 1)}, id="bridge-beside-private"),
        pytest.param(["vepa", "bridge"], [0, 1, 1], False, {(1, 2)}, id="vepa-beside-bridge"),
        pytest.param(["passthru"], [0], False, set(), id="passthru"),
    ],
)
def test_endpoints_reach_what_devices_made_by_hand_reach(
    ours: Lan,
    theirs: Lan,
    modes: list[str],
    endpoints: list[int],
    is_reflected: bool,
    joined: set[tuple[int, int]],
) -> None:
    before = parent_state(ours.host.place.host)
    found = {}
    for net, make in ((ours, by_linkspan), (theirs, by_hand)):
        net.set_reflective_relay(is_reflected)
        nodes = make(net, modes, endpoints)
        try:
            found[make] = reach_of(net, nodes)
        finally:
            clear(net, nodes)
    assert found[by_linkspan] == found[by_hand]
    for version in (4, 6):
        for one in range(len(endpoints)):
            for other in range(one + 1, len(endpoints)):
                for pair in ((f"e{one}", f"e{other}"), (f"e{other}", f"e{one}")):
                    assert found[by_linkspan][*pair, version] == ((one, other) in joined), (pair, version)
            assert found[by_linkspan][f"e{one}", "router", version]
            assert found[by_linkspan]["router", f"e{one}", version]
            # What the switch sends back is for the host, too.
            assert found[by_linkspan][f"e{one}", "host", version] == is_reflected
            assert found[by_linkspan]["host", f"e{one}", version] == is_reflected
        assert found[by_linkspan]["host", "router", version] == ("passthru" not in modes)
    assert parent_state(ours.host.place.host) == before


@pytest.mark.parametrize(
    ("modes", "endpoints", "host_access", "reached"),
    [
        pytest.param(["bridge", "bridge"], [0, 0, 1], "", {0, 1, 2}, id="bridge-by-default"),
        pytest.param(["bridge", "private"], [0, 0, 1], "", {0, 1}, id="private-not-by-default"),
        pytest.param(["private", "vepa"], [0, 0, 1], "on", {0, 1, 2}, id="others-on-demand"),
        pytest.param(["bridge"], [0, 0], "off", set(), id="turned-off"),
    ],
)
def test_the_host_and_its_endpoints_reach_each_other(
    ours: Lan, modes: list[str], endpoints: list[int], host_access: str, reached: set[int]
) -> None:
    """Nothing else changes: who reaches whom is as without, and the parent is left as it was."""
    before = parent_state(ours.host.place.host)
    ours.set_reflective_relay(False)
    found = {}
    for access in ("off", host_access):
        nodes = by_linkspan(ours, modes, endpoints, host_access=access)
        try:
            found[access] = reach_of(ours, nodes)
        finally:
            clear(ours, nodes)
    with_host = {pair for pair in found["off"] if "host" in pair and "router" not in pair}
    for pair, is_reached in found[host_access].items():
        if pair in with_host:
            (endpoint,) = {*pair[:2]} - {"host"}
            assert is_reached == (int(endpoint[1:]) in reached), pair
        else:
            assert is_reached == found["off"][pair], pair
    assert parent_state(ours.host.place.host) == before


def test_without_programs_endpoints_are_as_before(ours: Lan) -> None:
    nodes = by_linkspan(ours, ["bridge"], [0, 0], "-o", "linkspan.accel=off", host_access="")
    try:
        found = reach_of(ours, nodes)
    finally:
        clear(ours, nodes)
    assert all(found[*pair, version] for pair in (("e0", "e1"), ("e0", "router")) for version in (4, 6))
    assert not any(found[*pair, version] for pair in (("e0", "host"), ("host", "e0")) for version in (4, 6))
