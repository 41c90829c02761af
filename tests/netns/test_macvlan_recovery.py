"""Parents that go down, are renamed, or vanish, while endpoints are on them: what is shown, and that all recover.

Looked at with `ip`, `bpftool` and pings; linkspand is told of nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from datapath import bpf, netns
from tests.hosts import Host, wait_for
from tests.leaks import leaks, purge
from tests.netns.lan import HOST4, HOST6, PARENT, ROUTER4, ROUTER6, Lan, lan_net, parent_state
from tests.traffic import Station, all_tallies

pytestmark = pytest.mark.root
net = lan_net

SOON_S = 5.0
DEVICES = [pytest.param({"linkspan.macvlan_device": device}, id=device) for device in ("macvlan", "veth")]
METRICS = "http://127.0.0.1:9478/metrics"


@pytest.fixture
def machine(net: Lan) -> Iterator[Host]:
    """The host; a test may leave networks and sandboxes, and another device in the parent's place."""
    made: Host = net.host.place.host
    before = picture(made)
    yield made
    purge(made)
    wait_for(lambda: picture(made) == before, lambda: f"the parent to be as it was: {picture(made)}", SOON_S)
    assert leaks(made, ignore={PARENT}) == []


def picture(machine: Host) -> Any:
    """The parent but for what says that it is another device."""
    link, _, _, qdiscs, programs = parent_state(machine)
    addresses = {each["local"] for each in link["addr_info"] if each["scope"] == "global"}
    return sorted(link["flags"]), link["promiscuity"], addresses, qdiscs, programs


def create(machine: Host, **options: str) -> None:
    subnets = [{"Subnet": "192.168.32.0/24", "IPRange": "192.168.32.64/26"}, {"Subnet": "fd00:32::/64"}]
    defaults = {"parent": PARENT, "linkspan.conflict_check": "off"}
    body = {"Name": "pub", "Driver": "macvlan", "EnableIPv6": True, "IPAM": {"Config": subnets}}
    machine.api("POST", "/networks/create", {**body, "Options": {**defaults, **options}})


def join(machine: Host, name: str) -> Station:
    machine.sandbox(name, "pub")
    return Station(machine, name)


def state(machine: Host) -> str:
    return str(machine.api("GET", "/networks/pub")["Status"]["Linkspan"]["linkspan.parent_state"])


def metric(machine: Host) -> str:
    """The value of linkspan_parent_up."""
    text = machine.run("curl", "-sS", "--fail", METRICS).stdout
    (line,) = [line for line in text.splitlines() if line.startswith("linkspan_parent_up{")]
    assert line.startswith(f'linkspan_parent_up{{network="pub",parent="{PARENT}"}}')
    return line.split()[-1]


def soon(machine: Host, claim: Callable[[], object], what: str) -> None:
    wait_for(claim, lambda: f"{what}; the log:\n{machine.log()}", SOON_S)


def log_since(machine: Host, position: int) -> str:
    return machine.log()[position:]


def await_reach(machine: Host, net: Lan, *stations: Station) -> None:
    """Waits until endpoints reach another machine, and the host and they each other."""
    for station in stations:
        for target in (ROUTER4, ROUTER6, HOST4, HOST6):
            soon(machine, lambda s=station, t=target: s.pings(t, wait_s=1), f"{station.name} to reach {target}")  # type: ignore[misc]
        for address in (station.ip4, station.ip6):
            assert net.host.place.pings(address)


def inside(station: Station) -> Any:
    """Addresses and routes in the sandbox."""
    addresses = [[a["local"] for a in link["addr_info"]] for link in station.ip("addr")]
    return addresses, [
        [(route["dst"], route.get("gateway"), route["dev"]) for route in station.ip(version, "route")]
        for version in ("-4", "-6")
    ]


def programs_on(machine: Host) -> set[str]:
    """The devices that our programs run on, by the pins of what holds them there; bpftool does not show tcx links."""
    names = {str(link["ifindex"]): link["ifname"] for link in machine.ip("link")}
    directory = str(machine.bpffs / "linkspan/parents")
    pins = machine.run("find", directory, "-mindepth", "1", "-printf", "%f\\n", check=False).stdout.split()
    return {names.get(pin.partition("-")[0], f"gone: {pin}") for pin in pins}


# -- down and up -----------------------------------------------------------------------------------------------------


def set_down(net: Lan, is_down: bool) -> None:
    net.host.place.run("ip", "link", "set", PARENT, "down" if is_down else "up")
    if not is_down:  # the kernel forgets them as the device goes down
        net.host.place.run("ip", "addr", "replace", f"{HOST6}/64", "dev", PARENT, "nodad")


def pull_the_cable(net: Lan, is_down: bool) -> None:
    net.switch.run("ip", "link", "set", "p0", "down" if is_down else "up")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("change", "words"), [(set_down, "down"), (pull_the_cable, "up, no carrier")])
def test_a_parent_that_goes_down_is_shown_and_all_goes_on_when_it_is_up(
    machine: Host, net: Lan, change: Callable[[Lan, bool], None], words: str, device: dict[str, str]
) -> None:
    create(machine, **device)
    a = join(machine, "a")
    await_reach(machine, net, a)
    before, said = inside(a), len(machine.log())
    assert (state(machine), metric(machine)) == ("up", "1.0")
    assert "parent-down" not in machine.linkspan("doctor", check=False).stdout
    change(net, True)
    line = f"parent {PARENT} of network pub is {words}\n"
    soon(machine, lambda: line in log_since(machine, said), "it to be noticed")
    assert (state(machine), metric(machine)) == (words, "0.0")
    assert line in machine.linkspan("doctor", check=False).stdout
    change(net, False)
    again = f"parent {PARENT} of network pub is up again\n"
    soon(machine, lambda: again in log_since(machine, said), "it to be noticed")
    assert (state(machine), metric(machine)) == ("up", "1.0")
    await_reach(machine, net, a)
    assert inside(a) == before
    text = log_since(machine, said)
    assert (text.count(line), text.count(again)) == (1, 1)
    assert "applying it again" not in text


# -- another name ----------------------------------------------------------------------------------------------------


def rename(machine: Host, before: str, after: str) -> None:
    machine.run("ip", "link", "set", before, "name", after)


def test_a_renamed_parent_is_followed_and_takes_no_endpoint_until_it_has_its_name_back(machine: Host, net: Lan) -> None:
    create(machine)
    a = join(machine, "a")
    index = a.link()["ifindex"]
    rename(machine, PARENT, "eth9")
    try:
        soon(machine, lambda: "is renamed to eth9\n" in machine.log(), "it to be noticed")
        for number in (None, signal.SIGKILL):
            if number is not None:
                machine.stop(number)
                machine.start()
            assert (state(machine), metric(machine)) == ("renamed to eth9", "1.0")
            await_reach(machine, net, a)
            refused = machine.ask("POST", "/linkspan/sandboxes", {"Name": "b", "Networks": [{"Network": "pub"}]})
            assert refused.status == 409
            assert f"parent {PARENT} of network pub was renamed to eth9: give it its name back" in refused.message
            assert programs_on(machine) == {"eth9"}
    finally:
        rename(machine, "eth9", PARENT)
    soon(machine, lambda: state(machine) == "up", "it to have its name back")
    b = join(machine, "b")
    await_reach(machine, net, a, b)
    assert a.link()["ifindex"] == index
    assert machine.ask("DELETE", "/linkspan/sandboxes/a?force=1").status == 204
    assert programs_on(machine) == {PARENT}


def test_endpoints_leave_a_renamed_parent_as_it_was(machine: Host, net: Lan) -> None:
    create(machine)
    join(machine, "a")
    rename(machine, PARENT, "eth9")
    try:
        machine.api("DELETE", "/linkspan/sandboxes/a?force=1")
        machine.api("DELETE", "/networks/pub")
        assert programs_on(machine) == set()
    finally:
        rename(machine, "eth9", PARENT)


def test_another_device_that_takes_the_name_takes_the_endpoints(machine: Host, net: Lan) -> None:
    create(machine)
    a, b = join(machine, "a"), join(machine, "b")
    net.switch.run("ip", "link", "set", "p0", "name", "p9")
    rename(machine, PARENT, "eth9")
    machine.run("ip", "addr", "flush", "dev", "eth9")
    net.plug_in_host()
    try:
        soon(machine, lambda: programs_on(machine) == {PARENT}, "the programs to move")
        await_reach(machine, net, a, b)
        index = machine.ip("link", "show", "dev", PARENT)[0]["ifindex"]
        assert [each.link()["link_index"] for each in (a, b)] == [index] * 2
        machine.run("ip", "link", "delete", "eth9")
        await_reach(machine, net, a, b)
    finally:
        machine.run("ip", "link", "delete", "eth9", check=False)


# -- gone ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_a_parent_that_vanishes_and_comes_back_has_its_endpoints_again(
    machine: Host, net: Lan, device: dict[str, str]
) -> None:
    create(machine, **device)
    a, b = join(machine, "a"), join(machine, "b")
    await_reach(machine, net, a, b)
    before = inside(a), a.mac
    net.unplug_host()
    try:
        soon(machine, lambda: f"parent {PARENT} of network pub is gone\n" in machine.log(), "it to be noticed")
        assert (state(machine), metric(machine)) == ("gone", "0.0")
        assert f"parent {PARENT} of network pub is gone\n" in machine.linkspan("doctor", check=False).stdout
        refused = machine.ask("POST", "/linkspan/sandboxes", {"Name": "c", "Networks": [{"Network": "pub"}]})
        assert refused.status == 409
        assert f"parent {PARENT} of network pub is gone: endpoints can join when it is back" in refused.message
        assert machine.ask("DELETE", "/linkspan/sandboxes/b?force=1").status == 204
    finally:
        net.plug_in_host()
    await_reach(machine, net, a)
    assert (inside(a), a.mac) == before
    assert (state(machine), metric(machine)) == ("up", "1.0")
    await_reach(machine, net, join(machine, "c"))
    assert all_tallies(machine)["a"]["packets", "out", "fast"] >= 2
    assert machine.ask("GET", "/linkspan/status").json["broken"] == {}
    assert programs_on(machine) == {PARENT}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_parent_that_vanished_while_linkspand_was_away_has_its_endpoints_after_the_start(
    machine: Host, net: Lan, number: signal.Signals
) -> None:
    create(machine)
    a = join(machine, "a")
    before = inside(a)
    machine.stop(number)
    net.unplug_host()
    net.plug_in_host()
    machine.start()
    await_reach(machine, net, a)
    assert inside(a) == before
    assert programs_on(machine) == {PARENT}


def test_a_start_without_the_parent_waits_for_it(machine: Host, net: Lan) -> None:
    create(machine)
    a = join(machine, "a")
    machine.stop(signal.SIGKILL)
    net.unplug_host()
    try:
        machine.start()
        assert (state(machine), metric(machine)) == ("gone", "0.0")
        assert (
            "not whole, network pub: parent eth1 of network pub is gone"
            in machine.linkspan("doctor", check=False).stdout
        )
    finally:
        net.plug_in_host()
    await_reach(machine, net, a)
    assert "not whole" not in machine.linkspan("doctor", check=False).stdout


def test_the_only_endpoint_of_a_passthru_parent_gets_the_new_devices_mac(machine: Host, net: Lan) -> None:
    create(machine, macvlan_mode="passthru")
    a = join(machine, "a")
    net.unplug_host()
    net.plug_in_host()
    soon(machine, lambda: a.pings(ROUTER4, wait_s=1), "a to reach the router")
    (mac,) = {machine.ip("link", "show", "dev", PARENT)[0]["address"], a.link()["address"]}
    assert machine.api("GET", "/linkspan/sandboxes/a")["Networks"]["pub"]["MacAddress"] == mac


def test_an_isolated_parent_that_somebody_deletes_is_made_again(machine: Host) -> None:
    create(machine, parent="")
    a, b = join(machine, "a"), join(machine, "b")
    assert a.pings(b.ip4)
    assert a.pings(b.ip6)
    (mark,) = [link["ifname"] for link in machine.ip("link") if link["ifname"].startswith("lm-")]
    machine.run("ip", "link", "delete", mark)
    soon(machine, lambda: a.pings(b.ip4, wait_s=1), "a to reach b")
    assert a.pings(b.ip6)


def test_a_parent_that_comes_back_as_a_port_is_told_of_and_taken_when_it_is_none(machine: Host, net: Lan) -> None:
    create(machine)
    a = join(machine, "a")
    machine.run("ip", "link", "add", "br9", "type", "bridge")
    net.unplug_host()
    soon(machine, lambda: "eth1 of network pub is gone" in machine.log(), "it to be noticed")
    pid = str(net.switch.pid)
    peer = ("type", "veth", "peer", "name", "p0", "netns", pid)
    machine.run("ip", "link", "add", "waiting", *peer)
    machine.run("ip", "link", "set", "waiting", "master", "br9")
    machine.run("ip", "link", "set", "waiting", "name", PARENT)
    try:
        words = f"not whole, endpoint {a.endpoint_id[:12]}: parent {PARENT} of network pub is in use by something else"
        soon(machine, lambda: words in machine.linkspan("doctor", check=False).stdout, "it to be told of")
    finally:
        machine.run("ip", "link", "delete", "br9")
        net.host.place.run("ip", "link", "delete", PARENT)
        net.plug_in_host()
    await_reach(machine, net, a)
    assert "not whole" not in machine.linkspan("doctor", check=False).stdout


def test_a_parent_with_another_mac_is_reached_by_that(machine: Host, net: Lan) -> None:
    create(machine)
    a = join(machine, "a")
    assert net.host.place.pings(a.ip4)
    before = machine.ip("link", "show", "dev", PARENT)[0]["address"]
    for mac in ("02:00:00:00:00:99", before):
        machine.run("ip", "link", "set", PARENT, "address", mac)
        a.run("ip", "neigh", "flush", "dev", a.ifname)
        soon(machine, lambda: a.pings(HOST4, wait_s=1), "a to reach the host")
        assert net.host.place.pings(a.ip4)
        a.run("ip", "neigh", "flush", "dev", a.ifname)


def test_a_parent_that_was_in_another_namespace_is_taken_up_again(machine: Host, net: Lan) -> None:
    create(machine)
    a = join(machine, "a")
    index, away = a.link()["ifindex"], net.machine()
    machine.run("ip", "link", "set", PARENT, "netns", str(away.pid))
    soon(machine, lambda: state(machine) == "gone", "it to be noticed")
    assert a.link()["ifindex"] == index
    away.run("ip", "link", "set", PARENT, "netns", str(machine.pid))
    for address in (f"{HOST4}/24", f"{HOST6}/64"):
        machine.run("ip", "addr", "add", address, "dev", PARENT)
    machine.run("ip", "link", "set", PARENT, "up")
    await_reach(machine, net, a)
    assert a.link()["ifindex"] == index


def verdict(kind: bpf.ProgType, code: int) -> int:
    """A program that returns one verdict: r0 = code; exit."""
    return bpf.prog_load(struct.pack("=BBhiBBhi", 0xB7, 0, 0, code, 0x95, 0, 0, 0), kind, name="foreign")


@contextmanager
def what_others_have(machine: Host) -> Iterator[None]:
    """Somebody else's promiscuity, address, XDP program and filters on the parent."""
    pin, namespace = machine.bpffs / "foreign", f"/proc/{machine.pid}/ns/net"
    passing, xdp = verdict(bpf.ProgType.SCHED_CLS, -1), verdict(bpf.ProgType.XDP, 2)
    bpf.obj_pin(passing, machine.seen(pin))
    link = netns.call(namespace, lambda: bpf.xdp_attach(xdp, socket.if_nametoindex(PARENT)))
    machine.run("ip", "link", "set", PARENT, "promisc", "on")
    machine.run("ip", "addr", "add", "192.0.2.1/32", "dev", PARENT)
    machine.run("tc", "qdisc", "add", "dev", PARENT, "clsact")
    for hook in ("ingress", "egress"):
        machine.run("tc", "filter", "add", "dev", PARENT, hook, "prio", "1", "bpf", "da", "pinned", str(pin))
    try:
        yield
    finally:
        machine.run("tc", "qdisc", "del", "dev", PARENT, "clsact")
        machine.run("ip", "addr", "del", "192.0.2.1/32", "dev", PARENT)
        machine.run("ip", "link", "set", PARENT, "promisc", "off")
        machine.run("rm", str(pin))
        for fd in (link, xdp, passing):
            os.close(fd)


def test_what_others_have_on_a_parent_stays_while_it_comes_and_goes_and_linkspand_is_killed(
    machine: Host, net: Lan
) -> None:
    def shown() -> Any:
        filters = [machine.run("tc", "filter", "show", "dev", PARENT, hook).stdout for hook in ("ingress", "egress")]
        return picture(machine), filters, machine.ip("link", "show", "dev", PARENT)[0]["xdp"]["prog"]["id"]

    with what_others_have(machine):
        before = shown()
        create(machine)
        a = join(machine, "a")
        machine.stop(signal.SIGKILL)
        set_down(net, True)
        machine.start()
        set_down(net, False)
        rename(machine, PARENT, "eth9")
        machine.stop(signal.SIGKILL)
        rename(machine, "eth9", PARENT)
        machine.start()
        await_reach(machine, net, a)
        purge(machine)
        soon(machine, lambda: shown() == before, "all to be as it was")


def test_a_storm_of_other_devices_hides_nothing(machine: Host, net: Lan) -> None:
    create(machine)
    a = join(machine, "a")
    storm = "".join(
        f"link add v{number} type veth peer name w{number}\nlink set v{number} up\n" for number in range(200)
    )
    machine.run("ip", "-batch", "-", input=storm)
    net.unplug_host()
    net.plug_in_host()
    machine.run("ip", "-batch", "-", input="".join(f"link delete v{number}\n" for number in range(200)))
    await_reach(machine, net, a)


def test_endpoints_come_and_go_while_the_parent_does(machine: Host, net: Lan) -> None:
    """Joins fail or succeed, with the parent there or not; in the end all that is recorded works."""
    create(machine)
    kept = join(machine, "kept")
    over = threading.Event()

    def churn(name: str) -> set[int]:
        seen = set()
        while not over.is_set():
            made = machine.ask("POST", "/linkspan/sandboxes", {"Name": name, "Networks": [{"Network": "pub"}]})
            seen.add(made.status)
            assert made.status in (201, 409, 500), made.body
            if made.status == 201:
                assert machine.ask("DELETE", f"/linkspan/sandboxes/{name}?force=1").status == 204
        return seen

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(churn, f"c{number}") for number in range(3)]
        try:
            for _ in range(5):
                net.unplug_host()
                soon(machine, lambda: state(machine) == "gone", "it to be noticed")
                net.plug_in_host()
                soon(machine, lambda: kept.pings(ROUTER4, wait_s=1), "the kept one to reach the router")
        finally:
            over.set()
        assert set.union(*(each.result() for each in running)) >= {201}
    await_reach(machine, net, kept)
    machine.sandbox("last", "pub")
    await_reach(machine, net, Station(machine, "last"))
    assert machine.ask("GET", "/linkspan/status").json["broken"] == {}
