"""Which networks are told to be looked after when devices change, on the kernel's devices and the monitor's messages.

A sub-interface is a veth with the name and the mark of one: no kernel without 802.1Q would make another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from control.drivers.macvlan_parents import FollowedParents, mark_of
from control.errors import Conflict
from control.model import Network, NetworkId, NetworkState
from datapath import parents
from datapath.link_monitor import LinkMonitor
from tests.isolated import isolated, run

pytestmark = pytest.mark.root


def network(parent: str, number: int = 1) -> Network:
    return Network(
        id=NetworkId(f"{number:012x}".ljust(64, "0")),
        name="pub",
        driver="macvlan",
        state=NetworkState.ACTIVE,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        segment=number,
        options={"parent": parent} if parent else {},
    )


def add(ifname: str, *options: str) -> None:
    run(f"ip link add {ifname} {' '.join(options)} type veth peer name far-{ifname}")
    run(f"ip link set {ifname} up; ip link set far-{ifname} up")


class Followed:
    """Networks that are followed, and a monitor."""

    def __init__(self, *networks: Network) -> None:
        self.networks = networks
        self.parents = FollowedParents()
        self.monitor = LinkMonitor()
        for each in networks:
            self.parents.follow(each)
        self.monitor.changes()

    def concerned(self, *commands: str, failed: bool = False) -> list[Network]:
        """Those that are to be looked after when all of this has happened at once."""
        for command in commands:
            run(command)
        ids = {each.id for each in self.networks} if failed else set()
        return self.parents.concerned(self.networks, self.monitor.changes(), ids)


@contextmanager
def followed(*networks: Network) -> Iterator[Followed]:
    made = Followed(*networks)
    try:
        yield made
    finally:
        made.monitor.close()


def index(ifname: str) -> int:
    return int(json.loads(run(f"ip -json link show dev {ifname}"))[0]["ifindex"])


@isolated
def test_what_changes_nothing_for_endpoints_concerns_nobody() -> None:
    add("eth1")
    add("v0")
    pub = network("eth1")
    with followed(pub) as lab:
        for command in ("promisc on", "mtu 1400", "down", "up", "alias uplink", "name eth9"):
            assert lab.concerned(f"ip link set eth1 {command}") == [], command
        assert lab.concerned("ip link set eth9 name eth1") == []
        assert lab.concerned("ip link set far-eth1 down", "ip link set far-eth1 up") == []
        assert lab.concerned("ip link delete v0") == []
        assert lab.concerned("ip link set eth1 promisc off", failed=True) == []


@isolated
def test_another_mac_and_another_device_concern_the_networks_on_it() -> None:
    add("eth1")
    add("eth2")
    pub, second, other = network("eth1"), network("eth1", 2), network("eth2", 3)
    with followed(pub, second, other) as lab:
        assert lab.concerned("ip link set eth1 address 02:00:00:00:00:01") == [pub, second]
        assert lab.concerned("ip link set eth1 name eth9; ip link set eth2 name eth1") == [pub, second]
        assert lab.concerned("ip link delete eth1") == []
        assert lab.concerned("ip link set eth9 name eth2") == [other]
        assert lab.concerned("ip link add eth1 type veth peer name again") == [pub, second]
        assert lab.concerned() == []


@isolated
def test_a_device_that_was_gone_between_two_looks_concerns_them_even_as_it_was() -> None:
    add("eth1", "index", "77", "address", "02:00:00:00:00:01")
    pub = network("eth1")
    with followed(pub) as lab:
        run("ip link delete eth1")
        add("eth1", "index", "77", "address", "02:00:00:00:00:01")
        assert index("eth1") == 77
        assert lab.concerned() == [pub]


@isolated
def test_after_an_overrun_all_are_concerned_whose_parent_is_there() -> None:
    add("eth1")
    pub, other = network("eth1"), network("eth7", 2)
    followers = FollowedParents()
    for each in (pub, other):
        followers.follow(each)
    assert followers.concerned([pub, other], None, ()) == [pub]


@isolated
def test_what_failed_is_tried_again_when_the_device_is_another_way() -> None:
    add("eth1")
    run("ip link add br0 type bridge; ip link set eth1 master br0")
    pub = network("eth1")
    with followed(pub) as lab:
        assert lab.concerned("ip link set eth1 mtu 1400", failed=True) == []
        assert lab.concerned("ip link set eth1 nomaster", failed=True) == [pub]
        assert lab.concerned("ip link set eth1 down", failed=True) == [pub]


@isolated
def test_a_sub_interface_that_was_made_here_is_made_again_when_the_device_below_is_up() -> None:
    pub = network("eth1.50")
    add("eth1")
    add("eth1.50")
    run(f"ip link property add dev eth1.50 altname {mark_of(pub)}")
    with followed(pub) as lab:
        assert lab.concerned("ip link delete eth1.50") == [pub], "the device below is there"
        assert lab.concerned("ip link set eth1 down") == []
        assert lab.concerned("ip link set eth1 up") == [pub]
        assert lab.concerned("ip link delete eth1") == []
        add("eth1")
        assert lab.concerned() == [pub]
        add("eth1.50")
        assert lab.concerned() == [pub]


@isolated
def test_a_sub_interface_that_somebody_else_made_is_waited_for() -> None:
    add("eth1")
    add("eth1.50")
    pub = network("eth1.50")
    with followed(pub) as lab:
        assert lab.concerned("ip link delete eth1.50", "ip link delete eth1") == []
        add("eth1")
        assert lab.concerned() == []
        add("eth1.50")
        assert lab.concerned() == [pub]


@isolated
def test_a_sub_interface_that_a_start_could_not_make_is_made_when_it_can_be() -> None:
    pub = network("eth1.50")
    with followed(pub) as lab:
        add("eth1")
        assert lab.concerned() == [pub]


@isolated
def test_an_isolated_parent_that_is_gone_is_made_again_at_once() -> None:
    pub = network("")
    parents.add_isolated(mark_of(pub))
    with followed(pub) as lab:
        assert lab.concerned(f"ip link delete {mark_of(pub)}") == [pub]
        assert lab.concerned() == []


@isolated
def test_a_renamed_sub_interface_is_known_by_its_mark_and_released() -> None:
    pub = network("eth1.50")
    add("eth1.50")
    run(f"ip link property add dev eth1.50 altname {mark_of(pub)}; ip link set eth1.50 name mine")
    with followed(pub) as lab:
        assert lab.parents.state(pub).state == "renamed to mine"
        assert lab.parents.ifname(pub) == "mine"
        parents.release_vlan(mark_of(pub))
        assert "mine" not in run("ip link")


@isolated
def test_an_altname_is_as_good_as_a_name() -> None:
    add("eth1")
    pub = network("eth1")
    with followed(pub) as lab:
        assert lab.concerned("ip link set eth1 name lan0; ip link property add dev lan0 altname eth1") == []
        assert lab.parents.state(pub).state == "up"
        assert lab.parents.need(pub).ifname == "lan0"


@isolated
def test_what_carries_the_endpoints_is_followed_where_the_name_leads_nowhere() -> None:
    add("eth9")
    pub = network("eth1")
    followers = FollowedParents()
    followers.follow(pub, lambda: index("eth9"))
    assert followers.state(pub).state == "renamed to eth9"
    assert followers.ifindex(pub) == index("eth9")
    with pytest.raises(Conflict, match="parent eth1 of network pub was renamed to eth9"):
        followers.need(pub)
    run("ip link set eth9 down")
    assert followers.state(pub).state == "renamed to eth9, down"
    run("ip link delete eth9")
    assert (followers.state(pub).state, followers.ifname(pub), followers.ifindex(pub)) == ("gone", "eth1", None)
    with pytest.raises(Conflict, match="parent eth1 of network pub is gone: endpoints can join when it is back"):
        followers.need(pub)


@isolated
def test_a_network_that_is_removed_is_not_followed_any_more() -> None:
    add("eth1")
    pub = network("eth1")
    with followed(pub) as lab:
        for _ in range(2):
            lab.parents.forget(pub)
        assert lab.concerned("ip link delete eth1") == []
        add("eth1")
        assert lab.concerned() == []
