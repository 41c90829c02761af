"""Networks of veth pairs with the switch in eBPF: who reaches whom is as with the kernel's own macvlan."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts import Host, host
from tests.leaks import leaks, purge
from tests.netns.lan import PARENT, Lan, Reach, lan, parent_state
from tests.netns.test_macvlan_reach import by_hand, by_linkspan, clear, reach_of

pytestmark = pytest.mark.root

VETH = ("-o", "linkspan.macvlan_device=veth")
HOOKS = {"tc": VETH, "xdp": (*VETH, "-o", "linkspan.parent_hook=xdp")}
CASES = [("bridge", False), ("private", False), ("private", True), ("vepa", False), ("vepa", True)]


@pytest.fixture(scope="module")
def ours() -> Iterator[Lan]:
    with host() as machine, lan(machine) as made:
        machine.start()
        yield made


@pytest.fixture
def machine(ours: Lan) -> Iterator[Host]:
    """The host; the test may leave networks and sandboxes, which are removed, and nothing else."""
    made: Host = ours.host.place.host
    before = parent_state(made)
    yield made
    purge(made)
    ours.set_reflective_relay(False)
    assert parent_state(made) == before
    assert leaks(made, ignore={PARENT}) == []


@pytest.fixture(scope="module")
def by_kernel() -> dict[tuple[str, bool], Reach]:
    """What devices made by hand reach, by mode and whether the switch sends frames back."""
    found = {}
    with host(bpffs=False) as machine, lan(machine) as net:
        for mode, is_reflected in CASES:
            net.set_reflective_relay(is_reflected)
            nodes = by_hand(net, [mode], [0, 0])
            found[mode, is_reflected] = reach_of(net, nodes)
            clear(net, nodes)
    return found


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("mode", "is_reflected"), CASES)
def test_endpoints_reach_what_macvlan_devices_reach(
    ours: Lan, machine: Host, by_kernel: dict[tuple[str, bool], Reach], hook: str, mode: str, is_reflected: bool
) -> None:
    ours.set_reflective_relay(is_reflected)
    nodes = by_linkspan(ours, [mode], [0, 0], *HOOKS[hook])
    assert reach_of(ours, nodes) == by_kernel[mode, is_reflected]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_the_host_reaches_them_where_it_may(
    ours: Lan, machine: Host, by_kernel: dict[tuple[str, bool], Reach], hook: str, mode: str
) -> None:
    nodes = by_linkspan(ours, [mode], [0, 0], *HOOKS[hook], host_access="on")
    met = {pair: "host" in pair or is_reached for pair, is_reached in by_kernel[mode, False].items()}
    assert reach_of(ours, nodes) == met
