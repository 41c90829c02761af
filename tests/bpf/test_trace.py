"""The traced programs decide as those that run on devices do, tell it, and change nothing that anyone else sees."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from datapath import abi, bpf, frames, loader, progrun
from datapath.abi import Told
from datapath.loader import sources
from datapath.trace import NOTE_SHORT, Run, Tracer
from tests.bpf.forged import FORGED
from tests.bpf.lab import GATEWAY_MAC, REDIRECT, SHOT, SLOW, STRANGER, UNSPEC, A, B, Lab
from tests.bpf.overlay import NODE4, NODE6, PEER4, PEER6, PEERS, UPLINK, VNI, OverlayLab
from tests.bpf.packets import BROADCAST, PAYLOAD, SAMPLES, arp_request, ip4, ip6, solicitation
from tests.bpf.parents import FOREIGN, PARENT, ParentLab
from tests.bpf.test_switch import XDP_PASS, XDP_REDIRECT, SwitchLab, between

pytestmark = pytest.mark.root

ACTIONS = {UNSPEC: "kernel", SHOT: "drop", REDIRECT: "redirect"}
XDP_ACTIONS = {XDP_PASS: "kernel", XDP_REDIRECT: "redirect"}
ALL = {**SAMPLES, **{f"{reason}: {name}": each for reason, of in FORGED.items() for name, each in of.items()}}
PAYLOADS = {4: lambda to: ip4(to) / UDP(sport=1, dport=2) / PAYLOAD, 6: lambda to: ip6(to) / UDP() / PAYLOAD}


@pytest.fixture(scope="module")
def tracer(session_lab: Lab) -> Iterator[Tracer]:
    made = Tracer(session_lab.directory / "bpf" / "linkspan", session_lab.directory)
    yield made
    made.close()


@pytest.fixture
def switch(parent: ParentLab) -> Iterator[SwitchLab]:
    made = SwitchLab(parent)
    made.reset()
    yield made
    made.clear()


def counts(lab: Lab):
    maps = lab.maps
    return maps.counters(), maps.drops(), [maps.table("limits").lookup(bytes(4))], maps.table("epoch").lookup(bytes(4))


def without_id(packet: bytes) -> bytes:
    """An outer IPv4 header's identification is another each time, and so is its checksum."""
    is_outer = packet[14:15] == b"\x45" and packet[36:38] == b"\x12\xb5"
    return packet[:18] + bytes(2) + packet[20:24] + bytes(2) + packet[26:] if is_outer else packet


def trace(lab: Lab, tracer: Tracer, program: str, packet: Ether | bytes, ifname: str, context: int = 0) -> Run:
    """Traces a packet, and then runs the program that devices run on it: both come to the same."""
    before = counts(lab)
    traced = lab.call(tracer.run, program, bytes(packet), lab.ifindex[ifname], context=context)
    assert counts(lab) == before
    again = lab.call(tracer.run, program, bytes(packet), lab.ifindex[ifname], context=context)
    assert again.decisions == traced.decisions, "nothing is remembered of a trace"
    if not context:
        live = lab.run(program, packet, ifname)
        assert (traced.action, without_id(traced.packet)) == (ACTIONS[live.retval], without_id(live.data_out))
        dropped = [told.operand for told in traced.decisions if told.what == "drop"]
        reasons = {reason for of in lab.maps.drops().values() for reason in of}
        assert [abi.DropReason(reason).label for reason in dropped] == sorted(reasons)
    return traced


def told(run: Run) -> list[tuple[Told, int]]:
    return [(Told[each.what.upper()], each.operand) for each in run.decisions]


# -- bridge ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_packet_of_an_endpoint_is_judged_alike(lab, tracer, name):
    try:
        trace(lab, tracer, "ls_ep_out", ALL[name], A.ifname)
    except OSError:  # the kernel makes no test run of a cut header, whoever asks
        with pytest.raises(OSError, match="PROG_TEST_RUN"):
            lab.run("ls_ep_out", ALL[name], A.ifname)


def test_the_fast_path_tells_sender_receiver_and_redirection(lab, tracer):
    index = lab.ifindex[B.ifname]
    expected = [(Told.SENDER, A.slot), (Told.FDB, index), (Told.REDIRECT_PEER, index)]
    for packet in (SAMPLES["udp4"], SAMPLES["tcp6"], SAMPLES["icmp4"]):
        assert told(trace(lab, tracer, "ls_ep_out", packet, A.ifname)) == expected


def test_what_is_left_to_the_bridge_tells_why(lab, tracer):
    index = lab.ifindex[B.ifname]
    cases = {
        bytes(between(SAMPLES["udp4"], destination=GATEWAY_MAC)): [(Told.SENDER, A.slot), (Told.NO_FDB, 0)],
        bytes(ip4() / UDP() / bytes(3000)): [(Told.SENDER, A.slot), (Told.FDB, index), (Told.TOO_LONG, index)],
        bytes(arp_request("10.9.0.99")): [(Told.NOT_ANSWERED, 0)],
    }
    for packet, expected in cases.items():
        run = trace(lab, tracer, "ls_ep_out", packet, A.ifname)
        assert (run.action, told(run)) == ("kernel", expected)
    run = trace(lab, tracer, "ls_ep_out", ip4(B, SLOW) / UDP() / PAYLOAD, SLOW.ifname)
    assert told(run) == [(Told.SENDER, SLOW.slot), (Told.NOT_CONNECTED, lab.ifindex[SLOW.ifname])]
    assert told(trace(lab, tracer, "ls_ep_out", SAMPLES["udp4"], STRANGER)) == [
        (Told.NO_ENDPOINT, lab.ifindex[STRANGER])
    ]


@pytest.mark.parametrize("question", [arp_request(), solicitation()], ids=["arp", "nd"])
def test_a_question_is_answered_with_the_neighbours_mac(lab, tracer, question):
    run = trace(lab, tracer, "ls_ep_out", question, A.ifname)
    assert told(run) == [(Told.ANSWERED, 0), (Told.REDIRECT_PEER, lab.ifindex[A.ifname])]
    assert frames.answer(run.packet) == B.mac_bytes


def test_a_drop_tells_its_reason(lab, tracer):
    run = trace(lab, tracer, "ls_ep_out", FORGED["spoofed_mac"]["unicast4"], A.ifname)
    assert (run.action, told(run)) == ("drop", [(Told.DROP, abi.DropReason.SPOOFED_MAC)])


# -- overlay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", PAYLOADS)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_packet_for_a_peer_tells_its_node_and_network(lab, overlay: OverlayLab, tracer, peer, version):
    packet, node = PAYLOADS[version](peer), PEERS[peer]
    run = trace(lab, tracer, "ls_ep_out", packet, A.ifname)
    assert told(run) == [
        (Told.SENDER, A.slot),
        (Told.NO_FDB, 0),
        (Told.PEER, node.number),
        (Told.VXLAN, VNI),
        (Told.REDIRECT_NEIGH, overlay.uplink),
    ]
    outer = frames.outer(run.packet)
    shown = (IP if node is NODE4 else IPv6)(run.packet[14:])
    assert (str(outer.source), str(outer.destination), outer.vni) == (shown.src, shown.dst, VNI)
    assert (outer.source_port, outer.destination_port) == (shown[UDP].sport, shown[UDP].dport)
    assert outer.inner == bytes(packet)


def test_a_packet_for_a_peer_that_is_left_to_the_kernel_tells_why(lab, overlay: OverlayLab, tracer):
    common = [(Told.SENDER, A.slot), (Told.NO_FDB, 0), (Told.PEER, NODE4.number)]
    long = ip4(PEER4) / UDP() / bytes(1460)
    assert told(trace(lab, tracer, "ls_ep_out", long, A.ifname)) == [*common, (Told.WAY_TOO_SMALL, 1500)]
    overlay.put_node(NODE4, is_known=False)
    assert told(trace(lab, tracer, "ls_ep_out", PAYLOADS[4](PEER4), A.ifname)) == [*common, (Told.NO_WAY, NODE4.number)]


def test_a_direct_packet_tells_so(lab, overlay: OverlayLab, tracer):
    overlay.put_direct()
    run = trace(lab, tracer, "ls_ep_out", PAYLOADS[4](PEER4), A.ifname)
    assert told(run)[3:] == [(Told.DIRECT, NODE4.number), (Told.REDIRECT, overlay.uplink)]
    overlay.put_direct(wait_s=60)
    assert told(trace(lab, tracer, "ls_ep_out", PAYLOADS[4](PEER4), A.ifname))[3][0] is Told.VXLAN


@pytest.mark.parametrize("node", [NODE4, NODE6], ids=["node4", "node6"])
def test_the_uplink_of_the_peer_takes_what_was_pushed(lab, overlay: OverlayLab, tracer, node):
    """What a node sends, run through the program of another node that has it for a peer."""
    peer = {NODE4: PEER4, NODE6: PEER6}[node]
    inner = ip4(A, peer) / UDP() / PAYLOAD
    run = trace(lab, tracer, "ls_uplink_in", overlay.wrap(inner, node), UPLINK)
    index = lab.ifindex[A.ifname]
    assert told(run) == [
        (Told.SEGMENT, 9),
        (Told.NODE, node.number),
        (Told.FDB, index),
        (Told.FROM_PEER, node.number),
        (Told.REDIRECT_PEER, index),
    ]
    assert run.packet == bytes(inner)


@pytest.mark.parametrize("version", PAYLOADS)
def test_the_uplink_takes_a_direct_packet_and_tells_from_whom(lab, overlay: OverlayLab, tracer, version):
    overlay.put_direct()
    inner = {4: ip4, 6: ip6}[version](A, PEER4) / UDP(sport=1, dport=2) / PAYLOAD
    run = trace(lab, tracer, "ls_uplink_in", between(inner, source=NODE4.mac, destination=overlay.uplink_mac), UPLINK)
    taken = [(Told.NO_TUNNEL, 0), (Told.TAKER, 9)]
    assert told(run) == [*taken, (Told.FROM_PEER, NODE4.number), (Told.REDIRECT_PEER, lab.ifindex[A.ifname])]
    assert run.packet == bytes(inner)
    stranger = between({4: ip4, 6: ip6}[version](A, B) / UDP() / PAYLOAD, destination=overlay.uplink_mac)
    stranger.payload.src = {4: "10.9.0.99", 6: "fd09::99"}[version]
    assert told(trace(lab, tracer, "ls_uplink_in", stranger, UPLINK)) == [*taken, (Told.FROM_NOBODY, 0)]
    forged = between(inner, source=NODE6.mac, destination=overlay.uplink_mac)
    run = trace(lab, tracer, "ls_uplink_in", forged, UPLINK)
    assert told(run) == [*taken, (Told.DROP, abi.DropReason.SPOOFED_PEER)]


def test_what_the_uplink_leaves_or_drops_tells_why(lab, overlay: OverlayLab, tracer):
    inner = ip4(A, PEER4) / UDP() / PAYLOAD
    run = trace(lab, tracer, "ls_uplink_in", overlay.wrap(inner, vni=7), UPLINK)
    assert told(run)[0] == (Told.NO_SEGMENT, 7)
    stranger = overlay.wrap(inner, replace(NODE4, remote="192.0.2.77"))
    assert told(trace(lab, tracer, "ls_uplink_in", stranger, UPLINK))[1][0] is Told.NO_NODE
    plain = between(inner, destination=overlay.uplink_mac)
    assert told(trace(lab, tracer, "ls_uplink_in", plain, UPLINK)) == [(Told.NO_TUNNEL, 0), (Told.NO_TAKER, 0)]
    unknown = overlay.wrap(between(inner, source="02:00:00:00:00:09", destination=A.mac))
    run = trace(lab, tracer, "ls_uplink_in", unknown, UPLINK)
    assert (run.action, told(run)[3:]) == ("kernel", [(Told.FROM_NOBODY, 0), (Told.NO_TAKER, 0)])
    forged = between(inner, source=PEER6.mac, destination=A.mac)
    run = trace(lab, tracer, "ls_uplink_in", overlay.wrap(forged), UPLINK)
    assert (run.action, told(run)[-1]) == ("drop", (Told.DROP, abi.DropReason.SPOOFED_PEER))


# -- macvlan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["ls_parent_out", "ls_parent_in"])
@pytest.mark.parametrize("name", ALL)
def test_every_packet_of_a_station_is_judged_alike(parent: ParentLab, tracer, program, name):
    try:
        trace(parent.lab, tracer, program, ALL[name], PARENT)
    except OSError:
        with pytest.raises(OSError, match="PROG_TEST_RUN"):
            parent.lab.run(program, ALL[name], PARENT)


def test_a_station_s_way_to_the_host_and_to_the_wire(parent: ParentLab, tracer):
    lab, index = parent.lab, parent.index
    to_host = between(SAMPLES["udp4"], destination=parent.host_mac)
    run = trace(lab, tracer, "ls_parent_out", to_host, PARENT)
    assert told(run) == [(Told.SENDER, A.slot), (Told.HOST, index), (Told.REDIRECT_IN, index)]
    assert trace(lab, tracer, "ls_parent_in", run.packet, PARENT, NOTE_SHORT).action == "kernel"
    to_wire = between(SAMPLES["udp4"], destination=FOREIGN)
    assert told(trace(lab, tracer, "ls_parent_out", to_wire, PARENT)) == [(Told.SENDER, A.slot), (Told.WIRE, index)]
    between_them = trace(lab, tracer, "ls_parent_in", SAMPLES["udp4"], PARENT)
    assert told(between_them) == [(Told.SENDER, A.slot), (Told.STATION, B.slot)]


def test_copies_are_told_and_not_made(parent: ParentLab, tracer):
    """A socket on the device sees nothing of a trace, and the copy that a test run of the live program makes."""
    lab, packet = parent.lab, bytes(between(SAMPLES["dhcp4"], destination=BROADCAST))
    wire = lab.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    with wire:
        wire.bind((PARENT, 0x0003))
        wire.settimeout(5)
        run = lab.call(tracer.run, "ls_parent_out", packet, parent.index)
        assert told(run)[-1] == (Told.COPY_IN, parent.index)
        lab.run("ls_parent_out", packet[:-1] + b"!", PARENT)
        assert wire.recv(2000)[-1:] == b"!"


@pytest.mark.parametrize("name", ALL)
def test_every_packet_of_a_switched_station_is_judged_alike(switch: SwitchLab, tracer, name):
    try:
        trace(switch.lab, tracer, "ls_switch_out", ALL[name], A.ifname)
    except OSError:
        with pytest.raises(OSError, match="PROG_TEST_RUN"):
            switch.lab.run("ls_switch_out", ALL[name], A.ifname)


def test_a_switched_station_s_ways(switch: SwitchLab, tracer):
    lab, parent, b = switch.lab, switch.parent, switch.lab.ifindex[B.ifname]
    run = trace(lab, tracer, "ls_switch_out", SAMPLES["udp4"], A.ifname)
    assert told(run) == [(Told.SENDER, A.slot), (Told.FDB, b), (Told.REDIRECT_PEER, b)]
    to_host = trace(lab, tracer, "ls_switch_out", between(SAMPLES["udp4"], destination=parent.host_mac), A.ifname)
    assert told(to_host)[1:] == [(Told.HOST, parent.index), (Told.REDIRECT_IN, parent.index)]
    to_wire = trace(lab, tracer, "ls_switch_out", between(SAMPLES["udp4"], destination=FOREIGN), A.ifname)
    assert told(to_wire)[1:] == [(Told.WIRE, parent.index), (Told.REDIRECT, parent.index)]
    from_wire = trace(lab, tracer, "ls_switch_in", between(SAMPLES["udp4"], source=FOREIGN), PARENT)
    assert told(from_wire) == [(Told.REDIRECT_PEER, b)]


@pytest.mark.parametrize("name", ALL)
def test_every_packet_from_the_wire_is_judged_alike_by_xdp(switch: SwitchLab, tracer, name):
    lab, packet, index = switch.lab, bytes(between(ALL[name], source=FOREIGN)), switch.parent.index
    before = counts(lab)
    traced = lab.call(tracer.run, "ls_switch_xdp", packet, index)
    assert counts(lab) == before
    live = lab.call(progrun.run_xdp, lab.programs["ls_switch_xdp"], packet, index)
    assert (traced.action, traced.packet) == (XDP_ACTIONS[live.retval], live.data_out)
    assert (live.retval == XDP_REDIRECT) == (packet[:6] == B.mac_bytes)


def test_xdp_tells_whose_the_packet_is(switch: SwitchLab, tracer):
    lab, parent, b = switch.lab, switch.parent, switch.lab.ifindex[B.ifname]
    to_b = lab.call(tracer.run, "ls_switch_xdp", bytes(between(SAMPLES["udp4"], source=FOREIGN)), parent.index)
    assert told(to_b) == [(Told.FDB, b), (Told.REDIRECT, b)]
    to_host = between(SAMPLES["udp4"], source=FOREIGN, destination=parent.host_mac)
    assert told(lab.call(tracer.run, "ls_switch_xdp", bytes(to_host), parent.index)) == [(Told.NO_FDB, 0)]
    to_all = between(SAMPLES["dhcp4"], source=FOREIGN, destination=BROADCAST)
    assert told(lab.call(tracer.run, "ls_switch_xdp", bytes(to_all), parent.index)) == []


def test_a_trace_spends_nothing_of_a_limit_and_sees_that_it_is_spent(parent: ParentLab, tracer):
    lab, packet = parent.lab, between(SAMPLES["dhcp4"], destination=BROADCAST)
    parent.maps.limit_put(0, 1)
    for _ in range(3):
        assert trace_limit(lab, tracer, packet) == ("kernel", [])
    assert lab.run("ls_station_out", packet, PARENT).retval == UNSPEC
    assert trace_limit(lab, tracer, packet) == ("drop", [(Told.DROP, abi.DropReason.STORM)])
    run = lab.call(tracer.run, "ls_station_out", bytes(packet), context=SLOW.slot)
    assert run.action == "kernel", "another slot has its own"


def trace_limit(lab: Lab, tracer: Tracer, packet: Ether) -> tuple[str, list[tuple[Told, int]]]:
    run = lab.call(tracer.run, "ls_station_out", bytes(packet))
    return run.action, told(run)


# -- how they are built ----------------------------------------------------------------------------------------------


def test_tracing_leaves_no_instruction_in_the_programs_of_devices(lab, tmp_path):
    """The same sources with all that is told taken out give the same programs."""
    bare = tmp_path / "bpf"
    shutil.copytree(sources.DIRECTORY, bare)
    for path in bare.rglob("*.[ch]"):
        path.write_text(re.sub(r"(?m)^\s*LS_TELL(_FOUND)?\((?!what|is_found).*\);$", "", path.read_text()))
    stripped = "\n".join(path.read_text() for path in bare.rglob("*.c"))
    assert "LS_TELL" not in stripped
    root = lab.directory / "bpf" / "bare"
    made = lab.call(loader.load, str(root), run_dir=str(tmp_path), source_dir=str(bare), timeout_s=600)
    for name, path in made.programs.items():
        fd = lab.call(bpf.obj_get, path)
        assert bpf.prog_info(fd).tag == bpf.prog_info(lab.programs[name]).tag, name
        os.close(fd)


def test_traced_programs_of_other_sources_are_refused(lab, tmp_path):
    changed = tmp_path / "bpf"
    shutil.copytree(sources.DIRECTORY, changed)
    with (changed / "maps.h").open("a") as file:
        file.write("/* changed */\n")
    with pytest.raises(loader.Unavailable, match="restart linkspand"):
        lab.call(loader.load_traced, str(lab.directory / "bpf" / "linkspan"), source_dir=str(changed))


def test_pruning_keeps_the_traced_programs_of_this_version_alone(lab, tracer):
    root = lab.directory / "bpf" / "linkspan"
    trace_dir = root / f"abi-{abi.ABI_VERSION}" / "trace"

    def prune() -> tuple[set[str], set[str]]:
        old = trace_dir / "ls_ep_out-0123456789ab"
        bpf.obj_pin(lab.programs["ls_ep_out"], old)
        before = {path.name for path in trace_dir.iterdir()}
        loader.prune(str(root))
        return before, {path.name for path in trace_dir.iterdir()}

    lab.call(tracer.run, "ls_ep_out", bytes(SAMPLES["udp4"]), lab.ifindex[A.ifname])
    before, after = lab.call(prune)
    assert before - after == {"ls_ep_out-0123456789ab"}
