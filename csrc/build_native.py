"""Builds datapath._native, the cffi (API mode) module over the C files beside this one.

setuptools runs this file (`cffi_modules` in setup.py) with the source tree as working directory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cffi import FFI

# `bpf` lies beside `csrc` in the source tree, in an sdist and in an installation.
_ROOT: Final = Path(__file__).resolve().parent.parent

_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINE: Final = re.compile(r"#[ \t]*define[ \t]+(\w+)[ \t]+(?:0[xX][0-9a-fA-F]+|\d+)[ \t]*")


def cffi_declarations(header: str) -> str:
    """What cffi's parser takes of a C header: no comments, no preprocessor lines but `#define NAME NUMBER`.

    Such a define becomes `#define NAME ...`: the number itself comes from the compiler.
    """
    kept = []
    for line in _COMMENT.sub(" ", header).replace("\\\n", " ").splitlines():
        if not line.lstrip().startswith("#"):
            kept.append(line.rstrip())
        elif define := _DEFINE.fullmatch(line.strip()):
            kept.append(f"#define {define[1]} ...")
    return "\n".join(line for line in kept if line)


# linux/types.h, and the parts that are read of structs in linux/bpf.h; "..." leaves offsets to the compiler.
_KERNEL: Final = """
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef __u32 __be32;

struct bpf_map_info {
    __u32 type; __u32 id; __u32 key_size; __u32 value_size; __u32 max_entries; __u32 map_flags; char name[...]; ...;
};
struct bpf_prog_info {
    __u32 type; __u32 id; __u8 tag[...]; __u32 jited_prog_len; __u32 xlated_prog_len; __u64 load_time;
    __u32 created_by_uid; __u32 nr_map_ids; char name[...]; __u64 run_time_ns; __u64 run_cnt; __u32 verified_insns; ...;
};
struct __sk_buff {
    __u32 mark; __u32 priority; __u32 ingress_ifindex; __u32 ifindex; __u32 cb[5]; __u32 data_end;
    __u32 wire_len; __u32 gso_segs; __u32 gso_size; ...;
};
struct xdp_md {
    __u32 data; __u32 data_end; __u32 ingress_ifindex; ...;
};
"""

# Newer than the oldest headers that this builds with (6.1). Enumerators, so no #ifndef can see them; equal values.
_NEWER: Final = """
#define BPF_TCX_INGRESS 46
#define BPF_TCX_EGRESS 47
"""

_CONSTANTS: Final = """
BPF_ANY BPF_NOEXIST BPF_EXIST BPF_F_NO_PREALLOC
BPF_MAP_TYPE_HASH BPF_MAP_TYPE_ARRAY BPF_MAP_TYPE_PERCPU_HASH BPF_MAP_TYPE_PERCPU_ARRAY BPF_MAP_TYPE_LRU_HASH
BPF_MAP_TYPE_LRU_PERCPU_HASH BPF_MAP_TYPE_LPM_TRIE BPF_MAP_TYPE_PROG_ARRAY
BPF_PROG_TYPE_SOCKET_FILTER BPF_PROG_TYPE_SCHED_CLS BPF_PROG_TYPE_XDP
BPF_XDP BPF_TCX_INGRESS BPF_TCX_EGRESS XDP_FLAGS_DRV_MODE XDP_FLAGS_SKB_MODE
BPF_FUNC_redirect_peer
"""

_SOURCE: Final = f"""
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/types.h>
{_NEWER}
#include "abi.h"
#include "abi_check.h"
#include "native.h"
"""

ffibuilder = FFI()
ffibuilder.cdef(_KERNEL)
for _header in ("bpf/abi.h", "csrc/native.h"):
    ffibuilder.cdef(cffi_declarations((_ROOT / _header).read_text()))
ffibuilder.cdef("\n".join(f"#define {name} ..." for name in _CONSTANTS.split()))
ffibuilder.set_source(
    "datapath._native",
    _SOURCE,
    sources=[
        "csrc/bpf.c",
        "csrc/netns.c",
        "csrc/links.c",
        "csrc/counters.c",
        "csrc/latency.c",
        "csrc/probe.c",
        "csrc/exposition.c",
    ],
    include_dirs=["bpf", "csrc"],
    depends=["bpf/abi.h", "bpf/abi_check.h", "csrc/native.h"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"],
    extra_link_args=["-pthread"],
)
