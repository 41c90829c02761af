"""What ls_ep_out remembers of a flow never outlives a change of the maps that it came from."""

from __future__ import annotations

import struct
import sys

import pytest
from scapy.layers.inet import UDP

from datapath import abi
from datapath.maps import Maps
from tests.bpf.lab import BARE, GONE_MAC, OTHER, SEGMENT, STRANGER, A, B, Host
from tests.bpf.packets import PAYLOAD, SAMPLES, ether, ip4, ip6

pytestmark = pytest.mark.root

PACKET = SAMPLES["udp4"]


@pytest.fixture
def warm(lab):
    """The lab with A's flow to B remembered, and tried."""
    for _ in range(2):
        assert lab.send(PACKET).receiver == "b"
    return lab


def changed(host, **fields):
    return Host(**(vars(host) | fields))


def test_a_remembered_flow_asks_no_map(warm):
    """Behind the back of `Maps`, so that the program isn't told."""
    warm.maps._fdb.delete(abi.FdbKey(SEGMENT, B.mac_bytes).pack())
    warm.maps._endpoints.delete(struct.pack("=I", warm.ifindex[B.ifname]))
    result = warm.run("ls_ep_out", PACKET, A.ifname)
    assert result.retval == 7
    with warm.call(Maps.open, warm.loaded.maps):
        assert warm.send(PACKET).verdict == "kernel"


def test_a_deleted_destination_is_forgotten(warm):
    assert warm.maps.fdb_delete(SEGMENT, B.mac_bytes)
    assert warm.send(PACKET).verdict == "kernel"
    assert warm.send(PACKET).verdict == "kernel"


def test_a_new_destination_is_found(lab):
    packet = ether(GONE_MAC) / PACKET.payload
    for _ in range(2):
        assert lab.send(packet).verdict == "kernel"
    lab.maps.fdb_put(SEGMENT, bytes.fromhex(GONE_MAC.replace(":", "")), abi.FdbEntry(lab.ifindex[B.ifname], B.slot))
    assert lab.send(packet).receiver == "b"


def test_a_destination_that_moved_is_found(warm):
    warm.maps.fdb_put(SEGMENT, B.mac_bytes, abi.FdbEntry(warm.ifindex[BARE.ifname], BARE.slot))
    assert warm.send(PACKET).receiver == "bare"


def test_a_deleted_endpoint_is_forgotten(warm):
    before = warm.maps.counters()
    assert warm.maps.endpoint_delete(warm.ifindex[A.ifname])
    assert warm.run("ls_ep_out", PACKET, A.ifname).retval == 0xFFFFFFFF
    assert warm.maps.counters() == {slot: value for slot, value in before.items() if slot != A.slot}


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"ip4": "10.9.0.77"}, ("drop", "spoofed_ip4")),
        ({"mac": "02:42:0a:09:00:77"}, ("drop", "spoofed_mac")),
        ({"is_fast": False}, ("kernel", None)),
        ({"segment": 77}, ("kernel", None)),
        ({"ip6": "fd09::77"}, ("fast", None)),
    ],
)
def test_a_changed_endpoint_is_judged_anew(warm, fields, outcome):
    warm.maps.endpoint_put(warm.ifindex[A.ifname], changed(A, **fields).record())
    assert warm.judge(bytes(PACKET)) == outcome


def test_a_changed_slot_counts_at_once(warm):
    warm.maps.clear_slot(77)
    moved = changed(A, slot=77)
    warm.maps.endpoint_put(warm.ifindex[A.ifname], moved.record())
    assert warm.send(PACKET, moved).receiver == "b"


@pytest.mark.parametrize("packet", [ip4() / UDP() / PAYLOAD, ip6() / UDP() / PAYLOAD], ids=["4", "6"])
def test_a_remembered_flow_forgives_nothing(warm, packet):
    assert warm.send(packet).receiver == "b"
    forged = packet.copy()
    forged.payload.src = {4: "10.9.0.2", 6: "fd09::2"}[packet.payload.version]
    assert warm.send(forged).verdict == "drop"
    forged = packet.copy()
    forged.src = B.mac
    assert warm.send(forged).reason == "spoofed_mac"
    assert warm.send(bytes(packet)[:15] + b"\0" + bytes(packet)[16:]).receiver == "b"
    assert warm.send(packet).receiver == "b"


def test_a_length_that_does_not_fit_is_not_remembered(lab):
    long, short = ip4() / UDP() / bytes(2000), ip4() / UDP() / bytes(20)
    assert [lab.send(packet).verdict for packet in (long, short, long, short)] == ["kernel", "fast", "kernel", "fast"]


def test_both_directions_and_many_pairs_are_kept_apart(lab):
    """More flows than places, each from the right sender to the right receiver, whatever was remembered before."""
    macs = [bytes.fromhex(f"0242{number:08x}") for number in range(1500)]
    for number, mac in enumerate(macs):
        host = (B, BARE)[number % 2]
        lab.maps.fdb_put(SEGMENT, mac, abi.FdbEntry(lab.ifindex[host.ifname], host.slot))
    for _ in range(2):
        for number, mac in enumerate(macs):
            packet = mac + bytes(PACKET)[6:]
            before = lab.maps._counters.lookup(struct.pack("=I", (B, BARE)[number % 2].slot))
            assert lab.run("ls_ep_out", packet, A.ifname).retval == 7
            assert lab.maps._counters.lookup(struct.pack("=I", (B, BARE)[number % 2].slot)) != before
    assert lab.send(ip4(A, B) / UDP(), B).receiver == "a"
    assert lab.send(PACKET).receiver == "b"


def test_flows_of_two_senders_with_one_mac_are_kept_apart(lab):
    """Same MACs on two segments, and a destination for which both flows have the same place."""

    def place(ifindex, mac):  # as in bpf/lib/flow.h
        word = int.from_bytes(mac[2:], sys.byteorder)
        return ((((ifindex * 0x9E3779B1) ^ word) * 0x85EBCA6B) & 0xFFFFFFFF) >> 22

    twin = changed(OTHER, mac=A.mac)
    indexes = lab.ifindex[A.ifname], lab.ifindex[OTHER.ifname]
    macs = (bytes.fromhex(f"0242{number:08x}") for number in range(100_000))
    mac = next(mac for mac in macs if place(indexes[0], mac) == place(indexes[1], mac))
    lab.maps.endpoint_put(indexes[1], twin.record())
    lab.maps.fdb_put(SEGMENT, mac, abi.FdbEntry(lab.ifindex[B.ifname], B.slot))
    lab.maps.fdb_put(OTHER.segment, mac, abi.FdbEntry(lab.ifindex[BARE.ifname], BARE.slot))
    packet = mac + bytes(ip4(B, A) / UDP())[6:]
    for sender, receiver in ((A, "b"), (twin, "bare"), (A, "b"), (twin, "bare")):
        assert lab.send(packet, sender).receiver == receiver


def test_nothing_is_remembered_of_a_device_without_an_endpoint(lab):
    for _ in range(2):
        assert lab.run("ls_ep_out", PACKET, STRANGER).retval == 0xFFFFFFFF
    assert lab.send(PACKET).receiver == "b"
