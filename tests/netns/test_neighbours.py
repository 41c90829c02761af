"""ARP and neighbour discovery: answered at once and without a word to anybody else, for those who are there."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address
from subprocess import PIPE, Popen

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.hosts import Host
from tests.netns.lab import Lab
from tests.traffic import BROADCAST, Station

pytestmark = pytest.mark.xdist_group("neighbours")


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    return Lab(machine, "near", EnableIPv6=True)


@pytest.fixture(scope="module", params=["on", "off"])
def either(request: pytest.FixtureRequest, machine: Host) -> Lab:
    return Lab(machine, f"either-{request.param}", accel=request.param, EnableIPv6=True)


def arp_request(sender: Station, target: str) -> Packet:
    return Ether(src=sender.mac, dst=BROADCAST) / ARP(op=1, hwsrc=sender.mac, psrc=sender.ip4, pdst=target)


def solicitation(sender: Station, target: str, source: str | None = None) -> Packet:
    low = IPv6Address(target).packed[-3:]
    group = IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + low)
    return (
        Ether(src=sender.mac, dst=f"33:33:ff:{low.hex(':')}")
        / IPv6(src=source or sender.ip6, dst=str(group), hlim=255)
        / ICMPv6ND_NS(tgt=target)
        / ICMPv6NDOptSrcLLAddr(lladdr=sender.mac)
    )


def arp_in(frames: Sequence[bytes], target: str) -> list[Packet]:
    """ARP that speaks of an address."""
    return [p[ARP] for p in map(Ether, frames) if ARP in p and target in (p[ARP].pdst, p[ARP].psrc)]


def nd_in(frames: Sequence[bytes], target: str) -> list[Packet]:
    return [
        p
        for p in map(Ether, frames)
        if (ICMPv6ND_NS in p and p[ICMPv6ND_NS].tgt == target) or (ICMPv6ND_NA in p and p[ICMPv6ND_NA].tgt == target)
    ]


def ask(asker: Station, request: Packet, *watchers: Station) -> tuple[list[bytes], list[list[bytes]]]:
    """Sends the request, and returns what the asker then hears, and the watchers, before a frame to all."""
    wires = [watcher.wire() for watcher in watchers]
    with asker.wire() as own, asker.wire() as out:
        out.send(request)
        end = b"that was all I asked"
        all_hear = Ether(src=asker.mac, dst=BROADCAST, type=0x88B5) / end
        out.send(all_hear)
        seen = []
        for wire in wires:
            seen.append(wire.frames_until(end))
            wire.__exit__()
        # Its own broadcast does not come back; an answer of the gateway to a ping comes after those of the programs.
        heard = own.until_idle()
    return heard, seen


def gateway_mac(lab: Lab) -> str:
    return str(lab.host.ip("link", "show", "dev", lab.bridge)[0]["address"])


def test_arp_for_a_sandbox_is_answered_and_nobody_else_hears_it(lab: Lab) -> None:
    heard, seen = ask(lab.a, arp_request(lab.a, lab.b.ip4), lab.b, lab.c)
    (answer,) = arp_in(heard, lab.b.ip4)
    assert (answer.op, answer.hwsrc, answer.psrc) == (2, lab.b.mac, lab.b.ip4)
    assert (answer.hwdst, answer.pdst) == (lab.a.mac, lab.a.ip4)
    assert [arp_in(frames, lab.b.ip4) for frames in seen] == [[], []]


def test_solicitation_for_a_sandbox_is_answered_and_nobody_else_hears_it(lab: Lab) -> None:
    for target in (lab.b.ip6, lab.b.ip6_ll):
        source = lab.a.ip6_ll if target == lab.b.ip6_ll else lab.a.ip6
        heard, seen = ask(lab.a, solicitation(lab.a, target, source), lab.b, lab.c)
        (answer,) = nd_in(heard, target)
        assert (answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (target, source, 255)
        assert (answer[ICMPv6ND_NA].R, answer[ICMPv6ND_NA].S, answer[ICMPv6ND_NA].O) == (0, 1, 1)
        assert answer[ICMPv6NDOptDstLLAddr].lladdr == lab.b.mac
        sent = answer[ICMPv6ND_NA].cksum
        del answer[ICMPv6ND_NA].cksum
        assert Ether(bytes(answer))[ICMPv6ND_NA].cksum == sent
        assert [nd_in(frames, target) for frames in seen] == [[], []]


def test_the_gateway_is_answered_for_as_a_router(lab: Lab) -> None:
    gateway4, gateway6 = lab.a.gateway(4), lab.a.gateway(6)
    assert gateway4
    assert gateway6
    heard, seen = ask(lab.a, arp_request(lab.a, gateway4), lab.b, lab.c)
    (answer,) = arp_in(heard, gateway4)
    assert (answer.op, answer.hwsrc) == (2, gateway_mac(lab))
    assert [arp_in(frames, gateway4) for frames in seen] == [[], []]
    heard, seen = ask(lab.a, solicitation(lab.a, gateway6), lab.b, lab.c)
    (answer,) = nd_in(heard, gateway6)
    assert (answer[ICMPv6ND_NA].R, answer[ICMPv6NDOptDstLLAddr].lladdr) == (1, gateway_mac(lab))
    assert [nd_in(frames, gateway6) for frames in seen] == [[], []]


def test_pings_to_sandbox_and_gateway_show_a_third_sandbox_nothing(lab: Lab) -> None:
    """As tcpdump sees it, which the kernel shows every frame that reaches the device."""
    targets = (lab.b.ip4, lab.b.ip6, lab.a.gateway(4), lab.a.gateway(6))
    lab.c.link()  # it is there
    for station in (lab.a, lab.b):
        station.run("ip", "neigh", "flush", "all", "nud", "permanent")
        station.run("ip", "neigh", "flush", "all")
    command = lab.c.command("tcpdump", "-n", "-l", "-i", lab.c.ifname, "-Q", "in")
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as dump:
        assert dump.stdout is not None
        assert dump.stderr is not None
        while "listening on" not in dump.stderr.readline():
            assert dump.poll() is None
        for target in targets:
            assert lab.a.pings(str(target)), target
        for target in (lab.a.ip4, lab.a.ip6):
            assert lab.host.run("ping", "-n", "-c1", "-W5", target).returncode == 0
        with lab.a.wire() as out:
            out.send(Ether(src=lab.a.mac, dst=BROADCAST, type=0x88B5) / b"\x00\x01the end")
        lines = []
        for line in dump.stdout:
            lines.append(line)
            if "0x88b5" in line:
                break
        dump.terminate()
        dump.communicate()
    assert not [line for line in lines if "ARP" in line or "neighbor" in line or "ICMP echo" in line], lines


def test_sandbox_and_gateway_know_each_other_without_asking(either: Lab) -> None:
    """For good: what is learned is limited to 1,024 neighbours for all namespaces of a machine."""

    def permanent(place: Host | Station, device: str) -> dict[str, str]:
        return {
            neighbour["dst"]: neighbour["lladdr"]
            for version in ("-4", "-6")
            for neighbour in place.ip(version, "neigh", "show", "dev", device, "nud", "permanent")
        }

    brief = either.join("brief")
    mac = gateway_mac(either)
    assert permanent(brief, brief.ifname) == {str(brief.gateway(4)): mac, str(brief.gateway(6)): mac}
    of_host = permanent(either.host, either.bridge)
    assert of_host[brief.ip4] == of_host[brief.ip6] == brief.mac
    addresses = {brief.ip4, brief.ip6}
    either.host.api("DELETE", f"/linkspan/sandboxes/{brief.name}")
    assert not addresses & permanent(either.host, either.bridge).keys()


def test_unknown_address_is_asked_of_everybody_and_answered_by_nobody(lab: Lab) -> None:
    stranger4, stranger6 = "172.18.200.200", str(IPv6Address(lab.a.ip6) + 0x7777)
    heard, seen = ask(lab.a, arp_request(lab.a, stranger4), lab.b, lab.c)
    assert arp_in(heard, stranger4) == []
    assert [len(arp_in(frames, stranger4)) for frames in seen] == [1, 1]
    heard, seen = ask(lab.a, solicitation(lab.a, stranger6), lab.b, lab.c)
    assert nd_in(heard, stranger6) == []
    assert [len(nd_in(frames, stranger6)) for frames in seen] == [1, 1]


def test_address_announcements_reach_everybody(lab: Lab) -> None:
    announcement = arp_request(lab.a, lab.a.ip4)
    _, seen = ask(lab.a, announcement, lab.b, lab.c)
    assert [len(arp_in(frames, lab.a.ip4)) for frames in seen] == [1, 1]


def test_probes_for_duplicate_addresses_reach_the_owner(lab: Lab) -> None:
    """RFC 5227: a sender without an address asks whether one is taken, and its owner says so."""
    probe = Ether(src=lab.a.mac, dst=BROADCAST) / ARP(op=1, hwsrc=lab.a.mac, psrc="0.0.0.0", pdst=lab.b.ip4)
    heard, seen = ask(lab.a, probe, lab.b, lab.c)
    assert [len(arp_in(frames, lab.b.ip4)) for frames in seen] == [1, 1]
    (answer,) = arp_in(heard, lab.b.ip4)
    assert (answer.op, answer.hwsrc) == (2, lab.b.mac)


def test_a_sandbox_that_left_is_not_answered_for(either: Lab) -> None:
    gone = either.join("gone")
    ip4, ip6 = gone.ip4, gone.ip6
    assert either.a.pings(ip4)
    assert either.a.pings(ip6)
    either.host.api("POST", f"/networks/{either.name}/disconnect", {"Container": gone.name})
    heard, seen = ask(either.a, arp_request(either.a, ip4), either.b)
    assert arp_in(heard, ip4) == []
    assert len(arp_in(seen[0], ip4)) == 1
    heard, _ = ask(either.a, solicitation(either.a, ip6))
    assert nd_in(heard, ip6) == []
    assert not either.a.pings(ip4, wait_s=0.2)
    either.host.api("DELETE", f"/linkspan/sandboxes/{gone.name}")


def test_a_sandbox_that_comes_back_is_reached_with_the_first_packet(either: Lab) -> None:
    """Its MAC follows from its address, as in Docker, so the neighbours' entries are right again at once."""
    back = either.join("back")
    settings = {"IPAMConfig": {"IPv4Address": back.ip4, "IPv6Address": back.ip6}}
    before = (back.ip4, back.ip6, back.mac)
    for target in before[:2]:
        assert either.a.pings(target)
        assert back.pings(either.a.ip4)
    for _ in range(3):
        either.host.api("POST", f"/networks/{either.name}/disconnect", {"Container": back.name})
        either.host.api(
            "POST", f"/networks/{either.name}/connect", {"Container": back.name, "EndpointConfig": settings}
        )
        back = Station(either.host, back.name)
        assert (back.ip4, back.ip6, back.mac) == before
        for target in (before[0], before[1]):
            assert either.a.pings(target), target
        for target in (either.a.ip4, either.a.ip6, str(back.gateway(4)), str(back.gateway(6))):
            assert back.pings(target), target


def test_an_address_that_another_sandbox_takes_over_works_at_once(either: Lab) -> None:
    old = either.join("old")
    settings = {"IPAMConfig": {"IPv4Address": old.ip4, "IPv6Address": old.ip6}}
    before = (old.ip4, old.ip6, old.mac)
    assert either.a.pings(old.ip4)
    assert either.a.pings(old.ip6)
    either.host.api("DELETE", f"/linkspan/sandboxes/{old.name}")
    new = either.join("new", **settings)
    assert (new.ip4, new.ip6, new.mac) == before
    assert either.a.pings(new.ip4)
    assert either.a.pings(new.ip6)
    assert new.pings(either.a.ip4)
