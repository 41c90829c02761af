"""A scrape of a host with 4,000 endpoints: what it costs linkspand, in each format.

Real maps, filled as programs fill them, records in a real store, and the code that answers a scrape, up to the last
byte of the body; without HTTP, and without the devices and sandboxes that it never looks at. Times are
the CPU's.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.daemon import resident_bytes
from bench.report import Bar, Result, Table
from bench.stats import single, spread
from bench.turns import before_others
from control.controller import NetworkController
from control.counted import Slots
from control.deps import Deps
from control.drivers.base import Driver, EndpointCounters
from control.ipam.pools import PoolIpam
from control.metrics import Metrics
from control.metrics.protobuf import Protobuf
from control.metrics.text import OpenMetrics, Text
from control.metrics.writer import Writer
from control.model import (
    Endpoint,
    EndpointId,
    EndpointState,
    Network,
    NetworkId,
    NetworkState,
    SandboxId,
    to_json,
    utcnow,
)
from control.sandboxes import SandboxFiles
from control.store.base import Put
from control.store.sqlite import SqliteStore
from datapath import abi, bpf
from datapath.host_ports import HostPorts
from datapath.latency import Histograms
from datapath.loader.pins import SHAPES
from datapath.maps import Maps

ENDPOINTS: Final = 4000
NETWORKS: Final = 10
_REASON: Final = next(iter(abi.DropReason))
_SAMPLES: Final = b"".join((7 * (40 <= bucket < 60)).to_bytes(8, "little") for bucket in range(abi.LATENCY_BUCKETS))
"""Twenty buckets in use."""
_WRITERS: Final[Mapping[str, Callable[[], Writer]]] = {"text": Text, "OpenMetrics": OpenMetrics, "protobuf": Protobuf}


class _Counting(Driver):
    """Counts as the drivers with programs do, and leaves out all else."""

    name = "bridge"

    def __init__(self, maps: Maps) -> None:
        self._maps = maps

    def counters(self, endpoints: Sequence[Endpoint]) -> dict[str, EndpointCounters]:
        by_slot, drops = self._maps.counters(self._maps.endpoint_slots()), self._maps.drops()
        return {
            each.id: EndpointCounters(**vars(by_slot[each.slot]), drops=drops.get(each.slot, {})) for each in endpoints
        }


class _NoSandboxes(SandboxFiles):
    """Those of a container engine, which linkspand does not keep."""

    def start(self, known: Iterable[str]) -> None:
        pass


@contextmanager
def _filled_maps() -> Iterator[Maps]:
    """Maps in which every endpoint has counted on all CPUs, and has latencies of all kinds; every tenth has dropped."""
    made = {}
    for name, each in SHAPES.items():
        kind = bpf.MapType(each.type)
        made[name] = bpf.Map(
            bpf.map_create(kind, each.key_size, each.value_size, each.max_entries, flags=each.flags), name
        )
    with Maps(made) as maps:
        for slot in range(ENDPOINTS):
            mac = bytes.fromhex(f"0242{slot:08x}")
            maps.endpoint_put(slot + 10, abi.Endpoint(1 + slot % NETWORKS, slot, None, mac, 0, None, None))
            values = os.urandom(made["ep_counters"].value_size)
            made["ep_counters"].update(slot.to_bytes(4, "little"), bytes(byte & 0x3F for byte in values))
            for timed in abi.LatencyKind:
                record = abi.Latency(10**6, _SAMPLES)
                made["latencies"].update(abi.LatencyKey(slot, timed).pack(), record.pack())
            if slot % 10 == 0:
                key = abi.DropKey(slot, _REASON)
                made["ep_drops"].update(key.pack(), (7).to_bytes(8, "little") * bpf.possible_cpus())
        yield maps


@contextmanager
def _controller(maps: Maps, *, has_latencies: bool) -> Iterator[NetworkController]:
    with tempfile.TemporaryDirectory(prefix="linkspan-scrape-") as directory:
        store = SqliteStore(Path(directory) / "linkspan.db")
        networks = [
            Network(
                id=NetworkId(secrets.token_hex(32)),
                name=f"net{number}",
                driver="bridge",
                state=NetworkState.ACTIVE,
                created=utcnow(),
                segment=1 + number,
            )
            for number in range(NETWORKS)
        ]
        endpoints = [
            Endpoint(
                id=EndpointId(secrets.token_hex(32)),
                network_id=networks[slot % NETWORKS].id,
                sandbox_id=SandboxId(""),
                sandbox_key=f"/var/run/docker/netns/{secrets.token_hex(6)}",
                state=EndpointState.JOINED,
                created=utcnow(),
                slot=slot,
            )
            for slot in range(ENDPOINTS)
        ]
        store.write([Put("network", each.id, to_json(each)) for each in networks])
        store.write([Put("endpoint", each.id, to_json(each)) for each in endpoints])
        controller = NetworkController(
            Deps(
                store=store,
                ipam=PoolIpam(),
                drivers={"bridge": _Counting(maps)},
                files=_NoSandboxes(Path(directory)),
                ports=HostPorts(),
                slots=Slots(latencies=lambda _: maps.latencies() if has_latencies else Histograms()),
                map_fill=maps.fill,
                run_dir=Path(directory),
                state_dir=Path(directory),
            )
        )
        controller.start()
        try:
            yield controller
        finally:
            controller.stop()


def suite(rounds: int) -> Result:
    """Scrapes by turns in all formats, of endpoints that have no samples of latencies, and of such that have all."""
    took: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    grown = 0.0
    with before_others(), _filled_maps() as maps:
        for what, has_latencies in (("counters", False), ("counters and latencies", True)):
            with _controller(maps, has_latencies=has_latencies) as controller:
                metrics = Metrics()
                metrics.watch(controller)
                before = resident_bytes(os.getpid())
                for _ in range(rounds):
                    for name, writer in _WRITERS.items():
                        begin = time.process_time()
                        sizes[f"{name}, {what}"] = sum(len(part) for part in metrics.expose(writer()))
                        took.setdefault(f"{name}, {what}", []).append((time.process_time() - begin) * 1e3)
                grown += (resident_bytes(os.getpid()) - before) / 1e6
    spreads = {name: spread(values) for name, values in took.items()}
    rows = [
        [name, f"{of.median:.0f}", f"{of.low:.0f} .. {of.high:.0f}", f"{sizes[name] / 1e6:.1f}"]
        for name, of in spreads.items()
    ]
    table = Table(
        f"A scrape with {ENDPOINTS} endpoints on {NETWORKS} networks", ("", "p50 (ms)", "10 % .. 90 %", "MB"), rows
    )
    bars = [Bar(f"scrape of {ENDPOINTS} endpoints, {name}", "<", 200, of, "ms") for name, of in spreads.items()]
    bars.append(Bar("memory that scrapes leave behind", "<", 20, single(grown), "MB"))
    return Result([table], bars, {"took_ms": took, "bytes": sizes, "grown_mb": grown})
