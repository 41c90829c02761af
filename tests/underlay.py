"""An underlay for test hosts: a switch in a namespace of its own, which loses, delays and cuts what it is told to.

The kernels this runs on need no netem: what is lost or cut is dropped by nftables in the switch's bridge, and a slow
cable is a thread that holds frames back. The hosts themselves see nothing of it but the traffic.
"""

from __future__ import annotations

import select
import socket
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import permutations
from threading import Thread
from typing import Final

from tests.hosts import Host
from tests.traffic import socket_in

BRIDGE: Final = "br0"
UPLINK: Final = "eth0"
"""What each host calls its end of the cable."""

_ETH_P_ALL: Final = 0x0003
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_LONGEST_FRAME: Final = 1 << 17


class Underlay:
    """The switch. Hosts are plugged in by name; by name, too, they are cut off from each other or slowed down."""

    def __init__(self, mtu: int = 1500) -> None:
        self.mtu = mtu
        self._switch = Host(bpffs=False)
        self._hosts: dict[str, Host] = {}
        self._cables: dict[str, SlowCable | None] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._loss_percent = 0
        # No snooping: nobody here asks who listens to a multicast group, which would take it for nobody's.
        self._ip("link", "add", BRIDGE, "up", "mtu", str(mtu), "type", "bridge", "mcast_snooping", "0")

    def _ip(self, *args: str) -> None:
        self._switch.run("ip", *args)

    def plug(self, name: str, host: Host, *addresses: str, mtu: int | None = None) -> None:
        """Gives the host the device eth0 with the addresses, and the switch a port of the name.

        Both are gone with the host; the name can be plugged in again then, and has the MAC address that it had.
        """
        mac = f"02:00:{zlib.crc32(name.encode()).to_bytes(4).hex(':')}"
        uplink = ("link", "add", UPLINK, "address", mac, "mtu", str(mtu or self.mtu), "type", "veth")
        host.run("ip", *uplink, "peer", "name", name, "mtu", str(mtu or self.mtu), "netns", str(self._switch.pid))
        self._ip("link", "set", "dev", name, "master", BRIDGE, "up")
        host.run("ip", "link", "set", UPLINK, "up")
        for address in addresses:
            host.run("ip", "address", "add", address, "dev", UPLINK, *(["nodad"] if ":" in address else []))
        self._hosts[name] = host
        self._cables[name] = None
        self._write()

    # -- faults --------------------------------------------------------------------------------------------------

    @contextmanager
    def cut(self, *names: str) -> Iterator[None]:
        """Nothing gets from one of the named hosts to another, in either direction; all else goes on."""
        added = set(permutations(names, 2)) - self._cuts
        self._cuts |= added
        self._write()
        try:
            yield
        finally:
            self._cuts -= added
            self._write()

    @contextmanager
    def lossy(self, percent: int) -> Iterator[None]:
        """Of all packets, so many in a hundred are lost, at random."""
        self._loss_percent = percent
        self._write()
        try:
            yield
        finally:
            self._loss_percent = 0
            self._write()

    @contextmanager
    def slow(self, name: str, delay_s: float) -> Iterator[None]:
        """Every frame to and from the host takes so much longer; none overtakes another.

        A packet socket cannot say of segments yet to be cut that they are in a tunnel, so the hosts cut them.
        """
        near, port = f"{name}-near", f"{name}-port"
        self._ip("link", "add", near, "up", "mtu", str(self.mtu), "type", "veth", "peer", "name", port)
        self._ip("link", "set", "dev", name, "nomaster")
        self._ip("link", "set", "dev", port, "mtu", str(self.mtu), "master", BRIDGE, "up")
        for host in self._hosts.values():
            host.run("ethtool", "-K", UPLINK, *_CUT_BY_HOST)
        cable = SlowCable(self._switch, name, near, delay_s)
        self._cables[name] = cable
        self._write()
        try:
            yield
        finally:
            cable.close()
            self._cables[name] = None
            self._ip("link", "delete", "dev", near)
            with suppress(AssertionError):  # the host may have been powered off meanwhile
                self._ip("link", "set", "dev", name, "master", BRIDGE)
            self._write()

    def _port(self, name: str) -> str:
        return f"{name}-port" if self._cables.get(name) else name

    def _write(self) -> None:
        """Replaces the switch's rules, in one transaction."""
        pairs = ", ".join(f'"{self._port(one)}" . "{self._port(other)}"' for one, other in sorted(self._cuts))
        rules = [f"meta iifname . meta oifname {{ {pairs} }} drop"] if pairs else []
        if self._loss_percent:
            rules.append(f"numgen random mod 100 < {self._loss_percent} drop")
        chain = "; ".join(["type filter hook forward priority 0", *rules])
        self._switch.run(
            "nft", "-f", "-", input=f"table bridge faults\ndelete table bridge faults\n"
            f"table bridge faults {{ chain forward {{ {chain}; }}; }}\n",
        )  # fmt: skip

    def close(self) -> None:
        """Takes the switch away with all its cables; the hosts lose their uplinks."""
        for cable in self._cables.values():
            if cable is not None:
                cable.close()
        self._switch.close()


_CUT_BY_HOST: Final = ("tx-udp_tnl-segmentation", "off", "tx-udp_tnl-csum-segmentation", "off")


class SlowCable:
    """Carries frames between two devices of a host, in both directions, each `delay_s` after it came."""

    def __init__(self, host: Host, one: str, other: str, delay_s: float) -> None:
        self._delay_s = delay_s
        self._ends = [_raw_socket(host, ifname) for ifname in (one, other)]
        self._stop, self._stopped = socket.socketpair()
        self._thread = Thread(target=self._carry, name=f"slow cable {one}")
        self._thread.start()

    def _carry(self) -> None:
        to = dict(zip(self._ends, reversed(self._ends), strict=True))
        held: deque[tuple[float, socket.socket, bytes]] = deque()
        while True:
            wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
            ready, _, _ = select.select([*self._ends, self._stopped], [], [], wait_s)
            if self._stopped in ready:
                return
            for end in ready:
                with suppress(OSError):  # the device went away, or down
                    held.append((time.monotonic() + self._delay_s, to[end], end.recv(_LONGEST_FRAME)))
            while held and held[0][0] <= time.monotonic():
                _, end, frame = held.popleft()
                with suppress(OSError):  # as a cable that is not plugged in
                    end.send(frame)

    def close(self) -> None:
        self._stop.send(b"x")
        self._thread.join()
        for each in (*self._ends, self._stop, self._stopped):
            each.close()


def _raw_socket(host: Host, ifname: str) -> socket.socket:
    """Frames come and go with the offloads that they have on the way, in a header before them (packet(7),
    PACKET_VNET_HDR): segments yet to be cut, checksums yet to be filled in."""
    made = socket_in(f"/proc/{host.pid}/ns/net", socket.AF_PACKET, socket.SOCK_RAW)
    made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    made.bind((ifname, _ETH_P_ALL))
    return made
