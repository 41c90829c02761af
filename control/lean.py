"""Keeps linkspand small; imported before everything else by `control.daemon`.

aiohttp's client, which is imported with its server, loads the host's CA certificates at once: 3 MB and 60 ms for
connections that are never made. So it is imported here, while OpenSSL looks for them in an empty place. See
SSL_CTX_load_verify_locations(3).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_NOWHERE: Final = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
_M_ARENA_MAX: Final = -8
"""malloc.h; not in ctypes."""


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


def use_one_arena() -> None:
    """Has all threads share one heap, before the first of them starts: the interpreter's lock makes more of them
    useless, and each costs memory that is never given back. Does nothing where malloc is not glibc's; see
    mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


_import_aiohttp()
