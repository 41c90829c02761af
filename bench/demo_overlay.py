"""`make demo-overlay`: one network across three hosts, what it is worth, and what happens when a host dies.

The hosts are machines within this machine, on a switch with an etcd. Exit status: 0 when every step worked, 1 when one
failed, 130 after Ctrl-C. In each case nothing is left at the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import permutations
from typing import Final

from bench import latency, leftovers, overlay, throughput
from bench.latency import Samples
from bench.nodes import Nodes, nodes
from bench.report import aligned
from bench.showing import Narrator, run
from bench.stats import percentile, spread
from bench.world import BIN, BenchError, World, wait_for

HOSTS: Final = 3
NETWORK: Final = overlay.NETWORK_OF[overlay.TUNNEL]
BOXES: Final = {f"{letter}{number}": number for number in range(1, HOSTS + 1) for letter in "ab"}
"""Two sandboxes on each host, with the host's number."""
SLEEP: Final = ("sleep", "3600")
LATENCY_ROUNDS: Final = 80
THROUGHPUT_ROUNDS: Final = 6
PEERS_FORGET_S: Final = 60.0


class OverlayDemo:
    """The steps, in order, on three nodes."""

    def __init__(self, cluster: Nodes, stack: ExitStack, narrator: Narrator) -> None:
        self._cluster = cluster
        self._stack = stack
        self._say = narrator
        self._footprints: list[leftovers.Footprint] = []

    def on(self, number: int, *args: str) -> str:
        """Runs a linkspan command on a host in front of the reader."""
        self._say.command(f"n{number}:", "linkspan", *args)
        output = self._cluster[number - 1].linkspan(*args)
        self._say.say(output)
        return output

    def log(self) -> str:
        """What the linkspands have written, each host's last lines."""
        return "\n".join(
            f"n{number}: {line}"
            for number, host in enumerate(self._cluster, start=1)
            for line in host.log().splitlines()[-5:]
        )

    def show(self) -> None:
        """All steps; raises BenchError for the one that does not work."""
        self.start()
        self.create()
        self.reach()
        self.compare()
        self.kill()

    def start(self) -> None:
        self._say.step(
            f"{HOSTS} hosts of their own on a switch, with an etcd beside them: namespaces, of which nothing will be "
            "left. linkspand starts on each."
        )
        begin = time.monotonic()
        self._cluster.start()
        self._say.say(f"ready after {time.monotonic() - begin:.1f} s, eBPF programs compiled, verified and loaded")
        self._say.step("They become nodes of one cluster.")
        for number in range(1, HOSTS + 1):
            self.on(number, *self._cluster.join_command(number))
        self.on(1, "cluster", "ls")

    def create(self) -> None:
        self._say.step("A network made on the first host is known to all of them, and exists on none until it is used.")
        settings = overlay.NETWORKS[overlay.TUNNEL].items()
        options = [word for name, value in settings for word in ("-o", f"{name}={value}")]
        self.on(1, "network", "create", "-d", "overlay", *options, NETWORK)
        self._cluster.wait_until_all_know(NETWORK)
        self.on(HOSTS, "network", "ls")
        for number, host in enumerate(self._cluster, start=1):
            if found := _tunnels(host):
                raise BenchError(f"n{number} has built {', '.join(found)} for nobody")

    # -- who reaches whom ----------------------------------------------------------------------------------------

    def reach(self) -> None:
        self._say.step("Two sandboxes on each host; everybody pings everybody, by name: milliseconds.")
        for box, number in BOXES.items():
            command = ("run", "--detach", "--net", NETWORK, "--name", box, "--", *SLEEP)
            if number == 1:
                self.on(number, *command)
            else:
                self._cluster[number - 1].linkspan(*command)
        for box, number in BOXES.items():
            wait_for(lambda: self._names_known_in(box, number) == len(BOXES), f"{box} to know all names")  # noqa: B023
        self._say.command("linkspan", "exec", "NAME", "ping", "-c", "3", "NAME")
        pings = {pair: self._ping(*pair) for pair in permutations(BOXES, 2)}
        times = {pair: _best_ms(ping) for pair, ping in pings.items()}
        rows = [
            [f"{one} (n{number})", *(f"{times[one, other]:.2f}" if one != other else "" for other in BOXES)]
            for one, number in BOXES.items()
        ]
        self._say.say(aligned([["from \\ to", *BOXES], *rows], indent=""))

    def _ping(self, box: str, target: str) -> subprocess.Popen[str]:
        host = self._cluster[BOXES[box] - 1]
        command = (str(BIN / "linkspan"), "exec", box, "ping", "-q", "-c3", "-i0.2", "-W2", target)
        return subprocess.Popen(host.enter(*command), env={**os.environ, **host.env}, stdout=subprocess.PIPE, text=True)

    def _names_known_in(self, box: str, number: int) -> int:
        hosts = self._cluster[number - 1].linkspan("exec", box, "cat", "/etc/hosts")
        return sum(bool(re.search(rf"\s{name}\b", hosts)) for name in BOXES)

    # -- what it is worth ----------------------------------------------------------------------------------------

    def compare(self) -> None:
        self._say.step(
            f"Round trips of {latency.PAYLOAD_BYTES} bytes by sockperf, both ends on one core, paths in turns of "
            f"{latency.SLICE_S * 1e3:.0f} ms; one TCP stream by iperf3, a core an end, in turns too."
        )
        plain = self._cluster.plain_hosts()
        built = [
            self._cluster.underlay(overlay.UNDERLAY, plain),
            self._cluster.kernel_vxlan(overlay.KERNEL, plain),
            self._cluster.sandboxes(overlay.TUNNEL, NETWORK),
        ]
        before = overlay.fast_packets(self._cluster, overlay.TUNNEL)
        trips = latency.measure(built, LATENCY_ROUNDS, protos=("tcp",))
        fast = overlay.fast_packets(self._cluster, overlay.TUNNEL) - before
        if fast < len(trips[overlay.TUNNEL, "tcp"].ordered()):
            raise BenchError("the round trips did not go the fast path")
        streams = throughput.measure(built, THROUGHPUT_ROUNDS)
        self._say.say(_table({name: samples for (name, _), samples in trips.items()}, dict(streams)))
        self._say.say(f"ratios are medians of the rounds' ratios; {fast:,} packets took Linkspan's fast path")

    # -- a host dies ---------------------------------------------------------------------------------------------

    def kill(self) -> None:
        self._footprints = [leftovers.footprint(machine) for machine in self._cluster.machines]
        last = HOSTS
        self._say.step(f"The power of n{last} is cut. Its records in etcd end with its lease, and its peers forget it.")
        address = self._cluster.address_of(last)
        self._cluster.kill(last)
        begin = time.monotonic()
        for number, host in enumerate(self._cluster, start=1):
            wait_for(lambda: address not in _entries(host), f"n{number} to forget n{last}", PEERS_FORGET_S)  # noqa: B023
            self._say.say(f"n{number} has no entry for {address} any more after {time.monotonic() - begin:.1f} s")
        self.on(1, "cluster", "ls")
        self._say.say(f"a1 reaches a2 as before, in {_best_ms(self._ping('a1', 'a2')):.2f} ms")

    # -- the end -------------------------------------------------------------------------------------------------

    def end(self, *, tidy: bool) -> bool:
        """Ends the machines, with `tidy` after linkspan's own commands; returns whether nothing is left of them."""
        try:
            footprints = self._footprints or [leftovers.footprint(machine) for machine in self._cluster.machines]
            if tidy:
                self._say.step("Everything goes again: by command, then the hosts with all that is still on them.")
                for number in range(1, HOSTS):
                    boxes = [box for box, host in BOXES.items() if host == number]
                    measured = f"{NETWORK}-{'ab'[number - 1]}"
                    self.on(number, "rm", "--force", *boxes, measured)
                self.on(1, "network", "rm", NETWORK)
        finally:
            self._stack.close()
        remains = [each for footprint in footprints for each in footprint.remains()]
        if remains:
            self._say.say(f"left behind: {', '.join(remains)}")
        else:
            spaces = sum(len(each.namespaces) for each in footprints)
            programs, maps = (sum(len(getattr(each, kind)) for each in footprints) for kind in ("programs", "maps"))
            self._say.say(
                f"nothing is left: looked for {spaces} network namespaces, {programs} eBPF programs, {maps} maps and "
                f"{len(footprints)} directories"
            )
        return not remains


def _tunnels(host: World) -> list[str]:
    """The VXLAN devices on a host."""
    shown = json.loads(host.run("ip", "-json", "link", "show", "type", "vxlan") or "[]")
    return [link["ifname"] for link in shown]


def _entries(host: World) -> str:
    """Where a host's VXLAN devices send to, as bridge(8) shows it."""
    return "".join(host.run("bridge", "fdb", "show", "dev", device) for device in _tunnels(host))


def _best_ms(ping: subprocess.Popen[str]) -> float:
    """The shortest of a ping's round trips; raises BenchError unless all came back."""
    said = ping.communicate()[0]
    found = re.search(r"(\d+) received, .*= ([\d.]+)/", said, re.DOTALL)
    if ping.returncode or found is None or found[1] != "3":
        raise BenchError(f"{' '.join(map(str, ping.args))}:\n{said}")  # type: ignore[arg-type]
    return float(found[2])


def _table(trips: dict[str, Samples], streams: dict[str, list[float]]) -> str:
    by_name = {name: overlay.rates(samples) for name, samples in trips.items()}
    rows = []
    for name, samples in trips.items():
        ordered = samples.ordered()
        row = [name, *(f"{percentile(ordered, percent):.1f}" for percent in (50, 99))]
        row.append(f"{spread(by_name[name]).median:.0f}")
        row += [f"{ratio.median:.2f}" for ratio in overlay.against(by_name, name).values()]
        row.append(f"{spread([value / 1e9 for value in streams[name]]).median:.1f}")
        row += [f"{ratio.median:.2f}" for ratio in overlay.against(streams, name).values()]
        rows.append(row)
    against = ("x underlay", "x kernel")
    columns = ("", "TCP p50 us", "p99", "round trips/s", *against, "TCP Gbit/s", *against)
    return aligned([columns, *rows], indent="")


def main() -> int:
    """Runs the demo; see the module."""
    if os.geteuid() != 0:
        print("demo-overlay: root is needed, for network namespaces and eBPF", file=sys.stderr)
        return 1
    narrator = Narrator()

    def begin() -> OverlayDemo:
        with ExitStack() as stack:
            cluster = stack.enter_context(nodes(HOSTS))
            return OverlayDemo(cluster, stack.pop_all(), narrator)

    return run(begin, narrator)


if __name__ == "__main__":
    sys.exit(main())
