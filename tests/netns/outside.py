"""The world that a host is connected to: one more machine, at the other end of a cable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.hosts import Host
from tests.traffic import Place

UPLINK: Final = "up0"
HOST4, OUTSIDE4 = "203.0.113.1", "203.0.113.2"
HOST6, OUTSIDE6 = "2001:db8:9::1", "2001:db8:9::2"


@contextmanager
def outside(host: Host) -> Iterator[Place]:
    """Connects the host by its device up0 to another machine, its default router, for as long as the context lasts.

    The other machine knows no way to networks behind the host, unless the test gives it one.
    """
    other = Host(bpffs=False)
    try:
        host.run("ip", "link", "add", UPLINK, "type", "veth", "peer", "name", "eth0", "netns", str(other.pid))
        for machine, ifname, addresses in (
            (host, UPLINK, (f"{HOST4}/24", f"{HOST6}/64")),
            (other, "eth0", (f"{OUTSIDE4}/24", f"{OUTSIDE6}/64")),
        ):
            for address in addresses:
                machine.run("ip", "addr", "add", address, "dev", ifname, *(["nodad"] if ":" in address else []))
            machine.run("ip", "link", "set", ifname, "up")
        host.run("ip", "route", "add", "default", "via", OUTSIDE4)
        host.run("ip", "-6", "route", "add", "default", "via", OUTSIDE6)
        yield Place(host, "outside", f"/proc/{other.pid}/ns/net", "eth0")
    finally:
        host.run("ip", "link", "delete", UPLINK, check=False)
        other.close()
