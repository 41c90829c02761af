"""The programs: their size, which is exact, and what the endpoint program costs a packet against its frozen copy.

Test runs cost some 40 ns for an empty program too; that is taken off, so a ratio is of the program's own time. Where in
memory a copy of a program lies makes it up to 10 % faster or slower than its twin, for as long as it is loaded. So each
ratio is of a new pair of copies, and the median of many pairs is what counts.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Final

from bench.gate import builds, decide
from bench.gate.bed import Bed, Build, bed, timed_ns, verdict
from bench.gate.decide import Ratio
from bench.gate.outcome import Outcome, exact
from bench.report import Table
from bench.world import BenchError
from datapath import bpf, loader

LIMITS: Final[Mapping[str, tuple[tuple[str, ...], float]]] = {
    "fast path": (("udp4", "tcp6"), 1.05),
    "to the kernel": (("to the kernel",), 1.10),
    "forged": (("forged",), 1.10),
}
"""What is judged, the geometric mean of which packets it is, and the greatest ratio to the frozen copy."""
_EMPTY: Final = Build("ls_empty", "int ls_empty(struct __sk_buff *skb) { return -1; }", {})
_LOAD_S: Final = 180.0
_ROUNDS: Final = 40
_PACKETS: Final = 2000


def sizes(directory: Path) -> Outcome:
    """Holds what the kernel says of each program against gates.toml. Raises BenchError."""
    with bed() as place:
        return exact("sizes", "Programs", place.call(_sizes, place, directory))


def _sizes(place: Bed, directory: Path) -> dict[str, float]:
    try:
        loaded = loader.load(
            str(place.bpffs / "all"), run_dir=str(place.dir), timeout_s=_LOAD_S, source_dir=str(directory)
        )
    except loader.LoaderError as error:
        raise BenchError(str(error)) from error
    found: dict[str, float] = {}
    for name, path in loaded.programs.items():
        fd = bpf.obj_get(path)
        info = bpf.prog_info(fd)
        os.close(fd)
        found[f"{name}: instructions the verifier walks"] = info.verified_insns
        found[f"{name}: bytes of eBPF"] = info.xlated_bytes
        found[f"{name}: bytes of machine code"] = info.jited_bytes
    return found


def costs(directory: Path) -> Outcome:
    """Holds what the endpoint program costs against its frozen copy.

    Takes 10 s to a minute, as the machine is noisy. Raises BenchError when the two disagree about a packet.
    """
    ratios = measure(directory)
    rows, failures, figures = [], [], {}
    for name, (_, limit) in LIMITS.items():
        found, verdict = decide.ratio(ratios[name]), decide.verdict(ratios[name], limit)
        rows.append([name, *found.cells(), f"{limit:.2f}", verdict])
        figures[f"{builds.PROGRAM}, {name}: x frozen copy"] = found.median
        if verdict != "passed":
            failures.append(f"{builds.PROGRAM}, {name}: {found} x its frozen copy, limit {limit:.2f}: {verdict}")
    title = f"{builds.PROGRAM} a packet, against its frozen copy"
    return Outcome(Table(title, ("", *Ratio.COLUMNS, "limit", "verdict"), rows), failures, figures)


def measure(directory: Path) -> dict[str, list[float]]:
    """Ratios by the names of LIMITS, one a pair of copies, as many as it takes to decide all of them."""
    ratios: dict[str, list[float]] = {name: [] for name in LIMITS}
    for each in pairs(directory):
        for name, ratio in each.items():
            ratios[name].append(ratio)
        if all(decide.is_enough(ratios[name], limit) for name, (_, limit) in LIMITS.items()):
            break
    return ratios


def pairs(directory: Path) -> Generator[dict[str, float], None, None]:
    """Without end, the ratios of one more pair of copies by the names of LIMITS."""
    with bed() as place:
        empty = place.load(place.compile(_EMPTY))
        today, frozen = place.compile(builds.today(directory)), place.compile(builds.frozen())
        while True:
            pair = place.load(today), place.load(frozen)
            each = {case: place.call(_ratio, case, *pair, empty) for case in builds.CASES}
            for fd in pair:
                place.unload(fd)
            yield {
                name: math.prod(each[case] for case in cases) ** (1 / len(cases)) for name, (cases, _) in LIMITS.items()
            }


def _ratio(case: str, today: int, frozen: int, empty: int) -> float:
    """The ratio of one pair of copies, the median of rounds in which each of the three runs once."""
    packet, wanted = builds.CASES[case]
    for program in (today, frozen):
        if verdict(program, packet) != wanted:
            raise BenchError(f"{builds.PROGRAM}, packet {case!r}: the verdict is not {wanted}")
    found = []
    for number in range(_ROUNDS):
        order = (today, empty, frozen) if number % 2 else (frozen, empty, today)
        ns = {program: timed_ns(program, packet, _PACKETS) for program in order}
        if ns[frozen] > ns[empty]:
            found.append((ns[today] - ns[empty]) / (ns[frozen] - ns[empty]))
    return statistics.median(found)
