"""What this machine can do, found out by trying it: each probe answers yes, no with the reason, or unknown.

A probe never raises and changes nothing that outlives it: devices are made in a network namespace that ends with the
probe. Adding one is a function and a row of PROBES.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final

from datapath import bpf, netns, rtnl

Version = tuple[int, int]

_PROC_STATUS: Final = Path("/proc/thread-self/status")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_BPFFS: Final = "/sys/fs/bpf"
_BTF: Final = Path("/sys/kernel/btf/vmlinux")
# Where Debian's python3-bpfcc can be imported.
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
_CHILD_SECONDS: Final = 20
# Bits of capabilities(7).
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}

_LO: Final = 1  # ifindex of the loopback device in every namespace
_IFLA_LINK: Final = 5
_IFLA_VXLAN_ID: Final = 1
_IFLA_VLAN_ID: Final = 1
# eBPF: r1 = 1; r2 = 0; call redirect_peer; exit. And: r0 = 2 (XDP_PASS); exit.
_CALL_REDIRECT_PEER: Final = b"".join(
    struct.pack("=BBhi", *insn)
    for insn in ((0xB7, 1, 0, 1), (0xB7, 2, 0, 0), (0x85, 0, 0, bpf.REDIRECT_PEER), (0x95, 0, 0, 0))
)
_RETURN_2: Final = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)

_NFT_RULES: Final = """
table inet linkspan_probe {
    map addresses { type ipv4_addr : verdict; flags interval; }
    chain out { type nat hook postrouting priority srcnat; ip saddr 192.0.2.0/24 masquerade; }
}
"""


class Answer(Enum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Probe:
    """One question. `minimum` is the kernel that brought the feature (None: not the kernel's); `ask` returns a detail
    for a yes, raises _Absent for a no, and whatever else it raises means unknown. `needs` are the capabilities without
    which nothing can be found out. `lasts` is False where the answer can change while the kernel runs."""

    name: str
    needed_for: str
    minimum: Version | None
    ask: Callable[[str], str]
    needs: tuple[str, ...] = ()
    lasts: bool = True


@dataclass(frozen=True)
class Check:
    """The answer to one probe; `reason` says what is missing and what to do, or for a yes what was found."""

    name: str
    answer: Answer
    reason: str
    needed_for: str
    minimum: Version | None


class _Absent(Exception):
    """The feature is not there; the text says why."""


def kernel_version() -> Version:
    """Major and minor number of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()))


def missing_capabilities(names: tuple[str, ...]) -> list[str]:
    """Those of the capabilities that the calling thread does not have in effect. CAP_SYS_ADMIN includes CAP_BPF."""
    line = next(line for line in _PROC_STATUS.read_text().splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    held = {name for name, bit in _CAPABILITIES.items() if effective >> bit & 1}
    if "CAP_SYS_ADMIN" in held:
        held.add("CAP_BPF")
    return [name for name in names if name not in held]


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _bpf(_: str) -> str:
    if missing := missing_capabilities(("CAP_BPF", "CAP_NET_ADMIN")):
        raise _Absent(f"{' and '.join(missing)} missing: run as root or grant it")
    try:
        with _opened(bpf.map_create(bpf.MapType.ARRAY, 4, 8, 1)), _opened(_load(bpf.ProgType.SCHED_CLS)):
            return "maps and programs can be loaded"
    except PermissionError as error:
        raise _Absent(f"{error.strerror}, in a user namespace or behind a seccomp filter?") from error


def _load(type: bpf.ProgType) -> int:
    try:
        return bpf.prog_load(_RETURN_2, type)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _Absent(f"the kernel knows no {type.name.lower()} programs") from error
        raise


def _jit(_: str) -> str:
    with _opened(_load(bpf.ProgType.SCHED_CLS)) as fd:
        if bpf.prog_info(fd).jited_bytes:
            return "programs run as machine code"
    raise _Absent("programs are interpreted: sysctl -w net.core.bpf_jit_enable=1")


def _bpffs(directory: str) -> str:
    place = Path(directory).absolute()
    while not place.exists():
        place = place.parent
    if bpf.is_bpffs(place):
        return f"{directory} is on a bpffs"
    mount_point = _BPFFS if Path(directory).is_relative_to(_BPFFS) else directory
    raise _Absent(f"{directory} is not on a bpffs: mount -t bpf bpf {mount_point}")


def _btf(_: str) -> str:
    if _BTF.exists():
        return str(_BTF)
    raise _Absent("the kernel is built without CONFIG_DEBUG_INFO_BTF")


def _tcx(_: str) -> str:
    def attach() -> str:
        with _opened(_load(bpf.ProgType.SCHED_CLS)) as prog:
            try:
                link = bpf.tcx_attach(prog, _LO)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    raise _Absent("BPF_LINK_CREATE does not know tcx") from error
                raise
            os.close(link)
        return "programs attach through links"

    return netns.call(None, attach)


def _clsact(_: str) -> str:
    def attach() -> str:
        with _opened(_load(bpf.ProgType.SCHED_CLS)) as prog, rtnl.Rtnl() as requests:
            try:
                requests.apply([rtnl.clsact_add(_LO, "lo", 1, 2)])
                requests.apply([rtnl.block_program(1, prog, "probe", replace=False)])
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                    raise _Absent(f"{error.strerror} (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)") from error
                raise
        return "one program serves all devices of a shared block"

    return netns.call(None, attach)


def _redirect_peer(_: str) -> str:
    try:
        os.close(bpf.prog_load(_CALL_REDIRECT_PEER, bpf.ProgType.SCHED_CLS))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _Absent("the verifier does not know bpf_redirect_peer") from error
        raise
    return "bpf_redirect_peer"


def _batch(_: str) -> str:
    with bpf.Map(bpf.map_create(bpf.MapType.PERCPU_ARRAY, 4, 8, 2)) as counters:
        try:
            counters.read_batch(None, bpf.Room(counters, 2))
        except OSError as error:
            if error.errno in (errno.EINVAL, bpf.ENOTSUPP):
                raise _Absent("per-CPU arrays are read one entry a call") from error
            raise
    return "many counters are read in one call"


def _add_link(requests: rtnl.Rtnl, ifname: str, kind: str, *attrs: bytes, data: bytes = b"") -> None:
    info = rtnl.nest(rtnl.IFLA_LINKINFO, rtnl.text(rtnl.IFLA_INFO_KIND, kind), rtnl.attr(rtnl.IFLA_INFO_DATA, data))
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + b"".join((rtnl.text(rtnl.IFLA_IFNAME, ifname), *attrs, info))
    try:
        requests.apply([rtnl.Request(f"add a {kind}", rtnl.RTM_NEWLINK, rtnl.NLM_F_CREATE | rtnl.NLM_F_EXCL, body)])
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise _Absent(f"the kernel is built without {kind}, or its module cannot be loaded") from error
        raise


def _link_kind(kind: str, data: bytes, has_lower: bool, _: str) -> str:
    def add() -> str:
        with rtnl.Rtnl() as requests:
            lower = []
            if has_lower:
                _add_link(requests, "lower", "veth")
                lower.append(rtnl.u32(_IFLA_LINK, socket.if_nametoindex("lower")))
            _add_link(requests, "probe", kind, *lower, data=data)
        return f"{kind} devices"

    return netns.call(None, add)


def _xdp_native(_: str) -> str:
    def attach() -> str:
        with _opened(_load(bpf.ProgType.XDP)) as prog, rtnl.Rtnl() as requests:
            _add_link(requests, "probe", "veth")
            try:
                link = bpf.xdp_attach(prog, socket.if_nametoindex("probe"))
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise _Absent("veth takes XDP programs in generic mode only") from error
                raise
            os.close(link)
        return "XDP runs in the veth driver"

    return netns.call(None, attach)


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False)


def _nftables(_: str) -> str:
    try:
        result = netns.call(None, partial(_run, ["nft", "-f", "-"], _NFT_RULES))
    except FileNotFoundError as error:
        raise _Absent("nft is not installed: apt-get install nftables") from error
    if result.returncode:
        raise _Absent(f"nft refuses maps and masquerading: {result.stderr.strip().splitlines()[0]}")
    return "nft, maps and masquerading"


def _bcc(_: str) -> str:
    try:
        result = _run([_SYSTEM_PYTHON, "-c", "import bcc; print(bcc.__version__)"])
    except FileNotFoundError as error:
        raise _Absent(f"{_SYSTEM_PYTHON} is missing: apt-get install python3-bpfcc") from error
    if result.returncode:
        raise _Absent(f"{result.stderr.strip().splitlines()[-1]}: apt-get install python3-bpfcc")
    return f"bcc {result.stdout.strip()}"


def _cgroup2(_: str) -> str:
    for line in _MOUNTS.read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 "):
            return mount.split()[4]
    raise _Absent("no cgroup2 file system is mounted")


_BPF: Final = ("CAP_BPF", "CAP_NET_ADMIN")
_NETNS: Final = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")


def _link(kind: str, needed_for: str, minimum: Version, data: bytes = b"", *, has_lower: bool = False) -> Probe:
    return Probe(kind, needed_for, minimum, partial(_link_kind, kind, data, has_lower), _NETNS)


PROBES: Final = (
    Probe("bpf", "the fast path", (4, 1), _bpf),
    Probe("jit", "the fast path's speed", (4, 1), _jit, _BPF, lasts=False),
    Probe("bpffs", "programs and counters that outlive linkspand", (4, 4), _bpffs, lasts=False),
    Probe("btf", "readable maps in bpftool", (5, 4), _btf),
    Probe("bcc", "compiling the programs", None, _bcc, lasts=False),
    Probe("tcx", "attaching programs through links", (6, 6), _tcx, _NETNS),
    Probe("clsact", "attaching one program to many devices", (4, 16), _clsact, _NETNS),
    Probe("redirect_peer", "the short way between two sandboxes", (5, 10), _redirect_peer, _BPF),
    Probe("percpu_batch", "reading all counters in one call", (5, 13), _batch, _BPF),
    Probe("xdp_native", "XDP programs on veth without a copy", (5, 9), _xdp_native, _NETNS),
    _link("veth", "every sandbox", (2, 6)),
    _link("bridge", "bridge networks", (2, 6)),
    _link("macvlan", "macvlan networks", (2, 6), has_lower=True),
    _link("vlan", "802.1Q parents of macvlan networks", (2, 6), rtnl.attr(_IFLA_VLAN_ID, b"\1\0"), has_lower=True),
    _link("vxlan", "overlay networks", (3, 7), rtnl.u32(_IFLA_VXLAN_ID, 1)),
    _link("wireguard", "encrypted overlay networks", (5, 6)),
    _link("netkit", "sandboxes without veth", (6, 7)),
    Probe("nftables", "masquerading and published ports", (5, 2), _nftables, _NETNS, lasts=False),
    Probe("cgroup2", "sandboxes as cgroups", (4, 5), _cgroup2, lasts=False),
)
_BY_NAME: Final = {probe.name: probe for probe in PROBES}
_conclusive: dict[str, Check] = {}


def check(name: str, bpffs_dir: str = _BPFFS) -> Check:
    """The answer of one probe; raises KeyError for a name that PROBES does not have.

    What the running kernel can do is remembered once it is known; everything else is asked each time.
    """
    if name in _conclusive:
        return _conclusive[name]
    probe = _BY_NAME[name]
    answer, reason = _ask(probe, bpffs_dir)
    result = Check(name, answer, reason, probe.needed_for, probe.minimum)
    if probe.lasts and answer is not Answer.UNKNOWN:
        _conclusive[name] = result
    return result


def report(bpffs_dir: str = _BPFFS) -> list[Check]:
    """The answers of all probes, in the order of PROBES."""
    return [check(probe.name, bpffs_dir) for probe in PROBES]


def _ask(probe: Probe, bpffs_dir: str) -> tuple[Answer, str]:
    try:
        if missing := missing_capabilities(probe.needs):
            return Answer.UNKNOWN, f"cannot be found out without {' and '.join(missing)}"
        return Answer.YES, probe.ask(bpffs_dir)
    except _Absent as absent:
        reason = str(absent)
        if probe.minimum and kernel_version() < probe.minimum:
            reason += "; needs kernel {}.{}, this is {}.{}".format(*probe.minimum, *kernel_version())
        return Answer.NO, reason
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return Answer.NO, error.strerror or str(error)
        return Answer.UNKNOWN, error.strerror or str(error)
    except Exception as error:  # whatever goes wrong in a probe is an answer too
        return Answer.UNKNOWN, f"{type(error).__name__}: {error}"
