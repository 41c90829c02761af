"""`make demo`: Linkspan in a minute, on a machine within this machine, of which nothing is left.

Exit status: 0 when every step worked, 1 when one failed, 130 after Ctrl-C. In each case the machine is gone at the end.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench import latency, leftovers, paths, plots, throughput
from bench.report import aligned
from bench.showing import ELLIPSIS, Narrator, run
from bench.stats import percentile, ratios, spread
from bench.world import BenchError, World, wait_for

PICTURE: Final = Path("out/demo-latency.png")
LATENCY_ROUNDS: Final = 80
THROUGHPUT_ROUNDS: Final = 8
COMPARED: Final = (paths.VETH, paths.ACCEL, paths.NO_ACCEL)
GREETING: Final = "Hello from the sandbox called web."
SUMMARY: Final = '{{range .Containers}}{{.Name}} {{.IPv4Address}}, {{end}}{{index .Status.Linkspan "linkspan.path"}}'


class Demo:
    """The steps, in order, on one world."""

    def __init__(self, machine: World, narrator: Narrator) -> None:
        self._world = machine
        self._say = narrator

    def linkspan(self, *args: str) -> str:
        """Runs a linkspan command in front of the reader."""
        self._say.command("linkspan", *args)
        output = self._world.linkspan(*args)
        self._say.say(output)
        return output

    def show(self) -> None:
        """All steps; raises BenchError for the one that does not work."""
        self.start()
        self.networks()
        self.programs()
        self.draw(self.compare())

    def log(self) -> str:
        """What linkspand has written."""
        return self._world.log()

    def start(self) -> None:
        self._say.step(
            "A host of its own: network, mount and process namespaces, in which linkspand starts on its SQLite store. "
            "Nothing of this machine is touched."
        )
        self._say.command("linkspand", *self._world.daemon_args())
        self._say.say(f"ready after {self._world.start():.1f} s, its eBPF programs compiled, verified and loaded")

    def networks(self) -> None:
        self._say.step("A bridge network, as with docker network create.")
        self.linkspan("network", "create", paths.FAST_NETWORK)
        self.linkspan("network", "ls")

    def programs(self) -> None:
        self._say.step("Two real programs in two sandboxes on it: a web server, and curl, which finds it by name.")
        site = self._world.dir / "site"
        site.mkdir()
        (site / "index.html").write_text(f"{GREETING}\n")
        server = ("python3", "-m", "http.server", "80", "--directory", str(site))
        self.linkspan("run", "--detach", "--net", paths.FAST_NETWORK, "--name", "web", "--", *server)
        wait_for(self._is_serving, "the web server to listen")
        run = ("run", "--rm", "--net", paths.FAST_NETWORK, "--name", "visitor")
        answer = self.linkspan(*run, "--", "curl", "--silent", "--show-error", "http://web/")
        if answer.strip() != GREETING:
            raise BenchError(f"the visitor got {answer!r}")
        self.linkspan("ps")
        self.linkspan("network", "inspect", "--format", SUMMARY, paths.FAST_NETWORK)

    def _is_serving(self) -> bool:
        return ":80 " in self._world.linkspan("exec", "web", "ss", "--no-header", "--listening", "--tcp", "--numeric")

    def compare(self) -> latency.Measured:
        self._say.step("The same network without its eBPF programs, and a bare veth pair between two namespaces.")
        self.linkspan("network", "create", "-o", "linkspan.accel=off", paths.SLOW_NETWORK)
        built = [
            paths.veth(self._world),
            paths.sandboxes(self._world, paths.ACCEL, paths.FAST_NETWORK),
            paths.sandboxes(self._world, paths.NO_ACCEL, paths.SLOW_NETWORK),
        ]
        self._say.say("two more sandboxes on each network; each pair of stacks is now one path to measure")

        self._say.step(
            f"Round trips of {latency.PAYLOAD_BYTES} bytes by sockperf, both ends on one core; the paths take turns of "
            f"{latency.SLICE_S * 1e3:.0f} ms, so that they see the same machine."
        )
        self._say.command("sockperf", "ping-pong", "--msg-size", str(latency.PAYLOAD_BYTES), "--full-log", ELLIPSIS)
        before = paths.packets(self._world, paths.FAST_NETWORK)
        trips = latency.measure(built, LATENCY_ROUNDS)
        after = paths.packets(self._world, paths.FAST_NETWORK)

        self._say.step("One TCP stream by iperf3, a core an end, the paths in turns again.")
        self._say.command("iperf3", "--client", ELLIPSIS)
        streams = throughput.measure(built, THROUGHPUT_ROUNDS)

        self._say.step("What it is worth.")
        self._say.say(_table(trips, streams))
        self._say.say("ratios are medians of the rounds' ratios; the machine's noise cancels out in them")
        fast, slow = after["fast"] - before["fast"], after["slow"] - before["slow"]
        self._say.say(
            f"\nlinkspand's counters of network {paths.FAST_NETWORK} for the round trips: {fast:,} packets took the "
            f"fast path, {slow:,} the kernel's bridge"
        )
        if fast < 2 * sum(len(trips[paths.ACCEL, proto].ordered()) for proto in latency.PROTOS):
            raise BenchError("the round trips did not go the fast path")
        return trips

    def draw(self, trips: latency.Measured) -> None:
        self._say.step("The same as a picture.")
        panels = {
            f"{proto.upper()}, {latency.PAYLOAD_BYTES} bytes": {name: trips[name, proto].ordered() for name in COMPARED}
            for proto in latency.PROTOS
        }
        count = sum(len(ordered) for panel in panels.values() for ordered in panel.values())
        caption = (
            f"{count:,} round trips between two network stacks of one host, by sockperf, both ends on one core,\n"
            f"paths in turns of {latency.SLICE_S * 1e3:.0f} ms. Linux {os.uname().release}, {os.cpu_count()} cores."
        )
        width = min(100, shutil.get_terminal_size((100, 24)).columns)
        for title, panel in panels.items():
            print()
            plots.show(title, panel, width=width, colours=sys.stdout.isatty())
        plots.save(panels, PICTURE, caption)
        self._say.say(f"\npicture: {PICTURE}")

    def end(self, *, tidy: bool) -> bool:
        """Ends the machine and returns whether nothing is left of it; with `tidy` by linkspan's own commands first."""
        try:
            footprint = leftovers.footprint(self._world)
            if tidy:
                self._say.step("Everything goes again: by command, then the host with all that is still in it.")
                self._tidy()
        finally:
            self._world.close()
        remains = footprint.remains()
        if remains:
            self._say.say(f"left behind: {', '.join(remains)}")
        else:
            self._say.say(f"nothing is left: looked for {footprint}")
        return not remains

    def _tidy(self) -> None:
        names = [f"{network}-{end}" for network in (paths.FAST_NETWORK, paths.SLOW_NETWORK) for end in ("a", "b")]
        self.linkspan("rm", "--force", "web", *names)
        self.linkspan("network", "prune", "--force")
        self._world.stop()


def _table(trips: latency.Measured, streams: Mapping[str, list[float]]) -> str:
    rows = []
    for name in COMPARED:
        row = [name]
        for proto in latency.PROTOS:
            ordered = trips[name, proto].ordered()
            ratio = ratios(trips[name, proto].p50s(), trips[paths.VETH, proto].p50s())
            row += [f"{percentile(ordered, 50):.1f}", f"{percentile(ordered, 99):.1f}", f"{ratio.median:.2f}"]
        rate = spread([value / 1e9 for value in streams[name]])
        row += [f"{rate.median:.1f}", f"{ratios(streams[name], streams[paths.VETH]).median:.2f}"]
        rows.append(row)
    columns = ("", "TCP p50 us", "p99", "x veth", "UDP p50 us", "p99", "x veth", "TCP Gbit/s", "x veth")
    return aligned([columns, *rows], indent="")


def main() -> int:
    """Runs the demo; see the module."""
    if os.geteuid() != 0:
        print("demo: root is needed, for network namespaces and eBPF", file=sys.stderr)
        return 1
    narrator = Narrator()

    def begin() -> Demo:
        return Demo(World(), narrator)

    return run(begin, narrator, f"{PICTURE} stays")


if __name__ == "__main__":
    sys.exit(main())
