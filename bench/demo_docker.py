"""`make demo-docker`: a real Docker Engine with Linkspan as its network driver, on a machine within this machine.

The eight commands of Docker's networking, then the same two containers on Docker's bridge and on Linkspan. Exit
status: 0 when every step worked, 1 when one failed, 130 after Ctrl-C. In each case nothing is left at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from bench import latency, paths, throughput
from bench.docker_world import DockerWorld
from bench.joining import timed_ms
from bench.paths import Path
from bench.report import Bar, aligned
from bench.showing import ELLIPSIS, Narrator, run
from bench.stats import Spread, percentile, ratios, spread
from bench.turns import before_others
from bench.world import BenchError
from tests.docker.image import NAME, missing_programs

LATENCY_ROUNDS: Final = 80
THROUGHPUT_ROUNDS: Final = 12
COMMAND_ROUNDS: Final = 12
BAR: Final = 0.75
"""What a round trip may take of one over Docker's bridge."""
BRIDGE, OURS = "Docker's bridge", "Linkspan"
DRIVERS: Final = {BRIDGE: "bridge", OURS: "linkspan"}
NETWORK_OF: Final = {BRIDGE: "theirs", OURS: "ours"}
CLIENT, SERVER = "client", "server"
SLEEP: Final = ("sleep", "3600")
MEMBERS: Final = "{{range .Containers}}{{println .Name .IPv4Address .MacAddress}}{{end}}"

Timed = dict[str, list[float]]


class DockerDemo:
    """The steps, in order, on one world."""

    def __init__(self, machine: DockerWorld, narrator: Narrator) -> None:
        self._world = machine
        self._say = narrator

    def docker(self, *args: str, show: Callable[[str], str] = str) -> str:
        """Runs a docker command in front of the reader."""
        self._say.command("docker", *args)
        output = self._world.docker(*args)
        self._say.say(show(output))
        return output

    def log(self) -> str:
        """What dockerd and linkspand have written."""
        return self._world.log()

    def show(self) -> None:
        """All steps; raises BenchError for the one that does not work."""
        self.start()
        self.eight_commands()
        self.compare()

    def start(self) -> None:
        self._say.step(
            "A host of its own: network, mount and process namespaces, in which linkspand and Docker's engine start. "
            "Nothing of this machine is touched."
        )
        self._say.command("linkspand", *self._world.daemon_args())
        self._say.say(f"ready after {self._world.start():.1f} s")
        self._say.command("dockerd", ELLIPSIS)
        self._world.start_engine()
        version = self._world.docker("version", "--format", "client {{.Client.Version}}, engine {{.Server.Version}}")
        self._say.say(f"{version.strip()}; the image {NAME} is made of programs of this machine")

    # -- the guide's commands ------------------------------------------------------------------------------------

    def eight_commands(self) -> None:
        self._say.step("docker network ls: the networks that Docker made.")
        self.docker("network", "ls")
        self._say.step("docker network create: one of Linkspan's.")
        self.docker("network", "create", "-d", "linkspan", "my_net")
        self.docker("network", "ls", "--filter", "driver=linkspan")
        self._say.step("docker run --net: a container on it.")
        self.docker("run", "-d", "--net=my_net", "--name", "my_container", NAME, *SLEEP)
        self._say.step("docker network inspect: it is there.")
        self.docker("network", "inspect", "--format", MEMBERS, "my_net")
        self._say.step("docker network disconnect: it is not there any more.")
        self.docker("network", "disconnect", "my_net", "my_container")
        if self.docker("network", "inspect", "--format", "{{len .Containers}} containers", "my_net")[0] != "0":
            raise BenchError("my_container is still on my_net")
        self._say.step("docker network connect: that one again and a second one, and they talk by name.")
        self.docker("run", "-d", "--name", "my_container2", NAME, *SLEEP)
        for name in ("my_container", "my_container2"):
            self.docker("network", "connect", "my_net", name)
        self.docker("network", "inspect", "--format", MEMBERS, "my_net")
        self.docker("exec", "my_container2", "ping", "-c", "3", "my_container")
        self._say.step("docker network rm: not while it is in use.")
        self._refused("network", "rm", "my_net")
        self.docker("rm", "--force", "my_container", "my_container2")
        self.docker("network", "rm", "my_net")
        self._say.step("docker network prune: what nobody uses.")
        for name in ("my_net1", "my_net2"):
            self.docker("network", "create", "-d", "linkspan", name)
        self.docker("network", "prune", "--force")
        self.docker("network", "ls")

    def _refused(self, *args: str) -> None:
        self._say.command("docker", *args)
        done = self._world.engine.docker(*args, check=False)
        self._say.say(done.stderr)
        if "has active endpoints" not in done.stderr:
            raise BenchError(f"docker {' '.join(args)}: exit {done.returncode} instead of a refusal")

    # -- side by side --------------------------------------------------------------------------------------------

    def compare(self) -> None:
        self._say.step("Two containers that are on a network of Docker's bridge and on one of Linkspan's.")
        for title, driver in DRIVERS.items():
            self.docker("network", "create", "-d", driver, NETWORK_OF[title])
        for name in (CLIENT, SERVER):
            self.docker("run", "-d", "--net", NETWORK_OF[BRIDGE], "--name", name, NAME, *SLEEP)
            self.docker("network", "connect", NETWORK_OF[OURS], name)
        ways = [self._world.way(title, network, CLIENT, SERVER) for title, network in NETWORK_OF.items()]

        self._say.step(
            f"Round trips of {latency.PAYLOAD_BYTES} bytes by sockperf, both ends on one core; the two networks take "
            f"turns of {latency.SLICE_S * 1e3:.0f} ms, so that they see the same machine."
        )
        trips, fast, slow = self._round_trips(ways)
        self._say.say(f"linkspand counted {fast:,} packets on the fast path, {slow:,} on the kernel's bridge")

        self._say.step("One TCP stream by iperf3, a core an end, in turns again.")
        streams = throughput.measure(ways, THROUGHPUT_ROUNDS)

        self._say.step(f"Commands, {COMMAND_ROUNDS} times each, in turns again.")
        commands = self._commands()

        self._say.step("Side by side.")
        self._table(trips, dict(streams), commands)

    def _round_trips(self, ways: list[Path]) -> tuple[latency.Measured, int, int]:
        network = self._linkspan_name()
        before = paths.packets(self._world, network)
        trips = latency.measure(ways, LATENCY_ROUNDS)
        after = paths.packets(self._world, network)
        fast, slow = after["fast"] - before["fast"], after["slow"] - before["slow"]
        if fast < 2 * sum(len(trips[OURS, proto].ordered()) for proto in latency.PROTOS):
            raise BenchError("the round trips did not go the fast path")
        return trips, fast, slow

    def _linkspan_name(self) -> str:
        """What linkspand calls the network: Docker does not say the name."""
        network_id = self._world.docker("network", "inspect", "--format", "{{.Id}}", NETWORK_OF[OURS]).strip()
        return str(self._world.api("GET", f"/networks/{network_id}")["Name"])

    def _commands(self) -> dict[str, Timed]:
        """Milliseconds by command and by whose network, a value a round."""
        timed: dict[str, Timed] = {
            what: {title: [] for title in DRIVERS} for what in ("network create", "network connect", "run")
        }
        docker = self._world.docker
        docker("run", "-d", "--network", "none", "--name", "idle", NAME, *SLEEP)
        docker("network", "disconnect", "none", "idle")
        with before_others():
            for number in range(COMMAND_ROUNDS):
                for title in sorted(DRIVERS, reverse=number % 2 == 0):
                    steps = {
                        "network create": ("network", "create", "-d", DRIVERS[title], "timed"),
                        "network connect": ("network", "connect", "timed", "idle"),
                        "run": ("run", "-d", "--network", "timed", "--name", "timed", NAME, *SLEEP),
                    }
                    for what, args in steps.items():
                        timed[what][title].append(timed_ms(partial(docker, *args)))
                    docker("rm", "--force", "timed")
                    docker("network", "disconnect", "timed", "idle")
                    docker("network", "rm", "timed")
        docker("rm", "--force", "idle")
        return timed

    def _table(self, trips: latency.Measured, streams: Timed, commands: dict[str, Timed]) -> None:
        rows = []
        round_trips: dict[latency.Proto, Spread] = {}
        for proto in latency.PROTOS:
            p50s = {title: trips[title, proto].p50s() for title in DRIVERS}
            p99s = {title: [percentile(sorted(one), 99) for one in trips[title, proto].rounds] for title in DRIVERS}
            round_trips[proto] = ratios(p50s[OURS], p50s[BRIDGE])
            rows.append(_row(f"{proto.upper()} round trip p50, us", p50s))
            rows.append(_row(f"{proto.upper()} round trip p99, us", p99s))
        rows.append(_row("TCP stream, Gbit/s", {title: [v / 1e9 for v in rates] for title, rates in streams.items()}))
        rows += [_row(f"docker {what}, ms", timed) for what, timed in commands.items()]
        columns = ("median of rounds", *DRIVERS, "Linkspan / bridge", "10 % .. 90 % of rounds")
        self._say.say(aligned([columns, *rows], indent=""))
        self._say.say("ratios are medians of the rounds' ratios; the machine's noise cancels out in them\n")
        for name, ratio in round_trips.items():
            bar = Bar(f"{name.upper()} round trip p50 against Docker's bridge", "<=", BAR, ratio)
            what, promised, median, sure, _, verdict = bar.row()
            self._say.say(f"{what}: promised {promised}, found {median} ({sure} with 95 % probability): {verdict}")

    # -- the end -------------------------------------------------------------------------------------------------

    def end(self, *, tidy: bool) -> bool:
        """Ends the machine and returns whether nothing is left of it; with `tidy` by docker's own commands first."""
        try:
            footprint = self._world.footprint()
            if tidy:
                self._say.step("Everything goes again: by command, then the host with all that is still in it.")
                self.docker("rm", "--force", CLIENT, SERVER)
                self.docker("network", "prune", "--force")
                self._world.stop()
        finally:
            self._world.close()
        remains = footprint.remains()
        if remains:
            self._say.say(f"left behind: {', '.join(remains)}")
        else:
            self._say.say(f"nothing is left: looked for {footprint}")
        return not remains


def _row(what: str, values: dict[str, list[float]]) -> list[str]:
    theirs, ours = values[BRIDGE], values[OURS]
    ratio = ratios(ours, theirs)
    cells = [f"{spread(one).median:.1f}" for one in (theirs, ours)]
    return [what, *cells, f"{ratio.median:.2f}", f"{ratio.low:.2f} .. {ratio.high:.2f}"]


def main() -> int:
    """Runs the demo; see the module."""
    if os.geteuid() != 0:
        print("demo-docker: root is needed, for dockerd, network namespaces and eBPF", file=sys.stderr)
        return 1
    if missing := missing_programs():
        print(f"demo-docker: no {', '.join(missing)} on this machine: run tools/setup", file=sys.stderr)
        return 1
    narrator = Narrator()

    def begin() -> DockerDemo:
        return DockerDemo(DockerWorld(), narrator)

    return run(begin, narrator)


if __name__ == "__main__":
    sys.exit(main())
