"""`python -m bench.slowdown`: shows that the gate sees an endpoint program that is 10 % slower, and no other.

A copy of the programs' sources gets a chain of additions that all else in ls_ep_out waits for, of such a length that
the fast path takes 10 % longer, by measurement. Then the gate `cost` runs on unchanged and on slowed sources by turns,
each time as a process of its own. Exit status: 0 if it was right each time, 1 if not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

from bench.gate import decide, programs
from bench.gate.decide import Ratio
from bench.report import Table
from bench.turns import before_others
from datapath.loader import sources

SLOWER: Final = 1.10
_FILE: Final = sources.PROGRAMS["ls_ep_out"]
_ENTRY: Final = re.compile(
    r"(^int ls_ep_out\(struct __sk_buff \*skb\)\n\{\n(?:\t.*\n)*?\t__u32 ifindex = )skb->ifindex;$", re.MULTILINE
)
_SLOWLY: Final = """\
LS_INLINE __u32 ls_slowly(__u32 ifindex)
{{
	__u64 chain = ifindex;

	asm volatile("{steps}" : "+r"(chain));
	return ifindex + chain;
}}

"""
_PROBE_STEPS: Final = 60
_TRIES: Final = 6
_NEAR: Final = 0.01
_PAIRS: Final = 80
_FOUND: Final = re.compile(r"^ +fast path +([\d.]+)", re.MULTILINE)


def slowed(directory: Path, steps: int) -> Path:
    """A copy of the sources in `directory`, with a chain of so many additions at the start of ls_ep_out.

    The compiler does not know that 0 comes out of it, nor do the CPU's lookups by ifindex before it has ended.
    """
    copy = Path(shutil.copytree(sources.DIRECTORY, directory / f"slowed-{steps}", dirs_exist_ok=True))
    function = _SLOWLY.format(steps="\\n".join(["%0 += 1"] * steps + ["%0 &= 0"]))
    text, count = _ENTRY.subn(lambda found: f"{function}{found[1]}ls_slowly(skb->ifindex);", (copy / _FILE).read_text())
    if count != 1:
        raise SystemExit(f"bench.slowdown: {_FILE} does not begin by reading skb->ifindex any more; adapt _ENTRY")
    (copy / _FILE).write_text(text)
    return copy


def measured(directory: Path) -> Ratio:
    """The fast path's time against the frozen copy's, from more pairs than the gate takes."""
    with before_others(), closing(programs.pairs(directory)) as pairs:
        return decide.ratio([each["fast path"] for each in islice(pairs, _PAIRS)])


def _ten_percent_slower(directory: Path) -> Path:
    """Finds the length of the chain by measurement: a CPU hides the first additions behind other work.

    Raises SystemExit when the machine is too noisy to find it.
    """
    plain = measured(sources.DIRECTORY)
    print(f"fast path, unchanged: {plain} x the frozen copy", flush=True)
    low, high = (0, 1.0), (_PROBE_STEPS, measured(slowed(directory, _PROBE_STEPS)).median / plain.median)
    for _ in range(_TRIES):
        steps = round(low[0] + (SLOWER - low[1]) * (high[0] - low[0]) / (high[1] - low[1]))
        copy = slowed(directory, steps)
        found = measured(copy)
        ratio = found.median / plain.median
        print(f"with {steps} additions: {found} x the frozen copy, {ratio:.3f} x the unchanged program", flush=True)
        if abs(ratio - SLOWER) <= _NEAR:
            return copy
        low, high = ((steps, ratio), high) if ratio < SLOWER else (low, (steps, ratio))
    raise SystemExit(f"bench.slowdown: no chain makes the fast path {SLOWER:g} times as slow: too noisy a machine?")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slowdown")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="runs of the gate on each; default: 10")
    runs = parser.parse_args(argv).runs
    with tempfile.TemporaryDirectory() as directory:
        slow = _ten_percent_slower(Path(directory))
        rows, wrong = [], 0
        for number in range(1, runs + 1):
            for what, sources_dir, wanted in (("unchanged", sources.DIRECTORY, 0), ("slowed", slow, 1)):
                status, ratio = _gate(sources_dir)
                wrong += status != wanted
                rows.append(
                    [f"{number}", what, ratio, f"{os.getloadavg()[0]:.1f}", "passed" if status == 0 else "failed"]
                )
                print(" ".join(rows[-1]), flush=True)
    print(
        Table(f"{2 * runs} runs of the gate", ("run", "endpoint program", "fast path, x frozen", "load", "gate"), rows)
    )
    return 1 if wrong else 0


def _gate(directory: Path) -> tuple[int, str]:
    """The gate's exit status, and the ratio that it found."""
    command = [sys.executable, "-m", "bench.gate", "cost", "--sources", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _FOUND.search(done.stdout)
    if found is None:
        raise SystemExit(f"bench.slowdown: the gate has measured nothing:\n{done.stdout}{done.stderr}")
    return done.returncode, found[1]


if __name__ == "__main__":
    sys.exit(main())
