"""Compiles, loads and pins programs with bcc, then exits. Run by the system's Python, which alone can import bcc.

Reads one JSON request from stdin and writes one JSON reply to stdout; what clang and the verifier say goes to stderr.
Imports the standard library and bcc alone.

Request: {"programs": [{"name", "text", "pin"}], "maps": {name: shape}, "map_dir", "definitions": {macro: string},
"include"}; a shape is [type, key size, value size, max entries, flags]. All maps are pinned in map_dir already.
Reply: {"ok": true}, or {"error": "bcc" | "compile" | "maps" | "load" | "pin", "program", "detail", "errno"}.
"""

import ctypes
import errno
import json
import os
import sys
from typing import Any


class Failed(Exception):
    """A step failed; the arguments are the reply."""

    def __init__(self, error: str, program: str = "", detail: object = "", code: int = 0) -> None:
        super().__init__(detail)
        self.reply = {"error": error, "program": program, "detail": str(detail), "errno": code}


def pin(lib: Any, fd: int, path: str) -> None:
    """Pins atomically, in the place of what is there: bpffs renames like any file system."""
    directory, name = os.path.split(path)
    new = os.path.join(directory, f"new-{os.getpid()}-{name}")
    if lib.bpf_obj_pin(fd, os.fsencode(new)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), new)
    try:
        os.rename(new, path)
    except OSError:
        os.unlink(new)
        raise


def compiled_shapes(lib: Any, module: Any) -> dict[str, list[int]]:
    """The maps as maps.h defines them, in the request's form."""
    # Three functions that the library has and bcc's Python does not declare.
    for function, result in (
        (lib.bpf_table_name, ctypes.c_char_p),
        (lib.bpf_table_key_size_id, ctypes.c_size_t),
        (lib.bpf_table_leaf_size_id, ctypes.c_size_t),
    ):
        function.restype = result
        function.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    return {
        lib.bpf_table_name(module, index).decode(): [
            lib.bpf_table_type_id(module, index),
            lib.bpf_table_key_size_id(module, index),
            lib.bpf_table_leaf_size_id(module, index),
            lib.bpf_table_max_entries_id(module, index),
            lib.bpf_table_flags_id(module, index),
        ]
        for index in range(lib.bpf_num_tables(module))
    }


def run(request: dict[str, Any]) -> None:
    os.environ["BCC_KERNEL_SOURCE"] = request["include"]
    try:
        import bcc
    except ImportError as error:
        raise Failed("bcc", detail=error) from error
    lib = bcc.libbcc.lib
    definitions = [f"-D{macro}={json.dumps(text)}" for macro, text in request["definitions"].items()]
    for program in request["programs"]:
        name = program["name"]
        print(f"== {name}: bcc {bcc.__version__}", file=sys.stderr, flush=True)
        try:
            module = bcc.BPF(text=program["text"], cflags=definitions)
        except Exception as error:
            raise Failed("compile", name, error) from error
        for table, shape in compiled_shapes(lib, module.module).items():
            wanted = request["maps"].get(table)
            is_pinned = os.path.exists(os.path.join(request["map_dir"], table))
            if shape != wanted and (wanted or is_pinned):
                raise Failed("maps", name, f"{table} is {shape} in the sources, {wanted} elsewhere")
        ctypes.set_errno(0)
        try:
            kind = bcc.BPF.XDP if program["is_xdp"] else bcc.BPF.SCHED_CLS
            function = module.load_func(name.encode(), kind)
        except Exception as error:
            raise Failed("load", name, error, ctypes.get_errno()) from error
        try:
            pin(lib, function.fd, program["pin"])
        except OSError as error:
            raise Failed("pin", name, error, error.errno or errno.EIO) from error


def main() -> None:
    # Whatever bcc and clang print must not stand in the reply's way.
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        run(json.load(sys.stdin))
        reply: dict[str, object] = {"ok": True}
    except Failed as failed:
        reply = failed.reply
    json.dump(reply, reply_to)
    reply_to.close()


if __name__ == "__main__":
    main()
