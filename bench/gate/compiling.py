"""Compiles one program with bcc and prints its instructions as they go to the kernel. Run by the system's Python alone.

Reads {"name", "text", "map_dir", "include"} as JSON from stdin; `map_dir` lies on a bpffs. Writes {"instructions": hex,
"maps": {name: {"shape": [type, key size, value size, max entries, flags], "fd": as in the instructions}}}. Clang's and
bcc's own output goes to stderr.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


def _loader_child() -> Any:
    """The module of linkspand's loader that knows how bcc keeps maps; datapath itself does not import here."""
    path = Path(__file__).resolve().parents[2] / "datapath" / "loader" / "child.py"
    spec = importlib.util.spec_from_file_location("child", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(request: dict[str, str]) -> dict[str, object]:
    os.environ["BCC_KERNEL_SOURCE"] = request["include"]
    import bcc

    lib = bcc.libbcc.lib
    module = bcc.BPF(text=request["text"], cflags=["-DLS_MAP_DIR=" + json.dumps(request["map_dir"])])
    shapes = _loader_child().compiled_shapes(lib, module.module)
    return {
        "instructions": module.dump_func(request["name"].encode()).hex(),
        "maps": {
            name: {"shape": shape, "fd": lib.bpf_table_fd_id(module.module, index)}
            for index, (name, shape) in enumerate(shapes.items())
        },
    }


if __name__ == "__main__":
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with reply_to:
        json.dump(compiled(json.load(sys.stdin)), reply_to)
