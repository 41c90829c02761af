"""Killed at any step, linkspand has macvlan networks and endpoints whole or not at all after its next start."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from tests.api_server import Reply
from tests.e2e.fragile import FragileHost
from tests.hosts import Host
from tests.netns.lan import PARENT, ROUTER4, lan, parent_state
from tests.traffic import Station

pytestmark = pytest.mark.root

PUB = {
    "Name": "pub",
    "Driver": "macvlan",
    "EnableIPv6": True,
    "IPAM": {"Config": [{"Subnet": "192.168.32.0/24"}, {"Subnet": "fd00:32::/64"}]},
    "Options": {"parent": PARENT},
}
ALONE = {"Name": "alone", "Driver": "macvlan", "IPAM": {"Config": [{"Subnet": "10.44.0.0/24"}]}}


@contextmanager
def existing(machine: Host) -> Iterator[Any]:
    """A host on the local network, and how its device is."""
    try:
        with lan(machine):
            yield parent_state(machine)
    finally:
        machine.close()


def ensure(machine: Host, *, networks: bool = False, box: bool = False, joined: bool = False) -> None:
    """Brings about exactly this, without being killed."""
    if not box:
        assert machine.ask("DELETE", "/linkspan/sandboxes/box?force=1").status in (204, 404)
    if not networks:
        for body in (PUB, ALONE):
            assert machine.ask("DELETE", f"/networks/{body['Name']}").status in (204, 404)
        return
    for body in (PUB, ALONE):
        assert machine.ask("POST", "/networks/create", body).status in (201, 409)
    if box and machine.ask("GET", "/linkspan/sandboxes/box").status == 404:
        assert create_box(machine).status == 201
    if joined and "alone" not in machine.ask("GET", "/linkspan/sandboxes/box").json["Networks"]:
        assert connect(machine).status == 200


def create_network(machine: Host) -> Reply:
    return machine.ask("POST", "/networks/create", ALONE)


def create_box(machine: Host) -> Reply:
    return machine.ask("POST", "/linkspan/sandboxes", {"Name": "box", "Networks": [{"Network": "pub"}]})


def connect(machine: Host) -> Reply:
    return machine.ask("POST", "/networks/alone/connect", {"Container": "box"})


def disconnect(machine: Host) -> Reply:
    return machine.ask("POST", "/networks/alone/disconnect", {"Container": "box"})


def remove_box(machine: Host) -> Reply:
    return machine.ask("DELETE", "/linkspan/sandboxes/box")


def remove_network(machine: Host) -> Reply:
    return machine.ask("DELETE", "/networks/alone")


def assert_whole(machine: Host, parent: Any) -> None:
    """Fails unless the kernel holds what the API shows, and nothing else.

    The parent is as it was when nothing is on it; as long as there is, the kernel has it take more MACs, by filters or
    promiscuously.
    """
    networks = [n for n in machine.ask("GET", "/networks").json if n["Driver"] == "macvlan"]
    isolated = {f"lm-{network['Id'][:12]}" for network in networks if network["Name"] == "alone"}
    made = {link["ifname"] for link in machine.ip("link")} - {"lo", "linkspan0", PARENT}
    assert made == isolated
    sandboxes = machine.ask("GET", "/linkspan/sandboxes?all=1").json
    if not any("pub" in sandbox["Networks"] for sandbox in sandboxes):
        assert parent_state(machine) == parent
    for sandbox in sandboxes:
        station = Station(machine, sandbox["Name"]) if sandbox["Networks"] else None
        shown = {
            (joined["InterfaceName"], joined["MacAddress"], joined["IPAddress"])
            for joined in sandbox["Networks"].values()
        }
        found = {
            (link["ifname"], link["address"], address["local"])
            for link in (station.ip("addr") if station else ())
            for address in link["addr_info"]
            if link.get("linkinfo", {}).get("info_kind") == "macvlan" and address["family"] == "inet"
        }
        assert found == shown
        if "pub" in sandbox["Networks"]:
            assert station is not None
            assert station.pings(ROUTER4)


CASES: dict[str, tuple[str, dict[str, bool], Callable[[Host], Reply]]] = {
    "network create": ("apply", {}, create_network),
    "sandbox create": ("apply", {"networks": True}, create_box),
    "connect": ("apply", {"networks": True, "box": True}, connect),
    "disconnect": ("revert", {"networks": True, "box": True, "joined": True}, disconnect),
    "sandbox rm": ("revert", {"networks": True, "box": True, "joined": True}, remove_box),
    "network rm": ("revert", {"networks": True}, remove_network),
}


def test_killed_at_any_step_the_next_start_has_it_whole_or_gone() -> None:
    machine = FragileHost(bpffs=False)
    with existing(machine) as parent:
        machine.start_fragile()
        for name, (phase, before, change) in CASES.items():
            for number in count(1):
                ensure(machine)
                ensure(machine, **before)
                is_through = machine.gets_through(change, phase, number, "after")
                assert_whole(machine, parent)
                if is_through:
                    assert number > 1, name
                    break
        ensure(machine)
        assert_whole(machine, parent)


def test_after_a_reboot_parents_and_endpoints_are_made_anew() -> None:
    before, after = Host(bpffs=False), Host(bpffs=False)
    with existing(before), existing(after) as parent:
        before.start("--metrics-listen", "off")
        ensure(before, networks=True, box=True, joined=True)
        old = before.ask("GET", "/linkspan/sandboxes/box").json["Networks"]
        before.stop(9)
        shutil.copytree(before.state_dir, after.state_dir, dirs_exist_ok=True)
        after.start("--metrics-listen", "off")
        assert after.ask("GET", "/linkspan/sandboxes/box").json["Networks"] == old
        assert_whole(after, parent)
        ensure(after)
        assert_whole(after, parent)


def test_what_no_record_knows_of_is_removed_at_start_and_what_is_not_ours_stays() -> None:
    machine = Host(bpffs=False)
    with existing(machine) as parent:
        machine.start("--metrics-listen", "off")
        ensure(machine, networks=True)
        machine.stop(9)
        (mark,) = [link["ifname"] for link in machine.ip("link") if link["ifname"].startswith("lm-")]
        (machine.state_dir / "linkspan.db").unlink()
        for name in ("lp0123456789ab", "lp-mine"):
            machine.run("ip", "link", "add", "link", PARENT, "name", name, "type", "macvlan")
        machine.start("--metrics-listen", "off")
        names = {link["ifname"] for link in machine.ip("link")}
        assert not {mark, "lp0123456789ab"} & names
        assert {"lp-mine", PARENT} <= names
        machine.run("ip", "link", "delete", "lp-mine")
        assert parent_state(machine) == parent
