"""bpf.py against the running kernel, in namespaces and on a bpffs of the test's own. Oracles: bpftool, real packets."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import struct
import threading

import pytest

from datapath import bpf, progrun
from tests.isolated import isolated, run
from tests.waiting import until

pytestmark = pytest.mark.root

DROP, PASS = 2, -1  # TC_ACT_SHOT; TCX_NEXT
U32, U64 = struct.Struct("=I"), struct.Struct("=Q")


def insn(op, dst=0, src=0, offset=0, imm=0):
    return struct.pack("=BBhi", op, src << 4 | dst, offset, imm)


EXIT = insn(0x95)


def returning(value):
    return insn(0xB7, imm=value) + EXIT


def returning_context(offset):
    """r0 = *(u32 *)(context + offset)"""
    return insn(0x61, dst=0, src=1, offset=offset) + EXIT


@pytest.fixture(autouse=True)
def _no_descriptor_left():
    gc.collect()
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.fixture
def bpffs(tmp_path):
    """Where to mount a bpffs, in the test's mount namespace: see `mounted`."""
    path = tmp_path / "bpf"
    path.mkdir()
    return path


def mounted(bpffs):
    run(f"mount -t bpf bpf {bpffs}")
    return bpffs


def load(value=PASS, type=bpf.ProgType.SCHED_CLS, name="probe"):
    return bpf.prog_load(returning(value), type, name=name)


def hash_map(entries=16, **kwargs):
    return bpf.Map(bpf.map_create(bpf.MapType.HASH, 4, 8, entries, name="numbers", **kwargs))


def bpftool(command):
    return json.loads(run(f"bpftool -j {command}"))


# Pins


@isolated
def test_a_pinned_map_is_the_same_map(bpffs):
    pin = mounted(bpffs) / "numbers"
    with hash_map() as made:
        bpf.obj_pin(made.fd, pin)
        made.update(U32.pack(1), U64.pack(10))
        with bpf.Map.from_pin(pin) as opened:
            assert opened.info == made.info
            assert opened.lookup(U32.pack(1)) == U64.pack(10)
    shown = bpftool(f"map show pinned {pin}")
    assert (shown["id"], shown["type"], shown["name"]) == (opened.info.id, "hash", "numbers")
    assert (shown["bytes_key"], shown["bytes_value"], shown["max_entries"]) == (4, 8, 16)


@isolated
def test_a_pinned_program_outlives_its_descriptor(bpffs):
    pin = mounted(bpffs) / "prog"
    fd = load(name="seven")
    info = bpf.prog_info(fd)
    bpf.obj_pin(fd, pin)
    os.close(fd)
    shown = bpftool(f"prog show pinned {pin}")
    assert (shown["id"], shown["name"], shown["tag"]) == (info.id, "seven", info.tag)
    assert (shown["bytes_xlated"], shown["bytes_jited"]) == (info.xlated_bytes, info.jited_bytes)
    again = bpf.obj_get(pin)
    assert bpf.prog_id(again) == info.id
    os.close(again)


@isolated
def test_pins_that_cannot_be_are_refused_by_name(bpffs, tmp_path):
    pin = mounted(bpffs) / "taken"
    with hash_map() as made:
        bpf.obj_pin(made.fd, pin)
        with pytest.raises(FileExistsError, match=f"BPF_OBJ_PIN.* {pin}: .*already"):
            bpf.obj_pin(made.fd, pin)
        with pytest.raises(FileNotFoundError, match=f"{bpffs}/no/pin"):
            bpf.obj_pin(made.fd, bpffs / "no" / "pin")
        with pytest.raises(PermissionError, match="bpffs"):
            bpf.obj_pin(made.fd, tmp_path / "pin")
        with pytest.raises(OSError, match="File name too long"):
            bpf.obj_pin(made.fd, bpffs / ("x" * 300))
    with pytest.raises(FileNotFoundError, match="nothing is pinned there"):
        bpf.obj_get(bpffs / "nothing")
    (tmp_path / "file").touch()
    for other in (tmp_path / "file", bpffs):
        with pytest.raises(PermissionError, match="not a pinned eBPF object"):
            bpf.obj_get(other)


@isolated
def test_a_pinned_program_is_no_map(bpffs):
    pin = mounted(bpffs) / "prog"
    fd = load()
    bpf.obj_pin(fd, pin)
    os.close(fd)
    with pytest.raises(OSError, match="no eBPF map but anon_inode:bpf-prog") as caught:
        bpf.Map.from_pin(pin)
    assert caught.value.errno == errno.EINVAL


@isolated
def test_a_bpffs_is_told_from_other_file_systems(bpffs, tmp_path):
    assert not bpf.is_bpffs(bpffs)
    assert bpf.is_bpffs(mounted(bpffs))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none"):
        bpf.is_bpffs(tmp_path / "none")


# Maps


@isolated
def test_update_lookup_and_delete_agree_with_bpftool(bpffs):
    with hash_map() as numbers:
        pin = mounted(bpffs) / "numbers"
        bpf.obj_pin(numbers.fd, pin)
        assert numbers.lookup(U32.pack(5)) is None
        numbers.update(U32.pack(5), U64.pack(50))
        numbers.update(U32.pack(5), U64.pack(51))
        assert numbers.lookup(U32.pack(5)) == U64.pack(51)
        (entry,) = bpftool(f"map dump pinned {pin}")
        assert bytes(int(byte, 16) for byte in entry["value"]) == U64.pack(51)
        assert numbers.delete(U32.pack(5))
        assert not numbers.delete(U32.pack(5))
        assert bpftool(f"map dump pinned {pin}") == []


@isolated
def test_flags_and_the_map_s_size_are_kept():
    with hash_map(entries=2) as numbers:
        numbers.update(U32.pack(1), bytes(8), bpf.NOEXIST)
        with pytest.raises(FileExistsError, match=r"map numbers.*there already"):
            numbers.update(U32.pack(1), bytes(8), bpf.NOEXIST)
        with pytest.raises(FileNotFoundError, match=r"map numbers.*not there"):
            numbers.update(U32.pack(2), bytes(8), bpf.EXIST)
        numbers.update(U32.pack(2), bytes(8))
        with pytest.raises(OSError, match="map is full") as caught:
            numbers.update(U32.pack(3), bytes(8))
        assert caught.value.errno == errno.E2BIG
    with bpf.Map(bpf.map_create(bpf.MapType.ARRAY, 4, 8, 2)) as array:
        with pytest.raises(OSError, match="past its end"):
            array.update(U32.pack(2), bytes(8))
        with pytest.raises(OSError, match="BPF_MAP_DELETE_ELEM"):
            array.delete(U32.pack(1))


@isolated
def test_keys_and_values_of_another_size_never_reach_the_kernel():
    with hash_map() as numbers:
        for key in (b"", bytes(3), bytes(5)):
            for call in (numbers.lookup, numbers.delete, lambda key: numbers.update(key, bytes(8))):
                with pytest.raises(ValueError, match="a key has 4 bytes"):
                    call(key)
        for value in (b"", bytes(7), bytes(9)):
            with pytest.raises(ValueError, match="a value has 8 bytes"):
                numbers.update(bytes(4), value)
        assert list(numbers.items()) == []


@isolated
def test_maps_that_cannot_be_are_refused():
    with pytest.raises(OSError, match=r"BPF_MAP_CREATE\) array map odd: Invalid argument"):
        bpf.map_create(bpf.MapType.ARRAY, 8, 8, 1, name="odd")
    with pytest.raises(OSError, match="BPF_MAP_CREATE"):
        bpf.map_create(bpf.MapType.HASH, 4, 8, 0)


def without_batches(monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "no batches")

    monkeypatch.setattr(bpf.Map, "read_batch", refuse)


@pytest.mark.parametrize("fallback", [None, errno.EINVAL, bpf.ENOTSUPP])
@pytest.mark.parametrize("type", [bpf.MapType.HASH, bpf.MapType.LRU_HASH])
@isolated
def test_items_are_what_was_written(monkeypatch, type, fallback):
    """10,000 entries: several batches."""
    monkeypatch.setattr(bpf, "_BATCH_BYTES", 4096 * 8)
    if fallback:
        without_batches(monkeypatch, fallback)
    written = {U32.pack(key): U64.pack(key * 3) for key in range(10_000)}
    with bpf.Map(bpf.map_create(type, 4, 8, 20_000)) as numbers:
        assert list(numbers.items()) == []
        for key, value in written.items():
            numbers.update(key, value)
        read = list(numbers.items())
    assert len(read) == len(written)
    assert dict(read) == written


@isolated
def test_a_hash_bucket_larger_than_a_batch_is_read(monkeypatch):
    monkeypatch.setattr(bpf, "_BATCH_BYTES", 1)
    written = {U32.pack(key): U64.pack(key) for key in range(500)}
    with hash_map(entries=500) as numbers:
        for key, value in written.items():
            numbers.update(key, value)
        assert dict(numbers.items()) == written


@isolated
def test_other_errors_of_a_batched_read_are_raised(monkeypatch):
    without_batches(monkeypatch, errno.EPERM)
    with hash_map() as numbers, pytest.raises(PermissionError):
        list(numbers.items())
    with bpf.Map(bpf.map_create(bpf.MapType.ARRAY, 4, 8, 1)) as array, pytest.raises(PermissionError):
        list(array.array_batches())


@pytest.mark.parametrize("fallback", [None, errno.EINVAL])
@pytest.mark.parametrize("type", [bpf.MapType.ARRAY, bpf.MapType.PERCPU_ARRAY])
@isolated
def test_an_array_is_read_to_any_index(monkeypatch, type, fallback):
    monkeypatch.setattr(bpf, "_BATCH_BYTES", 1024 * 8)
    if fallback:
        without_batches(monkeypatch, fallback)
    with bpf.Map(bpf.map_create(type, 4, 8, 5000)) as array:
        values = [U64.pack(index) * (array.value_size // 8) for index in range(5000)]
        for index, value in enumerate(values):
            array.update(U32.pack(index), value)
        for count in (None, 0, 1, 1024, 1025, 4097, 5000, 5001):
            assert b"".join(map(bytes, array.array_batches(count))) == b"".join(values[:count])
        assert list(array.items()) == [(U32.pack(index), value) for index, value in enumerate(values)]


@isolated
def test_only_arrays_have_indexes():
    with hash_map() as numbers, pytest.raises(ValueError, match="numbers is no array"):
        list(numbers.array_batches())


@pytest.mark.parametrize("type", [bpf.MapType.PERCPU_HASH, bpf.MapType.PERCPU_ARRAY])
@isolated
def test_a_per_cpu_value_has_one_padded_part_for_each_possible_cpu(bpffs, type):
    with bpf.Map(bpf.map_create(type, 4, 12, 4)) as counters:
        assert counters.value_size == 16 * bpf.possible_cpus()
        value = b"".join(bytes([cpu + 1] * 12) + bytes(4) for cpu in range(bpf.possible_cpus()))
        counters.update(U32.pack(2), value)
        assert counters.lookup(U32.pack(2)) == value
        assert dict(counters.items())[U32.pack(2)] == value
        pin = mounted(bpffs) / "counters"
        bpf.obj_pin(counters.fd, pin)
        shown = bpftool(f"map lookup pinned {pin} key 2 0 0 0")
    per_cpu = {part["cpu"]: {int(byte, 16) for byte in part["value"]} for part in shown["values"]}
    assert per_cpu == {cpu: {cpu + 1} for cpu in range(bpf.possible_cpus())}


@isolated
def test_closing_twice_is_harmless():
    numbers = hash_map()
    numbers.close()
    numbers.close()


# Programs


@isolated
def test_a_rejected_program_comes_with_the_verifier_s_log():
    with pytest.raises(OSError, match=r"BPF_PROG_LOAD\) sched_cls program bad") as caught:
        bpf.prog_load(EXIT, bpf.ProgType.SCHED_CLS, name="bad")
    assert caught.value.errno in (errno.EACCES, errno.EINVAL)
    assert "R0 !read_ok" in "".join(caught.value.__notes__)


@isolated
def test_a_licence_that_is_not_gpl_cannot_call_gpl_helpers():
    trace = insn(0xBF, dst=1, src=10) + insn(0x07, dst=1, imm=-8) + insn(0xB7, dst=2, imm=0) + insn(0x85, imm=6) + EXIT
    with pytest.raises(OSError, match="BPF_PROG_LOAD") as caught:
        bpf.prog_load(trace, bpf.ProgType.SCHED_CLS, "Proprietary")
    assert "GPL" in "".join(caught.value.__notes__)


@isolated
def test_a_test_run_returns_verdict_packet_and_time():
    fd = load(7)
    packet = bytes(range(64))
    result = progrun.run(fd, packet, repeat=1000)
    os.close(fd)
    assert (result.retval, result.data_out) == (7, packet)
    assert 0 < result.duration_ns < 100_000


@isolated
def test_a_test_run_gives_the_program_its_context():
    run("ip link add v0 type veth peer name v1")
    index = socket.if_nametoindex("v0")
    for offset, context, seen in (
        (40, {"ifindex": index}, index),
        (8, {"mark": 0xBEEF}, 0xBEEF),
        (36, {"ingress_ifindex": 5}, 5),
        (164, {"gso_segs": 3, "gso_size": 1448}, 3),
    ):
        fd = bpf.prog_load(returning_context(offset), bpf.ProgType.SCHED_CLS)
        assert progrun.run(fd, bytes(64), **context).retval == seen
        os.close(fd)


@isolated
def test_a_test_run_of_xdp_is_as_on_the_device_that_the_packet_came_in_by():
    run("ip link add v0 type veth peer name v1")
    index = socket.if_nametoindex("v0")
    fd = bpf.prog_load(returning_context(12), bpf.ProgType.XDP)
    packet = bytes(range(64))
    result = progrun.run_xdp(fd, packet, index)
    assert (result.retval, result.data_out) == (index, packet)
    with pytest.raises(OSError, match="ifindex 4242"):
        progrun.run_xdp(fd, packet, 4242)
    os.close(fd)


@isolated
def test_a_test_run_returns_the_mark_that_the_program_set():
    set_mark = insn(0xB7, dst=2, imm=77) + insn(0x63, dst=1, src=2, offset=8) + returning(0)
    fd = bpf.prog_load(set_mark, bpf.ProgType.SCHED_CLS)
    assert progrun.run(fd, bytes(64), mark=1).mark == 77
    os.close(fd)


@isolated
def test_test_runs_that_cannot_be_are_refused():
    fd = load()
    with pytest.raises(OSError, match=r"BPF_PROG_TEST_RUN.* packet of 13 bytes"):
        progrun.run(fd, bytes(13))
    with pytest.raises(OSError, match="ifindex 4242"):
        progrun.run(fd, bytes(64), ifindex=4242)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        progrun.run(fd, bytes(64))


@isolated
def test_other_threads_run_during_a_long_test_run():
    fd = load()
    ticks, done = 0, threading.Event()

    def long_run():
        progrun.run(fd, bytes(64), repeat=5_000_000)
        done.set()

    thread = threading.Thread(target=long_run)
    thread.start()
    while not done.is_set():
        ticks += 1
    thread.join()
    os.close(fd)
    assert ticks > 1000


# Links


def delivers(port):
    """Whether a datagram gets through lo, where a busy machine may leave the delivery to ksoftirqd."""
    with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", port))
        receiver.settimeout(1)
        sender.sendto(b"x", ("127.0.0.1", port))
        try:
            return receiver.recv(1) == b"x"
        except TimeoutError:
            return False


@pytest.mark.parametrize("egress", [False, True])
@isolated
def test_a_tcx_link_decides_about_packets_until_it_is_detached(egress):
    drop, let_pass = load(DROP), load(PASS)
    assert delivers(4000)
    link = bpf.tcx_attach(drop, 1, egress)
    info = bpf.link_info(link)
    assert (info.ifindex, info.is_egress, info.prog_id) == (1, egress, bpf.prog_id(drop))
    assert not delivers(4000)
    bpf.link_update(link, let_pass)
    assert bpf.link_info(link).prog_id == bpf.prog_id(let_pass)
    assert delivers(4000)
    bpf.link_update(link, drop)
    assert not delivers(4000)
    bpf.link_detach(link)
    assert bpf.link_info(link).ifindex == 0
    assert delivers(4000)
    for fd in (drop, let_pass, link):
        os.close(fd)


@isolated
def test_a_pinned_link_outlives_its_descriptor_and_ends_with_its_pin(bpffs):
    pin = mounted(bpffs) / "link"
    drop = load(DROP)
    link = bpf.tcx_attach(drop, 1)
    bpf.obj_pin(link, pin)
    os.close(link)
    os.close(drop)
    assert not delivers(4001)
    pin.unlink()
    until(lambda: delivers(4001))  # an inode of bpffs gives its object up after an RCU grace period


@isolated
def test_a_link_knows_that_its_device_is_gone():
    run("ip link add v0 type veth peer name v1")
    prog = load()
    link = bpf.tcx_attach(prog, socket.if_nametoindex("v0"))
    run("ip link del v0")
    assert bpf.link_info(link).ifindex == 0
    with pytest.raises(OSError, match="BPF_LINK_UPDATE"):
        bpf.link_update(link, prog)
    for fd in (prog, link):
        os.close(fd)


@isolated
def test_native_xdp_is_shown_by_ip():
    run("ip link add v0 type veth peer name v1")
    prog = load(2, bpf.ProgType.XDP)
    link = bpf.xdp_attach(prog, socket.if_nametoindex("v0"))
    (shown,) = json.loads(run("ip -j -d link show v0"))
    assert (shown["xdp"]["mode"], shown["xdp"]["prog"]["id"]) == (1, bpf.prog_id(prog))
    for fd in (prog, link):
        os.close(fd)


@isolated
def test_links_that_cannot_be_are_refused():
    prog, xdp = load(), load(2, bpf.ProgType.XDP)
    with pytest.raises(OSError, match="tcx ingress of ifindex 4242: No such device"):
        bpf.tcx_attach(prog, 4242)
    with pytest.raises(OSError, match="tcx ingress of ifindex 1: Invalid argument"):
        bpf.tcx_attach(xdp, 1)
    with pytest.raises(OSError, match=r"BPF_LINK_UPDATE.*link descriptor"):
        bpf.link_update(prog, prog)
    with pytest.raises(OSError, match=r"BPF_LINK_DETACH.*link descriptor"):
        bpf.link_detach(prog)
    for fd in (prog, xdp):
        os.close(fd)
