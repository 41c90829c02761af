"""`linkspan trace` says what then really happens to such a packet: its path, its drop, its rule, its next hop."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from datapath import accel
from tests.documented import examples, is_still_printed
from tests.hosts import ROOT, Host, wait_for
from tests.leaks import purge
from tests.netns.conftest import linkspan_host, no_bridge_netfilter
from tests.netns.lab import Lab
from tests.netns.lan import HOST4, PARENT, ROUTER4, Lan, lan_host, lan_net
from tests.netns.outside import HOST4 as OWN4
from tests.netns.outside import OUTSIDE4, OUTSIDE6, UPLINK, outside
from tests.netns.strangers import stranger
from tests.netns.test_macvlan import join, made
from tests.require import require
from tests.traffic import Place, Station, growth, settled, tallies

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("trace")]
net, on_lan = lan_net, lan_host

DOCUMENTED = examples(ROOT / "docs/trace.md")


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Host, Place]]:
    with linkspan_host(before=no_bridge_netfilter) as machine, outside(machine) as other:
        yield machine, other
        purge(machine)


@pytest.fixture(scope="module")
def machine(world: tuple[Host, Place]) -> Host:
    return world[0]


@pytest.fixture(scope="module")
def front(machine: Host) -> Lab:
    return Lab(machine, "front", EnableIPv6=True)


def trace(machine: Host, *args: str) -> Any:
    return json.loads(machine.linkspan("trace", "--json", *args, check=False).stdout)


def decisions(found: Any, by: str = "ls_ep_out") -> list[str]:
    return [step["decision"] for step in found["steps"] if step["by"] == by]


def paths(machine: Host, sender: Station, target: str) -> set[tuple[str, ...]]:
    """The directions and paths of the packets of ten pings, as the sender's counters have them."""
    before = settled(lambda: tallies(machine, sender.name), "the sender to be quiet")
    sender.pings(target, "-c10", "-i0.01")
    return {key[1:] for key in growth(before, tallies(machine, sender.name)) if key[0] == "packets"}


def dropped(machine: Host, comment: str) -> int:
    """How many packets a rule of the chain forward has dropped."""
    listed = machine.run("nft", "list", "chain", "inet", "linkspan", "forward").stdout
    match = re.search(rf'counter packets (\d+) .*"{comment}"', listed)
    assert match is not None
    return int(match[1])


@contextmanager
def published(machine: Host, station: Station) -> Iterator[None]:
    """TCP port 8080 of the host stands for the station's port 80.

    Container engines alone publish ports; here the map is filled by hand.
    """
    element = f"{{ 0.0.0.0/0 . tcp . 8080 : {station.ip4} . 80 }}"
    machine.run("nft", "add", "element", "inet", "linkspan", "translated4", element)
    try:
        yield
    finally:
        machine.run("nft", "delete", "element", "inet", "linkspan", "translated4", element)


@pytest.mark.parametrize("version", [4, 6])
def test_the_fast_path_is_the_one_that_pings_take(machine: Host, front: Lab, version: int) -> None:
    target = front.b.ip4 if version == 4 else front.b.ip6
    first = trace(machine, front.a.name, target)
    assert "answered" in decisions(first), "the MAC is asked for first, and the program answers"
    assert front.a.pings(target)
    found = trace(machine, front.a.name, target)
    assert found["end"]["outcome"] == first["end"]["outcome"] == "delivered"
    assert found["end"]["text"] == f"arrives at eth0 of {front.b.name} (fast path)"
    assert decisions(found)[-3:] == ["sender", "fdb", "redirect_peer"]
    taken = paths(machine, front.a, target)
    assert {("out", "fast"), ("in", "fast")} <= taken


def test_a_trace_is_in_no_counter(machine: Host, front: Lab) -> None:
    ends = (front.a.name, front.b.name)
    before = settled(lambda: [tallies(machine, name) for name in ends], "all to be quiet")
    trace(machine, *ends)
    trace(machine, *ends, "--from-ip", "10.1.1.1")
    assert [tallies(machine, name) for name in ends] == before


def test_what_is_forged_is_dropped_for_the_reason_that_is_counted(machine: Host, front: Lab) -> None:
    forged = {
        "spoofed_ip4": (["--from-ip", "10.1.1.1"], Ether(src=front.a.mac) / IP(src="10.1.1.1", dst=front.b.ip4)),
        "spoofed_mac": (
            ["--from-mac", "02:00:00:00:00:09"],
            Ether(src="02:00:00:00:00:09") / IP(src=front.a.ip4, dst=front.b.ip4),
        ),
    }
    for reason, (flags, packet) in forged.items():
        found = trace(machine, front.a.name, front.b.name, *flags)
        assert (found["end"]["outcome"], reason in found["end"]["text"]) == ("dropped", True)
        packet.dst = front.b.mac
        before = tallies(machine, front.a.name)
        with front.a.wire() as wire:
            wire.send(packet / UDP())
        wait_for(
            lambda b=before, r=reason: growth(b, tallies(machine, front.a.name)).get(("drops", r)) == 1,  # type: ignore[misc]
            f"one packet to be dropped as {reason}",
        )


def test_between_networks_the_rule_that_is_named_counts(machine: Host, front: Lab) -> None:
    back = Lab(machine, "back")
    found = trace(machine, front.a.name, back.a.name)
    assert found["end"]["outcome"] == "dropped"
    assert "networks are isolated" in found["end"]["text"]

    before = dropped(machine, "networks are isolated")
    assert not front.a.pings(back.a.ip4, "-c1", wait_s=0.2)
    assert dropped(machine, "networks are isolated") > before


def test_to_the_outside_it_leaves_by_the_device_and_with_the_source_that_are_named(
    world: tuple[Host, Place], front: Lab
) -> None:
    machine, other = world
    found = trace(machine, front.a.name, OUTSIDE4)
    assert (found["end"]["outcome"], found["end"]["path"]) == ("sent", "slow")
    assert f"leaves by {UPLINK} for {OUTSIDE4}" in found["end"]["text"]
    [masquerade] = [step["text"] for step in found["steps"] if step["decision"] == "masquerade"]
    assert masquerade.endswith(f"source becomes {OWN4}")
    with other.wire() as wire:
        assert front.a.pings(OUTSIDE4)
        seen = [Ether(frame) for frame in wire.until_idle()]
    assert {packet[IP].src for packet in seen if IP in packet and packet[IP].dst == OUTSIDE4} == {OWN4}


def test_a_published_port_leads_to_its_endpoint(machine: Host, front: Lab) -> None:
    with published(machine, front.b):
        found = trace(machine, front.a.name, OWN4, "--proto", "tcp", "--port", "8080")
        assert found["end"]["text"] == f"arrives at eth0 of {front.b.name} (slow path)"
        assert any(f"{front.b.ip4}:80 (published)" in step["text"] for step in found["steps"])
        other = trace(machine, front.a.name, OWN4, "--proto", "tcp", "--port", "8081")
        assert other["end"]["text"] == f"arrives at the host, which has {OWN4} (slow path)"


def test_a_published_port_leads_in_from_outside(world: tuple[Host, Place], front: Lab) -> None:
    machine, other = world
    uplink = Place(machine, "host", f"/proc/{machine.pid}/ns/net", UPLINK)
    with published(machine, front.b):
        found = trace(machine, OUTSIDE4, OWN4, "--port", "8080")
        before = settled(lambda: tallies(machine, front.b.name), "b to be quiet")
        with other.wire() as wire, front.b.wire() as behind:
            syn = IP(src=OUTSIDE4, dst=OWN4) / TCP(sport=40000, dport=8080, flags="S")
            wire.send(Ether(src=other.mac, dst=uplink.mac) / syn)
            seen = [Ether(frame) for frame in behind.until_idle()]
    (syn,) = (packet for packet in seen if TCP in packet)
    assert (syn[IP].src, syn[IP].dst, syn[TCP].dport) == (OUTSIDE4, front.b.ip4, 80)
    assert growth(before, tallies(machine, front.b.name))["packets", "in", "slow"] == 1
    assert found["packet"] == f"tcp port 8080 from {OUTSIDE4}, outside of this host, to {front.b.name} ({OWN4})"
    told = {step["decision"]: step["text"] for step in found["steps"]}
    assert told["arrival"].startswith(f"comes by {UPLINK}: ")
    assert told["dnat"].endswith(f"destination becomes {syn[IP].dst}:{syn[TCP].dport} (published)")
    assert told["neighbour"] == f"neighbour {syn[IP].dst} is {syn.dst} (permanent)"
    assert told["fdb"] == f"bridge fdb: {syn.dst} is behind {front.b.host_ifname}"
    assert decisions(found, "ls_ep_in") == ["counted"]
    assert found["end"]["text"] == f"arrives at eth0 of {front.b.name} (slow path)"


def test_what_the_bridge_has_lost_is_told(world: tuple[Host, Place], front: Lab) -> None:
    machine, _ = world
    with published(machine, front.b):
        machine.run("ip", "neigh", "del", front.b.ip4, "dev", front.bridge)
        asked = trace(machine, OUTSIDE4, OWN4, "--port", "8080")
        machine.run("bridge", "fdb", "del", front.b.mac, "dev", front.b.host_ifname, "master")
        lost = trace(machine, OUTSIDE4, OWN4, "--port", "8080")
    machine.linkspan("doctor", "--mend")
    with published(machine, front.b):
        mended = trace(machine, OUTSIDE4, OWN4, "--port", "8080")
    (question,) = texts(asked, "question")
    assert question.endswith(f"{front.b.name} answers: {front.b.mac}")
    assert asked["end"]["outcome"] == mended["end"]["outcome"] == "delivered"
    assert (lost["end"]["outcome"], f"has {front.b.mac}" in lost["end"]["text"]) == ("lost", True)


@pytest.mark.parametrize("version", [4, 6])
def test_what_nobody_has_asked_for_is_dropped_by_the_rule_that_is_named(
    world: tuple[Host, Place], front: Lab, version: int
) -> None:
    machine, other = world
    rule, uplink = "nothing comes in unasked", Place(machine, "host", f"/proc/{machine.pid}/ns/net", UPLINK)
    source, to, ip = (OUTSIDE4, front.b.ip4, IP) if version == 4 else (OUTSIDE6, front.b.ip6, IPv6)
    found = trace(machine, source, to, "--proto", "udp")
    assert (found["end"]["outcome"], rule in found["end"]["text"]) == ("dropped", True)
    before = dropped(machine, rule)
    with other.wire() as wire:
        wire.send(Ether(src=other.mac, dst=uplink.mac) / ip(src=source, dst=to) / UDP(dport=80))
    wait_for(lambda: dropped(machine, rule) == before + 1, "the packet to be dropped")


def test_what_cannot_come_from_outside_is_refused(machine: Host, front: Lab) -> None:
    cases = {
        (OWN4, front.b.name): f"{OWN4} is no address of another machine: its route is local",
        (front.b.ip4, front.b.name): f"{front.b.ip4} is {front.b.name}'s on network front: begin there",
        (f"{front.b.ip4}9", front.b.name): f"is on a network of this host, by {front.bridge}: begin at a sandbox there",
        (OUTSIDE4, OWN4, "--port", "81"): f"what comes for {OWN4}, tcp port 81, is the host's own",
        (OUTSIDE4, OWN4): f"what comes for {OWN4}, icmp, is the host's own",
        (OUTSIDE4, front.b.name, "--from-mac", "02:00:00:00:00:09"): "no rule looks at a MAC, leave it out",
        (OUTSIDE4, front.b.ip6): "the destination has no IPv4 address for",
    }
    for args, words in cases.items():
        done = machine.linkspan("trace", *args, check=False)
        assert done.returncode != 0
        assert words in done.stderr


def test_without_programs_the_bridge_carries_it(machine: Host) -> None:
    plain = Lab(machine, "plain", accel="off")
    assert plain.a.pings(plain.b.ip4)
    found = trace(machine, plain.a.name, plain.b.name)
    assert found["end"] == {
        "outcome": "delivered",
        "path": "slow",
        "text": f"arrives at eth0 of {plain.b.name} (slow path)",
    }
    words = [step["text"] for step in found["steps"]]
    assert any("no program runs" in text and "linkspan.accel=off" in text for text in words)
    ports = machine.run("bridge", "fdb", "show", "br", plain.bridge).stdout
    [behind] = re.findall(rf"^{plain.b.mac} dev (\S+) ", ports, re.MULTILINE)
    assert f"bridge fdb: {plain.b.mac} is behind {behind}" in words


def test_isolated_ports_are_told_as_such(machine: Host) -> None:
    lone = Lab(machine, "lone", Options={"com.docker.network.bridge.enable_icc": "false"})
    found = trace(machine, lone.a.name, lone.b.name)
    assert (found["end"]["outcome"], "isolated" in found["end"]["text"]) == ("dropped", True)
    assert not lone.a.pings(lone.b.ip4, "-c1", wait_s=0.2)


def test_what_cannot_be_traced_is_refused_with_the_remedy(machine: Host, front: Lab) -> None:
    machine.linkspan("network", "connect", "back", front.c.name)
    machine.linkspan("network", "connect", "back", front.b.name)
    machine.sandbox("hosted", "host")
    cases = {
        ("nobody", front.b.name): "no sandbox or endpoint nobody",
        ("hosted", front.b.name): "uses the host's stack",
        (front.b.name, front.c.name): "is on several networks: say which",
        (f"back/{front.a.name}", front.b.name): "is not on network back",
        (front.a.name, front.b.name, "--proto", "icmp", "--port", "7"): "icmp has no ports",
        (front.a.name, front.b.name, "--proto", "sctp"): "invalid protocol",
        (front.a.name, front.b.name, "--from-mac", "xy"): "invalid MAC address",
        (front.a.name, "fe80::1%eth9"): "",
    }
    for args, words in cases.items():
        done = machine.linkspan("trace", *args, check=False)
        assert done.returncode != 0
        assert words in done.stderr


def test_humans_get_numbered_steps(machine: Host, front: Lab) -> None:
    lines = machine.linkspan("trace", front.a.name, front.b.name).stdout.splitlines()
    assert lines[0] == f"icmp from {front.a.name} ({front.a.ip4}) to {front.b.ip4}, network front (bridge)"
    assert [line.split()[0] for line in lines[1:-1]] == [str(number) for number in range(1, len(lines) - 1)]
    assert lines[-1] == f"  => delivered: arrives at eth0 of {front.b.name} (fast path)"


def differing(machine: Host, *traces: str) -> dict[str, str]:
    """What those of the docs' traces print today that print something else there."""
    printed = {each: machine.linkspan("trace", *each.split(), check=False).stdout for each in traces}
    return {
        each: text for each, text in printed.items() if not is_still_printed(DOCUMENTED[f"linkspan trace {each}"], text)
    }


def test_the_examples_of_the_docs_are_what_is_printed(machine: Host) -> None:
    for network, names in {"shop": ("web", "db"), "office": ("far",)}.items():
        machine.linkspan("network", "create", network)
        for name in names:
            machine.sandbox(name, network)
    commands = ("web db --port 443", "web db --from-ip 192.0.2.9", f"web {OUTSIDE4}", "web far")
    assert differing(machine, *commands) == {}
    with published(machine, Station(machine, "web")):
        assert differing(machine, f"{OUTSIDE4} {OWN4} --port 8080", f"{OUTSIDE4} web --port 80") == {}
    machine.run("tc", "qdisc", "del", "dev", Station(machine, "db").host_ifname, "clsact")
    assert differing(machine, "db web") == {}
    machine.linkspan("doctor", "--mend")


# -- what is attached ------------------------------------------------------------------------------------------------


def texts(found: Any, decision: str) -> list[str]:
    return [step["text"] for step in found["steps"] if step["decision"] == decision]


def test_a_program_that_is_not_attached_is_told_and_the_kernel_s_path_followed(machine: Host, front: Lab) -> None:
    assert front.a.pings(front.b.ip4)
    ends = (front.a.name, front.b.name)
    machine.run("tc", "filter", "del", "block", str(accel.BLOCK_OUT))
    found = trace(machine, *ends)
    assert found["end"]["text"] == f"arrives at eth0 of {front.b.name} (slow path)"
    assert decisions(found) == []
    (step,) = (each for each in found["steps"] if each["decision"] == "not_attached")
    assert step["device"] == front.a.host_ifname
    assert step["text"].startswith("ls_ep_out is not attached to its ingress: the kernel's path takes all")
    assert {key[1:] for key in paths(machine, front.a, front.b.ip4)} <= {("slow",)}
    machine.linkspan("doctor", "--mend")
    assert trace(machine, *ends)["end"]["path"] == "fast"


def test_who_sees_the_frame_first_is_named(machine: Host, front: Lab) -> None:
    require("tcx")
    with stranger(machine, front.a.host_ifname) as id_:
        found = trace(machine, front.a.name, front.b.name)
    assert f"it sees the frame first: program stranger (id {id_}) at the ingress by tcx" in texts(found, "others")[0]
    assert found["end"]["path"] == "fast"


# -- macvlan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["macvlan", "veth"])
def test_a_macvlan_endpoint_s_packets(on_lan: Host, device: str) -> None:
    machine, switched = on_lan, device == "veth"
    options = {"linkspan__macvlan_device": "veth"} if switched else {}
    made(machine, device, "192.168.32.0/24", parent=PARENT, **options)
    a, b = join(machine, f"{device}-a", device), join(machine, f"{device}-b", device)
    assert a.pings(b.ip4)
    assert a.pings(HOST4)
    assert a.pings(ROUTER4)
    sibling, own, wire = (trace(machine, a.name, target) for target in (b.name, HOST4, ROUTER4))
    path = "fast" if switched else "slow"
    assert sibling["end"]["text"] == f"arrives at eth0 of {b.name} ({path} path)"
    assert ("out", path) in paths(machine, a, b.ip4)
    assert own["end"]["text"] == f"arrives at the host by way of {PARENT} (fast path)"
    assert ("out", "fast") in paths(machine, a, HOST4)
    assert (wire["end"]["outcome"], wire["end"]["path"]) == ("sent", path)
    assert f"leaves by {PARENT}" in wire["end"]["text"]
    assert ("out", path) in paths(machine, a, ROUTER4)
    forged = trace(machine, a.name, ROUTER4, "--from-ip", "10.1.1.1")
    assert (forged["end"]["outcome"], "spoofed_ip4" in forged["end"]["text"]) == ("dropped", True)


HOOKS = {
    "macvlan": ({}, "ls_parent_in", "slow"),
    "tc": ({"linkspan__macvlan_device": "veth"}, "ls_switch_in", "fast"),
    "xdp": ({"linkspan__macvlan_device": "veth", "linkspan__parent_hook": "xdp"}, "ls_switch_xdp", "fast"),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_packet_from_the_wire(net: Lan, on_lan: Host, hook: str) -> None:
    options, program, path = HOOKS[hook]
    router = net.router.place
    made(on_lan, "pub", "192.168.32.0/24", parent=PARENT, **options)
    b = join(on_lan, "b", "pub")
    found = trace(on_lan, ROUTER4, b.name)
    assert found["packet"] == f"icmp from {ROUTER4}, outside of this host, to b ({b.ip4})"
    assert found["end"]["text"] == f"arrives at eth0 of b ({path} path)"
    by = {step["by"] for step in found["steps"]} - {"kernel"}
    assert by <= {program}
    before = settled(lambda: tallies(on_lan, "b"), "b to be quiet")
    assert router.pings(b.ip4)
    assert ("packets", "in", path) in growth(before, tallies(on_lan, "b"))


def test_xdp_that_was_taken_off_is_told_and_the_next_program_followed(on_lan: Host) -> None:
    made(on_lan, "pub", "192.168.32.0/24", parent=PARENT, **HOOKS["xdp"][0])
    b = join(on_lan, "b", "pub")
    (pin,) = on_lan.run("find", str(on_lan.bpffs / "linkspan/switches"), "-type", "f").stdout.split()
    on_lan.run("bpftool", "link", "detach", "pinned", pin)
    found = trace(on_lan, ROUTER4, b.name)
    (text,) = texts(found, "not_attached")
    assert text.startswith("ls_switch_xdp is not attached to its ingress: ls_switch_in takes all")
    assert decisions(found, "ls_switch_in") == ["redirect_peer"]
    assert found["end"]["path"] == "fast"
    on_lan.linkspan("doctor", "--mend")
    assert decisions(trace(on_lan, ROUTER4, b.name), "ls_switch_xdp") == ["fdb", "redirect"]


def test_what_does_not_come_from_outside_is_refused(on_lan: Host) -> None:
    made(on_lan, "pub", "192.168.32.0/24", parent=PARENT)
    a, b = join(on_lan, "a", "pub"), join(on_lan, "b", "pub")
    cases = {
        (a.ip4, b.name): f"{a.ip4} is a's on network pub: begin there",
        ("fd00::1", b.name): "no IPv6 address for fd00::1",
        (ROUTER4, "nobody"): "no sandbox or endpoint nobody",
    }
    for args, words in cases.items():
        assert words in on_lan.linkspan("trace", *args, check=False).stderr


def test_the_examples_of_macvlan_in_the_docs_are_what_is_printed(on_lan: Host) -> None:
    made(on_lan, "lan", "192.168.32.0/24", parent=PARENT)
    a, b = join(on_lan, "printer", "lan"), join(on_lan, "scanner", "lan")
    assert a.pings(b.ip4)
    assert differing(on_lan, "printer scanner") == {}
    for name in ("printer", "scanner"):
        on_lan.api("DELETE", f"/linkspan/sandboxes/{name}?force=1")
    on_lan.api("DELETE", "/networks/lan")
    made(on_lan, "lan", "192.168.32.0/24", parent=PARENT, **HOOKS["xdp"][0])
    join(on_lan, "printer", "lan")
    assert differing(on_lan, f"{ROUTER4} printer") == {}
