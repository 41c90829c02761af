"""Puts the calling process into a sandbox: its network namespace, and views of /etc and /sys that fit it.

The views are a mount namespace of the process's own, in which mounts made on the host still appear. The host's file
system stays as it is in all else: a sandbox is a network stack and no more.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
from dataclasses import dataclass
from typing import Any, Final

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUTS: Final = 0x04000000
_MS_NOSUID: Final = 0x2
_MS_NODEV: Final = 0x4
_MS_NOEXEC: Final = 0x8
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000
_HOST_NAME_MAX: Final = 64

_MOUNTINFO: Final = "/proc/self/mountinfo"
_SYS: Final = "/sys"


@dataclass(frozen=True)
class View:
    """What a sandbox looks like from inside.

    `netns` is None for one that uses the host's network; `files` are laid over those of the host, by their path.
    """

    name: str
    netns: str | None
    files: dict[str, str]

    @staticmethod
    def of(sandbox: dict[str, Any]) -> View:
        """The view of a sandbox object of the API."""
        return View(
            name=sandbox["Name"],
            netns=sandbox["NetnsPath"] if sandbox["OwnsNetns"] else None,
            files={
                "/etc/hosts": sandbox["HostsPath"],
                "/etc/resolv.conf": sandbox["ResolvConfPath"],
                "/etc/hostname": sandbox["HostnamePath"],
            },
        )


def enter(view: View) -> None:
    """Moves the calling thread, of a process about to exec, into the sandbox for good; raises OSError with the step.

    A sandbox that uses the host's network has nothing of its own to show, so nothing changes. Where /sys cannot be
    mounted anew (in some containers) it goes on showing the host's devices.
    """
    if view.netns is None:
        return
    # Imported here because the C module takes a while, and only `run` and `exec` need it.
    from datapath import netns

    netns.enter(view.netns)
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS)
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    for target, source in view.files.items():
        if os.path.exists(target) and os.path.exists(source):
            _mount(source, target, None, _MS_BIND)
    socket.sethostname(view.name[:_HOST_NAME_MAX])
    _show_sysfs()


def _show_sysfs() -> None:
    """Mounts a sysfs of the present network namespace over /sys, and again what was below it (cgroups, bpffs)."""
    below = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in _mounts_below(_SYS)]
    try:
        _mount("sysfs", _SYS, "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError:
        return
    for path, fd in below:
        if os.path.exists(path):
            _mount(f"/proc/self/fd/{fd}", path, None, _MS_BIND | _MS_REC)
        os.close(fd)


def _mounts_below(directory: str) -> list[str]:
    """The mount points directly below a directory, without those that lie below one of them."""
    with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as table:
        points = {_unescaped(line.split(" ", 5)[4]) for line in table}
    tops: list[str] = []
    for point in sorted(points):
        if (
            point.startswith(directory + "/")
            and not any(point.startswith(top + "/") for top in tops)
            and os.path.exists(point)
        ):
            tops.append(point)
    return tops


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _mount(source: str | None, target: str, fstype: str | None, flags: int) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, fstype)]
    try:
        _call("mount", *encoded, ctypes.c_ulong(flags), None)
    except OSError as error:
        raise OSError(
            error.errno, f"mount {source or fstype or 'propagation of'} on {target}: {error.strerror}"
        ) from error


def _call(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
