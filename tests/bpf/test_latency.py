"""What is timed, for whom, how often, and in which bucket: by test runs, with notes written by the test."""

from __future__ import annotations

import math
import struct
import subprocess
import time
from decimal import Decimal, getcontext
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether

from datapath import abi, bpf
from datapath.latency import Histogram, Kind
from tests.bpf.forged import SPOOFED_IP4
from tests.bpf.lab import GONE_MAC, REDIRECT, SHOT, UNSPEC, A, B, Lab
from tests.bpf.overlay import PEER4, OverlayLab
from tests.bpf.packets import SAMPLES, ether

pytestmark = pytest.mark.root

PACKET = SAMPLES["udp4"]
TO_KERNEL = ether(GONE_MAC) / PACKET.payload
MACS = bytes(TO_KERNEL)[:12]
FIRST = bytes(4)
MILLISECOND = 1_000_000


@pytest.fixture
def timed(lab: Lab) -> Lab:
    """The lab with every packet timed."""
    lab.maps.sample(1)
    return lab


def note(lab: Lab) -> abi.Sampling:
    """The CPU's own: the lab's thread runs on one."""
    raw = lab.maps.table("sampling").lookup(FIRST)
    assert raw
    rows = [abi.Sampling.unpack(raw[at : at + abi.Sampling.SIZE]) for at in range(0, len(raw), abi.Sampling.SIZE)]
    [own] = [row for row in rows if row.begin_ns] or [rows[0]]
    return own


def leave_note(lab: Lab, packet: Ether, ago_ns: int, **changed: int | bytes) -> None:
    """As if the packet had been left to the kernel so long ago."""
    fields = {"begin_ns": time.monotonic_ns() - ago_ns, "len": len(packet), "macs": bytes(packet)[:12]} | changed
    own = abi.Sampling(every=1, **fields)  # type: ignore[arg-type]
    lab.maps.table("sampling").update(FIRST, own.pack() * bpf.possible_cpus())


def count(lab: Lab, slot: int, kind: Kind) -> int:
    found = lab.maps.latencies().get(slot, {}).get(kind)
    return found.count if found else 0


def kinds(lab: Lab) -> dict[int, dict[Kind, int]]:
    return {slot: {kind: each.count for kind, each in by.items()} for slot, by in lab.maps.latencies().items()}


def test_a_fast_packet_is_timed_for_its_receiver(timed: Lab) -> None:
    assert timed.send(PACKET).receiver == "b"
    assert kinds(timed) == {B.slot: {Kind.FAST: 1}}
    [(bucket, _)] = timed.maps.latencies()[B.slot][Kind.FAST].buckets.items()
    total = timed.maps.latencies()[B.slot][Kind.FAST].total_seconds
    assert bucket == max(math.ceil(math.log2(total) * 4), -104)
    assert 0 < total < 0.01


def test_nothing_is_timed_unless_asked_for(lab: Lab) -> None:
    lab.maps.sample(0)
    for _ in range(10):
        lab.send(PACKET)
    lab.run("ls_ep_in", TO_KERNEL, A.ifname)
    assert lab.maps.latencies() == {}


@pytest.mark.parametrize("every", [1, 16, 64])
def test_one_packet_in_so_many_is_timed(lab: Lab, every: int) -> None:
    """The distances between two have a mean of `every` and a variance of about every**2 / 3."""
    lab.maps.sample(every)
    packets = 20_000
    lab.run("ls_ep_out", PACKET, A.ifname, repeat=packets)
    expected = packets / every
    spread = math.sqrt(expected / 3)
    assert count(lab, B.slot, Kind.FAST) == pytest.approx(expected, abs=6 * spread if every > 1 else 0)


def test_two_flows_that_take_turns_are_timed_alike(lab: Lab) -> None:
    lab.maps.sample(4)
    back = ether(A.mac, B.mac) / SAMPLES["udp4"].payload.copy()
    back.payload.src, back.payload.dst = B.ip4, A.ip4
    for _ in range(300):
        assert lab.run("ls_ep_out", PACKET, A.ifname).retval == REDIRECT
        assert lab.run("ls_ep_out", back, B.ifname).retval == REDIRECT
    for slot in (A.slot, B.slot):
        assert 30 < count(lab, slot, Kind.FAST) < 120


def test_what_the_kernel_gets_is_timed_when_it_reaches_a_host_end(timed: Lab) -> None:
    assert timed.run("ls_ep_out", TO_KERNEL, A.ifname).retval == UNSPEC
    assert (note(timed).len, note(timed).macs) == (len(TO_KERNEL), MACS)
    assert timed.run("ls_ep_in", TO_KERNEL, B.ifname).retval == UNSPEC
    assert kinds(timed) == {B.slot: {Kind.SLOW: 1}}


def test_only_the_first_copy_counts(timed: Lab) -> None:
    timed.run("ls_ep_out", TO_KERNEL, A.ifname)
    for host in (B, A, B):
        timed.run("ls_ep_in", TO_KERNEL, host.ifname)
    assert kinds(timed) == {B.slot: {Kind.SLOW: 1}}


@pytest.mark.parametrize(
    "other",
    [
        ether(B.mac) / PACKET.payload,
        ether(GONE_MAC, B.mac) / PACKET.payload,
        TO_KERNEL / b"longer",
    ],
    ids=["destination", "source", "length"],
)
def test_another_packet_is_not_taken_for_the_one_that_is_timed(timed: Lab, other: Ether) -> None:
    timed.run("ls_ep_out", TO_KERNEL, A.ifname)
    timed.run("ls_ep_in", other, B.ifname)
    assert timed.maps.latencies() == {}
    timed.run("ls_ep_in", TO_KERNEL, B.ifname)
    assert count(timed, B.slot, Kind.SLOW) == 1


@pytest.mark.parametrize(
    ("program", "packet", "ifname", "verdict"),
    [
        ("ls_ep_out", TO_KERNEL, A.ifname, UNSPEC),
        ("ls_ep_out", PACKET, A.ifname, REDIRECT),
        ("ls_ep_out", SPOOFED_IP4["neighbour's"], A.ifname, SHOT),
        ("ls_ep_out", PACKET, "stranger", UNSPEC),
        ("ls_uplink_in", PACKET, "stranger", UNSPEC),
    ],
    ids=["kernel's", "fast", "dropped", "no endpoint's", "on an uplink"],
)
def test_what_arrives_next_ends_the_wait_for_a_packet_that_got_lost(
    timed: Lab, program: str, packet: Ether, ifname: str, verdict: int
) -> None:
    """Whether that is timed itself or not."""
    leave_note(timed, TO_KERNEL, MILLISECOND, left=5)
    assert timed.run(program, packet, ifname).retval == verdict
    timed.run("ls_ep_in", TO_KERNEL, B.ifname)
    assert timed.maps.latencies() == {}


@pytest.mark.parametrize("octave", range(-26, 4))
def test_a_duration_is_added_up_and_counted_in_its_bucket(lab: Lab, octave: int) -> None:
    seconds = 2**octave * 1.1
    before = time.monotonic_ns()
    leave_note(lab, TO_KERNEL, int(seconds * 1e9))
    lab.run("ls_ep_in", TO_KERNEL, B.ifname)
    took = (time.monotonic_ns() - before) / 1e9
    found = lab.maps.latencies()[B.slot][Kind.SLOW]
    assert seconds - 1e-9 <= found.total_seconds <= seconds + took
    assert found.buckets == {math.ceil(math.log2(found.total_seconds) * 4): 1}


def test_what_is_beyond_the_last_bucket_is_in_it(lab: Lab) -> None:
    leave_note(lab, TO_KERNEL, 100 * 10**9)
    lab.run("ls_ep_in", TO_KERNEL, B.ifname)
    assert lab.maps.latencies()[B.slot][Kind.SLOW].buckets == {abi.LATENCY_BUCKETS - 1 - abi.LATENCY_SECOND: 1}


def test_a_cleared_slot_has_no_latencies(timed: Lab) -> None:
    timed.send(PACKET)
    timed.maps.clear_slot(B.slot)
    assert timed.maps.latencies() == {}


def test_a_packet_from_another_node_is_timed_until_its_sandbox(overlay: OverlayLab) -> None:
    overlay.maps.sample(1)
    inner = Ether(src=PEER4.mac, dst=A.mac) / PACKET.payload
    assert overlay.into(overlay.wrap(inner)).retval == REDIRECT
    assert kinds(overlay.lab) == {A.slot: {Kind.FAST: 1}}


def test_a_packet_from_an_unknown_peer_is_timed_until_the_host_end(overlay: OverlayLab) -> None:
    """As another VTEP's: the program leaves it to the VXLAN device, which unwraps it."""
    overlay.maps.sample(1)
    overlay.peers.peer_delete(abi.FdbKey(9, PEER4.mac_bytes))
    overlay.peers.forget()
    inner = Ether(src=PEER4.mac, dst=A.mac) / PACKET.payload
    assert overlay.into(overlay.wrap(inner)).retval == UNSPEC
    overlay.lab.run("ls_ep_in", inner, A.ifname)
    assert kinds(overlay.lab) == {A.slot: {Kind.SLOW: 1}}


def test_a_packet_for_another_node_is_not_timed(overlay: OverlayLab) -> None:
    overlay.maps.sample(1)
    overlay.out(ether(PEER4.mac) / PACKET.payload)
    assert overlay.maps.latencies() == {}


def test_each_bucket_ends_at_its_bound_to_the_nanosecond(tmp_path: Path) -> None:
    """The programs' own function, built by the C compiler: a test run cannot choose nanoseconds."""
    getcontext().prec = 40
    bounds = [int(Decimal(2) ** (Decimal(index) / 4) * 10**9) for index in range(-104, 16)]
    durations = [0, *(bound + step for bound in bounds for step in (-1, 0, 1)), 2**34, 2**64 - 1]
    (tmp_path / "bucket.c").write_text(
        "#include <linux/types.h>\n#include <stdio.h>\n#define LS_INLINE static inline\n"
        '#include "abi.h"\n#include "lib/bucket.h"\n'
        'int main(void) { unsigned long long ns; while (scanf("%llu", &ns) == 1) '
        'printf("%u\\n", ls_latency_bucket(ns)); }\n'
    )
    sources = Path(__file__).parents[2] / "bpf"
    subprocess.run(["cc", "-O1", "-I", sources, tmp_path / "bucket.c", "-o", tmp_path / "bucket"], check=True)
    text = "\n".join(map(str, durations))
    result = subprocess.run([tmp_path / "bucket"], input=text, capture_output=True, text=True, check=True)
    wanted = [min(sum(bound < ns for bound in bounds), abi.LATENCY_BUCKETS - 1) for ns in durations]
    assert [int(line) for line in result.stdout.split()] == wanted


def test_histograms_are_read_as_they_lie_in_the_map(lab: Lab) -> None:
    """Written by the test: at both ends, with a gap, full, and empty."""
    counts = {10: {0: 3, 119: 7}, 11: {50: 1, 52: 2**40}, 12: dict.fromkeys(range(120), 9), 13: {}}
    table = lab.maps.table("latencies")
    for slot, buckets in counts.items():
        row = [buckets.get(at, 0) for at in range(120)]
        table.update(struct.pack("=II", slot, 2), struct.pack("=Q120Q", 1_500_000_000, *row))
    assert lab.maps.latencies() == {
        slot: {Kind.TCP_RTT: Histogram({at - 104: value for at, value in buckets.items()}, 1.5)}
        for slot, buckets in counts.items()
    }
