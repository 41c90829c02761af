"""What VXLAN device and bridge know of peers, as bridge(8) and ip(8) show it: what is wanted, whatever was there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from datapath import devices, rtnl, vxlan
from datapath.announce import Announcer
from datapath.vxlan import Peer, Vtep
from datapath.vxlan_peers import PeerTable, Table
from tests.isolated import isolated, run
from tests.netns.underlay import peer, sandbox_addresses, sandbox_mac

NODE_B, NODE_C = ip_address("10.99.0.2"), ip_address("10.99.0.3")
VTEP = Vtep(ifname="lx-1", bridge="lo-1", vni=4711, local=IPv4Address("10.99.0.1"), mtu=1450)
VTEP6 = Vtep(ifname="lx-1", bridge="lo-1", vni=4711, local=IPv6Address("fd99::1"), mtu=1430)
Known = dict[str, Any]


@pytest.fixture
def announcer() -> Iterator[Announcer]:
    made = Announcer()
    yield made
    made.close()


def make_table(announcer: Announcer, vtep: Vtep = VTEP) -> PeerTable:
    """A bridge with a VXLAN device and the port of a local endpoint."""
    devices.add_bridge("lo-1", mac="02:4c:00:00:00:01", mtu=vtep.mtu, ipv6=True)
    vxlan.add(vtep)
    run("ip link add ls1 type veth peer name eth0")
    run("ip link set ls1 master lo-1; bridge link set dev ls1 learning off flood off; ip link set ls1 up")
    return PeerTable(vtep, announcer)


def join_locally(number: int) -> None:
    """As a driver makes the host's entries for a local endpoint."""
    mac, bridge = sandbox_mac(number), devices.need_ifindex("lo-1")
    with rtnl.Rtnl() as netlink:
        netlink.apply(
            [
                rtnl.fdb_add(devices.need_ifindex("ls1"), "ls1", mac),
                *(rtnl.neighbour_add(bridge, "lo-1", each, mac) for each in sandbox_addresses(number)[:2]),
            ]
        )


def shown() -> Known:
    """All that is known of peers: node by MAC, MACs on the port, nodes that get broadcasts, MAC by address."""
    fdb = json.loads(run("bridge -json fdb show dev lx-1"))
    own = [each for each in fdb if "self" in each["flags"]]
    broadcasts = [each["dst"] for each in own if each["mac"] == "00:00:00:00:00:00"]
    assert all(each["state"] == "permanent" for each in own)
    neighbours = [
        each
        for version in ("-4", "-6")
        for each in json.loads(run(f"ip -json {version} neigh show dev lo-1 nud permanent") or "[]")
    ]
    return {
        "nodes": {each["mac"]: each["dst"] for each in own if each["mac"] != "00:00:00:00:00:00"},
        "macs": sorted({each["mac"] for each in fdb if "master" in each and each["state"] == "static"}),
        "broadcasts": sorted(broadcasts),
        "neighbours": {each["dst"]: each["lladdr"] for each in neighbours if "extern_learn" in each},
    }


def expected(peers: Iterable[Peer]) -> Known:
    """What `shown` shows for these."""
    peers = list(peers)
    return {
        "nodes": {each.mac.hex(":"): str(each.node) for each in peers},
        "macs": sorted(each.mac.hex(":") for each in peers),
        "broadcasts": sorted({str(each.node) for each in peers}),
        "neighbours": {str(address): each.mac.hex(":") for each in peers for address in each.addresses},
    }


def local_entries() -> tuple[str, str]:
    """What is known of local endpoints."""
    neighbours = run("ip -4 neigh show dev lo-1 nud permanent; ip -6 neigh show dev lo-1 nud permanent")
    return (
        run("bridge fdb show dev ls1"),
        "\n".join(line for line in neighbours.splitlines() if "extern_learn" not in line),
    )


@isolated
def test_peers_come_change_and_go_one_by_one(announcer: Announcer) -> None:
    table = make_table(announcer)
    join_locally(1)
    before = local_entries()
    two, three, four = peer(2, NODE_B), peer(3, NODE_B), peer(4, NODE_C)
    for added, removed, then in (
        ([two], [], [two]),
        ([three, four], [], [two, three, four]),
        ([], [two], [three, four]),
        ([], [three], [four]),
        ([peer(4, NODE_B)], [], [peer(4, NODE_B)]),
        ([peer(4, NODE_C)], [peer(4, NODE_B)], [four]),
        ([], [four], []),
    ):
        assert table.change(added, removed)
        assert shown() == expected(then)
        assert table.change(added, removed) == []
        assert shown() == expected(then)
    assert local_entries() == before


@isolated
def test_what_is_there_is_brought_to_exactly_what_is_wanted_and_local_endpoints_stay(announcer: Announcer) -> None:
    table = make_table(announcer)
    join_locally(1)
    before = local_entries()
    run("bridge fdb add 02:00:00:00:00:01 dev lx-1 dst 10.99.0.9")
    run("bridge fdb add 33:33:00:00:00:01 dev lx-1 dst 10.99.0.8")
    run(f"bridge fdb add {sandbox_mac(2).hex(':')} dev lx-1 dst 10.99.0.9")
    run("bridge fdb append 00:00:00:00:00:00 dev lx-1 dst 10.99.0.9")
    run("bridge fdb append 00:00:00:00:00:00 dev lx-1 dst 10.99.0.2")
    run("bridge fdb add 02:00:00:00:00:02 dev lx-1 master static")
    run("ip neigh add 10.8.0.2 lladdr 02:00:00:00:00:02 dev lo-1 nud permanent extern_learn")
    run("ip neigh add 10.8.0.9 lladdr 02:00:00:00:00:02 dev lo-1 nud permanent extern_learn")
    run("ip neigh add fd08::9 lladdr 02:00:00:00:00:02 dev lo-1 nud permanent extern_learn")
    wanted = [peer(2, NODE_B), peer(3, NODE_C)]
    dumped = shown()
    found = table.differences(wanted)
    assert shown() == dumped
    # MAC 1, the group, 2 and 3; 2, 3 and the stranger on the port; 10.99.0.3 and .9; three addresses each and two more
    assert {each: [d.table for d in found].count(each) for each in Table} == {
        Table.FDB: 4,
        Table.PORT: 3,
        Table.BROADCAST: 2,
        Table.NEIGHBOUR: 8,
    }
    assert sorted(table.synchronize(wanted), key=repr) == sorted(found, key=repr)
    assert shown() == expected(wanted)
    assert table.synchronize(wanted) == table.differences(wanted) == []
    assert local_entries() == before
    table.synchronize([])
    assert shown() == expected([])
    assert local_entries() == before


@isolated
def test_differences_are_told_in_words(announcer: Announcer) -> None:
    table = make_table(announcer)
    table.change([peer(2, NODE_B)])
    run(f"bridge fdb replace {sandbox_mac(2).hex(':')} dev lx-1 dst 10.99.0.3")
    run("ip neigh del 10.8.0.2 dev lo-1")
    run("bridge fdb append 00:00:00:00:00:00 dev lx-1 dst 10.99.0.9")
    assert sorted(map(str, table.differences([peer(2, NODE_B)]))) == [
        "extra: broadcasts to node 10.99.0.9",
        "missing: MAC of address 10.8.0.2, should be 02:42:0a:08:00:02",
        "other: node of MAC 02:42:0a:08:00:02, is 10.99.0.3, should be 10.99.0.2",
    ]


@isolated
def test_an_endpoint_that_became_local_keeps_its_new_entries(announcer: Announcer) -> None:
    """The news that it left the other node may come after it joined here."""
    table = make_table(announcer)
    table.change([peer(2, NODE_B), peer(3, NODE_B)])
    join_locally(2)
    here = local_entries()
    table.change([], [peer(2, NODE_B)])
    assert local_entries() == here
    assert shown() == expected([peer(3, NODE_B)])


@isolated
def test_an_address_that_another_peer_took_over_stays_with_it(announcer: Announcer) -> None:
    table = make_table(announcer)
    old = peer(2, NODE_B)
    new = Peer(mac=sandbox_mac(9), addresses=old.addresses, node=NODE_C)
    table.change([old])
    table.change([new])
    table.change([], [old])
    assert shown() == expected([new])
    fewer = Peer(mac=sandbox_mac(9), addresses=old.addresses[:1], node=NODE_C)
    table.change([fewer])
    assert shown() == expected([fewer])


@isolated
@pytest.mark.parametrize(("vtep", "node"), [(VTEP, NODE_B), (VTEP6, IPv6Address("fd99::2"))])
def test_any_sequence_of_changes_ends_where_a_fresh_start_does(announcer: Announcer, vtep: Vtep, node: Any) -> None:
    table, chance = make_table(announcer, vtep), random.Random(5)
    there: dict[bytes, Peer] = {}
    for _ in range(60):
        added = [peer(chance.randrange(2, 12), node + chance.randrange(3)) for _ in range(chance.randrange(3))]
        added = list({each.mac: each for each in added}.values())
        coming = {each.mac for each in added}
        removed = [each for each in there.values() if each.mac not in coming and chance.random() < 0.2]
        table.change(added, removed)
        for each in removed:
            del there[each.mac]
        there.update({each.mac: each for each in added})
        assert shown() == expected(there.values())


@isolated
def test_a_device_that_vanished_is_named_and_filled_again_when_it_is_back(announcer: Announcer) -> None:
    table = make_table(announcer)
    wanted = [peer(2, NODE_B)]
    table.change(wanted)
    run("ip link del lx-1")
    attempts: list[Callable[[], object]] = [
        lambda: table.change([peer(3, NODE_B)]),
        lambda: table.synchronize(wanted),
        lambda: table.differences(wanted),
    ]
    for attempt in attempts:
        with pytest.raises(rtnl.NetlinkError, match="device lx-1 is gone"):
            attempt()
    vxlan.add(VTEP)
    table.synchronize(wanted)
    assert shown() == expected(wanted)


@isolated
def test_thousands_of_peers_are_known_and_forgotten(announcer: Announcer) -> None:
    """More than the 1,024 neighbours that a machine's namespaces may learn (gc_thresh3)."""
    table = make_table(announcer)
    peers = [peer(number, NODE_B + number % 50) for number in range(2, 2002)]
    assert len(table.synchronize(peers)) == 2000 * 5 + 50
    assert shown() == expected(peers)
    assert table.synchronize(peers) == []
    assert len(table.change([peer(3000, NODE_B)])) == 5
    table.synchronize([])
    assert shown() == expected([])
