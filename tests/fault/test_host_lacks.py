"""Hosts that lack something: what can fall back does so and tells, what cannot fails at start and says what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.e2e.agreement import assert_agreement
from tests.fault import bpf_enosys
from tests.hosts import BIN, Host, host

pytestmark = pytest.mark.root

LINKSPAND = str(BIN / "linkspand")


@pytest.fixture
def machine() -> Iterator[Host]:
    with host() as machine:
        yield machine


def two_sandboxes_reach_each_other(machine: Host) -> None:
    first = machine.sandbox("first", "bridge")
    machine.sandbox("second", "bridge")
    box = machine.ask("GET", "/linkspan/sandboxes/second").json
    address = box["Networks"]["bridge"]["IPAddress"]
    machine.run("nsenter", f"--net={first}", "ping", "-q", "-c2", "-i0.01", "-W2", address)


def without_bpffs(machine: Host) -> Sequence[str]:
    machine.run("umount", str(machine.bpffs))
    return ()


def without_ebpf(machine: Host) -> Sequence[str]:
    return (sys.executable, bpf_enosys.__file__, LINKSPAND)


def without_bcc(machine: Host) -> Sequence[str]:
    absent = machine.dir / "absent"
    absent.mkdir()
    # An empty directory would be imported as a namespace package.
    (absent / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'bcc'\")\n")
    machine.run("mount", "--bind", str(absent), "/usr/lib/python3/dist-packages/bcc")
    return ()


def without_cap_bpf(machine: Host) -> Sequence[str]:
    """CAP_SYS_ADMIN includes it in capable checks of bpf(2), so it is not missed."""
    return ("setpriv", "--bounding-set=-bpf,-perfmon", LINKSPAND)


FALLBACKS = {
    "bpffs": (without_bpffs, "mount -t bpf bpf"),
    "eBPF": (without_ebpf, "this kernel is built without the bpf system call"),
    "bcc": (without_bcc, "install python3-bpfcc"),
}


@pytest.mark.parametrize(("lack", "advice"), FALLBACKS.values(), ids=FALLBACKS.keys())
def test_without_programs_networks_work_and_the_reason_is_told(
    machine: Host, lack: Callable[[Host], Sequence[str]], advice: str
) -> None:
    machine.start(program=lack(machine))
    two_sandboxes_reach_each_other(machine)
    assert_agreement(machine)

    warnings = [line for line in machine.log().splitlines() if "eBPF" in line]
    assert len(warnings) == 1
    assert " WARNING " in warnings[0]
    assert advice in warnings[0]
    assert advice in machine.ask("GET", "/linkspan/status").json["fallbacks"]["ebpf"]
    assert advice in machine.linkspan("doctor", check=False).stdout
    path = machine.ask("GET", "/networks/bridge").json["Status"]["Linkspan"]["linkspan.path"]
    assert path.startswith("kernel bridge: ")
    metrics = machine.run("curl", "-sS", "http://127.0.0.1:9478/metrics").stdout
    assert 'linkspan_fallback{feature="ebpf",reason="' in metrics


def test_cap_bpf_is_not_missed_where_there_is_cap_sys_admin(machine: Host) -> None:
    machine.start(program=without_cap_bpf(machine))
    two_sandboxes_reach_each_other(machine)
    assert machine.ask("GET", "/linkspan/status").json["fallbacks"] == {}


@pytest.mark.parametrize("capability", ["net_admin", "sys_admin"])
def test_a_capability_that_nothing_works_without_is_named_at_start(machine: Host, capability: str) -> None:
    program = ("setpriv", f"--bounding-set=-{capability}", LINKSPAND)
    process = machine.start(program=program, wait=False)
    assert process.wait(20) == 1
    (line,) = machine.log().splitlines()
    assert f"linkspand needs CAP_{capability.upper()} " in line
    assert "run it as root" in line
    assert machine.leftovers() == []
    assert list(machine.state_dir.iterdir()) == []


def test_without_nft_it_does_not_start_says_what_to_install_and_leaves_everything_as_it_was(machine: Host) -> None:
    program = ("env", "PATH=/nowhere", LINKSPAND)

    def is_refused() -> bool:
        process = machine.start(program=program, wait=False)
        assert process.wait(30) == 1
        last = machine.log().splitlines()[-1]
        return "nft is not installed: apt-get install nftables" in last

    assert is_refused()
    assert "Traceback" not in machine.log()
    assert machine.leftovers() == []

    machine.start()
    two_sandboxes_reach_each_other(machine)
    machine.stop()
    assert is_refused()
    machine.start()
    assert_agreement(machine)
    assert [sandbox["Name"] for sandbox in machine.ask("GET", "/linkspan/sandboxes").json] == ["first", "second"]
