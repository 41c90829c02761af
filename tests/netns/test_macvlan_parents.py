"""Parents of macvlan devices: how they look, what is made and marked, and that nobody else's is touched."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from datapath import devices, parents, rtnl
from tests.isolated import isolated, run
from tests.require import require

pytestmark = pytest.mark.root

ONE, OTHER = "lm-000000000001", "lm-000000000002"


def names() -> set[str]:
    return {link["ifname"] for link in json.loads(run("ip -json link"))} - {"lo"}


def link(ifname: str) -> Any:
    return json.loads(run(f"ip -json -d link show dev {ifname}"))[0]


def cable() -> None:
    run("ip link add eth1 mtu 1400 address 02:00:00:00:00:01 type veth peer name far")
    run("ip link set eth1 up; ip link set far up")


@isolated
def test_a_device_looks_as_ip_shows_it() -> None:
    cable()
    found = parents.look("eth1")
    assert found is not None
    shown = link("eth1")
    assert (found.ifindex, found.ifname, found.mac.hex(":"), found.mtu, found.kind) == (
        shown["ifindex"], "eth1", shown["address"], 1400, "veth",
    )  # fmt: skip
    assert (found.is_ethernet, found.is_loopback, found.is_up, found.master) == (True, False, True, 0)
    assert found.state == "up"
    assert found.marks == frozenset()
    run("ip link set far down")
    found = parents.look("eth1")
    assert found is not None
    assert found.state == "up, no carrier"
    run("ip link set eth1 down; ip link add br0 type bridge; ip link set eth1 master br0")
    run("ip link property add dev eth1 altname uplink altname lm-0000")
    found = parents.look("uplink")
    assert found is not None
    assert (found.ifname, found.altnames, found.marks) == ("eth1", {"uplink", "lm-0000"}, frozenset())
    assert (found.state, found.master) == ("down", link("br0")["ifindex"])
    loopback = parents.look("lo")
    assert loopback is not None
    assert (loopback.is_loopback, loopback.is_ethernet) == (True, False)
    assert parents.look("eth2") is None


@pytest.mark.parametrize(
    ("ifname", "parts"),
    [
        ("eth1.50", ("eth1", 50)),
        ("eth1.0", ("eth1", 0)),
        ("eth1.50.60", ("eth1.50", 60)),
        ("eth1.5000", ("eth1", 5000)),
        *((name, None) for name in ("eth1", "eth1.", ".50", "eth1.-1", "eth1.x", "eth1.5x", "eth1.\u0665", "")),
    ],
)
def test_a_sub_interfaces_name_is_device_and_number(ifname: str, parts: tuple[str, int] | None) -> None:
    assert parents.split_vlan(ifname) == parts


@isolated
def test_an_isolated_parent_is_up_has_no_address_and_may_be_made_again() -> None:
    for _ in range(2):
        parents.add_isolated(ONE, mtu=9000)
        shown = link(ONE)
        assert (shown["mtu"], "UP" in shown["flags"], shown["inet6_addr_gen_mode"]) == (9000, True, "none")
        assert json.loads(run(f"ip -json addr show dev {ONE}"))[0]["addr_info"] == []
    found = parents.look(ONE)
    assert found is not None
    assert (found.marks, found.kind in parents.ISOLATED_KINDS, found.state) == ({ONE}, True, "up")


@isolated
def test_a_kernel_without_kinds_for_an_isolated_parent_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parents, "ISOLATED_KINDS", ("nosuchkind", "norsuch"))
    with pytest.raises(rtnl.NetlinkError, match=f"cannot add {ONE}.*nosuchkind, norsuch") as caught:
        parents.add_isolated(ONE)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert names() == set()
    monkeypatch.setattr(parents, "ISOLATED_KINDS", ("veth",))
    with pytest.raises(rtnl.NetlinkError, match="a-name-that-is-too-long") as caught:
        parents.add_isolated("a-name-that-is-too-long")
    assert caught.value.errno != errno.EOPNOTSUPP


@isolated
def test_a_sub_interface_that_somebody_made_is_left_to_them() -> None:
    """Whatever kind of device has the name: it is the marks that say whose it is."""
    run("ip link add eth1.50 type veth peer name far")
    before = link("eth1.50")
    parents.hold_vlan("eth1.50", ONE)
    assert link("eth1.50") == before
    for _ in range(2):
        parents.release_vlan(ONE)
    assert link("eth1.50") == before


@isolated
def test_a_marked_sub_interface_goes_with_the_last_of_its_networks() -> None:
    """Made here by hand with the first mark, as no kernel without 802.1Q would make it."""
    run(f"ip link add eth1.50 type veth peer name far; ip link property add dev eth1.50 altname {ONE}")
    for _ in range(2):
        parents.hold_vlan("eth1.50", OTHER)
        assert set(link("eth1.50")["altnames"]) == {ONE, OTHER}
        assert "UP" in link("eth1.50")["flags"]
    for _ in range(2):
        parents.release_vlan(ONE)
        assert link("eth1.50")["altnames"] == [OTHER]
    for _ in range(2):
        parents.release_vlan(OTHER)
        assert names() == set()


@isolated
def test_a_sub_interface_of_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(rtnl.NetlinkError, match="device eth7 is gone"):
        parents.hold_vlan("eth7.50", ONE)
    with pytest.raises(ValueError, match="eth7 is no name of a sub-interface"):
        parents.hold_vlan("eth7", ONE)
    parents.release_vlan(ONE)
    assert names() == set()


@isolated
def test_a_sub_interface_is_made_marked_and_up_and_the_device_below_is_as_before() -> None:
    require("vlan")
    cable()
    before = link("eth1")
    for _ in range(2):
        parents.hold_vlan("eth1.50", ONE)
        made = link("eth1.50")
        assert (made["linkinfo"]["info_kind"], made["linkinfo"]["info_data"]["id"], made["link"]) == (
            "vlan",
            50,
            "eth1",
        )
        assert (made["mtu"], made["altnames"], "UP" in made["flags"]) == (1400, [ONE], True)
    parents.hold_vlan("eth1.50", OTHER)
    parents.release_vlan(ONE)
    parents.release_vlan(OTHER)
    assert names() == {"eth1", "far"}
    assert link("eth1") == before
    run("ip link add link eth1 name taken type vlan id 60")
    with pytest.raises(rtnl.NetlinkError, match=r"cannot add VLAN eth1\.60: File exists"):
        parents.hold_vlan("eth1.60", ONE)
    assert names() == {"eth1", "far", "taken"}


@isolated
def test_a_sweep_removes_what_nobody_knows_and_nothing_else() -> None:
    """Docker calls its own isolated devices dm-; other kinds of devices may be called anything."""
    for mark in (ONE, OTHER, "lm-000000000003"):
        parents.add_isolated(mark)
    run("ip link set lm-000000000003 name dm-000000000003; ip link add lm-000000000004 type veth peer name far")
    parents.sweep({ONE})
    assert names() == {ONE, "dm-000000000003", "lm-000000000004", "far"}
    parents.sweep(())
    assert names() == {"dm-000000000003", "lm-000000000004", "far"}
    assert devices.ifindex(ONE) is None


@isolated
def test_a_sweep_takes_marks_that_nobody_knows_off_sub_interfaces() -> None:
    require("vlan")
    cable()
    run("ip link add link eth1 name eth1.60 type vlan id 60")
    for mark in (ONE, OTHER):
        parents.hold_vlan("eth1.50", mark)
    parents.sweep({OTHER})
    assert link("eth1.50")["altnames"] == [OTHER]
    parents.sweep(())
    assert names() == {"eth1", "far", "eth1.60"}
