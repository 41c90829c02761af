"""What the loader makes of a child that fails, and of a machine that lacks something. No root, no kernel."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from pathlib import Path

import pytest

from datapath import bpf, loader
from datapath.loader import pins, sources


@pytest.fixture
def load(tmp_path, monkeypatch):
    """loader.load with a directory that is taken for a bpffs and maps that are taken for made."""
    monkeypatch.setattr(pins, "_require_bpffs", lambda directory: None)
    monkeypatch.setattr(pins, "make_maps", lambda layout: None)

    def load(child, **kwargs):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{child}\n")
        python.chmod(0o755)
        return loader.load(str(tmp_path / "bpf"), run_dir=str(tmp_path / "run"), python=str(python), **kwargs)

    return load


def replies(**reply):
    reply = {"program": "", "detail": "", "errno": 0} | reply
    return f"cat >/dev/null; echo '{json.dumps(reply)}'"


def test_missing_bcc_says_what_to_install(load):
    with pytest.raises(loader.Unavailable, match=r"bcc under \S+python is not available: .*; install python3-bpfcc$"):
        load(replies(error="bcc", detail="No module named bcc"))


def test_a_missing_interpreter_is_named(tmp_path, load):
    with pytest.raises(loader.Unavailable, match=r"interpreter /nowhere/python3 is not available: No such file"):
        loader.load(str(tmp_path / "bpf"), run_dir=str(tmp_path), python="/nowhere/python3")


def test_the_first_error_of_the_compiler_is_the_message(load, tmp_path):
    said = (
        "lib/nd.h:3:1: warning: odd\nlib/nd.h:7:9: error: use of undeclared identifier 'x'\nlib/nd.h:9:1: error: more"
    )
    with pytest.raises(loader.CompileFailed) as caught:
        load(f'echo "{said}" >&2; {replies(error="compile", program="ls_ep_out", detail="Failed")}')
    log = tmp_path / "run" / "loader.log"
    assert str(caught.value) == (
        f"compile ls_ep_out: lib/nd.h:7:9: error: use of undeclared identifier 'x' (whole log in {log})"
    )
    assert log.read_text() == said + "\n"
    assert caught.value.log_path == str(log)


REJECTED = """\
== ls_ep_in: bcc 0.26.0
== ls_ep_out: bcc 0.26.0
bpf: Failed to load program: Permission denied
0: (bf) r6 = r1
1: (61) r7 = *(u32 *)(r6 +0)
R1 invalid mem access 'scalar'
processed 2384 insns (limit 1000000) max_states_per_insn 6 total_states 114 peak_states 109 mark_read 0

HINT: The invalid mem access 'inv' error can happen if you try to dereference memory

"""


def test_the_last_word_of_the_verifier_is_the_message(load, tmp_path):
    (tmp_path / "said").write_text(REJECTED)
    with pytest.raises(loader.VerifierRejected) as caught:
        load(f"cat {tmp_path}/said >&2; {replies(error='load', program='ls_ep_out', errno=errno.EACCES)}")
    log = tmp_path / "run" / "loader.log"
    assert str(caught.value) == (
        f"load ls_ep_out: R1 invalid mem access 'scalar' (8 lines omitted, whole log in {log})"
    )
    assert log.read_text() == REJECTED


def test_a_program_refused_for_want_of_a_capability_says_so(load):
    with pytest.raises(loader.PermissionDenied, match="CAP_BPF"):
        load(replies(error="load", program="ls_ep_out", errno=errno.EPERM))


def test_any_other_failure_names_program_and_log(load, tmp_path):
    with pytest.raises(loader.LoaderError, match=r"^load ls_ep_in: maps differ \(log in \S+loader\.log\)$"):
        load(replies(error="maps", program="ls_ep_in", detail="maps differ"))


@pytest.mark.parametrize("reply", ["", "echo no json", "echo '{'", "exit 3", "kill -9 $$"])
def test_a_child_without_a_reply_is_an_error_with_its_last_line(load, reply):
    with pytest.raises(loader.ChildBroken, match=r"^the loader's child .* no reply: segfault, perhaps \(log in "):
        load(f"echo segfault, perhaps >&2; echo >&2; {reply}")


def test_a_child_that_hangs_is_killed_with_all_that_it_started(load, tmp_path):
    with pytest.raises(loader.TimedOut, match="did not end in time and was killed"):
        load(f"sleep 1000 & echo $! > {tmp_path}/pid; sleep 1000", timeout_s=3)
    grandchild = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while _runs(grandchild):
        assert time.monotonic() < deadline


def _runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_child_sees_nothing_of_our_environment(load, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("LD_PRELOAD", "")
    with pytest.raises(loader.ChildBroken):
        load(f"env > {tmp_path}/env")
    names = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert not names & {"PYTHONPATH", "LD_PRELOAD", "HOME"}


def test_a_source_without_its_header_is_named(load, tmp_path):
    source_dir = tmp_path / "sources"
    source_dir.mkdir()
    for source in sources.PROGRAMS.values():
        (source_dir / source).write_text('#include "gone.h"\n')
    with pytest.raises(loader.Unavailable, match=r'tc_endpoint_out\.c:1: "gone\.h"'):
        load("", source_dir=str(source_dir))


def test_a_directory_that_is_no_bpffs_says_how_to_mount_one(tmp_path):
    with pytest.raises(loader.Unavailable, match=rf"a bpffs at {tmp_path}/x is not .*mount -t bpf bpf {tmp_path}/x$"):
        loader.load(str(tmp_path / "x"), run_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_without_ebpf_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "_require_bpffs", lambda directory: None)

    def absent(*args, **kwargs):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(bpf, "map_create", absent)
    with pytest.raises(loader.Unavailable, match=r"^eBPF is not available: this kernel is built without"):
        loader.load(str(tmp_path / "bpf"), run_dir=str(tmp_path))


def test_pins_are_roots_alone(load, tmp_path):
    with pytest.raises(loader.ChildBroken):
        load("true")
    assert stat.S_IMODE((tmp_path / "bpf").stat().st_mode) == 0o700
