"""Go's types behind the Engine API's answers, as far as templates can tell them from plain JSON.

`--format` sees Docker's structs, not the JSON: fields have Go's names, what the answer leaves out has its zero value,
and a time is no string. Source: docker's client library v28 (api/types/network), as printed by docker network inspect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

Build = Callable[[Any], Any]


class NilSlice(list[Any]):
    """A slice that was never made: empty, but null in JSON."""


class TypedMap(dict[str, Any]):
    """A map that knows the zero value of its elements; `is_nil` if it was never made: empty, but null in JSON."""

    def __init__(self, items: Mapping[str, Any] | None, zero: Any) -> None:
        super().__init__(items or {})
        self.zero = zero
        self.is_nil = items is None


@dataclass(frozen=True)
class Time:
    """A point in time that prints as Go's time.Time; `rfc3339` is as the server sent it."""

    rfc3339: str
    go_type: str = "time.Time"

    def __str__(self) -> str:
        text = self.rfc3339.replace("T", " ", 1)
        if text.endswith("Z"):
            return text[:-1] + " +0000 UTC"
        zone = text[-6:].replace(":", "")
        return f"{text[:-6]} {zone} {zone}"

    def moment(self) -> datetime:
        """The time itself, cut to a microsecond."""
        return datetime.fromisoformat(self.rfc3339)


class Part(NamedTuple):
    """One field of a struct: its name in Go and in JSON, how it is made, and whether JSON leaves it out when empty."""

    name: str
    key: str
    build: Build
    omit_empty: bool = False


@dataclass(frozen=True)
class Shape:
    """A struct type: makes a Struct of a JSON object."""

    go_type: str
    parts: tuple[Part, ...]

    def __call__(self, body: Any) -> Struct:
        source = body if isinstance(body, dict) else {}
        return Struct(self, {part.name: part.build(source.get(part.key)) for part in self.parts})


@dataclass(frozen=True)
class Struct:
    shape: Shape
    values: dict[str, Any]

    @property
    def go_type(self) -> str:
        return self.shape.go_type

    def items(self) -> Iterator[tuple[str, Any]]:
        yield from self.values.items()

    def json_items(self) -> Iterator[tuple[str, Any]]:
        """The fields as JSON has them, in the struct's order."""
        for part in self.shape.parts:
            value = self.values[part.name]
            if not part.omit_empty or value not in ("", 0, False, [], {}):
                yield part.key, value


class Row:
    """One line of a list: fields are computed when asked for, and methods take arguments."""

    go_type = "object"

    def fields(self) -> dict[str, Any]:
        """The fields by the names that templates use."""
        raise NotImplementedError

    def methods(self) -> dict[str, Callable[[str], Any]]:
        """The methods by name; each takes one string."""
        return {}


class Headers(dict[str, str]):
    """The line above a table: every field is its column's header, `.Label "a.b"` the label's last part."""

    def methods(self) -> dict[str, Callable[[str], Any]]:
        return {"Label": lambda name: name.split(".")[-1].replace("-", " ").replace("_", " ")}


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def truth(value: Any) -> bool:
    return value is True


def time(value: Any) -> Time:
    return Time(value if isinstance(value, str) and value else "0001-01-01T00:00:00Z")


def map_of(build: Build) -> Build:
    """A Go map of strings to what `build` makes."""

    def made(value: Any) -> Any:
        items = {key: build(item) for key, item in value.items()} if isinstance(value, dict) else None
        return TypedMap(items, build(None))

    return made


def slice_of(build: Build) -> Build:
    """A Go slice of what `build` makes."""
    return lambda value: [build(item) for item in value] if isinstance(value, list) else NilSlice()


_STRINGS: Final = map_of(text)
_IPAM_CONFIG: Final = Shape(
    "network.IPAMConfig",
    (
        Part("Subnet", "Subnet", text, True),
        Part("IPRange", "IPRange", text, True),
        Part("Gateway", "Gateway", text, True),
        Part("AuxAddress", "AuxiliaryAddresses", _STRINGS, True),
    ),
)
_IPAM: Final = Shape(
    "network.IPAM",
    (
        Part("Driver", "Driver", text),
        Part("Options", "Options", _STRINGS),
        Part("Config", "Config", slice_of(_IPAM_CONFIG)),
    ),
)
_ENDPOINT: Final = Shape(
    "network.EndpointResource",
    tuple(Part(name, name, text) for name in ("Name", "EndpointID", "MacAddress", "IPv4Address", "IPv6Address")),
)
_PEER: Final = Shape("network.PeerInfo", (Part("Name", "Name", text), Part("IP", "IP", text)))
_TASK: Final = Shape(
    "network.Task",
    (
        Part("Name", "Name", text),
        Part("EndpointID", "EndpointID", text),
        Part("EndpointIP", "EndpointIP", text),
        Part("Info", "Info", _STRINGS),
    ),
)
_SERVICE: Final = Shape(
    "network.ServiceInfo",
    (
        Part("VIP", "VIP", text),
        Part("Ports", "Ports", slice_of(text)),
        Part("LocalLBIndex", "LocalLBIndex", number),
        Part("Tasks", "Tasks", slice_of(_TASK)),
    ),
)
NETWORK: Final = Shape(
    "network.Inspect",
    (
        Part("Name", "Name", text),
        Part("ID", "Id", text),
        Part("Created", "Created", time),
        Part("Scope", "Scope", text),
        Part("Driver", "Driver", text),
        Part("EnableIPv4", "EnableIPv4", truth),
        Part("EnableIPv6", "EnableIPv6", truth),
        Part("IPAM", "IPAM", _IPAM),
        Part("Internal", "Internal", truth),
        Part("Attachable", "Attachable", truth),
        Part("Ingress", "Ingress", truth),
        Part("ConfigFrom", "ConfigFrom", Shape("network.ConfigReference", (Part("Network", "Network", text),))),
        Part("ConfigOnly", "ConfigOnly", truth),
        Part("Containers", "Containers", map_of(_ENDPOINT)),
        Part("Options", "Options", _STRINGS),
        Part("Labels", "Labels", _STRINGS),
        Part("Peers", "Peers", slice_of(_PEER), True),
        Part("Services", "Services", map_of(_SERVICE), True),
    ),
)
