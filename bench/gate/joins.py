"""What a join makes linkspand do, counted: system calls, netlink messages, Python functions; and linkspand's memory.

Each count is the least of several joins to a network of 300 endpoints: what else linkspand does meanwhile only adds.
System calls that wait, and those for files and memory, depend on how far SQLite's journal and Python's heap have come,
and are left out.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.daemon import MANY, resident_bytes
from bench.gate.outcome import Outcome, exact
from bench.joining import NETWORK, connect, disconnect
from bench.world import BenchError, World, running, wait_for, world

JOINS: Final = 15
START_S: Final = 180.0
"""The programs are compiled first, which takes seconds, and minutes beside much other work."""
_COUNTED: Final = (sys.executable, str(Path(__file__).with_name("counted.py")))
_CALL: Final = re.compile(r"\d+ +([\d.]+) (\w+)\(")
_WAITS: Final = frozenset({"futex", "epoll_wait", "epoll_ctl", "sched_yield", "restart_syscall"})
_FILES: Final = frozenset(
    {
        "openat",
        "close",
        "newfstatat",
        "fstat",
        "fcntl",
        "lseek",
        "pread64",
        "pwrite64",
        "ftruncate",
        "fdatasync",
        "unlink",
    }
)
_MEMORY: Final = frozenset({"mmap", "munmap", "mremap", "madvise", "brk"})
_LEFT_OUT: Final = _WAITS | _FILES | _MEMORY
_SENDS: Final = frozenset({"sendto", "sendmsg"})


def gate(_sources: Path) -> Outcome:
    """Holds the counts against gates.toml. Takes about 20 s; raises BenchError."""
    return exact("joins", f"A join with {MANY} endpoints on the network, and linkspand's memory", figures())


def figures() -> Mapping[str, float]:
    """The counts by their names in gates.toml."""
    with world() as machine:
        machine.start(START_S)
        found = {"linkspand, 0 endpoints: resident MB": resident_bytes(machine.daemon_pid) / 1e6}
        machine.api("POST", "/networks/create", {"Name": NETWORK, "IPAM": {"Config": [{"Subnet": "10.99.0.0/16"}]}})
        machine.sandbox("spare", "none")
        machine.api("POST", "/networks/none/disconnect", {"Container": "spare"})
        for number in range(MANY):
            machine.sandbox(f"s{number}", NETWORK)
        found[f"linkspand, {MANY} endpoints: resident MB"] = resident_bytes(machine.daemon_pid) / 1e6
        found |= _traced(machine)
        machine.stop()
        machine.start(START_S, program=_COUNTED)
        found["a join: Python function calls"] = _function_calls(machine)
        return found


def _traced(machine: World) -> dict[str, float]:
    """System calls and netlink messages a join, by strace."""
    log, spans = machine.dir / "joins.strace", []
    with _strace(machine.daemon_pid, log):
        for _ in range(JOINS):
            begin = time.time()
            connect(machine, "spare")
            spans.append((begin, time.time()))
            disconnect(machine, "spare")
    lines = [(float(call[1]), call[2], line) for line in log.read_text().splitlines() if (call := _CALL.match(line))]
    joins = [[(name, line) for at, name, line in lines if begin <= at <= end] for begin, end in spans]
    if not all(joins):
        raise BenchError(f"strace saw nothing of {joins.count([])} of {JOINS} joins")
    return {
        "a join: system calls": _least(_work(join) for join in joins),
        "a join: bpf calls": _least(sum(name == "bpf" for name, _ in join) for join in joins),
        "a join: netlink messages": _least(_messages(join) for join in joins),
    }


def _least(counts: Iterable[int]) -> float:
    return float(min(counts))


def _work(join: Iterable[tuple[str, str]]) -> int:
    return sum(name not in _LEFT_OUT for name, _ in join)


def _messages(join: Iterable[tuple[str, str]]) -> int:
    return sum(line.count("nlmsg_len=") for name, line in join if name in _SENDS)


@contextmanager
def _strace(pid: int, log: Path) -> Iterator[None]:
    """Writes the system calls of a process's threads to a log; those of the block are all in it."""
    options = ["-f", "-qq", "-v", "-xx", "-s", "65536", "-ttt", "-o", str(log), "-p", str(pid)]
    with running(["strace", *options]) as tracer:
        wait_for(lambda: _is_traced(pid), f"strace to attach to process {pid}")
        yield
        tracer.send_signal(signal.SIGINT)
        if tracer.wait(30) not in (0, -signal.SIGINT, 128 + signal.SIGINT):
            raise BenchError(f"strace ended with {tracer.returncode}; is ptrace forbidden here?")


def _is_traced(pid: int) -> bool:
    """Whether all threads of the process have a tracer; see proc(5), TracerPid."""
    statuses = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return not any("TracerPid:\t0\n" in status for status in statuses)


def _function_calls(machine: World) -> float:
    counts = []
    for _ in range(JOINS):
        before = _calls_so_far(machine)
        connect(machine, "spare")
        counts.append(_calls_so_far(machine) - before)
        disconnect(machine, "spare")
    return _least(counts)


def _calls_so_far(machine: World) -> int:
    """The number that bench.gate.counted tells."""
    told = machine.seen(machine.run_dir / "calls")
    told.unlink(missing_ok=True)
    os.kill(machine.daemon_pid, signal.SIGUSR2)
    wait_for(told.exists, "linkspand to tell its calls")
    return int(told.read_text())
