"""ls_ep_out on packets that nobody would send: cut at every byte, damaged, invented. The model says what is right."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.bpf.forged import FORGED
from tests.bpf.lab import A, B
from tests.bpf.model import judge
from tests.bpf.packets import SAMPLES

pytestmark = pytest.mark.root

SHORTEST = 14  # no device takes less than an Ethernet header
LONGEST = 512
WHOLE_IP_HEADERS = 54

GOOD = [bytes(packet) for packet in SAMPLES.values()]
BAD = [bytes(packet) for packets in FORGED.values() for packet in packets.values()]


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_at_any_byte_a_packet_passes_or_is_malformed(lab, name):
    whole = bytes(SAMPLES[name])
    for length in range(SHORTEST, len(whole) + 1):
        cut = whole[:length]
        verdict, reason = lab.judge(cut)
        assert reason in (None, "malformed"), length
        assert (verdict, reason) == judge(cut), length


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=f"{reason}: {name}") for reason, each in FORGED.items() for name in each]
)
def test_cut_at_any_byte_a_bad_packet_is_judged_by_what_is_left(lab, name):
    for packets in FORGED.values():
        whole = bytes(packets.get(name, b""))
        for length in range(SHORTEST, len(whole) + 1):
            assert lab.judge(whole[:length]) == judge(whole[:length]), length


damage = st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4)


@st.composite
def damaged(draw):
    frame = bytearray(draw(st.sampled_from(GOOD + BAD)))
    for at, value in draw(damage):
        if at < len(frame):
            frame[at] = value
    frame += draw(st.binary(max_size=24))
    return bytes(frame[: draw(st.integers(SHORTEST, len(frame)))])


ethertypes = st.sampled_from(["0800", "0806", "86dd", "8100", "88a8", "8035", "0026"]).map(bytes.fromhex)
pieces = st.one_of(
    st.binary(max_size=40),
    ethertypes,
    st.sampled_from([frame[at:] for frame in GOOD for at in (14, 18, 34, 54) if at < len(frame)]),
    st.sampled_from(
        [bytes.fromhex("3a00010400000000"), bytes.fromhex("2c00000100000007"), bytes.fromhex("0101") + A.mac_bytes]
    ),
)


@st.composite
def invented(draw):
    destination = draw(st.sampled_from([B.mac_bytes, b"\xff" * 6, bytes.fromhex("3333ff00ffff")]))
    body = b"".join(draw(st.lists(pieces, max_size=6)))
    return (destination + A.mac_bytes + draw(ethertypes) + body)[:LONGEST]


@settings(max_examples=1500, deadline=None)
@given(frame=st.one_of(damaged(), invented()))
@example(frame=bytes(SHORTEST))
def test_every_packet_gets_the_models_verdict_and_is_counted_once(session_lab, frame):
    # The lab also holds that exactly one counter, or one drop, goes up by the packet.
    assert session_lab.judge(frame) == judge(frame)


@settings(max_examples=300, deadline=None)
@given(frame=st.binary(min_size=SHORTEST, max_size=LONGEST))
def test_noise_from_the_right_mac_is_judged_like_the_model(session_lab, frame):
    frame = frame[:6] + A.mac_bytes + frame[12:]
    assert session_lab.judge(frame) == judge(frame)


@settings(max_examples=300, deadline=None)
@given(frame=damaged().filter(lambda frame: len(frame) >= WHOLE_IP_HEADERS))
def test_only_answers_change_a_packet(session_lab, frame):
    outcome = session_lab.send(frame)
    if outcome.receiver != "a":
        assert outcome.packet == frame
