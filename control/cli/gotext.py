"""Text as Go writes it: quoted strings, JSON, and the verbs of fmt.

Go's values stand as Python's: bool, int, float, str, None, lists (slices), dicts (maps) and the types of `shapes`.
Source: https://pkg.go.dev/fmt, https://pkg.go.dev/strconv, https://pkg.go.dev/encoding/json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from control.cli.shapes import NilSlice, Row, Struct, Time, TypedMap

_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
MAX_WIDTH: Final = 1_000_000


def unquote(text: str) -> str:
    """Reads a double-quoted Go string; raises ValueError for an escape that Go does not have."""
    return _unescape(text[1:-1], '"')


def unquote_rune(text: str) -> int:
    """Reads a Go character constant such as 'x'; raises ValueError when it is not exactly one character."""
    rune = _unescape(text[1:-1], "'")
    if len(rune) != 1:
        raise ValueError(text)
    return ord(rune)


def _unescape(body: str, quote: str) -> str:
    def replacement(found: re.Match[str]) -> str:
        escape = found[1]
        if escape in _ESCAPES:
            return _ESCAPES[escape]
        if escape == quote:
            return quote
        if escape[0] in "xuU" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        if escape[0] in "01234567" and len(escape) == 3:
            return chr(int(escape, 8))
        raise ValueError(f"unknown escape \\{escape}")

    return _ESCAPE.sub(replacement, body)


def quoted(text: str) -> str:
    """The string in double quotes with Go's escapes, as %q prints it."""
    names = {value: f"\\{letter}" for letter, value in _ESCAPES.items()} | {'"': '\\"'}

    def shown(char: str) -> str:
        if char in names:
            return names[char]
        if char == " " or char.isprintable():
            return char
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(shown, text)) + '"'


def to_json(value: Any) -> str:
    """Compact JSON as Go's encoder writes it: struct fields in their order, map keys sorted, no HTML escapes."""
    text = json.dumps(_jsonable(value), ensure_ascii=False, separators=(",", ":"))
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _jsonable(value: Any) -> Any:
    match value:
        case Struct():
            return {name: _jsonable(item) for name, item in value.json_items()}
        case Row():
            return {name: _jsonable(item) for name, item in sorted(value.fields().items())}
        case Time():
            return value.rfc3339
        case dict():
            return (
                None
                if isinstance(value, TypedMap) and value.is_nil
                else {key: _jsonable(item) for key, item in sorted(value.items())}
            )
        case list():
            return None if isinstance(value, NilSlice) else [_jsonable(item) for item in value]
    return value


def go_type(value: Any) -> str:
    """The name of the Go type that stands behind a value."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case Struct() | Row() | Time():
            return value.go_type
        case list():
            return "[]interface {}"
        case dict():
            return "map[string]interface {}"
    return type(value).__name__


def plain(value: Any, plus: bool = False) -> str:
    """A value as %v prints it; `plus` names the fields of structs as %+v does."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case float():
            return _shortest(value)
        case Struct():
            items = value.items()
            return "{" + " ".join((f"{name}:" if plus else "") + plain(item, plus) for name, item in items) + "}"
        case dict():
            pairs = sorted(value.items())
            return "map[" + " ".join(f"{plain(key)}:{plain(item, plus)}" for key, item in pairs) + "]"
        case list():
            return "[" + " ".join(plain(item, plus) for item in value) + "]"
    return str(value)


def _shortest(number: float) -> str:
    """The shortest text that reads back as the same number; as in %v, with an exponent below 1e-4 and from 1e6 on."""
    if number != number or number in (float("inf"), float("-inf")):
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[repr(number)]
    from decimal import Decimal

    exact = Decimal(repr(number)).normalize()
    sign, digits, _ = exact.as_tuple()
    exponent = exact.adjusted()
    if number and not -4 <= exponent < 6:
        mantissa = "".join(map(str, digits))
        fraction = f".{mantissa[1:]}" if len(mantissa) > 1 else ""
        return f"{'-' * sign}{mantissa[0]}{fraction}e{exponent:+03d}"
    return format(exact, "f")


def sprint(values: Sequence[Any]) -> str:
    """Go's fmt.Sprint: a space between two operands of which neither is a string."""
    parts: list[str] = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            parts.append(" ")
        parts.append(plain(value))
    return "".join(parts)


def sprintln(values: Sequence[Any]) -> str:
    """Go's fmt.Sprintln: a space between all operands and a newline at the end."""
    return " ".join(map(plain, values)) + "\n"


_VERB: Final = re.compile(r"%([-+# 0]*)(\*|\d+)?(?:\.(\*|\d+)?)?(.)?", re.DOTALL)


def sprintf(pattern: str, values: Sequence[Any]) -> str:
    """Go's fmt.Sprintf, with its notes in the text for what does not fit (%!d(string=x), %!s(MISSING), …)."""
    rest = iter(values)
    used = 0

    def take(missing: Any) -> Any:
        nonlocal used
        for value in rest:
            used += 1
            return value
        return missing

    def replacement(found: re.Match[str]) -> str:
        flags, width, _, verb = found.groups()
        dotted = "." in found[0][: -1 if verb else None]
        precision = found[3] or ("0" if dotted else None)
        notes = ""
        sizes: list[int | None] = []
        for size, note in ((width, "%!(BADWIDTH)"), (precision, "%!(BADPREC)")):
            number = take(None) if size == "*" else None if size is None else int(size)
            if size is not None and (type(number) is not int or abs(number) > MAX_WIDTH):
                notes += note
                number = None
            sizes.append(number)
        width_n, precision_n = sizes
        if width_n is not None and width_n < 0:
            flags, width_n = flags + "-", -width_n
        if verb is None:
            return notes + "%!(NOVERB)"
        if verb == "%":
            return notes + "%"
        missing = object()
        value = take(missing)
        if value is missing:
            return f"{notes}%!{verb}(MISSING)"
        return notes + _padded(_verb(verb, value, flags, precision_n), flags, width_n, value, verb)

    text = _VERB.sub(replacement, pattern)
    extra = [f"{go_type(value)}={plain(value)}" if value is not None else "<nil>" for value in rest]
    return text + (f"%!(EXTRA {', '.join(extra)})" if extra else "")


def _padded(text: str, flags: str, width: int | None, value: Any, verb: str) -> str:
    if width is None or len(text) >= width:
        return text
    if "-" in flags:
        return text.ljust(width)
    if "0" not in flags or text.startswith("%!"):
        return text.rjust(width)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and verb not in "cqU"
    sign = text[0] if is_number and text[0] in "+- " else ""
    return sign + text[len(sign) :].rjust(width - len(sign), "0")


def _verb(verb: str, value: Any, flags: str, precision: int | None) -> str:
    """One value by one verb, without padding."""
    if verb == "T":
        return go_type(value)
    if verb == "v" and not (isinstance(value, (int, float, str)) and ("#" in flags or precision is not None)):
        text = plain(value, plus="+" in flags)
        return f"+{text}" if "+" in flags and type(value) in (int, float) and not text.startswith("-") else text
    if isinstance(value, list):
        return "[" + " ".join(_verb(verb, item, flags, precision) for item in value) + "]"
    if isinstance(value, dict):
        pairs = sorted(value.items())
        shown = (_verb(verb, key, flags, precision) + ":" + _verb(verb, item, flags, precision) for key, item in pairs)
        return "map[" + " ".join(shown) + "]"
    if isinstance(value, Struct):
        return "{" + " ".join(_verb(verb, item, flags, precision) for _, item in value.items()) + "}"
    for text in _scalar(verb, value, flags, precision):
        return text
    return f"%!{verb}(<nil>)" if value is None else f"%!{verb}({go_type(value)}={plain(value)})"


def _scalar(verb: str, value: Any, flags: str, precision: int | None) -> Iterator[str]:
    """Yields the value's text, nothing when the verb does not fit its type."""
    sign = "+" if "+" in flags else " " if " " in flags else ""
    if isinstance(value, bool):
        if verb in "tv":
            yield plain(value)
    elif isinstance(value, int):
        if verb in "cqU":
            char = chr(value) if 0 <= value < 0x110000 else "\ufffd"
            yield char if verb == "c" else f"'{quoted(char)[1:-1]}'" if verb == "q" else f"U+{value:04X}"
        elif verb in "dvboxXO":
            base = {"d": "d", "v": "d", "O": "o"}.get(verb, verb)
            prefix = (
                "0o"
                if verb == "O"
                else {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(verb, "")
                if "#" in flags
                else ""
            )
            digits = format(abs(value), base).rjust(precision or 0, "0")
            yield ("-" if value < 0 else sign) + prefix + digits
    elif isinstance(value, float):
        if verb in "eEfFgG" and (verb not in "gG" or precision is not None):
            yield format(value, f"{sign}.{6 if precision is None else precision}{verb}")
        elif verb in "gGv":
            text = _shortest(value)
            yield text if text.startswith("-") or not sign else sign + text
    elif verb in "sv" and not isinstance(value, (list, dict)) and value is not None:
        text = plain(value)
        if verb == "v" and "#" in flags and isinstance(value, str):
            text = quoted(text)
        yield text if precision is None else text[:precision]
    elif isinstance(value, str) and verb == "q":
        text = value if precision is None else value[:precision]
        yield f"`{text}`" if "#" in flags and "`" not in text else quoted(text)
    elif isinstance(value, str) and verb in "xX":
        raw = value.encode().hex(" " if " " in flags else "") if " " in flags else value.encode().hex()
        yield raw if verb == "x" else raw.upper()
