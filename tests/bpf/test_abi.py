"""The layouts that bcc's clang sees are those that Python uses."""

from __future__ import annotations

import json
import subprocess

import pytest

from datapath import abi
from datapath.loader import headers, sources

# Run by the system's Python: compiles the sources without loading a program, and prints what bcc makes of each map.
DESCRIBE = """
import json, sys, ctypes, os
request = json.load(sys.stdin)
os.environ["BCC_KERNEL_SOURCE"] = request["include"]
import bcc
module = bcc.BPF(text=request["text"], cflags=['-DLS_MAP_DIR="' + request["map_dir"] + '"'])

def describe(ctype):
    fields = getattr(ctype, "_fields_", None)
    return {
        "size": ctypes.sizeof(ctype),
        "offsets": {name: getattr(ctype, name).offset for name, *_ in fields} if fields else {},
    }

print(json.dumps({
    name: {
        "key": describe(module[name].Key),
        # A per-CPU table's Leaf is an array by CPU.
        "value": describe(getattr(module[name], "sLeaf", module[name].Leaf)),
    }
    for name in request["maps"]
}))
"""

STRUCTS = {
    "ep_by_if": (None, abi.Endpoint),
    "fdb": (abi.FdbKey, abi.FdbEntry),
    "parents": (None, abi.Parent),
    "stations": (abi.StationKey, abi.Endpoint),
    "peers": (abi.FdbKey, abi.PeerEntry),
    "nodes": (None, abi.Node),
    "node_by_ip": (abi.NodeKey, None),
    "direct": (abi.DirectKey, abi.Direct),
    "neigh4": (abi.Neigh4Key, abi.Neighbour),
    "neigh6": (abi.Neigh6Key, abi.Neighbour),
    "limits": (None, abi.Limit),
    "ep_counters": (None, abi.Counters),
    "ep_drops": (abi.DropKey, None),
    "sampling": (None, abi.Sampling),
    "latencies": (abi.LatencyKey, abi.Latency),
}
C_NAMES = {
    abi.Endpoint: "ls_endpoint",
    abi.FdbKey: "ls_fdb_key",
    abi.FdbEntry: "ls_fdb",
    abi.Neigh4Key: "ls_neigh4_key",
    abi.Neigh6Key: "ls_neigh6_key",
    abi.Neighbour: "ls_neighbour",
    abi.Node: "ls_node",
    abi.NodeKey: "ls_node_key",
    abi.Parent: "ls_parent",
    abi.PeerEntry: "ls_peer",
    abi.StationKey: "ls_station_key",
    abi.Limit: "ls_limit",
    abi.Counters: "ls_counters",
    abi.DropKey: "ls_drop_key",
    abi.LatencyKey: "ls_latency_key",
    abi.Latency: "ls_latency",
    abi.Sampling: "ls_sampling",
    abi.DirectKey: "ls_direct_key",
    abi.Direct: "ls_direct",
}


@pytest.fixture(scope="module")
def described(session_lab, tmp_path_factory):
    tree = tmp_path_factory.mktemp("headers")
    headers.make_tree(tree)
    request = {
        "include": str(tree),
        "text": sources.flatten(sources.DIRECTORY, sources.PROGRAMS["ls_ep_out"]),
        "map_dir": str(session_lab.directory / "bpf" / "linkspan" / f"abi-{abi.ABI_VERSION}" / "maps"),
        "maps": list(STRUCTS),
    }
    result = session_lab.call(
        subprocess.run,
        ["/usr/bin/python3", "-c", DESCRIBE],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.root
@pytest.mark.parametrize("name", STRUCTS)
def test_bcc_and_python_agree_on_sizes_and_offsets(described, name):
    from datapath._native import ffi

    for side, record in zip(("key", "value"), STRUCTS[name], strict=True):
        seen = described[name][side]
        if record is None:
            assert seen["offsets"] == {} or side == "value"
            continue
        assert seen["size"] == record.SIZE
        fields = dict(ffi.typeof(f"struct {C_NAMES[record]}").fields)
        assert seen["offsets"] == {field: info.offset for field, info in fields.items()}
