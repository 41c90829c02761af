"""DHCP messages: scapy and pyroute2 read what is built; what scapy built is read, and all else refused."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyroute2.dhcp.dhcp4msg import dhcp4msg
from pyroute2.dhcp.enums.dhcp import MessageType, Option
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from datapath.dhcp_message import FOR_EVER, Answer, Malformed, build, parse

MAC = bytes.fromhex("0242c0a82040")
SERVER, SERVER_MAC = "192.168.32.1", "02:00:00:00:67:67"
MINE = "192.168.32.100"


def answer(
    kind: str = "ack", *options: Any, lease: int | None = 3600, server: str | None = SERVER, **fields: Any
) -> Any:
    given = [("message-type", kind)]
    given += [("server_id", server)] if server else []
    given += [("lease_time", lease)] if lease is not None else []
    reply = BOOTP(**{"op": 2, "xid": 7, "yiaddr": MINE, "chaddr": MAC + bytes(10), **fields})
    return (
        Ether(src=SERVER_MAC, dst="ff:ff:ff:ff:ff:ff")
        / IP(src=SERVER, dst="255.255.255.255")
        / UDP(sport=67, dport=68)
        / reply
        / DHCP(options=[*given, *options, "end"])
    )


def raw(options: bytes, **fields: Any) -> bytes:
    """An answer whose options are these octets."""
    frame = answer(**fields)
    frame[BOOTP].remove_payload()
    frame[BOOTP].options = b"\x63\x82\x53\x63"
    return bytes(Ether(bytes(frame / options)))


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_a_question_is_a_whole_broadcast_frame() -> None:
    options = {Option.CLIENT_ID: b"\x01" + MAC, Option.HOST_NAME: b"web", Option.PARAMETER_LIST: bytes([1, 3])}
    frame = build(MessageType.DISCOVER, xid=0x01020304, mac=MAC, seconds=70000, options=options)
    packet = Ether(frame)
    assert (packet.src, packet.dst) == (MAC.hex(":"), "ff:ff:ff:ff:ff:ff")
    assert (packet[IP].src, packet[IP].dst, packet[UDP].sport, packet[UDP].dport) == (
        "0.0.0.0",
        "255.255.255.255",
        68,
        67,
    )
    question = packet[BOOTP]
    assert (question.op, question.htype, question.hlen, question.xid) == (1, 1, 6, 0x01020304)
    assert (question.secs, question.flags, question.ciaddr, question.chaddr[:6]) == (0xFFFF, "B", "0.0.0.0", MAC)
    assert packet[DHCP].options[:4] == [
        ("message-type", 1),
        ("client_id", b"\x01" + MAC),
        ("hostname", b"web"),
        ("param_req_list", [1, 3]),
    ]
    assert len(bytes(packet[BOOTP])) >= 300
    again = Ether(frame)
    del again[IP].chksum, again[UDP].chksum, again[IP].len, again[UDP].len
    assert bytes(again) == frame


def test_pyroute2_reads_the_same() -> None:
    options = {Option.CLIENT_ID: b"\x01" + MAC, Option.REQUESTED_IP: IPv4Address(MINE).packed}
    frame = build(MessageType.REQUEST, xid=9, mac=MAC, options=options)
    message = dhcp4msg(buf=frame, offset=42).decode()
    assert (message["xid"], message["chaddr"], message["flags"]) == (9, MAC.hex(":"), 0x8000)
    assert message["options"] == {
        "message_type": MessageType.REQUEST,
        "client_id": {"type": 1, "key": MAC.hex(":")},
        "requested_ip": MINE,
    }


def test_who_has_an_address_speaks_from_it_to_the_server_alone() -> None:
    to = (IPv4Address(SERVER), bytes.fromhex(SERVER_MAC.replace(":", "")))
    packet = Ether(build(MessageType.RELEASE, xid=1, mac=MAC, address=IPv4Address(MINE), options={}, server=to))
    assert (packet.dst, packet[IP].src, packet[IP].dst) == (SERVER_MAC, MINE, SERVER)
    assert (packet[BOOTP].flags, packet[BOOTP].ciaddr) == (0, MINE)


# -- what is heard ---------------------------------------------------------------------------------------------------


def test_an_acknowledgement_is_read() -> None:
    options = (("subnet_mask", "255.255.252.0"), ("router", "192.168.32.2", "192.168.32.3"))
    times = (("renewal_time", 100), ("rebinding_time", 200))
    assert parse(bytes(answer("ack", *options, *times))) == Answer(
        kind=MessageType.ACK,
        xid=7,
        mac=MAC,
        server=IPv4Address(SERVER),
        server_mac=bytes.fromhex(SERVER_MAC.replace(":", "")),
        address=IPv4Address(MINE),
        lease_s=3600,
        renew_s=100,
        rebind_s=200,
        prefixlen=22,
        router=IPv4Address("192.168.32.2"),
    )


@pytest.mark.parametrize(
    ("times", "renew_s", "rebind_s"),
    [
        ((), 1800, 3150),
        ((("renewal_time", 3000), ("rebinding_time", 200)), 200, 200),
        ((("rebinding_time", 3600),), 1800, 3150),
        ((("renewal_time", 0), ("rebinding_time", 0)), 1800, 3150),
        ((("rebinding_time", 1000),), 1000, 1000),
    ],
)
def test_times_are_in_order(times: tuple[Any, ...], renew_s: float, rebind_s: float) -> None:
    said = parse(bytes(answer("ack", *times)))
    assert (said.renew_s, said.rebind_s) == (renew_s, rebind_s)


def test_a_lease_may_be_for_ever() -> None:
    assert parse(bytes(answer(lease=FOR_EVER))).lease_s == FOR_EVER


def test_a_refusal_needs_no_address_and_its_text_cannot_break_out_of_a_line() -> None:
    said = parse(bytes(answer("nak", ("error_message", b"no\nlease\x1b[2J\0"), lease=None, yiaddr="0.0.0.0")))
    assert (said.kind, said.text) == (MessageType.NAK, "no?lease?[2J")


def test_options_go_on_in_the_fields_for_file_and_name() -> None:
    file = b"\x33\x04\x00\x00\x00\x3c\xff"
    name = b"\x36\x02\xc0\xa8\xff"
    said = parse(raw(b"\x35\x01\x02" + b"\x34\x01\x03" + b"\x36\x02\x20\x01\xff", file=file, sname=name))
    assert (said.kind, said.lease_s, said.server) == (MessageType.OFFER, 60, IPv4Address("32.1.192.168"))


def test_a_checksum_that_is_still_to_be_filled_in_is_not_looked_at() -> None:
    frame = answer()
    frame[UDP].chksum = 0x1234
    with pytest.raises(Malformed, match="UDP checksum"):
        parse(bytes(frame))
    assert parse(bytes(frame), is_summed=False).address == IPv4Address(MINE)
    frame[UDP].chksum = 0
    assert parse(bytes(frame)).address == IPv4Address(MINE)


def broken(**layers: Any) -> bytes:
    frame = answer()
    for name, (field, value) in layers.items():
        setattr(frame.getlayer(name.upper()) or frame, field, value)
    return bytes(frame)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"", "cut off"),
        (bytes(answer())[:60], "does not fit"),
        (bytes(Ether(type=0x0806) / b"x"), "protocol 0x806"),
        (broken(ip=("chksum", 1)), "IP checksum"),
        (broken(ip=("version", 6)), "IP header"),
        (broken(ip=("ihl", 4)), "IP header"),
        (broken(ip=("len", 2000)), "IP header"),
        (broken(ip=("frag", 1)), "whole UDP"),
        (broken(ip=("flags", 1)), "whole UDP"),
        (broken(ip=("proto", 6)), "whole UDP"),
        (broken(udp=("dport", 67)), "UDP header"),
        (broken(udp=("len", 4)), "UDP header"),
        (broken(udp=("len", 1500)), "UDP header"),
        (bytes(answer(op=1)), "no reply"),
        (bytes(answer(htype=6)), "no reply"),
        (bytes(answer(hlen=16)), "no reply"),
        (raw(b"")[:-4], "does not fit"),
        (raw(b""), "message type"),
        (bytes(answer("discover")), "message type"),
        (bytes(answer("inform")), "message type"),
        (raw(b"\x35\x02\x05\x05"), "message type"),
        (raw(b"\x35\x01\x63"), "message type"),
        (bytes(answer(server=None)), "which server"),
        (bytes(answer(server="0.0.0.0")), "which server"),
        (bytes(answer(server="224.0.0.1")), "which server"),
        (bytes(answer(yiaddr="0.0.0.0")), "no address that"),
        (bytes(answer(yiaddr="255.255.255.255")), "no address that"),
        (bytes(answer(yiaddr="239.1.1.1")), "no address that"),
        (bytes(answer(yiaddr="127.0.0.1")), "no address that"),
        (bytes(answer(lease=None)), "for how long"),
        (bytes(answer(lease=0)), "for how long"),
        (raw(b"\x35\x01\x05\x36\x04\xc0\xa8\x20\x01\x33\x03\x00\x00\x10"), "no time"),
        (raw(b"\x35\x01\x05\x36\x04\xc0\xa8\x20\x01\x33\x04\x00\x00"), "cut off"),
        (raw(b"\x35\x01\x05\x36"), "cut off"),
        (raw(b"\x35\x01\x05\x36\x00"), "no addresses"),
        (raw(b"\x35\x01\x05\x36\x05\xc0\xa8\x20\x01\x01"), "no addresses"),
        (raw(b"\x35\x01\x05\x34\x02\x01\x01"), "overload"),
        (bytes(answer("ack", ("subnet_mask", "255.0.255.0"))), "subnet mask"),
        (bytes(answer("ack", ("subnet_mask", "0.0.0.0"))), "subnet mask"),
    ],
)
def test_what_is_no_answer_is_refused(frame: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        parse(frame)


WHOLE = bytes(answer("ack", ("subnet_mask", "255.255.255.0"), ("router", SERVER)))


@given(st.binary(max_size=600))
def test_nothing_but_malformed_is_raised_for_any_frame(frame: bytes) -> None:
    with suppress(Malformed):
        parse(frame)


@given(st.binary(max_size=320), st.integers(0, 255), st.binary(max_size=64), st.binary(max_size=128))
@example(b"\x3d\x00", 0, b"", b"")
def test_nothing_but_malformed_is_raised_for_any_options(
    options: bytes, overload: int, name: bytes, file: bytes
) -> None:
    """The checksum is as if it had still to be filled in, so that all get as far as the options."""
    frame = raw(b"\x34\x01" + bytes([overload]) + options, sname=name, file=file)
    try:
        said = parse(frame, is_summed=False)
    except Malformed:
        return
    assert said.kind is MessageType.NAK or (said.lease_s > 0 and 0 < said.renew_s <= said.rebind_s < said.lease_s + 1)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_an_answer_with_octets_changed_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    frame = bytearray(WHOLE)
    for at, value in changes:
        frame[at] = value
    with suppress(Malformed):
        parse(bytes(frame), is_summed=False)


@given(st.integers(0, len(WHOLE)))
def test_an_answer_that_is_cut_off_is_read_or_refused(length: int) -> None:
    try:
        parse(WHOLE[:length])
    except Malformed:
        assert length < len(WHOLE)
