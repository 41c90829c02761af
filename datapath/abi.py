"""The structs and constants of bpf/abi.h as Python values.

Layouts, sizes and numbers come from the compiled module, so none stands here. MAC addresses are 6 bytes; IP
addresses are `ipaddress` objects, None where abi.h says "0: none"; everything else is an int in host order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Final, Self

from datapath._native import ffi, lib

ABI_VERSION: Final[int] = lib.LS_ABI_VERSION
MAX_ENDPOINTS: Final[int] = lib.LS_MAX_ENDPOINTS
MAX_NEIGHBOURS: Final[int] = lib.LS_MAX_NEIGHBOURS
MAX_DROP_KEYS: Final[int] = lib.LS_MAX_DROP_KEYS
MAX_PARENTS: Final[int] = lib.LS_MAX_PARENTS
MAX_PEERS: Final[int] = lib.LS_MAX_PEERS
MAX_NODES: Final[int] = lib.LS_MAX_NODES
MAX_DIRECT: Final[int] = lib.LS_MAX_DIRECT
MAX_LATENCIES: Final[int] = lib.LS_MAX_LATENCIES
LATENCY_BUCKETS: Final[int] = lib.LS_LATENCY_BUCKETS
LATENCY_SECOND: Final[int] = lib.LS_LATENCY_SECOND
MAX_DECISIONS: Final[int] = lib.LS_MAX_DECISIONS
PARENT_SEGMENT: Final[int] = lib.LS_PARENT_SEGMENT
EP_FAST: Final[int] = lib.LS_EP_FAST
EP_BRIDGED: Final[int] = lib.LS_EP_BRIDGED
EP_VEPA: Final[int] = lib.LS_EP_VEPA
EP_SWITCHED: Final[int] = lib.LS_EP_SWITCHED
EP_LIMITED: Final[int] = lib.LS_EP_LIMITED
EP_ENGINE: Final[int] = lib.LS_EP_ENGINE
EP_OVERLAY: Final[int] = lib.LS_EP_OVERLAY
PEER_DIRECT: Final[int] = lib.LS_PEER_DIRECT
PARENT_HOST: Final[int] = lib.LS_PARENT_HOST
NEIGH_ROUTER: Final[int] = lib.LS_NEIGH_ROUTER
NEIGH_SILENT: Final[int] = lib.LS_NEIGH_SILENT

_DROP_REASONS: Final = sorted(ffi.typeof("enum ls_drop_reason").relements.items(), key=lambda member: member[1])
_TOLD: Final = sorted(ffi.typeof("enum ls_told").relements.items(), key=lambda member: member[1])
_EITHER_FAMILY: Final = ("local", "remote", "next_hop", "address")
_MAPPED: Final = bytes(10) + b"\xff\xff"
_SCALARS: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


class LatencyKind(IntEnum):
    """What was timed: the members of `enum ls_latency_kind` without LS_LATENCY_."""

    FAST = lib.LS_LATENCY_FAST
    SLOW = lib.LS_LATENCY_SLOW
    TCP_RTT = lib.LS_LATENCY_TCP_RTT


class DropReason(IntEnum):
    """Why a packet was dropped: the members of `enum ls_drop_reason` without LS_DROP_."""

    vars().update({name.removeprefix("LS_DROP_"): number for name, number in _DROP_REASONS})

    @property
    def label(self) -> str:
        """The metric's label, as in "spoofed_mac"."""
        return self.name.lower()


class Told(IntEnum):
    """What a traced program tells: the members of `enum ls_told` without LS_TOLD_."""

    vars().update({name.removeprefix("LS_TOLD_"): number for name, number in _TOLD})

    @property
    def label(self) -> str:
        return self.name.lower()


def layout(ctype: str) -> tuple[struct.Struct, tuple[str, ...]]:
    """The `struct` layout of a C struct known to the compiled module, and its fields' names in that order.

    Byte arrays, and the fields that hold addresses in network order, are bytes; fields called pad are left out.
    """
    kind = ffi.typeof(ctype)
    text, names, end = "=", [], 0
    for name, field in kind.fields:
        size = ffi.sizeof(field.type)
        text += f"{field.offset - end}x"
        end = field.offset + size
        if name == "pad":
            text += f"{size}x"
            continue
        text += f"{size}s" if field.type.kind == "array" or name == "ip4" else _SCALARS[size]
        names.append(name)
    return struct.Struct(f"{text}{ffi.sizeof(kind) - end}x"), tuple(names)


class _Record:
    """One C struct as a frozen dataclass whose fields have the C fields' names."""

    SIZE: ClassVar[int]
    _struct: ClassVar[struct.Struct]
    _names: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, ctype: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._struct, cls._names = layout(ctype)
        cls.SIZE = cls._struct.size

    def pack(self) -> bytes:
        """The struct as the kernel has it, padding zero. Raises ValueError for a value that does not fit its field."""
        try:
            return self._struct.pack(*(_to_c(name, getattr(self, name)) for name in self._names))
        except struct.error as error:
            raise ValueError(f"{self}: {error}") from error

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The inverse of `pack`; raises ValueError for another size."""
        if len(raw) != cls.SIZE:
            raise ValueError(f"{cls.__name__} takes {cls.SIZE} bytes, not {len(raw)}")
        values = zip(cls._names, cls._struct.unpack(raw), strict=True)
        return cls(**{name: _from_c(name, value) for name, value in values})


def _to_c(name: str, value: Any) -> Any:
    if name in _EITHER_FAMILY:
        return (_MAPPED if isinstance(value, IPv4Address) else b"") + value.packed
    width = {"ip4": 4, "ip6": 16, "ip6_ll": 16, "mac": 6, "local_mac": 6}.get(name)
    if width is None:
        return value
    raw = b"\0" * width if value is None else getattr(value, "packed", value)
    if not isinstance(raw, bytes) or len(raw) != width:
        raise ValueError(f"{name} takes {width} bytes, not {value!r}")
    return raw


def _from_c(name: str, value: Any) -> Any:
    if name == "ip4":
        return IPv4Address(value) if any(value) else None
    if name in _EITHER_FAMILY:
        address = IPv6Address(value)
        return address.ipv4_mapped or address
    if name in ("ip6", "ip6_ll"):
        return IPv6Address(value) if any(value) else None
    return value


@dataclass(frozen=True)
class Endpoint(_Record, ctype="struct ls_endpoint"):
    """Value of ep_by_if and stations: the endpoint behind a host end, or with a MAC of its own on a parent."""

    segment: int
    slot: int
    ip4: IPv4Address | None
    mac: bytes
    flags: int
    ip6: IPv6Address | None
    ip6_ll: IPv6Address | None

    @classmethod
    def slots_of(cls, values: memoryview) -> list[int]:
        """The slots alone of values that lie one behind the other: all that a scrape takes of thousands of them."""
        return values.cast("I")[_SLOT_AT // 4 :: cls.SIZE // 4].tolist()


_SLOT_AT: Final[int] = dict(ffi.typeof("struct ls_endpoint").fields)["slot"].offset


@dataclass(frozen=True)
class FdbKey(_Record, ctype="struct ls_fdb_key"):
    """Key of fdb."""

    segment: int
    mac: bytes


@dataclass(frozen=True)
class FdbEntry(_Record, ctype="struct ls_fdb"):
    """Value of fdb: the host end that owns a MAC."""

    ifindex: int
    slot: int


@dataclass(frozen=True)
class Neigh4Key(_Record, ctype="struct ls_neigh4_key"):
    """Key of neigh4."""

    segment: int
    ip4: IPv4Address


@dataclass(frozen=True)
class Neigh6Key(_Record, ctype="struct ls_neigh6_key"):
    """Key of neigh6."""

    segment: int
    ip6: IPv6Address


@dataclass(frozen=True)
class Neighbour(_Record, ctype="struct ls_neighbour"):
    """Value of neigh4 and neigh6: whose an address is."""

    mac: bytes
    flags: int


@dataclass(frozen=True)
class Parent(_Record, ctype="struct ls_parent"):
    """Value of parents: a device that macvlan endpoints are on."""

    segment: int
    mac: bytes
    flags: int


@dataclass(frozen=True)
class StationKey(_Record, ctype="struct ls_station_key"):
    """Key of stations: the parent, and the endpoint's MAC."""

    ifindex: int
    mac: bytes


@dataclass(frozen=True)
class PeerEntry(_Record, ctype="struct ls_peer"):
    """Value of peers: the network of an endpoint of another host, that host, and the endpoint's own addresses."""

    vni: int
    node: int
    flags: int = 0
    ip4: IPv4Address | None = None
    ip6: IPv6Address | None = None


@dataclass(frozen=True)
class Node(_Record, ctype="struct ls_node"):
    """Value of nodes: another host, and the way there. Addresses of one family; an empty element's are all ::."""

    ifindex: int
    mtu: int
    local: IPv4Address | IPv6Address
    remote: IPv4Address | IPv6Address
    next_hop: IPv4Address | IPv6Address
    mac: bytes = bytes(6)
    local_mac: bytes = bytes(6)


@dataclass(frozen=True)
class NodeKey(_Record, ctype="struct ls_node_key"):
    """Key of node_by_ip."""

    remote: IPv4Address | IPv6Address


@dataclass(frozen=True)
class DirectKey(_Record, ctype="struct ls_direct_key"):
    """Key of direct."""

    address: IPv4Address | IPv6Address


@dataclass(frozen=True)
class Direct(_Record, ctype="struct ls_direct"):
    """Value of direct: the endpoint of this host that has an address, and since when it sends without VXLAN."""

    from_ns: int
    segment: int
    mac: bytes


@dataclass(frozen=True)
class Limit(_Record, ctype="struct ls_limit"):
    """Value of limits: nanoseconds that a packet for everybody takes of each second, and the time used up."""

    cost_ns: int
    spent: int = 0


@dataclass(frozen=True)
class Counters(_Record, ctype="struct ls_counters"):
    """Value of ep_counters: packets, and bytes with Ethernet header, sent by (out) or delivered to (in) an endpoint."""

    out_fast_packets: int
    out_fast_bytes: int
    out_slow_packets: int
    out_slow_bytes: int
    in_fast_packets: int
    in_fast_bytes: int
    in_slow_packets: int
    in_slow_bytes: int

    @classmethod
    def totals(cls, per_cpu: bytes | memoryview, cpus: int) -> list[Self]:
        """The sums over all CPUs of values of a per-CPU map, which lie one behind the other; modulo 2**64 as the
        counters themselves are."""
        count = len(per_cpu) // cls.SIZE // cpus
        totals = ffi.new("struct ls_counters[]", count)
        lib.ls_counters_total(ffi.from_buffer("struct ls_counters[]", per_cpu), count, cpus, totals)
        return [cls(*row) for row in cls._struct.iter_unpack(ffi.buffer(totals))]

    @classmethod
    def none(cls) -> Self:
        return cls(*[0] * len(cls._names))


@dataclass(frozen=True)
class DropKey(_Record, ctype="struct ls_drop_key"):
    """Key of ep_drops."""

    slot: int
    reason: int


@dataclass(frozen=True)
class LatencyKey(_Record, ctype="struct ls_latency_key"):
    """Key of latencies."""

    slot: int
    kind: int


@dataclass(frozen=True)
class Latency(_Record, ctype="struct ls_latency"):
    """Value of latencies; `buckets` is all of them, 8 bytes each."""

    total_ns: int
    buckets: bytes


@dataclass(frozen=True)
class Sampling(_Record, ctype="struct ls_sampling"):
    """Value of sampling, of one CPU: one arrival in `every` is timed (0: none); the rest is the programs'."""

    begin_ns: int = 0
    every: int = 0
    left: int = 0
    len: int = 0
    macs: bytes = bytes(12)


@dataclass(frozen=True)
class Decision(_Record, ctype="struct ls_decision"):
    """One of a packet's decisions; `what` is a Told."""

    what: int
    operand: int


@dataclass(frozen=True)
class Decisions(_Record, ctype="struct ls_decisions"):
    """Value of decisions: how many there are, and room for MAX_DECISIONS."""

    count: int
    each: bytes

    def __iter__(self) -> Iterator[Decision]:
        for number in range(self.count):
            yield Decision.unpack(self.each[number * Decision.SIZE : (number + 1) * Decision.SIZE])


RECORDS: Final = (
    Endpoint,
    FdbKey,
    FdbEntry,
    Neigh4Key,
    Neigh6Key,
    Neighbour,
    Parent,
    StationKey,
    PeerEntry,
    Node,
    NodeKey,
    DirectKey,
    Direct,
    Limit,
    Counters,
    DropKey,
    LatencyKey,
    Latency,
    Sampling,
    Decision,
    Decisions,
)
