"""Feature probes against what other tools find out, with and without capabilities and eBPF."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datapath import features
from datapath.features import Answer
from tests import require
from tests.isolated import isolated, run

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
ADD = {
    "veth": "ip link add p0 type veth",
    "bridge": "ip link add p0 type bridge",
    "macvlan": "ip link add l0 type veth && ip link add p0 link l0 type macvlan",
    "vlan": "ip link add l0 type veth && ip link add p0 link l0 type vlan id 5",
    "vxlan": "ip link add p0 type vxlan id 5 dstport 4789",
    "wireguard": "ip link add p0 type wireguard",
    "netkit": "ip link add p0 type netkit",
}
REPORT = """if True:
    import json
    from datapath import features
    print(json.dumps({check.name: (check.answer.value, check.reason) for check in features.report()}))
"""
# A seccomp filter that answers bpf(2), number 321 on x86-64, with one errno, as a kernel or a container may.
FILTER = """if True:
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    insns = struct.pack(
        "=HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, 321, 0x06, 0, 0, 0x00050000 | ERRNO, 0x06, 0, 0, 0x7FFF0000
    )
    buffer = ctypes.create_string_buffer(insns)
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 4, ctypes.addressof(buffer)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
"""


@pytest.fixture(autouse=True)
def _ask_again(monkeypatch):
    monkeypatch.setattr(features, "_conclusive", {})


def report_in_child(*prefix, code=REPORT):
    output = subprocess.run(
        [*prefix, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {name: (Answer(answer), reason) for name, (answer, reason) in json.loads(output).items()}


@pytest.mark.parametrize("kind", ADD)
@isolated
def test_a_kind_of_device_is_there_when_ip_can_add_one(kind):
    works = subprocess.run(ADD[kind], shell=True, capture_output=True, check=False).returncode == 0
    assert features.check(kind).answer is (Answer.YES if works else Answer.NO)


@isolated
def test_answers_agree_with_bpftool():
    found = json.loads(run("bpftool -j feature probe kernel full"))
    helpers = found["helpers"]["sched_cls_available_helpers"]
    assert found["syscall_config"]["have_bpf_syscall"] is (features.check("bpf").answer is Answer.YES)
    assert ("bpf_redirect_peer" in helpers) is (features.check("redirect_peer").answer is Answer.YES)


def test_answers_agree_with_the_kernel_s_version_and_files():
    assert (features.kernel_version() >= (6, 6)) is (features.check("tcx").answer is Answer.YES)
    assert Path("/sys/kernel/btf/vmlinux").exists() is (features.check("btf").answer is Answer.YES)
    release = run("uname -r").split(".")
    assert features.kernel_version() == (int(release[0]), int(release[1]))


@isolated
def test_bpffs_is_asked_for_the_very_directory(tmp_path):
    directory = tmp_path / "bpf" / "linkspan"
    (tmp_path / "bpf").mkdir()
    absent = features.check("bpffs", str(directory))
    assert absent.answer is Answer.NO
    assert f"mount -t bpf bpf {directory}" in absent.reason
    run(f"mount -t bpf bpf {tmp_path}/bpf")
    assert features.check("bpffs", str(directory)).answer is Answer.YES
    run(f"umount {tmp_path}/bpf")
    assert features.check("bpffs", str(directory)).answer is Answer.NO


def test_an_unmounted_default_place_says_how_to_mount_it():
    child = report_in_child("unshare", "-m", "sh", "-c", 'umount -q /sys/fs/bpf; exec "$@"', "sh")
    assert child["bpffs"] == (Answer.NO, "/sys/fs/bpf is not on a bpffs: mount -t bpf bpf /sys/fs/bpf")


def test_a_report_answers_everything_and_leaves_nothing():
    def state():
        return run("ip -json link"), os.stat("/proc/thread-self/ns/net").st_ino, len(os.listdir("/proc/self/fd"))

    before = state()
    report = features.report()
    assert state() == before
    assert [check.name for check in report] == [probe.name for probe in features.PROBES]
    assert all(check.reason and check.needed_for for check in report)
    assert [check.name for check in report if check.answer is Answer.UNKNOWN] == []


def test_missing_capabilities_are_named():
    child = report_in_child("setpriv", "--bounding-set", "-bpf,-sys_admin,-net_admin")
    assert child["bpf"] == (Answer.NO, "CAP_BPF and CAP_NET_ADMIN missing: run as root or grant it")
    assert child["redirect_peer"] == (Answer.UNKNOWN, "cannot be found out without CAP_BPF and CAP_NET_ADMIN")
    assert child["tcx"] == (Answer.UNKNOWN, "cannot be found out without CAP_NET_ADMIN and CAP_SYS_ADMIN")
    child = report_in_child("setpriv", "--bounding-set", "-net_admin")
    assert child["bpf"] == (Answer.NO, "CAP_NET_ADMIN missing: run as root or grant it")


def test_cap_bpf_is_part_of_cap_sys_admin():
    assert report_in_child("setpriv", "--bounding-set", "-bpf")["bpf"][0] is Answer.YES


def test_a_kernel_without_ebpf_says_no_to_all_of_it():
    child = report_in_child(code=FILTER.replace("ERRNO", "38") + REPORT)
    for name in ("bpf", "jit", "redirect_peer", "percpu_batch", "tcx", "clsact", "xdp_native"):
        assert child[name][0] is Answer.NO, name
        assert "this kernel is built without eBPF" in child[name][1]
    assert child["veth"][0] is Answer.YES


def test_a_forbidden_bpf_call_is_told_from_a_missing_one():
    child = report_in_child(code=FILTER.replace("ERRNO", "1") + REPORT)
    assert child["bpf"][0] is Answer.NO
    assert "seccomp" in child["bpf"][1]
    assert child["tcx"][0] is Answer.UNKNOWN


def test_missing_programs_are_answers_that_say_what_to_install():
    code = f"import os; os.environ['PATH'] = '/none'\n{REPORT}"
    assert report_in_child(code=code)["nftables"] == (
        Answer.NO,
        "nft is not installed: apt-get install nftables",
    )
    code = f"from datapath import features; features._SYSTEM_PYTHON = '/none/python3'\n{REPORT}"
    assert report_in_child(code=code)["bcc"] == (
        Answer.NO,
        "/none/python3 is missing: apt-get install python3-bpfcc",
    )
    code = f"from datapath import features; features._SYSTEM_PYTHON = '{sys.executable}'\n{REPORT}"
    answer, reason = report_in_child(code=code)["bcc"]
    assert answer is Answer.NO
    assert "No module named 'bcc'" in reason


def asked(monkeypatch, ask, minimum=None, lasts=True):
    probe = features.Probe("made_up", "a test", minimum, ask, lasts=lasts)
    monkeypatch.setitem(features._BY_NAME, "made_up", probe)
    return features.check("made_up")


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), OSError(5, "odd"), KeyError("odd"), subprocess.TimeoutExpired("odd", 1)]
)
def test_a_probe_that_goes_wrong_is_unknown_with_the_reason(monkeypatch, error):
    def ask(_):
        raise error

    found = asked(monkeypatch, ask)
    assert found.answer is Answer.UNKNOWN
    assert "odd" in found.reason


def test_an_old_kernel_is_named_as_the_reason(monkeypatch):
    monkeypatch.setattr(features, "kernel_version", lambda: (5, 10))

    def ask(_):
        raise features._Absent("no such thing")

    assert asked(monkeypatch, ask, (6, 6)).reason == "no such thing; needs kernel 6.6, this is 5.10"
    features._conclusive.clear()
    assert asked(monkeypatch, ask, (5, 10)).reason == "no such thing"


def test_only_conclusive_and_lasting_answers_are_remembered(monkeypatch):
    calls = []

    def ask(_):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("not yet")
        return "there"

    answers = [asked(monkeypatch, ask).answer for _ in range(4)]
    assert answers == [Answer.UNKNOWN, Answer.YES, Answer.YES, Answer.YES]
    assert len(calls) == 2
    features._conclusive.clear()
    for _ in range(3):
        asked(monkeypatch, ask, lasts=False)
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("answer", "kernel", "feature", "outcome"),
    [
        (Answer.YES, (6, 18), "tcx", None),
        (Answer.NO, (6, 1), "tcx", pytest.skip.Exception),
        (Answer.NO, (6, 6), "tcx", pytest.fail.Exception),
        (Answer.NO, (6, 18), "netkit", pytest.skip.Exception),
        (Answer.NO, (6, 18), "bcc", pytest.fail.Exception),
        (Answer.UNKNOWN, (6, 1), "tcx", pytest.fail.Exception),
        (Answer.UNKNOWN, (6, 18), "netkit", pytest.fail.Exception),
    ],
)
def test_require_skips_only_what_may_be_absent(monkeypatch, answer, kernel, feature, outcome):
    probe = features._BY_NAME[feature]
    check = features.Check(feature, answer, "because", probe.needed_for, probe.minimum)
    monkeypatch.setattr(require, "check", lambda _: check)
    monkeypatch.setattr(require, "kernel_version", lambda: kernel)
    if outcome is None:
        require.require(feature)
        return
    with pytest.raises(outcome, match="because"):
        require.require(feature)


def test_an_unknown_feature_is_a_mistake():
    with pytest.raises(KeyError):
        features.check("warp_drive")
