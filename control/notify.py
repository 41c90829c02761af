"""Tells systemd how the daemon is doing; see sd_notify(3)."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Sends assignments such as "READY=1"; False when no service manager asked for them or it cannot be reached."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(assignments).encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            return False
    return True
