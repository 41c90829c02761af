"""The programs come to a parent and leave it as it was; others' programs there go on, and so do ours without us."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from datapath import abi, bpf, loader
from datapath.accel import Accelerator
from datapath.maps import Maps
from datapath.programs import Programs
from datapath.uplink import Uplinks
from tests.isolated import run
from tests.netns.uplinks import PARENT, Lab, World

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("uplink hooks")]

ATTACHMENTS = ("tcx", "clsact")
FILTER = "tc filter {what} dev eth1 {hook} prio 1 handle 7 bpf da pinned {pin}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with World(tmp_path_factory.mktemp("uplinks")) as made:
        yield made


@pytest.fixture
def world(base: World) -> Iterator[World]:
    with base.beside() as made:
        yield made


@pytest.fixture(params=ATTACHMENTS)
def attachment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def verdict(code: int) -> int:
    """A program that returns one verdict: r0 = code; exit."""
    insns = struct.pack("=BBhiBBhi", 0xB7, 0, 0, code, 0x95, 0, 0, 0)
    return bpf.prog_load(insns, bpf.ProgType.SCHED_CLS, name="foreign")


def foreign_filters(world: World, *hooks: str, is_open: bool = True) -> None:
    """Others' filters, in front of ours: the first call adds them, a later one changes whether they let packets by."""
    pin = world.bpffs / ("next" if is_open else "drop")
    what = "replace" if "handle 0x7" in world.host.sh("tc filter show dev eth1 ingress") else "add"

    def apply() -> None:
        if not pin.exists():
            fd = verdict(-1 if is_open else 2)
            bpf.obj_pin(fd, pin)
            os.close(fd)
        for hook in hooks:
            run(FILTER.format(what=what, hook=hook, pin=pin))

    world.call(apply)


def picture(world: World) -> dict[str, Any]:
    """The parent as `ip` and `tc` show it, without counters."""
    shown = world.host.sh(
        f"ip -d -json link show {PARENT}; tc -json qdisc show dev {PARENT};"
        f"tc filter show dev {PARENT} ingress; tc filter show dev {PARENT} egress; bpftool -j net show dev {PARENT}"
    )
    return {"shown": shown, "pins": pins(world)}


def pins(world: World) -> list[str]:
    directory = world.bpffs / "linkspan" / "parents"
    return world.call(lambda: sorted(path.name for path in directory.iterdir()) if directory.exists() else [])


def test_attach_and_detach_leave_the_parent_as_it_was(world: World, attachment: str) -> None:
    before = picture(world)
    lab = Lab(world, attachment=attachment)
    during = picture(world)
    assert during["pins"] != []
    assert lab.host.pings(lab.a.ip4)
    world.call(lab.up.detach, PARENT)
    world.call(lab.up.detach, PARENT)
    # The macvlan devices, which are the test's, have made the parent promiscuous or not before this.
    for node in (lab.a, lab.b):
        node.sh("ip link delete eth0")
    assert picture(world) == before
    assert not world.call(lab.up.counters)[0]


def test_others_filters_and_qdisc_stay_and_go_on(world: World, attachment: str) -> None:
    world.host.sh("tc qdisc add dev eth1 clsact")
    foreign_filters(world, "ingress", "egress")
    before = picture(world)
    lab = Lab(world, attachment=attachment)
    assert lab.a.pings(lab.outside.ip4)
    assert lab.a.pings(lab.host.ip4)
    foreign_filters(world, "ingress", "egress", is_open=False)
    assert not lab.outside.pings(lab.a.ip4, wait_s=0.2)
    foreign_filters(world, "ingress", "egress")
    assert lab.outside.pings(lab.a.ip4)
    world.call(lab.up.detach, PARENT)
    for node in (lab.a, lab.b):
        node.sh("ip link delete eth0")
    assert picture(world) == before


def test_a_qdisc_that_others_have_come_to_use_stays(world: World) -> None:
    lab = Lab(world, attachment="clsact")
    foreign_filters(world, "ingress")
    world.call(lab.up.detach, PARENT)
    assert "clsact" in world.host.sh("tc qdisc show dev eth1")
    assert "handle 0x7" in world.host.sh("tc filter show dev eth1 ingress")
    assert "ls_parent" not in world.host.sh("tc filter show dev eth1 ingress; tc filter show dev eth1 egress")
    assert pins(world) == []


@pytest.mark.parametrize("egress", [False, True], ids=["ingress", "egress"])
@pytest.mark.parametrize("is_first", [True, False], ids=["attached before", "attached after"])
def test_others_tcx_programs_go_on(world: World, attachment: str, is_first: bool, egress: bool) -> None:
    index = world.call(socket.if_nametoindex, PARENT)

    @contextmanager
    def foreign(code: int) -> Iterator[None]:
        fd = verdict(code)
        link = world.call(bpf.tcx_attach, fd, index, egress=egress)
        yield
        os.close(link)
        os.close(fd)

    if is_first:
        with foreign(2):  # drop
            lab = Lab(world, attachment=attachment)
            assert not lab.outside.pings(lab.a.ip4, wait_s=0.2)
    else:
        lab = Lab(world, attachment=attachment)
        with foreign(2):
            assert not lab.outside.pings(lab.a.ip4, wait_s=0.2)
    with foreign(-1):  # next
        assert lab.host.pings(lab.a.ip4)
        assert lab.a.pings(lab.outside.ip6)


def second(world: World, lab: Lab, **start: bool) -> Uplinks:
    """A linkspan after one that was killed: nothing is handed over but what is in bpffs and on the device."""
    up = world.uplinks(attachment=lab.up.attachment)
    world.call(up.start, {PARENT: list(lab.stations.values())}, {PARENT: start.get("host_access", True)})
    assert (up.problem, up.fallbacks) == (None, {})
    return up


def assert_went_on(before: Mapping[int, abi.Counters], after: Mapping[int, abi.Counters]) -> None:
    """No counter was set back; some may have grown, as a namespace chatters for a while."""
    assert after.keys() == before.keys()
    for slot, counters in before.items():
        assert all(now >= then for now, then in zip(vars(after[slot]).values(), vars(counters).values(), strict=True))


def test_a_restart_takes_up_what_is_there_and_counters_go_on(world: World, attachment: str) -> None:
    lab = Lab(world, attachment=attachment)
    assert lab.host.pings(lab.a.ip4)
    before, shown = lab.counts(), picture(world)
    up = second(world, lab)
    assert_went_on(before[0], world.call(up.counters)[0])
    assert picture(world) == shown
    assert lab.host.pings(lab.a.ip4)
    after = world.call(up.counters)[0][lab.slot(lab.a)]
    assert after.in_fast_packets > before[0][lab.slot(lab.a)].in_fast_packets
    assert up.facts()["programs"] == "taken from bpffs"


def test_programs_go_on_without_a_linkspan(world: World, attachment: str) -> None:
    lab = Lab(world, attachment=attachment)
    lab.up.programs.close()
    assert lab.host.pings(lab.a.ip4)
    assert lab.a.pings(lab.host.ip6)


def test_a_restart_swaps_the_attachment(world: World, attachment: str) -> None:
    lab = Lab(world, attachment=attachment)
    other = "tcx" if attachment == "clsact" else "clsact"
    up = world.uplinks(attachment=other)
    world.call(up.start, {PARENT: list(lab.stations.values())}, {PARENT: True})
    assert [name.partition("-")[2] for name in pins(world)] == (
        ["in", "out"] if other == "tcx" else ["filters", "qdisc"]
    )
    filters = world.host.sh("tc filter show dev eth1 egress")
    assert ("ls_parent_out" in filters) == (other == "clsact")
    with lab.growth() as grown:
        assert lab.host.pings(lab.a.ip4)
    assert grown["a", "in_fast_packets"] in (1, 2)


def test_a_start_removes_stations_and_parents_that_no_record_names(world: World, attachment: str) -> None:
    before = picture(world)
    lab = Lab(world, attachment=attachment)
    up = world.uplinks(attachment=attachment)
    world.call(up.start, {PARENT: [lab.stations[lab.b]]}, {PARENT: True})
    assert not lab.host.pings(lab.a.ip4, wait_s=0.3)
    assert lab.host.pings(lab.b.ip4)
    assert set(world.call(up.counters)[0]) == {lab.slot(lab.b)}
    up = world.uplinks(attachment=attachment)
    world.call(up.start, {}, {})
    for node in (lab.a, lab.b):
        node.sh("ip link delete eth0")
    assert picture(world) == before
    assert world.call(up.counters) == ({}, {})
    with opened(world, up) as maps:
        assert (maps.stations(), maps.parents(), maps.neighbours()) == ({}, {}, {})


@contextmanager
def opened(world: World, up: Uplinks) -> Iterator[Maps]:
    yield up.programs.load()


def test_given_link_locals_are_known_as_long_as_their_station(world: World) -> None:
    lab = Lab(world)
    station = lab.stations[lab.a]
    two, one = (IPv4Address("169.254.7.7"), IPv6Address("fe80::77")), (IPv6Address("fe80::78"),)
    with opened(world, lab.up) as maps:

        def known() -> dict[Any, tuple[bytes, int]]:
            found = {address: (each.mac, each.flags) for (_, address), each in maps.neighbours().items()}
            return {address: found[address] for address in (*two, *one) if address in found}

        assert known() == {}
        world.call(lab.up.add, PARENT, replace(station, link_locals=two))
        assert known() == dict.fromkeys(two, (station.mac, 0))
        world.call(lab.up.add, PARENT, replace(station, link_locals=two, host_access=False))
        assert known() == dict.fromkeys(two, (station.mac, abi.NEIGH_SILENT))
        # Another endpoint has got the MAC.
        world.call(lab.up.add, PARENT, replace(station, slot=station.slot + 500, link_locals=one))
        assert known() == dict.fromkeys(one, (station.mac, 0))
        fresh = world.uplinks()
        world.call(fresh.start, {PARENT: [replace(station, link_locals=two)]}, {PARENT: True})
        assert known() == dict.fromkeys(two, (station.mac, 0))
        world.call(fresh.remove, PARENT, replace(station, link_locals=two))
        assert known() == {}
        world.call(fresh.add, PARENT, replace(station, link_locals=two))
        world.call(fresh.detach, PARENT)
        assert known() == {}


def test_a_parent_that_is_not_there_is_passed_over_and_named(world: World) -> None:
    up = world.uplinks()
    world.call(up.start, {"nowhere": [], PARENT: []}, {"nowhere": True, PARENT: True})
    assert up.problem is None
    assert up.fallbacks == {"parent nowhere": "[Errno 19] device nowhere is gone"}
    with pytest.raises(OSError, match="nowhere"):
        world.call(up.attach, "nowhere", True)
    with pytest.raises(OSError, match="no programs run on the parent nowhere"):
        world.call(up.add, "nowhere", world.macvlan("a")[1])
    world.call(up.remove, "nowhere", world.macvlan("b")[1])
    world.call(up.detach, "nowhere")


def test_a_parent_keeps_its_programs_under_another_name(world: World, attachment: str) -> None:
    lab = Lab(world, attachment=attachment)
    world.host.sh("ip link set eth1 down; ip link set eth1 name lan0; ip link set lan0 up")
    world.host.sh("ip -6 addr replace fd32::2/64 dev lan0 nodad")
    assert lab.host.pings(lab.a.ip4)
    node, station = world.macvlan("c", parent="lan0")
    for name in (PARENT, "lan0"):
        world.call(lab.up.add, name, station)
        assert lab.host.pings(node.ip4)
        world.call(lab.up.remove, name, station)
    world.call(lab.up.attach, "lan0", False)
    assert not lab.a.pings(lab.host.ip4, wait_s=0.3)
    # Another device gets the old name.
    world.call(lab.up.attach, "lan0", True)
    world.host.sh("ip link add eth1 type veth peer name eth1-peer")
    world.call(lab.up.attach, PARENT, True)
    assert lab.host.pings(lab.b.ip4)
    for name in ("lan0", PARENT):
        assert pins(world) != []
        world.call(lab.up.detach, name)
    assert pins(world) == []


def test_a_parent_that_vanishes_and_comes_back_is_attached_anew(world: World, attachment: str) -> None:
    lab = Lab(world, attachment=attachment)
    world.host.sh("ip link delete eth1")
    world.call(lab.up.remove, PARENT, lab.stations[lab.a])
    pid = lab.outside.netns.split("/")[2]
    world.host.sh(f"ip link add eth1 type veth peer name eth0 netns {pid}")
    for node in (world.host, world.outside):
        world._address(node)
    world.call(lab.up.attach, PARENT, True)
    c = lab.join("c")
    assert lab.host.pings(c.ip4)
    assert c.pings(lab.host.ip6)
    assert set(lab.counts()[0]) == {lab.slot(c)}
    assert len({name.partition("-")[0] for name in pins(world)}) == 1
    # The ifindex of a device that is gone may be another's later.
    world.call(lab.up.detach, PARENT)
    assert pins(world) == []


def test_an_ifindex_that_another_device_has_got_is_attached_anew(world: World) -> None:
    lab = Lab(world, attachment="tcx")
    index = json.loads(world.host.sh("ip -json link show eth1"))[0]["ifindex"]
    pid = lab.outside.netns.split("/")[2]
    world.host.sh(f"ip link delete eth1; ip link add eth1 index {index} type veth peer name eth0 netns {pid}")
    for node in (world.host, world.outside):
        world._address(node)
    world.call(lab.up.attach, PARENT, True)
    c = lab.join("c")
    assert lab.host.pings(c.ip4)


def test_host_access_is_turned_off_and_on(world: World) -> None:
    lab = Lab(world)
    world.call(lab.up.attach, PARENT, False)
    assert not lab.host.pings(lab.a.ip4, wait_s=0.3)
    assert not lab.a.pings(lab.host.ip6, wait_s=0.3)
    assert lab.a.pings(lab.b.ip4)
    world.call(lab.up.attach, PARENT, True)
    assert lab.host.pings(lab.a.ip4)
    # One station of two networks on the parent.
    world.call(lab.up.add, PARENT, replace(lab.stations[lab.a], host_access=False))
    for node in (lab.host, lab.a, lab.b):
        node.forget_neighbours()
    assert not lab.host.pings(lab.a.ip4, wait_s=0.3)
    assert not lab.a.pings(lab.host.ip4, wait_s=0.3)
    assert lab.host.pings(lab.b.ip4)


def test_the_hosts_new_mac_counts_when_the_parent_is_attached_again(world: World) -> None:
    lab = Lab(world)
    world.host.sh("ip link set eth1 address 02:00:00:00:00:77")
    world.call(lab.up.attach, PARENT, True)
    for node in (lab.host, lab.a):
        node.forget_neighbours()
    assert lab.a.pings(lab.host.ip4)
    assert lab.host.pings(lab.b.ip6)


def test_a_station_that_changes_its_address_is_known_by_the_new_one_alone(world: World) -> None:
    lab = Lab(world)
    moved = replace(lab.stations[lab.a], ip4=IPv4Address("192.168.32.99"))
    world.call(lab.up.add, PARENT, moved)
    lab.a.sh("ip addr del 192.168.32.11/24 dev eth0; ip addr add 192.168.32.99/24 dev eth0")
    assert lab.host.pings("192.168.32.99")
    with opened(world, lab.up) as maps:
        addresses = {str(address) for _, address in maps.neighbours()}
    assert {"192.168.32.99"} == {each for each in addresses if each.endswith((".11", ".99"))}
    assert lab.counts()[0][lab.slot(lab.a)].in_fast_packets > 0


def test_a_station_that_comes_back_counts_on(world: World) -> None:
    lab = Lab(world)
    assert lab.host.pings(lab.a.ip4)
    before = lab.counts()[0]
    for _ in range(2):
        world.call(lab.up.remove, PARENT, lab.stations[lab.a])
    assert lab.slot(lab.a) not in lab.counts()[0]
    world.call(lab.up.add, PARENT, lab.stations[lab.a])
    assert_went_on(before, lab.counts()[0])
    # Known as another endpoint by now: an old removal has nothing to do with it.
    world.call(lab.up.remove, PARENT, replace(lab.stations[lab.a], slot=99))
    assert lab.slot(lab.a) in lab.counts()[0]


def test_endpoints_of_bridges_and_stations_leave_each_other_alone(world: World) -> None:
    lab = Lab(world)
    assert lab.host.pings(lab.a.ip4)
    before = lab.counts()[0]
    accelerator = Accelerator(world.bpffs / "linkspan", world.directory)
    world.call(accelerator.start, [])
    assert accelerator.problem is None
    assert_went_on(before, lab.counts()[0])
    assert world.call(accelerator.counters)[0] == {}
    lab.host.forget_neighbours()
    assert lab.host.pings(lab.a.ip4)
    # One run of the loader and one set of maps for both.
    up = Uplinks(accelerator.programs)
    world.call(up.start, {PARENT: list(lab.stations.values())}, {PARENT: True})
    assert world.call(up.counters)[0][lab.slot(lab.a)].in_fast_packets > 0
    accelerator.programs.close()


def failing(*_: Any, **__: Any) -> Any:
    raise loader.Unavailable("bcc", "not here")


def test_without_programs_those_of_an_earlier_linkspan_are_taken_away(
    world: World, attachment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = picture(world)
    lab = Lab(world, attachment=attachment)
    monkeypatch.setattr(loader, "load", failing)
    up = world.uplinks(attachment=attachment)
    world.call(up.start, {PARENT: list(lab.stations.values())}, {PARENT: True})
    assert up.problem is not None
    assert "bcc" in up.problem
    assert up.fallbacks == {"ebpf": up.problem}
    calls: list[Callable[[], Any]] = [
        lambda: up.attach(PARENT, True),
        lambda: up.add(PARENT, lab.stations[lab.a]),
        lambda: up.remove(PARENT, lab.stations[lab.a]),
        lambda: up.detach(PARENT),
    ]
    for call in calls:
        world.call(call)
    assert world.call(up.counters) == ({}, {})
    assert lab.a.pings(lab.outside.ip4)
    assert lab.a.pings(lab.b.ip4)
    for node in (lab.a, lab.b):
        node.sh("ip link delete eth0")
    assert picture(world) == before


def test_the_loader_is_asked_once_even_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(directory: str, **_: Any) -> Any:
        asked.append(directory)
        return failing()

    monkeypatch.setattr(loader, "load", load)
    programs = Programs(tmp_path, tmp_path)
    for _ in range(2):
        with pytest.raises(loader.Unavailable):
            programs.load()
    assert asked == [str(tmp_path)]


def test_a_parent_with_an_ingress_qdisc_says_so(world: World) -> None:
    """It has a hook at the ingress alone, and stands where clsact would."""
    world.host.sh("tc qdisc add dev eth1 ingress")
    up = world.uplinks(attachment="clsact")
    world.call(up.start, {PARENT: []}, {PARENT: True})
    assert up.problem is None
    assert f"parent {PARENT}" in up.fallbacks
    with pytest.raises(OSError, match="cannot add clsact to eth1"):
        world.call(up.attach, PARENT, True)
    assert "ls_parent" not in world.host.sh("tc filter show dev eth1 ingress")
