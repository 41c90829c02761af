"""Networks of veth pairs with the switch in eBPF: who reaches whom is as with the kernel's own macvlan."""

from __future__ import annotations

import signal

import pytest

from tests.hosts import Host, host
from tests.netns.lan import HOST4, PARENT, ROUTER4, Lan, Reach, lan, lan_host, lan_net
from tests.netns.test_macvlan import SUBNET4, SUBNET6, create, join, made, status
from tests.netns.test_macvlan_limit import LIMIT, OPTION, storm
from tests.netns.test_macvlan_reach import by_hand, by_linkspan, clear, reach_of
from tests.traffic import Station, growth, iperf3, tallies

pytestmark = pytest.mark.root
net, machine = lan_net, lan_host

DEVICE, HOOK = "linkspan.macvlan_device", "linkspan.parent_hook"
OPTIONS = {"tc": {DEVICE: "veth"}, "xdp": {DEVICE: "veth", HOOK: "xdp"}}
HOOKS = {hook: [w for name, value in each.items() for w in ("-o", f"{name}={value}")] for hook, each in OPTIONS.items()}
CASES = [("bridge", False), ("private", False), ("private", True), ("vepa", False), ("vepa", True)]


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
    net: Lan, machine: Host, by_kernel: dict[tuple[str, bool], Reach], hook: str, mode: str, is_reflected: bool
) -> None:
    net.set_reflective_relay(is_reflected)
    nodes = by_linkspan(net, [mode], [0, 0], *HOOKS[hook])
    try:
        assert reach_of(net, nodes) == by_kernel[mode, is_reflected]
    finally:
        net.set_reflective_relay(False)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_the_host_reaches_them_where_it_may(
    net: Lan, machine: Host, by_kernel: dict[tuple[str, bool], Reach], hook: str, mode: str
) -> None:
    nodes = by_linkspan(net, [mode], [0, 0], *HOOKS[hook], host_access="on")
    met = {pair: "host" in pair or is_reached for pair, is_reached in by_kernel[mode, False].items()}
    assert reach_of(net, nodes) == met


def endpoints(machine: Host, hook: str = "tc", **options: str) -> tuple[Station, Station]:
    made(machine, "pub", SUBNET4, SUBNET6, parent=PARENT, **OPTIONS[hook], **options)
    return join(machine, "a", "pub"), join(machine, "b", "pub")


@pytest.mark.parametrize("hook", OPTIONS)
def test_it_is_shown_what_switches(machine: Host, hook: str) -> None:
    a, _ = endpoints(machine, hook)
    assert a.ip("link", "show", "dev", a.ifname)[0]["linkinfo"]["info_kind"] == "veth"
    shown = status(machine, "pub")
    assert shown["linkspan.macvlan_device"] == "veth"
    assert shown["linkspan.path"].startswith("eBPF switch (")
    assert shown["linkspan.path"].endswith(", native XDP)" if hook == "xdp" else ")")
    (link,) = machine.ip("-d", "link", "show", "dev", PARENT)
    assert link.get("xdp", {}).get("mode") == (1 if hook == "xdp" else None)


@pytest.mark.parametrize("hook", OPTIONS)
def test_streams_pass_every_way_and_are_counted_as_short_cuts(machine: Host, net: Lan, hook: str) -> None:
    """What a veth leaves of checksums for later, XDP loses: on a cable they are in the packet."""
    router = net.router.place
    router.run("ethtool", "-K", router.ifname, "tx", "off" if hook == "xdp" else "on")
    a, b = endpoints(machine, hook)
    for client, server, address in ((a, b, b.ip4), (a, router, ROUTER4), (router, a, a.ip6)):
        before = tallies(machine, "a")
        arrived = iperf3(client, server, address, "-n", "2M")["end"]["sum_received"]["bytes"]
        grown = growth(before, tallies(machine, "a"))
        assert grown["bytes", "out" if client is a else "in", "fast"] > arrived > 100_000
        assert grown.get(("bytes", "out", "slow"), 0) == 0
    assert iperf3(net.host.place, a, a.ip4, "-n", "2M")["end"]["sum_received"]["bytes"] > 100_000


def test_what_is_forged_reaches_nobody(machine: Host, net: Lan) -> None:
    a, b = endpoints(machine)
    a.run("ip", "addr", "add", "192.168.32.200/24", "dev", a.ifname)
    for target in (b.ip4, HOST4, ROUTER4):
        assert a.pings(target)
        assert not a.pings(target, "-I", "192.168.32.200", wait_s=1)
    assert tallies(machine, "a")["drops", "spoofed_ip4"] >= 3


def test_broadcasts_are_limited_before_anybody_gets_them(machine: Host, net: Lan) -> None:
    a, b = endpoints(machine, **{OPTION: str(LIMIT)})
    (local, outside, at_host), allowed = storm(a, b, net.router.place, net.host.place)
    assert LIMIT - 10 <= local <= allowed
    assert local == outside == at_host


def test_packets_pass_while_linkspan_is_killed_and_after_its_next_start(machine: Host, net: Lan) -> None:
    a, b = endpoints(machine)
    before = tallies(machine, "a")
    machine.stop(signal.SIGKILL)
    for target in (b.ip4, b.ip6, HOST4, ROUTER4):
        assert a.pings(target)
    machine.start()
    for target in (b.ip4, b.ip6, HOST4, ROUTER4):
        assert a.pings(target)
    assert min(growth(before, tallies(machine, "a")).values()) > 0
    c = join(machine, "c", "pub")
    assert c.pings(a.ip4)


@pytest.mark.parametrize(
    ("options", "status_code", "message"),
    [
        ({DEVICE: "ipvlan"}, 400, f"invalid value 'ipvlan' for option {DEVICE}: use one of macvlan, veth"),
        ({DEVICE: "veth", HOOK: "nft"}, 400, f"invalid value 'nft' for option {HOOK}: use one of tc, xdp"),
        ({HOOK: "xdp"}, 400, f"option {HOOK} goes with {DEVICE}=veth alone"),
        ({DEVICE: "veth", "parent": ""}, 400, f"option {DEVICE}=veth needs a parent"),
        ({DEVICE: "veth", "macvlan_mode": "passthru"}, 400, f"option {DEVICE}=veth cannot be had in mode passthru"),
        ({DEVICE: "veth", "linkspan.accel": "off"}, 400, f"option {DEVICE}=veth cannot be had with linkspan.accel=off"),
    ],
)
def test_what_it_cannot_be_is_refused(machine: Host, options: dict[str, str], status_code: int, message: str) -> None:
    reply = create(machine, "pub", SUBNET4, **{"parent": PARENT, **options})
    assert (reply.status, reply.message[: len(message)]) == (status_code, message)


@pytest.mark.parametrize(("first", "second"), [("veth", "macvlan"), ("macvlan", "veth"), ("veth", "veth")])
def test_it_has_its_parent_to_itself(machine: Host, first: str, second: str) -> None:
    made(machine, "one", SUBNET4, parent=PARENT, **{DEVICE: first})
    reply = create(machine, "two", "192.168.33.0/24", parent=PARENT, **{DEVICE: second})
    assert reply.status == 409
    assert f"parent {PARENT} has network one" in reply.message
