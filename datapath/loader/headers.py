"""The header tree that bcc compiles against, made of the distribution's UAPI headers.

bcc expects a kernel source tree. The programs include UAPI headers alone, so links to those of linux-libc-dev and a
handful of generated files stand in for it: no kernel headers package, nothing that depends on the running kernel, and
a tenth of the time.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from datapath.loader.errors import Unavailable

# clang force-includes kconfig.h. It gives bcc's own headers the kernel's short types, and replaces the C library's
# notion of __always_inline, which inlines nothing.
_KCONFIG: Final = """\
#ifndef LINKSPAN_KCONFIG_H
#define LINKSPAN_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>
#include <linux/stddef.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
"""

# bcc's helpers compare against this version to choose between spellings of the same helper; any recent one will do.
_VERSION: Final = """\
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)
"""

# bcc brings a bpf.h of its own, whose include guard differs from the distribution's.
_GENERATED: Final = {
    "generated/autoconf.h": "",
    "linux/kconfig.h": _KCONFIG,
    "linux/version.h": _VERSION,
    "linux/log2.h": "",
    "asm/page.h": "",
    "uapi/linux/bpf.h": "",
}


def make_tree(directory: Path, include: Path = Path("/usr/include")) -> None:
    """Fills an empty `directory`; Unavailable when `include` lacks the UAPI headers."""
    asm = _first(include / f"{platform.machine()}-linux-gnu" / "asm", include / "asm")
    linux = _first(include / "linux")
    generic = _first(include / "asm-generic")
    root = directory / "include"
    for name, text in _GENERATED.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "uapi" / "asm").symlink_to(asm)
    (root / "uapi" / "asm-generic").symlink_to(generic)
    for entry in linux.iterdir():
        if f"uapi/linux/{entry.name}" not in _GENERATED:
            (root / "uapi" / "linux" / entry.name).symlink_to(entry)


def _first(*candidates: Path) -> Path:
    for path in candidates:
        if path.is_dir():
            return path
    raise Unavailable("the kernel's UAPI headers", f"{candidates[0]} is missing; install linux-libc-dev")
