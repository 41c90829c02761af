"""The loader with bcc, the kernel and a bpffs of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from datapath import abi, bpf, loader
from datapath.loader import pins, sources
from datapath.maps import Maps
from tests.isolated import isolated, run

pytestmark = pytest.mark.root

MAPS = {
    "abi_version", "epoch", "ep_by_if", "fdb", "parents", "stations", "neigh4", "neigh6", "limits", "ep_counters",
    "ep_drops", "peers", "nodes", "node_by_ip", "vnis",
    "direct", "sampling", "latencies",
}  # fmt: skip
REMOTE = {"peers", "nodes", "node_by_ip", "vnis", "direct"}
TIMED = {"sampling", "latencies"}
USED = {
    "ls_ep_out": MAPS - {"abi_version", "parents", "stations", "limits", "node_by_ip", "vnis"},
    "ls_ep_in": {"ep_by_if", "ep_counters"} | TIMED,
    "ls_parent_out": MAPS - REMOTE - {"abi_version", "ep_by_if", "fdb", "limits"},
    "ls_parent_in": MAPS - REMOTE - TIMED - {"abi_version", "ep_by_if", "fdb", "limits"},
    "ls_station_out": {"limits", "ep_drops"} | TIMED,
    "ls_switch_out": MAPS - REMOTE - {"abi_version", "stations"},
    "ls_switch_in": {"epoch", "fdb", "stations", "ep_counters"} | TIMED,
    "ls_switch_to": {"ep_by_if", "ep_counters"} | TIMED,
    "ls_switch_xdp": {"fdb", "ep_counters"} | TIMED,
    "ls_uplink_in": {"epoch", "fdb", "neigh4", "neigh6", "ep_counters", "ep_drops"} | REMOTE | TIMED,
}
PRIVATE = {
    "ls_ep_out": ["flows", "no_latency"],
    "ls_ep_in": ["no_latency"],
    "ls_parent_out": ["flows", "no_latency"],
    "ls_parent_in": ["flows"],
    "ls_station_out": ["no_latency"],
    "ls_switch_out": ["flows", "no_latency"],
    "ls_switch_in": ["flows", "no_latency"],
    "ls_switch_to": ["no_latency"],
    "ls_switch_xdp": ["no_latency"],
    "ls_uplink_in": ["arrivals", "no_latency"],
}


@pytest.fixture
def place(tmp_path):
    """(bpffs directory, source directory), the former to be mounted in the test's namespace by `mounted`."""
    (tmp_path / "bpf").mkdir()
    source_dir = tmp_path / "sources"
    shutil.copytree(sources.DIRECTORY, source_dir)
    return tmp_path / "bpf" / "linkspan", source_dir


def mounted(place):
    run(f"mount -t bpf bpf {place[0].parent}")
    return place


def load(place, timeout_s=600, **kwargs):
    """A time that emulated kernels keep to, too."""
    directory, source_dir = place
    run_dir = str(directory.parents[1])
    return loader.load(str(directory), run_dir=run_dir, source_dir=str(source_dir), timeout_s=timeout_s, **kwargs)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def tree(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def bpftool(command):
    return json.loads(run(f"bpftool -j {command}"))


@isolated
def test_a_cold_start_compiles_and_a_warm_one_does_not(place):
    directory, _ = mounted(place)
    cold = load(place)
    assert cold.compiled
    assert (cold.programs.keys(), cold.maps.keys()) == (USED.keys(), MAPS)
    before = tree(directory)
    warm = load(place, python="/nowhere")
    assert (warm.compiled, warm.log_path) == (False, None)
    assert (warm.programs, warm.maps, tree(directory)) == (cold.programs, cold.maps, before)
    assert Path(cold.log_path).read_text().count("==") == len(USED)


@isolated
def test_pins_are_named_by_abi_version_map_program_and_key(place):
    directory, source_dir = mounted(place)
    load(place)
    key, version = sources.key(source_dir), f"abi-{abi.ABI_VERSION}"
    assert tree(directory) == {f"{version}/maps/{name}" for name in MAPS} | {
        f"{version}/progs/{name}-{key}" for name in USED
    }


@isolated
def test_bpftool_sees_the_programs_and_maps_that_were_meant(place):
    mounted(place)
    loaded = load(place)
    maps = {name: bpftool(f"map show pinned {path}") for name, path in loaded.maps.items()}
    for name, path in loaded.programs.items():
        shown = bpftool(f"prog show pinned {path}")
        kind = "xdp" if name == "ls_switch_xdp" else "sched_cls"
        assert (shown["name"], shown["type"], shown["gpl_compatible"]) == (name, kind, True)
        # The programs use the maps that are pinned, and no others but private ones.
        used = [bpftool(f"map show id {number}")["name"] for number in shown["map_ids"]]
        pinned = {shown["id"]: pinned_name for pinned_name, shown in maps.items()}
        others = sorted(set(shown["map_ids"]) - set(pinned))
        assert sorted(bpftool(f"map show id {number}")["name"] for number in others) == PRIVATE[name]
        assert set(used) - set(PRIVATE[name]) == USED[name]
    assert {name: (shown["type"], shown["max_entries"]) for name, shown in maps.items()} == {
        "abi_version": ("array", 1),
        "epoch": ("array", 1),
        "ep_by_if": ("hash", abi.MAX_ENDPOINTS),
        "fdb": ("hash", abi.MAX_ENDPOINTS),
        "parents": ("hash", abi.MAX_PARENTS),
        "stations": ("hash", abi.MAX_ENDPOINTS),
        "nodes": ("array", abi.MAX_NODES),
        "peers": ("hash", abi.MAX_PEERS),
        "node_by_ip": ("hash", abi.MAX_NODES),
        "vnis": ("hash", abi.MAX_NODES),
        "direct": ("hash", abi.MAX_DIRECT),
        "neigh4": ("hash", abi.MAX_NEIGHBOURS),
        "neigh6": ("hash", abi.MAX_NEIGHBOURS),
        "limits": ("array", abi.MAX_ENDPOINTS),
        "ep_counters": ("percpu_array", abi.MAX_ENDPOINTS),
        "sampling": ("percpu_array", 1),
        "latencies": ("hash", abi.MAX_LATENCIES),
        "ep_drops": ("percpu_hash", abi.MAX_DROP_KEYS),
    }
    assert all(shown["name"] == name for name, shown in maps.items())
    [entry] = bpftool(f"map dump pinned {loaded.maps['abi_version']}")
    assert int.from_bytes(bytes(int(byte, 16) for byte in entry["value"]), sys.byteorder) == abi.ABI_VERSION


@isolated
def test_no_kernel_headers_package_is_touched(place):
    mounted(place)
    run("mount -t tmpfs none /usr/src && { test ! -d /lib/modules || mount -t tmpfs none /lib/modules; }")
    assert load(place).compiled


@isolated
def test_endpoints_and_counters_outlive_a_change_of_programs(place):
    directory, source_dir = mounted(place)
    old = load(place)
    endpoint = abi.Endpoint(7, 3, IPv4Address("10.0.0.1"), bytes.fromhex("024200000001"), abi.EP_FAST, None, None)
    with Maps.open(old.maps) as maps:
        maps.endpoint_put(42, endpoint)
    (source_dir / "tc_endpoint_in.c").write_text((source_dir / "tc_endpoint_in.c").read_text() + "\n")
    new = load(place)
    assert new.compiled
    assert new.maps == old.maps
    assert not set(new.programs.values()) & set(old.programs.values())
    with Maps.open(new.maps) as maps:
        assert maps.endpoints() == {42: endpoint}

    assert set(loader.prune(str(directory), source_dir=str(source_dir))) == set(old.programs.values())
    assert loader.prune(str(directory), source_dir=str(source_dir)) == []
    assert not load(place).compiled


@isolated
def test_prune_removes_other_abi_versions_and_litter_and_nothing_else(place):
    directory, source_dir = mounted(place)
    loaded = load(place)
    fd = bpf.obj_get(loaded.maps["fdb"])
    other = directory / "abi-999" / "maps"
    other.mkdir(parents=True)
    links = directory / "links"
    links.mkdir()
    litter = [other / "fdb", Path(loaded.maps["fdb"]).with_name("new-fdb"), directory / "abi-1" / "progs" / "new-1-x"]
    for pin in (*litter, links / "veth0"):
        bpf.obj_pin(fd, pin)
    os.close(fd)
    removed = loader.prune(str(directory), source_dir=str(source_dir))
    assert sorted(removed) == sorted(map(str, litter))
    assert not (directory / "abi-999").exists()
    assert (links / "veth0").exists()
    assert not load(place).compiled


def test_the_shapes_are_those_of_maps_h():
    """The child compares them at every compilation; here both sides are written out once."""
    assert {name: shape.fields() for name, shape in pins.SHAPES.items()} == {
        "abi_version": [2, 4, 4, 1, 0],
        "epoch": [2, 4, 8, 1, 0],
        "ep_by_if": [1, 4, 52, 16384, 0],
        "fdb": [1, 12, 8, 16384, 0],
        "parents": [1, 4, 12, 1024, 0],
        "stations": [1, 12, 52, 16384, 0],
        "nodes": [2, 4, 68, 4096, 0],
        "peers": [1, 12, 28, 65536, 1],
        "node_by_ip": [1, 16, 4, 4096, 1],
        "vnis": [1, 4, 4, 4096, 1],
        "direct": [1, 16, 24, 32768, 1],
        "neigh4": [1, 8, 8, 65536, 1],
        "neigh6": [1, 20, 8, 65536, 1],
        "limits": [2, 4, 16, 16384, 0],
        "ep_counters": [6, 4, 64, 16384, 0],
        "sampling": [6, 4, 32, 1, 0],
        "latencies": [1, 8, 968, 49152, 1],
        "ep_drops": [5, 8, 8, 65536, 1],
    }


@isolated
def test_a_pinned_map_that_the_loader_does_not_know_is_an_error(place):
    _, source_dir = mounted(place)
    edit(source_dir / "maps.h", "LS_PRIVATE_MAP(", "LS_MAP(")
    with pytest.raises(loader.LoaderError, match=r"(flows|no_latency) is \[.*\] in the sources, None elsewhere"):
        load(place)


@isolated
def test_maps_h_that_differs_from_the_loader_is_an_error(place):
    _, source_dir = mounted(place)
    edit(source_dir / "maps.h", "neigh4, LS_MAX_NEIGHBOURS", "neigh4, 17")
    with pytest.raises(loader.LoaderError, match=r"neigh4 is \[1, 8, 8, 17, 1\] in the sources, \[1, 8, 8, 65536, 1\]"):
        load(place)


@isolated
@pytest.mark.parametrize(
    ("name", "shape", "have"),
    [
        ("fdb", (bpf.MapType.HASH, 12, 16, 16384), "hash of 16384, key 12 B, value 16 B"),
        ("fdb", (bpf.MapType.HASH, 12, 8, 100), "hash of 100, key 12 B, value 8 B"),
        ("neigh6", (bpf.MapType.LRU_HASH, 20, 8, 65536), "lru_hash of 65536"),
        ("ep_counters", (bpf.MapType.ARRAY, 4, 64, 16384), "array of 16384"),
    ],
)
def test_a_pinned_map_of_another_shape_is_refused_and_kept(place, name, shape, have):
    directory, _ = mounted(place)
    pin = directory / f"abi-{abi.ABI_VERSION}" / "maps" / name
    pin.parent.mkdir(parents=True)
    fd = bpf.map_create(*shape, name=name)
    bpf.obj_pin(fd, pin)
    os.close(fd)
    with pytest.raises(loader.MapMismatch, match=f"^map {name} at {pin}: want .*, have {have}") as caught:
        load(place)
    assert caught.value.name == name
    # Nothing was made beside it.
    assert tree(directory) == {str(pin.relative_to(directory))}


@isolated
def test_maps_of_another_abi_version_are_refused(place):
    mounted(place)
    loaded = load(place)
    with bpf.Map.from_pin(loaded.maps["abi_version"]) as version:
        version.update(bytes(4), (77).to_bytes(4, sys.byteorder))
    with pytest.raises(loader.MapMismatch, match=f"want ABI version {abi.ABI_VERSION}, have 77"):
        load(place)


@isolated
def test_a_pin_that_is_no_map_is_refused_by_name(place):
    mounted(place)
    loaded = load(place)
    os.unlink(loaded.maps["fdb"])
    os.link(loaded.programs["ls_ep_in"], loaded.maps["fdb"])
    with pytest.raises(loader.LoaderError, match="open map fdb: "):
        load(place)


@isolated
def test_programs_that_know_a_lost_map_are_compiled_anew(place):
    mounted(place)
    old = load(place)
    os.unlink(old.maps["fdb"])
    new = load(place)
    assert new.compiled
    ids = bpftool(f"prog show pinned {new.programs['ls_ep_out']}")["map_ids"]
    assert bpftool(f"map show pinned {new.maps['fdb']}")["id"] in ids


@isolated
def test_a_source_that_does_not_compile_is_named_with_its_line(place):
    directory, source_dir = mounted(place)
    line = (source_dir / "lib" / "eth.h").read_text().splitlines().index("	l3->offset = ETH_HLEN;") + 1
    edit(source_dir / "lib" / "eth.h", "l3->offset = ETH_HLEN", "l3->offset = NO_SUCH_THING")
    with pytest.raises(loader.CompileFailed) as caught:
        load(place)
    assert f"compile ls_ep_out: lib/eth.h:{line}:" in str(caught.value)
    assert "error: use of undeclared identifier 'NO_SUCH_THING' (whole log in " in str(caught.value)
    assert "NO_SUCH_THING" in Path(caught.value.log_path).read_text()
    assert tree(directory) == {f"abi-{abi.ABI_VERSION}/maps/{name}" for name in MAPS}


@isolated
def test_a_program_that_the_verifier_rejects_keeps_its_log(place):
    _, source_dir = mounted(place)
    edit(source_dir / "tc_endpoint_in.c", "	if (!ep)\n		return TC_ACT_UNSPEC;\n", "")
    with pytest.raises(loader.VerifierRejected) as caught:
        load(place)
    text = str(caught.value)
    assert text.startswith("load ls_ep_in: R")
    assert "invalid mem access 'map_value_or_null'" in text
    assert "lines omitted, whole log in" in text
    assert len(text) < 300
    assert "processed " in Path(caught.value.log_path).read_text()
    # The program that was loaded before it is of no use alone, and costs no compilation the next time it is.
    shutil.copy(sources.DIRECTORY / "tc_endpoint_in.c", source_dir)
    assert load(place).compiled


@isolated
def test_a_failed_load_leaves_older_pins_alone(place):
    directory, source_dir = mounted(place)
    load(place)
    before = tree(directory)
    edit(source_dir / "tc_endpoint_out.c", "int ls_ep_out", "int ls_ep_out(")
    with pytest.raises(loader.CompileFailed):
        load(place)
    assert tree(directory) == before


@isolated
def test_loaders_of_one_directory_wait_for_each_other(place):
    directory, _ = mounted(place)
    program = (
        "import sys; from datapath import loader; "
        "print(loader.load(sys.argv[1], run_dir=sys.argv[2], source_dir=sys.argv[3], timeout_s=600).compiled)"
    )
    arguments = [sys.executable, "-c", program, str(directory), str(directory.parents[1]), str(place[1])]
    root = str(Path(loader.__file__).parents[2])

    def one(_):
        return subprocess.run(arguments, cwd=root, capture_output=True, text=True, timeout=600)

    # A pool's threads are made by this one and stay in its namespaces.
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(one, range(3)))
    assert [result.stderr for result in results] == [""] * 3
    assert sorted(result.stdout.strip() for result in results) == ["False", "False", "True"]
    assert not load(place).compiled


@isolated
def test_a_loader_that_waits_too_long_says_what_for(place):
    import fcntl

    directory, _ = mounted(place)
    load(place)
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(loader.TimedOut, match=f"another loader has held {directory} for too long"):
            load(place, timeout_s=0.2)
    finally:
        os.close(fd)


@isolated
def test_a_missing_capability_is_named(place):
    directory, source_dir = mounted(place)
    program = (
        "import sys; from datapath import loader\n"
        "try: loader.load(sys.argv[1], run_dir=sys.argv[2], source_dir=sys.argv[3])\n"
        "except loader.PermissionDenied as error: print(error)"
    )
    arguments = [str(directory), str(directory.parents[1]), str(source_dir)]
    result = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", program, *arguments],
        cwd=Path(loader.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CAP_BPF" in result.stdout


@isolated
def test_an_interpreter_without_bcc_says_what_to_install(place):
    mounted(place)
    with pytest.raises(
        loader.Unavailable, match=r"bcc under .* is not available: No module named 'bcc'; install python3-bpfcc"
    ):
        load(place, python=sys.executable)


@isolated
def test_bpffs_that_is_not_mounted_is_an_error(place):
    with pytest.raises(loader.Unavailable, match=f"mount -t bpf bpf {place[0]}"):
        load(place)


@isolated
def test_the_verifier_has_little_to_do(place):
    """The kernel's limit is a million; a program that grows towards it should do so on purpose."""
    mounted(place)
    limits = {"ls_ep_out": 150_000, "ls_ep_in": 1_000, "ls_parent_out": 80_000, "ls_parent_in": 15_000}
    limits |= {"ls_station_out": 1_000, "ls_switch_out": 120_000, "ls_switch_in": 1_500, "ls_switch_to": 1_000}
    limits |= {"ls_switch_xdp": 1_000, "ls_uplink_in": 10_000}
    for name, path in load(place).programs.items():
        fd = bpf.obj_get(path)
        info = bpf.prog_info(fd)
        os.close(fd)
        assert 0 < info.verified_insns < limits[name]
        assert info.jited_bytes < 20_480
