"""A real DHCP server on the local network: dnsmasq, with its file of leases and its log."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts import wait_for
from tests.traffic import Place


class Dnsmasq:
    """Serves `range_` on the place's device `ifname`. Leases are of two minutes, the least that it can do."""

    def __init__(self, place: Place, range_: str, *options: str, ifname: str = "eth0") -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="dns", dir="/tmp"))
        self._leases, self._log = self._dir / "leases", self._dir / "log"
        # As root and without the pings that no address here would answer in time.
        command = [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--no-ping",
            "--dhcp-authoritative", "--log-dhcp", f"--interface={ifname}", "--bind-interfaces",
            f"--dhcp-range={range_},2m", f"--dhcp-leasefile={self._leases}", f"--log-facility={self._log}",
            f"--pid-file={self._dir / 'pid'}", *options,
        ]  # fmt: skip
        self._process = subprocess.Popen(place.command(*command))
        wait_for(lambda: "DHCP, IP range" in self.log(), lambda: f"dnsmasq to serve: {self.log()}")

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def count(self, what: str) -> int:
        """How often it logged a message of this type, as in DHCPACK."""
        return self.log().count(f"{what}(")

    def leases(self) -> dict[str, tuple[str, str, str]]:
        """Address, hostname and client identifier, by MAC (dnsmasq(8), dhcp-leasefile)."""
        lines = self._leases.read_text().splitlines() if self._leases.exists() else []
        return {mac: (address, name, client) for _, mac, address, name, client in map(str.split, lines)}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._dir)


@contextmanager
def dnsmasq(place: Place, range_: str, *options: str, ifname: str = "eth0") -> Iterator[Dnsmasq]:
    server = Dnsmasq(place, range_, *options, ifname=ifname)
    try:
        yield server
    finally:
        server.close()
