"""The functions that templates may call: Go's own (but call, html, js, urlquery) and Docker's.

A function raises CallError for values that it cannot take; the text is Go's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from control.cli.gotext import MAX_WIDTH, go_type, plain, sprint, sprintf, sprintln, to_json
from control.cli.shapes import NilSlice, Struct, TypedMap


class CallError(Exception):
    """What a function says about its arguments."""


class Func(NamedTuple):
    """A function, the types of its parameters (`object` takes all), and that of any number of further ones."""

    call: Callable[..., Any]
    parameters: tuple[type, ...]
    variadic: type | None = None


def check_argument(value: Any, kind: type, literal: object | None) -> str | None:
    """Returns what is wrong with an argument, None if it fits; `literal` is its source if it is a constant."""
    if kind is object or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return None
    wanted = "string" if kind is str else "int"
    if value is None:
        return f"cannot assign nil to {wanted}" if literal is not None else f"invalid value; expected {wanted}"
    if literal is not None:
        return f"expected {'integer' if kind is int else wanted}; found {literal}"
    return f"wrong type for value; expected {wanted}; got {go_type(value)}"


def _length(value: Any) -> int:
    if value is None:
        raise CallError("len of nil pointer")
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, (list, dict)):
        return len(value)
    raise CallError(f"len of type {go_type(value)}")


def _position(index: Any, size: int) -> int:
    if index is None:
        raise CallError("cannot index slice/array with nil")
    if type(index) is not int:
        raise CallError(f"cannot index slice/array with type {go_type(index)}")
    if not 0 <= index < size:
        raise CallError(f"index out of range: {index}" if size >= 0 else "index out of range")
    return index


def _index(value: Any, *keys: Any) -> Any:
    if value is None:
        raise CallError("index of untyped nil")
    for key in keys:
        match value:
            case None:
                raise CallError("index of nil pointer")
            case str():
                raw = value.encode()
                value = raw[_position(key, len(raw))]
            case list():
                value = value[_position(key, len(value))]
            case dict():
                if not isinstance(key, str):
                    raise CallError(
                        f"value has type {go_type(key)}; should be string"
                        if key is not None
                        else "value is nil; should be of type string"
                    )
                value = value.get(key, value.zero if isinstance(value, TypedMap) else None)
            case _:
                raise CallError(f"can't index item of type {go_type(value)}")
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    if value is None:
        raise CallError("slice of untyped nil")
    if not isinstance(value, (str, list)):
        raise CallError(f"can't slice item of type {go_type(value)}")
    if len(bounds) > (2 if isinstance(value, str) else 3):
        raise CallError(
            "cannot 3-index slice a string" if isinstance(value, str) else f"too many slice indexes: {len(bounds)}"
        )
    items: Any = value.encode() if isinstance(value, str) else value
    size = len(items)
    low, high = 0, size
    positions = [_position(bound, size + 1) for bound in bounds]
    low, high = positions[0] if positions else 0, positions[1] if len(positions) > 1 else size
    if low > high:
        raise CallError(f"invalid slice index: {low} > {high}")
    return items[low:high].decode(errors="replace") if isinstance(value, str) else items[low:high]


def _kind(value: Any) -> str:
    """The class of types within which Go's templates compare; "" for all that is not a basic type."""
    kinds = (("bool", bool), ("int", int), ("float", float), ("string", str))
    return next((name for name, types in kinds if isinstance(value, types)), "")


def _is_nil(value: Any) -> bool:
    return value is None or isinstance(value, NilSlice) or (isinstance(value, TypedMap) and value.is_nil)


def _is_comparable(value: Any) -> bool:
    if isinstance(value, Struct):
        return all(_is_comparable(item) for _, item in value.items())
    return not isinstance(value, (list, dict))


def _equal(first: Any, *others: Any) -> bool:
    """Whether `first` equals any of the others."""
    if not others:
        raise CallError("missing argument for comparison")
    return any(_same(first, other) for other in others)


def _same(first: Any, second: Any) -> bool:
    if _kind(first) != _kind(second):
        if first is not None and second is not None:
            raise CallError("incompatible types for comparison")
        return False
    if _kind(first):
        return bool(first == second)
    if _is_nil(first) or _is_nil(second):
        return _is_nil(first) == _is_nil(second)
    if not _is_comparable(second):
        raise CallError(f"non-comparable type {plain(second)}: {go_type(second)}")
    return bool(first == second)


def _less(first: Any, second: Any) -> bool:
    kind = _kind(first)
    if not kind or not _kind(second) or kind == _kind(second) == "bool":
        raise CallError("invalid type for comparison")
    if kind != _kind(second):
        raise CallError("incompatible types for comparison")
    return bool(first < second)


def _not(value: Any) -> bool:
    from control.cli.template import truth

    return not truth(value)


def _split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _join(items: Any, separator: str) -> str:
    match items:
        case None:
            return ""
        case list():
            return separator.join(map(plain, items))
        case dict():
            return separator.join(sorted(map(plain, items.values())))
    raise CallError(f"expected slice, got {go_type(items)}")


def _title(text: str) -> str:
    return re.sub(r"(?<!\w)[^\W\d_]", lambda found: found[0].title(), text)


def _pad(text: str, before: int, after: int) -> str:
    if min(before, after) < 0 and text:
        raise CallError("strings: negative Repeat count")
    if max(before, after) > MAX_WIDTH:
        raise CallError(f"more than {MAX_WIDTH} spaces")
    return " " * before + text + " " * after if text else text


def _truncate(text: str, length: int) -> str:
    if length < 0:
        raise CallError(f"runtime error: slice bounds out of range [:{length}]")
    raw = text.encode()
    return text if len(raw) < length else raw[:length].decode(errors="ignore")


FUNCTIONS: Final[dict[str, Func]] = {
    # `and` and `or` do not evaluate all of their arguments; the executor knows them by name.
    "and": Func(lambda *values: None, (object,), object),
    "or": Func(lambda *values: None, (object,), object),
    "not": Func(_not, (object,)),
    "eq": Func(_equal, (object,), object),
    "ne": Func(lambda first, second: not _equal(first, second), (object, object)),
    "lt": Func(_less, (object, object)),
    "le": Func(lambda first, second: _less(first, second) or _equal(first, second), (object, object)),
    "gt": Func(lambda first, second: not (_less(first, second) or _equal(first, second)), (object, object)),
    "ge": Func(lambda first, second: not _less(first, second), (object, object)),
    "index": Func(_index, (object,), object),
    "slice": Func(_slice, (object,), object),
    "len": Func(_length, (object,)),
    "print": Func(lambda *values: sprint(values), (), object),
    "println": Func(lambda *values: sprintln(values), (), object),
    "printf": Func(lambda pattern, *values: sprintf(pattern, values), (str,), object),
    "json": Func(to_json, (object,)),
    "join": Func(_join, (object, str)),
    "split": Func(_split, (str, str)),
    "lower": Func(str.lower, (str,)),
    "upper": Func(str.upper, (str,)),
    "title": Func(_title, (str,)),
    "pad": Func(_pad, (str, int, int)),
    "truncate": Func(_truncate, (str, int)),
}

# In the header of a table, a column's name goes through the functions of its cells unchanged.
HEADER_FUNCTIONS: Final[dict[str, Func]] = {
    **{name: Func(lambda name: name, (str,)) for name in ("json", "lower", "title", "upper")},
    **{name: Func(lambda name, separator: name, (str, str)) for name in ("join", "split")},
    "truncate": Func(lambda name, length: name, (str, int)),
}
