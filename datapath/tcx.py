"""Programs at the tcx hooks of a device, held by pinned links (kernel 6.6): they outlive the process."""

from __future__ import annotations

import os
from pathlib import Path

from datapath import bpf


def attach(pin: Path, prog_fd: int, ifindex: int, *, egress: bool) -> None:
    """Runs a program at a hook of a device and pins the link; a link that is pinned there gets the new program.

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
    link = bpf.tcx_attach(prog_fd, ifindex, egress)
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
