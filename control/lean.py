"""Keeps linkspand small; imported before everything else by `control.daemon`.

aiohttp's client, which is imported with its server, loads the host's CA certificates at once: 3 MB and 60 ms for
connections that are never made. So it is imported here, while OpenSSL looks for them in an empty place. See
SSL_CTX_load_verify_locations(3).
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from types import ModuleType
from typing import Final

_NOWHERE: Final = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
"""malloc.h; not in ctypes."""
_LARGE_BYTES: Final = 128 * 1024
_UNUSED: Final = (
    *("pyroute2.ndb.main", "pyroute2.iwutil", "pyroute2.netlink.nl80211"),
    *("pyroute2.netlink.nfnetlink.nftsocket", "pyroute2.ethtool.ethtool"),
    *("pyroute2.plan9.client", "pyroute2.plan9.server"),
)
"""A database of routes, what speaks of wireless devices, of nftables and of offloads, and a file protocol."""


def _import_aiohttp() -> None:
    before = {name: os.environ.get(name) for name in _NOWHERE}
    os.environ.update(_NOWHERE)
    try:
        import aiohttp  # noqa: F401
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_pyroute2() -> None:
    """Without its parts that nothing here uses, all of which it imports: two megabytes. Whoever wants one of them gets
    it by its own name, as ever."""
    if "pyroute2" in sys.modules:  # a test's process
        return
    for name in _UNUSED:
        stand_in = ModuleType(name)
        stand_in.__dict__["__getattr__"] = lambda attribute: type(attribute, (), {})
        sys.modules[name] = stand_in
    try:
        import pyroute2  # noqa: F401
    finally:
        for name in _UNUSED:
            del sys.modules[name]


def set_up_heap() -> None:
    """Has all threads share one heap, before the first of them starts: the interpreter's lock makes more of them
    useless, and each costs memory that is never given back. What is large, as the bodies of answers are, stays apart
    from it and is given back at once: left to itself, malloc would take larger and larger blocks from the heap. Does
    nothing where malloc is not glibc's; see mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def give_back_what_starting_took() -> None:
    """Returns to the kernel what imports, or the start, have freed: a megabyte each; see malloc_trim(3)."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


# Collections look again and again at what has been imported so far, all of which stays: a seventh of a start's time.
gc.disable()
_import_aiohttp()
_import_pyroute2()
gc.freeze()
gc.enable()
