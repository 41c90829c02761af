"""Addresses that somebody has already, with packets: who is noticed, who is not, and what the parent is left with.

Other machines are the kernel's own stack, and frames that scapy makes.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils6 import in6_getnsma, in6_getnsmac

from datapath import conflict, netns
from datapath.conflict import Holder
from tests.api_server import Reply
from tests.e2e.test_macvlan_engine import Engine
from tests.hosts import Host, wait_for
from tests.netns.lan import HOST4, HOST6, PARENT, ROUTER4, ROUTER6, Lan, lan_host, lan_net, parent_state
from tests.traffic import BROADCAST, Place, Station, Wire

pytestmark = pytest.mark.root
net, machine = lan_net, lan_host

SUBNET4, SUBNET6 = "192.168.32.0/24", "fd00:32::/64"
FREE4, FREE6 = "192.168.32.77", "fd00:32::77"
NEXT4 = "192.168.32.78"
MINE, OTHERS = "02:00:00:00:77:01", "02:00:00:00:77:02"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
GROUP6 = socket.inet_ntop(socket.AF_INET6, in6_getnsma(socket.inet_pton(socket.AF_INET6, FREE6)))
GROUP6_MAC = in6_getnsmac(in6_getnsma(socket.inet_pton(socket.AF_INET6, FREE6)))


def on_link(machine: Host, *addresses: str, mac: str = MINE, is_passthru: bool = False) -> Holder | None:
    """Asks on the host's parent; no file is left open."""

    def ask() -> Holder | None:
        before = sorted(os.listdir("/proc/self/fd"))
        (link,) = [link for link in links if link["ifname"] == PARENT]
        raw = bytes.fromhex(mac.replace(":", ""))
        found = conflict.on_link(link["ifindex"], list(map(ip_address, addresses)), mac=raw, is_passthru=is_passthru)
        assert sorted(os.listdir("/proc/self/fd")) == before
        return found

    links = machine.ip("link")
    return netns.call(f"/proc/{machine.pid}/ns/net", ask)


def on_host(machine: Host, *addresses: str) -> Holder | None:
    return netns.call(f"/proc/{machine.pid}/ns/net", lambda: conflict.on_host(list(map(ip_address, addresses))))


def holder(address: str, mac: str, ifname: str | None = None) -> Holder:
    return Holder(ip_address(address), bytes.fromhex(mac.replace(":", "")), ifname)


@contextmanager
def other_has(net: Lan, *addresses: str) -> Iterator[str]:
    """Another machine has the addresses; its MAC."""
    place = net.router.place
    for address in addresses:
        length = "64" if ":" in address else "24"
        place.run("ip", "addr", "add", f"{address}/{length}", "dev", "eth0", *(["nodad"] if ":" in address else []))
    try:
        yield place.mac
    finally:
        for address in addresses:
            place.run("ip", "addr", "del", f"{address}/{'64' if ':' in address else '24'}", "dev", "eth0")


# -- who is noticed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [(ROUTER4, FREE6), (FREE4, ROUTER6)])
@pytest.mark.parametrize("is_passthru", [False, True])
def test_another_machine_is_noticed(machine: Host, net: Lan, addresses: tuple[str, str], is_passthru: bool) -> None:
    mac = parent_state(machine)[0]["address"] if is_passthru else MINE
    taken = next(address for address in addresses if address in (ROUTER4, ROUTER6))
    assert on_link(machine, *addresses, mac=mac, is_passthru=is_passthru) == holder(taken, net.router.place.mac)


def test_a_free_address_is_free_and_asked_for_three_times(machine: Host, net: Lan) -> None:
    with net.router.place.wire() as wire:
        assert on_link(machine, FREE4, FREE6) is None
        wire.send(Ether(src=OTHERS, dst=net.router.place.mac, type=0x88B5) / b"the end")
        heard = [Ether(frame) for frame in wire.until_idle()]
    asked = [bytes(frame) for frame in heard if frame.src == MINE and (ARP in frame or ICMPv6ND_NS in frame)]
    probe = Ether(src=MINE, dst=BROADCAST) / ARP(op=1, hwsrc=MINE, psrc="0.0.0.0", hwdst="00:" * 5 + "00", pdst=FREE4)
    solicitation = Ether(src=MINE, dst=GROUP6_MAC) / IPv6(src="::", dst=GROUP6, hlim=255) / ICMPv6ND_NS(tgt=FREE6)
    assert asked == [bytes(probe), bytes(solicitation)] * 3


def test_an_address_that_another_machine_is_about_to_take_is_noticed_there(machine: Host, net: Lan) -> None:
    """By Linux, whose own duplicate address detection has our solicitation for that of somebody else."""
    place = net.router.place
    place.run("sysctl", "-qw", "net.ipv6.conf.eth0.dad_transmits=60")
    place.run("ip", "addr", "add", f"{FREE6}/64", "dev", "eth0")
    try:
        on_link(machine, FREE6)
        (link,) = place.ip("addr", "show", "dev", "eth0", "to", FREE6)
        assert link["addr_info"][0].get("dadfailed")
    finally:
        place.run("ip", "addr", "del", f"{FREE6}/64", "dev", "eth0")
        place.run("sysctl", "-qw", "net.ipv6.conf.eth0.dad_transmits=1")


@pytest.mark.parametrize("address", [FREE4, FREE6])
def test_a_macvlan_device_that_somebody_made_on_the_parent_is_noticed(machine: Host, net: Lan, address: str) -> None:
    other = net.machine()
    pid = str(other.pid)
    machine.run("ip", "link", "add", "link", PARENT, "name", "mv0", "netns", pid, "type", "macvlan", "mode", "bridge")
    try:
        other.run("ip", "link", "set", "mv0", "up")
        length, rest = ("64", ["nodad"]) if ":" in address else ("24", [])
        other.run("ip", "addr", "add", f"{address}/{length}", "dev", "mv0", *rest)
        mac = other.ip("link", "show", "dev", "mv0")[0]["address"]
        assert on_link(machine, address) == holder(address, mac)
    finally:
        other.run("ip", "link", "delete", "mv0")


def test_the_hosts_own_addresses_are_noticed_on_any_device(machine: Host) -> None:
    mac = parent_state(machine)[0]["address"]
    assert on_host(machine, FREE4, HOST4) == holder(HOST4, mac, PARENT)
    assert on_host(machine, HOST6, FREE6) == holder(HOST6, mac, PARENT)
    assert on_host(machine, FREE4, FREE6) is None
    machine.run("ip", "addr", "add", f"{FREE4}/32", "dev", "lo")
    found = on_host(machine, FREE4)
    machine.run("ip", "addr", "del", f"{FREE4}/32", "dev", "lo")
    assert found == holder(FREE4, "00:00:00:00:00:00", "lo")


def test_an_address_that_the_host_lost_to_another_is_not_the_hosts(machine: Host, net: Lan) -> None:
    with other_has(net, FREE6) as mac:
        machine.run("ip", "addr", "add", f"{FREE6}/64", "dev", PARENT)

        def has_lost() -> Any:
            (link,) = machine.ip("addr", "show", "dev", PARENT, "to", FREE6)
            return link["addr_info"][0].get("dadfailed")

        try:
            wait_for(has_lost, "the host to give up an address that another has")
            assert on_host(machine, FREE6) is None
            assert on_link(machine, FREE6) == holder(FREE6, mac)
        finally:
            machine.run("ip", "addr", "del", f"{FREE6}/64", "dev", PARENT)


def while_asking(machine: Host, net: Lan, address: str, frames: Sequence[Packet]) -> Holder | None:
    """What is found when the frames come in from the network just after the first question went out."""
    with net.router.place.wire() as wire, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(on_link, machine, address)
        _wait_for_question(wire)
        wire.send(*frames)
        return asking.result(60)


def _wait_for_question(wire: Wire) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        frame = wire.receive(1)
        if frame is not None and Ether(frame).src == MINE and Ether(frame).type in (0x0806, 0x86DD):
            return
    raise AssertionError("nobody asked")


def arp(**fields: Any) -> Packet:
    frame = Ether(src=fields.get("hwsrc", OTHERS), dst=fields.pop("dst", BROADCAST))
    return frame / ARP(**{"hwsrc": OTHERS, "hwdst": "00:00:00:00:00:00", **fields})


def nd(message: Packet, *, src: str, dst: str = GROUP6, mac: str = OTHERS, **fields: Any) -> Packet:
    to = ALL_NODES_MAC if dst == ALL_NODES else GROUP6_MAC
    return Ether(src=mac, dst=to) / IPv6(src=src, dst=dst, **{"hlim": 255, **fields}) / message


@pytest.mark.parametrize(
    ("address", "frame"),
    [
        (FREE4, arp(op=1, psrc="0.0.0.0", pdst=FREE4)),
        (FREE4, arp(op=1, psrc=FREE4, pdst=FREE4)),
        (FREE4, arp(op=2, psrc=FREE4, pdst=FREE4)),
        (FREE4, arp(op=1, psrc=FREE4, pdst=ROUTER4)),
        (FREE4, arp(op=2, psrc=FREE4, pdst="0.0.0.0", hwdst=MINE, dst=MINE)),
        (FREE6, nd(ICMPv6ND_NS(tgt=FREE6), src="::")),
        (FREE6, nd(ICMPv6ND_NA(tgt=FREE6, R=0, S=0, O=1), src=FREE6, dst=ALL_NODES)),
        (FREE6, nd(ICMPv6ND_NA(tgt=FREE6, R=1, S=1, O=0), src="fe80::1", dst=ALL_NODES)),
    ],
    ids=["probe", "announcement", "gratuitous-reply", "question", "reply", "dad", "advertisement", "from-link-local"],
)
def test_whoever_speaks_for_the_address_or_probes_for_it_too_is_noticed(
    machine: Host, net: Lan, address: str, frame: Packet
) -> None:
    assert while_asking(machine, net, address, [frame]) == holder(address, OTHERS)


def test_traffic_that_says_nothing_of_the_address_is_passed_over(machine: Host, net: Lan) -> None:
    claim = arp(op=2, psrc=FREE4, pdst=FREE4)
    frames = [
        arp(op=1, psrc=ROUTER4, pdst=FREE4),
        arp(op=1, psrc="0.0.0.0", pdst=NEXT4),
        arp(op=1, psrc=NEXT4, pdst=NEXT4),
        arp(op=1, psrc="0.0.0.0", pdst=FREE4, hwsrc=MINE),
        arp(op=3, psrc=FREE4, pdst=FREE4),
        arp(op=2, psrc=FREE4, pdst=FREE4, hwtype=6),
        Ether(src=OTHERS, dst=BROADCAST) / Dot1Q(vlan=50) / claim.payload,
        Ether(src=OTHERS, dst=BROADCAST, type=0x0806) / bytes(claim.payload)[:27],
        *(arp(op=1, psrc=ROUTER4, pdst=ROUTER4) for _ in range(2000)),
    ]
    assert while_asking(machine, net, FREE4, frames) is None


def test_neighbour_discovery_that_says_nothing_of_the_address_is_passed_over(machine: Host, net: Lan) -> None:
    claim = nd(ICMPv6ND_NA(tgt=FREE6), src=FREE6, dst=ALL_NODES)
    frames = [
        nd(ICMPv6ND_NS(tgt=FREE6), src=ROUTER6),
        nd(ICMPv6ND_NS(tgt="fd00:32::1:0:77"), src="::"),
        nd(ICMPv6ND_NS(tgt=FREE6), src="::", mac=MINE),
        nd(ICMPv6ND_NA(tgt=ROUTER6), src=ROUTER6, dst=ALL_NODES),
        nd(ICMPv6ND_NA(tgt=FREE6), src=FREE6, dst=ALL_NODES, hlim=64),
        nd(ICMPv6ND_NA(tgt=FREE6, code=1), src=FREE6, dst=ALL_NODES),
        nd(ICMPv6ND_NA(tgt=FREE6, cksum=0x1234), src=FREE6, dst=ALL_NODES),
        Ether(src=OTHERS, dst=ALL_NODES_MAC) / Dot1Q(vlan=50) / claim.payload,
        Ether(src=OTHERS, dst=ALL_NODES_MAC, type=0x86DD) / bytes(claim.payload)[:63],
        *(nd(ICMPv6ND_NA(tgt=ROUTER6), src=ROUTER6, dst=ALL_NODES) for _ in range(2000)),
    ]
    assert while_asking(machine, net, FREE6, frames) is None


def test_a_parent_that_vanishes_while_it_is_asked_is_no_error(machine: Host) -> None:
    machine.run("ip", "link", "add", "eth8", "type", "veth", "peer", "name", "far8")
    machine.run("sh", "-c", "ip link set eth8 up; ip link set far8 up")
    index = machine.ip("link", "show", "dev", "eth8")[0]["ifindex"]
    ask = partial(conflict.on_link, index, [ip_address(FREE4)], mac=bytes.fromhex(MINE.replace(":", "")))
    with Place(machine, "far", f"/proc/{machine.pid}/ns/net", "far8").wire() as wire, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(netns.call, f"/proc/{machine.pid}/ns/net", ask)
        _wait_for_question(wire)
        machine.run("ip", "link", "delete", "eth8")
        assert asking.result(60) is None


# -- what the API makes of it ----------------------------------------------------------------------------------------


def create(machine: Host, name: str, *, check: str | None = None, ip_range: str | None = None, **options: str) -> Reply:
    pool = {"Subnet": SUBNET4, **({"IPRange": ip_range} if ip_range else {})}
    body = {
        "Name": name,
        "Driver": "macvlan",
        "EnableIPv6": True,
        "IPAM": {"Config": [pool, {"Subnet": SUBNET6}]},
        "Options": {"parent": PARENT, **options, **({"linkspan.conflict_check": check} if check is not None else {})},
    }
    return machine.ask("POST", "/networks/create", body)


def run(machine: Host, name: str, network: str = "pub", **addresses: str) -> Reply:
    endpoint = {"Network": network, **({"IPAMConfig": addresses} if addresses else {})}
    return machine.ask("POST", "/linkspan/sandboxes", {"Name": name, "Networks": [endpoint]})


@pytest.mark.parametrize("address", [FREE4, FREE6])
@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
def test_an_address_that_is_asked_for_and_in_use_is_refused_naming_who_has_it(
    machine: Host, net: Lan, mode: str, address: str
) -> None:
    assert create(machine, "pub", macvlan_mode=mode).status == 201
    with other_has(net, address) as mac:
        refused = run(machine, "a", **{"IPv6Address" if ":" in address else "IPv4Address": address})
    assert refused.status == 409
    assert refused.message == (
        f"address {address} is in use on {PARENT} by {mac}; choose another, or "
        "-o linkspan.conflict_check=off for the network"
    )
    assert machine.ask("GET", "/linkspan/sandboxes/a").status == 404
    assert run(machine, "a", **{"IPv6Address" if ":" in address else "IPv4Address": address}).status == 201


def test_on_a_parent_without_carrier_nobody_is_asked_but_the_host(machine: Host) -> None:
    machine.run("ip", "link", "add", "eth8", "type", "veth", "peer", "name", "far8")
    machine.run("ip", "addr", "add", "10.88.0.9/24", "dev", "eth8")
    body = {"Driver": "macvlan", "IPAM": {"Config": [{"Subnet": "10.88.0.0/24"}]}, "Options": {"parent": "eth8"}}
    assert machine.ask("POST", "/networks/create", {"Name": "pub", **body}).status == 201
    try:
        for number, state in enumerate(("down", "up")):  # up, but its peer is down
            machine.run("ip", "link", "set", "eth8", state)
            refused = run(machine, "a", IPv4Address="10.88.0.9")
            assert refused.status == 409
            assert "address 10.88.0.9 is in use on this host's eth8 by " in refused.message
            times = [_join_s(machine, f"a{number}{attempt}") for attempt in range(3)]
            assert min(times) < (conflict.PROBES - 1) * conflict.INTERVAL_S + conflict.WAIT_S, times
    finally:
        machine.run("ip", "link", "delete", "eth8")


def _join_s(machine: Host, name: str) -> float:
    begin = time.monotonic()
    assert run(machine, name).status == 201
    return time.monotonic() - begin


def test_an_address_that_nobody_asked_for_gives_way_to_the_next(machine: Host, net: Lan) -> None:
    assert create(machine, "pub", ip_range="192.168.32.64/26").status == 201
    with other_has(net, "192.168.32.64", "192.168.32.65", "fd00:32::2"):
        assert run(machine, "a").status == 201
        a = Station(machine, "a")
        assert a.ip4 not in ("192.168.32.64", "192.168.32.65")
        assert a.ip6 != "fd00:32::2"
        assert a.pings(ROUTER4)
        assert a.pings(ROUTER6)
        assert run(machine, "b").status == 201
    held = {lease["IPv4Address"] for lease in machine.ask("GET", "/networks/pub").json["Containers"].values()}
    assert held == {f"{a.ip4}/24", f"{Station(machine, 'b').ip4}/24"}
    assert "address 192.168.32.64 is in use: trying the next" in machine.log()


def test_a_range_that_others_have_whole_is_refused(machine: Host, net: Lan) -> None:
    assert create(machine, "small", ip_range="192.168.32.64/31").status == 201
    with other_has(net, "192.168.32.64", "192.168.32.65") as mac:
        refused = run(machine, "a", "small")
    assert (refused.status, f"is in use on {PARENT} by {mac}" in refused.message) == (409, True), refused.message
    assert machine.ask("DELETE", "/networks/small").status == 204
    assert create(machine, "large", ip_range="192.168.32.64/26").status == 201
    with other_has(net, *(f"192.168.32.{64 + number}" for number in range(17))):
        refused = run(machine, "a", "large")
    assert refused.status == 409
    assert "16 addresses of network large turned out to be in use, the last one being 192.168.32.79" in refused.message
    assert machine.ask("GET", "/networks/large").json["Containers"] == {}


def test_without_the_check_an_address_is_given_out_unseen(machine: Host, net: Lan) -> None:
    assert create(machine, "pub", check="off").status == 201
    status = machine.ask("GET", "/networks/pub").json["Status"]["Linkspan"]
    assert status["linkspan.conflict_check"] == "off"
    with other_has(net, FREE4), net.router.place.wire() as wire:
        assert run(machine, "a", IPv4Address=FREE4).status == 201
        mac = Station(machine, "a").mac
        frames = [Ether(frame) for frame in wire.until_idle()]
    assert not [frame for frame in frames if frame.src == mac and ARP in frame and frame[ARP].psrc == "0.0.0.0"]


@pytest.mark.parametrize("value", ["", "maybe", "on "])
def test_a_malformed_value_is_refused(machine: Host, value: str) -> None:
    refused = create(machine, "bad", check=value)
    assert refused.status == 400
    assert f"invalid value {value!r} for option linkspan.conflict_check" in refused.message


def test_an_endpoint_that_is_there_keeps_an_address_that_another_takes_later(machine: Host, net: Lan) -> None:
    assert create(machine, "pub").status == 201
    assert run(machine, "a", IPv4Address=FREE4).status == 201
    a = Station(machine, "a")
    with other_has(net, FREE4):
        for is_lost in (False, True):
            if is_lost:
                a.run("ip", "link", "delete", "eth0")
            machine.stop()
            machine.start("--metrics-listen", "off")
            assert a.addresses()[0] == f"{FREE4}/24"


def test_nothing_is_left_of_a_linkspand_that_is_killed_while_it_asks(machine: Host, net: Lan) -> None:
    before = parent_state(machine)
    assert create(machine, "pub").status == 201
    body = {"Name": "a", "Networks": [{"Network": "pub", "MacAddress": MINE}]}
    with net.router.place.wire() as wire, ThreadPoolExecutor(1) as pool:
        joining = pool.submit(machine.ask, "POST", "/linkspan/sandboxes", body)
        _wait_for_question(wire)
        machine.stop(signal.SIGKILL)
        with pytest.raises(OSError):  # noqa: PT011 -- whatever the end of the connection looks like
            joining.result(60)
    wait_for(lambda: parent_state(machine) == before, "the kernel to take the device away")
    machine.start("--metrics-listen", "off")
    assert machine.ask("GET", "/networks/pub").json["Containers"] == {}
    assert machine.ask("POST", "/linkspan/sandboxes", {**body, "Name": "b"}).status == 201


def test_a_container_engine_is_told_who_has_the_address(machine: Host, net: Lan) -> None:
    engine = Engine(net)
    engine.create_network()
    with other_has(net, FREE4) as mac:
        endpoint = engine.create_endpoint(77)
        path = engine.sandbox("c1")
        refusal = engine.refusal("Join", EndpointID=endpoint, SandboxKey=path)
    assert f"address {FREE4} is in use on {PARENT} by {mac}" in refusal
    joined = engine.call("Join", EndpointID=endpoint, SandboxKey=path)
    assert joined["InterfaceName"]["SrcName"] == f"lp{endpoint[:12]}"
    engine.call("Leave", EndpointID=endpoint)
    engine.call("DeleteEndpoint", EndpointID=endpoint)
    engine.call("DeleteNetwork")
    engine.end(Place(machine, "c1", path, "eth0"))
