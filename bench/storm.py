"""A broadcast storm on a parent with 500 macvlan endpoints: what it does to the round trips of two others there."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Final

from bench import latency, paths
from bench.paths import Path
from bench.report import Bar, Result, Table
from bench.stats import percentile, ratios, spread
from bench.world import World, running, world

ENDPOINTS: Final = 500
QUIET, LIMITED, UNLIMITED = "quiet", "storm, limited", "storm, no limit"
STORM_CPU: Final = 1 - latency.CPU
"""The servers are on this core too, so what is sent to them waits for the copies: the kernel makes those where the
storm's sender runs. With both ends on the other core no storm is felt; on one core with both it does not get to run."""
_STORM: Final = """
import socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
mac = open("/sys/class/net/eth0/address").read().strip().replace(":", "")
frame = b"\\xff" * 6 + bytes.fromhex(mac) + b"\\x88\\xb5" + bytes(46)
while True:
    try:
        wire.send(frame)
    except OSError:
        pass  # dropped at the egress
"""


def build(machine: World) -> tuple[list[Path], dict[str, str]]:
    """The paths, and by name the namespace that a storm comes from: of a network with a limit, or of one without, on
    one parent."""
    switch = machine.netns("switch")
    machine.ip("/proc/1/ns/net", "link", "add", "eth1", "up", "type", "veth", "peer", "name", "p1", "netns", switch)
    machine.ip(switch, "link", "set", "p1", "up")
    for number, limit in enumerate(({}, {"linkspan.broadcast_limit": "0"})):
        options = {"parent": "eth1", "linkspan.conflict_check": "off", **limit}
        config = [{"Subnet": f"10.{30 + number}.0.0/16"}]
        body = {"Name": f"pub{number}", "Driver": "macvlan", "Options": options, "IPAM": {"Config": config}}
        machine.api("POST", "/networks/create", body)
    ends = [machine.sandbox(f"m{number}", "pub0") for number in range(ENDPOINTS - 1)]
    storms = {LIMITED: ends[-1], UNLIMITED: machine.sandbox("free", "pub1")}
    built = []
    for number, name in enumerate((QUIET, LIMITED, UNLIMITED)):
        client, server = ends[2 * number : 2 * number + 2]
        built.append(Path(name, machine, client, server, paths.address_of(machine, f"m{2 * number + 1}", "pub0")))
    return built, storms


def suite(rounds: int) -> Result:
    with world() as machine, ExitStack() as stack:
        machine.start()
        built, storms = build(machine)
        beside = {}
        for name, netns in storms.items():
            command = ("taskset", "--cpu-list", str(STORM_CPU), "/usr/bin/python3", "-c", _STORM)
            process = stack.enter_context(running(machine.inside(netns, *command)))
            process.send_signal(signal.SIGSTOP)
            beside[name] = process.pid
        measured = latency.measure(built, rounds, beside=beside, server_cpu=STORM_CPU)
    tables, bars = [], []
    for proto in latency.PROTOS:
        quiet = measured[QUIET, proto]
        rows = []
        for path in built:
            samples = measured[path.name, proto]
            p50, p99 = spread(samples.p50s()), spread(_p99s(samples))
            against = ratios(_p99s(samples), _p99s(quiet))
            rows.append(
                [
                    path.name,
                    f"{p50.median:.2f}",
                    f"{p99.median:.2f}",
                    f"{p99.low:.2f} .. {p99.high:.2f}",
                    f"{percentile(samples.ordered(), 99):.1f}",
                    f"{against.median:.2f}",
                ]
            )
            if path.name == LIMITED:
                bars.append(Bar(f"{proto.upper()} round trip p99 in a limited storm, against quiet", "<", 2.0, against))
        columns = ("", "p50", "p99 of a round", "10 % .. 90 % of rounds", "p99 of all", "x quiet")
        tables.append(
            Table(f"{proto.upper()} round trip beside {ENDPOINTS} endpoints on one parent: us", columns, rows)
        )
    return Result(tables, bars, {f"{name}, {proto}": _p99s(each) for (name, proto), each in measured.items()})


def _p99s(samples: latency.Samples) -> list[float]:
    return [percentile(sorted(one), 99) for one in samples.rounds]
