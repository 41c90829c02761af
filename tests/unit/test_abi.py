"""abi.h, abi_check.h, the compiled module and abi.py say the same."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrc.build_native import cffi_declarations
from datapath import abi
from datapath._native import ffi, lib

BPF = Path(__file__).parents[2] / "bpf"
HEADER = (BPF / "abi.h").read_text()
CHECKS = (BPF / "abi_check.h").read_text()
MAC = bytes.fromhex("02420a000002")
STRUCTS = {
    abi.Endpoint: "ls_endpoint",
    abi.FdbKey: "ls_fdb_key",
    abi.FdbEntry: "ls_fdb",
    abi.Neigh4Key: "ls_neigh4_key",
    abi.Neigh6Key: "ls_neigh6_key",
    abi.Neighbour: "ls_neighbour",
    abi.Parent: "ls_parent",
    abi.StationKey: "ls_station_key",
    abi.PeerEntry: "ls_peer",
    abi.Node: "ls_node",
    abi.NodeKey: "ls_node_key",
    abi.DirectKey: "ls_direct_key",
    abi.Direct: "ls_direct",
    abi.Limit: "ls_limit",
    abi.Counters: "ls_counters",
    abi.DropKey: "ls_drop_key",
    abi.LatencyKey: "ls_latency_key",
    abi.Latency: "ls_latency",
    abi.Sampling: "ls_sampling",
    abi.Decision: "ls_decision",
    abi.Decisions: "ls_decisions",
}
# The numbers are labels in stored metrics: this list only ever grows at its end.
DROP_REASONS = [
    "none",
    "malformed",
    "spoofed_mac",
    "spoofed_ip4",
    "spoofed_ip6",
    "spoofed_arp",
    "spoofed_nd",
    "too_deep",
    "storm",
    "spoofed_peer",
]


def u(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


ip4 = st.ip_addresses(v=4).filter(lambda address: int(address) > 0)
ip6 = st.ip_addresses(v=6).filter(lambda address: int(address) > 0)
either = ip4 | ip6.filter(lambda address: address.ipv4_mapped is None)
mac = st.binary(min_size=6, max_size=6)
RECORDS = st.one_of(
    st.builds(
        abi.Endpoint,
        segment=u(32),
        slot=u(32),
        ip4=st.none() | ip4,
        mac=mac,
        flags=u(16),
        ip6=st.none() | ip6,
        ip6_ll=st.none() | ip6,
    ),
    st.builds(abi.FdbKey, segment=u(32), mac=mac),
    st.builds(abi.FdbEntry, ifindex=u(32), slot=u(32)),
    st.builds(abi.Neigh4Key, segment=u(32), ip4=ip4),
    st.builds(abi.Neigh6Key, segment=u(32), ip6=ip6),
    st.builds(abi.Neighbour, mac=mac, flags=u(16)),
    st.builds(abi.Parent, segment=u(32), mac=mac, flags=u(16)),
    st.builds(abi.StationKey, ifindex=u(32), mac=mac),
    st.builds(abi.PeerEntry, vni=u(32), node=u(16), flags=u(16), ip4=st.none() | ip4, ip6=st.none() | ip6),
    st.builds(
        abi.Node,
        ifindex=u(32),
        mtu=u(32),
        local=either,
        remote=either,
        next_hop=either,
        mac=mac,
        local_mac=mac,
    ),
    st.builds(abi.DirectKey, address=either),
    st.builds(abi.Direct, from_ns=u(64), segment=u(32), mac=mac),
    st.builds(abi.NodeKey, remote=either),
    st.builds(abi.Limit, cost_ns=u(64), spent=u(64)),
    st.builds(abi.Counters, *[u(64)] * 8),
    st.builds(abi.DropKey, slot=u(32), reason=u(32)),
    st.builds(abi.LatencyKey, slot=u(32), kind=u(32)),
    st.builds(abi.Latency, total_ns=u(64), buckets=st.integers(0, 255).map(lambda value: bytes([value]) * 960)),
    st.builds(
        abi.Sampling,
        begin_ns=u(64),
        every=u(32),
        left=u(32),
        len=u(32),
        macs=st.binary(min_size=12, max_size=12),
    ),
    st.builds(abi.Decision, what=u(32), operand=u(32)),
    st.builds(abi.Decisions, count=u(32), each=st.binary(min_size=128, max_size=128)),
)


def test_every_struct_of_the_header_has_a_record():
    assert set(re.findall(r"^struct (\w+) \{", HEADER, re.MULTILINE)) == set(STRUCTS.values())
    assert set(abi.RECORDS) == set(STRUCTS)


@pytest.mark.parametrize(("record", "struct"), STRUCTS.items(), ids=STRUCTS.values())
def test_a_record_has_the_fields_of_its_struct_in_order(record, struct):
    names = [name for name, _ in ffi.typeof(f"struct {struct}").fields if name != "pad"]
    assert [field.name for field in dataclasses.fields(record)] == names


@pytest.mark.parametrize("struct", STRUCTS.values())
def test_size_and_every_offset_is_asserted_for_both_compilers(struct):
    asserted = dict(re.findall(rf"LS_ASSERT_AT\(struct {struct}, (\w+), (\d+)\)", CHECKS))
    compiled = {name: str(field.offset) for name, field in ffi.typeof(f"struct {struct}").fields}
    assert asserted == compiled
    assert f"LS_ASSERT_SIZE(struct {struct}, {ffi.sizeof(f'struct {struct}')});" in CHECKS


@given(RECORDS)
def test_c_reads_from_a_packed_record_what_python_put_in(record):
    raw = record.pack()
    assert len(raw) == record.SIZE
    struct = ffi.from_buffer(f"struct {STRUCTS[type(record)]} *", raw)
    for field in dataclasses.fields(record):
        value, seen = getattr(record, field.name), getattr(struct, field.name)
        if field.name == "ip4":
            assert seen.to_bytes(4, "little") == (value.packed if value else bytes(4))
        elif isinstance(seen, int):
            assert seen == value
        elif isinstance(value, IPv4Address):
            assert bytes(seen) == IPv6Address(f"::ffff:{value}").packed
        else:
            assert bytes(ffi.buffer(seen)) == (bytes(len(seen)) if value is None else getattr(value, "packed", value))


@given(RECORDS)
def test_unpack_inverts_pack(record):
    assert type(record).unpack(record.pack()) == record


def test_an_endpoint_packs_to_these_bytes():
    endpoint = abi.Endpoint(
        segment=7,
        slot=258,
        ip4=IPv4Address("10.0.0.2"),
        mac=MAC,
        flags=abi.EP_FAST,
        ip6=None,
        ip6_ll=IPv6Address("fe80::42:aff:fe00:2"),
    )
    assert endpoint.pack().hex() == (
        "07000000020100000a00000202420a0000020100" + "00" * 16 + "fe8000000000000000420afffe000002"
    )


def test_padding_of_a_key_is_zero():
    assert abi.FdbKey(segment=0xFFFFFFFF, mac=b"\xff" * 6).pack() == b"\xff" * 10 + b"\0\0"


@pytest.mark.parametrize(
    "record",
    [
        abi.FdbKey(segment=1, mac=MAC[:5]),
        abi.FdbKey(segment=1, mac=MAC + b"\0"),
        abi.FdbKey(segment=1, mac="02:42:0a:00:00:02"),
        abi.FdbKey(segment=-1, mac=MAC),
        abi.FdbKey(segment=2**32, mac=MAC),
        abi.Neighbour(mac=MAC, flags=2**16),
        abi.Neigh4Key(segment=1, ip4=IPv6Address("::1")),
        abi.Neigh6Key(segment=1, ip6=IPv4Address("10.0.0.2")),
        abi.Neigh4Key(segment=1, ip4="10.0.0.2"),
        abi.DropKey(slot=None, reason=1),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_refused(record):
    with pytest.raises(ValueError, match=r"takes|argument|format|range"):
        record.pack()


@pytest.mark.parametrize("size", [0, 11, 13])
def test_bytes_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match=f"FdbKey takes 12 bytes, not {size}"):
        abi.FdbKey.unpack(bytes(size))


def test_counters_of_all_cpus_are_summed_modulo_64_bits():
    one = abi.Counters(1, 2, 3, 4, 5, 6, 7, 2**64 - 1)
    two = abi.Counters(10, 20, 30, 40, 50, 60, 70, 2)
    none = abi.Counters.none()
    both = abi.Counters(11, 22, 33, 44, 55, 66, 77, 1)
    values = b"".join(each.pack() for each in (one, two, none, none, none, one))
    assert abi.Counters.totals(values, cpus=2) == [both, none, one]
    assert abi.Counters.totals(values, cpus=3) == [both, one]
    assert abi.Counters.totals(b"", cpus=2) == []


def test_drop_reasons_are_those_of_the_header_and_keep_their_numbers():
    written = {name: int(number) for name, number in re.findall(r"LS_DROP_(\w+) = (\d+)", HEADER)}
    assert {reason.name: reason.value for reason in abi.DropReason} == written
    assert [reason.label for reason in sorted(abi.DropReason)] == DROP_REASONS
    assert sorted(written.values()) == list(range(len(DROP_REASONS)))


def test_constants_are_those_of_the_header():
    written = dict(re.findall(r"#define LS_(\w+) (\d+)", HEADER))
    assert {name: str(getattr(lib, f"LS_{name}")) for name in written} == written
    numbers = {name: int(number) for name, number in written.items()}
    assert {name: getattr(abi, name) for name in numbers} == numbers


@pytest.mark.parametrize(
    ("header", "declarations"),
    [
        ("int f(void); /* one */ int g(void);", "int f(void);   int g(void);"),
        ("/* over\n * lines\n */\nint f(void); // rest", "int f(void);"),
        ("#ifndef H\n#define H\n#include <a.h>\nint f(void);\n#endif", "int f(void);"),
        ("#define N 12\n# define M 0x1F /* why */", "#define N ...\n#define M ..."),
        ('#define F(x) x\n#define TEXT "a"\n#define SUM 1 + 2', ""),
        ("#define LONG(x) \\\n\tf(x); \\\n\tg(x)\nint f(void);", "int f(void);"),
    ],
)
def test_declarations_for_cffi_are_the_header_without_comments_and_preprocessor(header, declarations):
    assert cffi_declarations(header) == declarations
