"""datapath.maps against bpftool, and against programs that count."""

from __future__ import annotations

import errno
import json
import struct
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest

from datapath import abi
from tests.bpf.forged import SPOOFED_ARP, SPOOFED_MAC
from tests.bpf.lab import GATEWAY4, HOSTS, SEGMENT, A, B
from tests.bpf.packets import SAMPLES
from tests.isolated import run

pytestmark = pytest.mark.root

UNICAST, SECOND = bytes.fromhex("024200000001"), bytes.fromhex("024200000002")


def dump(lab, name):
    """{key: value}, or {key: [value by CPU]} of a per-CPU map, as bpftool sees it; bytes all."""

    def raw(field):
        return bytes(int(byte, 16) for byte in field)

    entries = json.loads(lab.call(run, f"bpftool -j map dump pinned {lab.loaded.maps[name]}"))
    return {
        raw(entry["key"]): raw(entry["value"])
        if "value" in entry
        else [raw(each["value"]) for each in sorted(entry["values"], key=lambda each: each["cpu"])]
        for entry in entries
    }


def test_an_endpoint_is_stored_as_abi_h_says(lab):
    lab.maps.endpoint_put(4711, A.record())
    value = dump(lab, "ep_by_if")[struct.pack("=I", 4711)]
    assert value == (
        struct.pack("=II", SEGMENT, A.slot)
        + IPv4Address(A.ip4).packed
        + A.mac_bytes
        + struct.pack("=H", abi.EP_FAST)
        + IPv6Address(A.ip6).packed
        + IPv6Address(A.ip6_ll).packed
    )
    assert lab.maps.endpoints()[4711] == A.record()
    assert lab.maps.endpoint_delete(4711)
    assert not lab.maps.endpoint_delete(4711)


def test_an_endpoint_can_be_deleted_by_its_slot(lab):
    lab.maps.endpoint_delete_slot(A.slot)
    assert {endpoint.slot for endpoint in lab.maps.endpoints().values()} == {h.slot for h in HOSTS} - {A.slot}
    lab.maps.endpoint_delete_slot(A.slot)


def test_fdb_and_neighbours_are_stored_as_abi_h_says(lab):
    lab.maps.fdb_put(77, UNICAST, abi.FdbEntry(ifindex=5, slot=6))
    assert dump(lab, "fdb")[struct.pack("=I", 77) + UNICAST + bytes(2)] == struct.pack("=II", 5, 6)
    assert lab.maps.fdb()[abi.FdbKey(77, UNICAST)] == abi.FdbEntry(5, 6)
    four, six = IPv4Address("10.1.2.3"), IPv6Address("fd00::3")
    lab.maps.neighbour_put(77, four, abi.Neighbour(UNICAST, abi.NEIGH_ROUTER))
    lab.maps.neighbour_put(77, six, abi.Neighbour(SECOND, 0))
    assert dump(lab, "neigh4")[struct.pack("=I", 77) + four.packed] == UNICAST + struct.pack("=H", abi.NEIGH_ROUTER)
    assert dump(lab, "neigh6")[struct.pack("=I", 77) + six.packed] == SECOND + bytes(2)
    found = lab.maps.neighbours()
    assert found[77, four] == abi.Neighbour(UNICAST, abi.NEIGH_ROUTER)
    assert found[77, six] == abi.Neighbour(SECOND, 0)
    for deleted in (True, False):
        assert lab.maps.fdb_delete(77, UNICAST) is deleted
        assert lab.maps.neighbour_delete(77, four) is deleted
        assert lab.maps.neighbour_delete(77, six) is deleted


@pytest.mark.parametrize("mac", [b"", b"\x02", bytes(6), b"\xff" * 6, bytes.fromhex("01005e000001"), bytes(7)])
def test_what_is_no_devices_mac_is_refused(lab, mac):
    with pytest.raises(ValueError, match="MAC"):
        lab.maps.fdb_put(77, mac, abi.FdbEntry(1, 1))
    with pytest.raises(ValueError, match="MAC"):
        lab.maps.neighbour_put(77, IPv4Address("10.0.0.1"), abi.Neighbour(mac, 0))
    with pytest.raises(ValueError, match="MAC"):
        lab.maps.endpoint_put(1, abi.Endpoint(77, 1, None, mac, 0, None, None))


@pytest.mark.parametrize(("segment", "slot"), [(0, 1), (7, abi.MAX_ENDPOINTS), (7, -1)])
def test_an_endpoint_that_programs_cannot_count_is_refused(lab, segment, slot):
    with pytest.raises(ValueError, match=r"segment 0|slots end at 16383"):
        lab.maps.endpoint_put(1, abi.Endpoint(segment, slot, None, UNICAST, 0, None, None))


def test_counters_are_the_sum_over_cpus(lab):
    for _ in range(3):
        lab.send(SAMPLES["udp4"])
    lab.send(SAMPLES["dhcp4"])
    size = abi.Counters.SIZE // 8
    for host in (A, B):
        by_cpu = dump(lab, "ep_counters")[struct.pack("=I", host.slot)]
        total = tuple(map(sum, zip(*(struct.unpack(f"={size}Q", each) for each in by_cpu), strict=True)))
        assert tuple(vars(lab.maps.counters()[host.slot]).values()) == total
    length = len(SAMPLES["udp4"])
    assert lab.maps.counters()[A.slot] == abi.Counters(3, 3 * length, 1, len(SAMPLES["dhcp4"]), 0, 0, 0, 0)
    assert lab.maps.counters()[B.slot] == abi.Counters(0, 0, 0, 0, 3, 3 * length, 0, 0)


def test_counters_are_those_of_the_slots_in_use(lab):
    assert set(lab.maps.counters()) == {host.slot for host in HOSTS}
    for ifindex in lab.maps.endpoints():
        lab.maps.endpoint_delete(ifindex)
    assert lab.maps.counters() == {}


def test_the_last_slot_counts_too(lab):
    last = A.__class__(**(vars(A) | {"slot": abi.MAX_ENDPOINTS - 1}))
    lab.maps.clear_slot(last.slot)
    lab.maps.endpoint_put(lab.ifindex[A.ifname], last.record())
    lab.send(SAMPLES["arp probe"], last)
    assert lab.maps.counters()[last.slot].out_slow_packets == 1


def test_drops_are_the_sum_over_cpus(lab):
    for _ in range(4):
        lab.send(SPOOFED_MAC["arp"])
    by_cpu = dump(lab, "ep_drops")[struct.pack("=II", A.slot, abi.DropReason.SPOOFED_MAC)]
    assert sum(int.from_bytes(each, sys.byteorder) for each in by_cpu) == 4
    assert lab.maps.drops() == {A.slot: {"spoofed_mac": 4}}


def test_clearing_a_slot_leaves_the_others(lab):
    lab.send(SAMPLES["udp4"])
    lab.send(SPOOFED_ARP["tagged"])
    lab.send(SPOOFED_MAC["arp"])
    lab.maps.clear_slot(A.slot)
    assert lab.maps.counters()[A.slot] == abi.Counters(*[0] * 8)
    assert lab.maps.counters()[B.slot].in_fast_packets == 1
    assert lab.maps.drops() == {}
    lab.maps.clear_slot(A.slot)


def test_a_slot_holds_what_was_counted_when_its_endpoint_is_gone(lab):
    lab.send(SAMPLES["udp4"])
    lab.send(SPOOFED_MAC["arp"])
    lab.maps.endpoint_delete(lab.ifindex[A.ifname])
    length = len(SAMPLES["udp4"])
    assert lab.maps.slot_counters(A.slot) == (abi.Counters(1, length, 0, 0, 0, 0, 0, 0), {"spoofed_mac": 1})
    assert lab.maps.slot_counters(4242) == (abi.Counters.none(), {})


def test_fill_is_what_bpftool_counts(lab):
    fill = lab.maps.fill()
    assert {"ep_by_if", "fdb", "neigh4", "neigh6", "ep_drops", "peers"} <= fill.keys()
    assert "ep_counters" not in fill
    for name in ("ep_by_if", "fdb", "neigh4"):
        assert fill[name][0] == len(dump(lab, name)) > 0
    assert fill["ep_drops"] == (0, abi.MAX_DROP_KEYS)


def test_keep_only_deletes_whatever_is_not_named(lab):
    lab.maps.keep_only(
        ifindexes={lab.ifindex[A.ifname]},
        fdb={(SEGMENT, A.mac_bytes)},
        neighbours={(SEGMENT, IPv4Address(GATEWAY4)), (SEGMENT, IPv6Address(B.ip6))},
    )
    assert set(lab.maps.endpoints()) == {lab.ifindex[A.ifname]}
    assert set(lab.maps.fdb()) == {abi.FdbKey(SEGMENT, A.mac_bytes)}
    assert set(lab.maps.neighbours()) == {(SEGMENT, IPv4Address(GATEWAY4)), (SEGMENT, IPv6Address(B.ip6))}


def test_a_full_map_says_which(lab):
    table, entry = lab.maps._fdb, abi.FdbEntry(1, 1)
    keys = [abi.FdbKey(77, bytes.fromhex(f"0242{number:08x}")) for number in range(abi.MAX_ENDPOINTS)]
    room = abi.MAX_ENDPOINTS - len(lab.maps.fdb())
    for key in keys[:room]:
        table.update(key.pack(), entry.pack())
    try:
        with pytest.raises(OSError, match=r"map .*/fdb: .*full") as caught:
            lab.maps.fdb_put(keys[-1].segment, keys[-1].mac, entry)
    finally:
        for key in keys[:room]:
            table.delete(key.pack())
    assert caught.value.errno == errno.E2BIG


def test_a_packet_from_a_slot_past_the_end_is_forwarded_uncounted(lab):
    """No endpoint has one (`endpoint_put` refuses); a program must not depend on that."""
    bad = abi.Endpoint(SEGMENT, abi.MAX_ENDPOINTS, IPv4Address(A.ip4), A.mac_bytes, abi.EP_FAST, None, None)
    lab.maps._endpoints.update(struct.pack("=I", lab.ifindex[A.ifname]), bad.pack())
    assert lab.run("ls_ep_out", SAMPLES["udp4"], A.ifname).retval == 7
    assert lab.maps.endpoint_delete(lab.ifindex[A.ifname])
    assert lab.maps.counters()[B.slot].in_fast_packets == 1
