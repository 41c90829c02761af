"""Programs at a device's hooks that are held by pinned links: they outlive the process (tcx: kernel 6.6; XDP: 5.9)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from datapath import bpf


def attach(pin: Path, prog_fd: int, ifindex: int, create: Callable[[], int]) -> None:
    """Runs a program on a device and pins the link that `create` returns; one that is pinned gets the new program.

    No packet in between passes without one. A pin of a device that is gone is replaced. Raises OSError.
    """
    if pin.exists():
        link = bpf.obj_get(pin)
        try:
            if bpf.link_info(link).ifindex == ifindex:
                bpf.link_update(link, prog_fd)
                return
        finally:
            os.close(link)
        pin.unlink()
    link = create()
    try:
        bpf.obj_pin(link, pin)
    finally:
        os.close(link)


def detach(pin: Path) -> None:
    """Takes a program off its device and unpins its link; what is not pinned is no error. Raises OSError.

    Unpinning alone detaches too, but an RCU grace period later: the inode of a bpffs is freed only then.
    """
    try:
        link = bpf.obj_get(pin)
    except FileNotFoundError:
        return
    try:
        bpf.link_detach(link)
    finally:
        os.close(link)
    pin.unlink()
