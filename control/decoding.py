"""msgspec's decoding, for many threads.

What msgspec knows of a Struct is made when it is first decoded, and others may use it before it is whole: two threads
that are the first to decode one with another Struct inside end the process by a segmentation fault (msgspec 0.22,
StructInfo in _core.c). So decoders are made here, one at a time, and kept. Nothing else of linkspand asks msgspec to
decode or convert; ruff sees to that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

_DECODERS: Final[dict[tuple[Any, Hook | None], msgspec.json.Decoder[Any]]] = {}
_lock: Final = threading.Lock()


def decode(body: bytes | str, type_: type[T], hook: Hook | None = None) -> T:
    """The JSON as a `type_`, the types that msgspec does not know by `hook` (its `dec_hook`).

    Raises msgspec.DecodeError, and what `hook` does.
    """
    decoded: T = _decoder(type_, hook).decode(body)
    return decoded


def convert(value: Any, type_: type[T]) -> T:
    """What JSON, or something like it, was read as, as a `type_`; raises msgspec.ValidationError."""
    _decoder(type_, None)
    return msgspec.convert(value, type_)


def _decoder(type_: Any, hook: Hook | None) -> msgspec.json.Decoder[Any]:
    made = _DECODERS.get((type_, hook))
    if made is None:
        with _lock:
            made = _DECODERS[type_, hook] = msgspec.json.Decoder(type_, dec_hook=hook)
    return made
