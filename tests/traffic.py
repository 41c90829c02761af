"""Packets into and out of sandboxes, made and judged without the code under test.

A Station is a sandbox as the wire sees it. Its sockets are opened inside its namespace and used from here, so a test
needs no process there; frames are built and taken apart by scapy, addresses are read with `ip`, counters from /metrics.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import Thread
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from scapy.layers.inet6 import IPv6  # noqa: F401 -- teaches Ether about IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.hosts import Host, wait_for

BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
DEADLINE_S: Final = 10.0

_CLONE_NEWNET: Final = 0x40000000
_ETH_P_ALL: Final = 0x0003
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_OUTGOING = 263, 8, 4
_TP_STATUS_VLAN_VALID: Final = 0x10
_AUXDATA: Final = struct.Struct("=IIIHHHH")
_libc: Final = ctypes.CDLL(None, use_errno=True)


def socket_in(netns: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that was opened in the namespace at `netns`, a path that this process can open."""
    made: list[socket.socket | OSError] = []

    def body() -> None:
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, _CLONE_NEWNET) < 0:
                    raise OSError(ctypes.get_errno(), f"setns to {netns}")
                made.append(socket.socket(family, kind, protocol))
            finally:
                os.close(fd)
        except OSError as error:
            made.append(error)

    thread = Thread(target=body)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Wire:
    """A packet socket on one device: sends frames as they are, and receives what the device takes in."""

    def __init__(self, netns: str, ifname: str) -> None:
        self._socket = socket_in(netns, socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((ifname, _ETH_P_ALL))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(self, *frames: Packet | bytes) -> None:
        for frame in frames:
            self._socket.send(bytes(frame))

    def receive(self, timeout_s: float) -> bytes | None:
        """The next frame that came in, with its VLAN tag where it stood; None after the timeout."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data, ancillary, _, address = self._socket.recvmsg(1 << 17, 256)
            except TimeoutError:
                return None
            if address[2] != _PACKET_OUTGOING:
                return _with_tag(data, ancillary)
        return None

    def frames_until(self, marker: bytes, deadline_s: float = DEADLINE_S) -> list[bytes]:
        """All frames that came in, up to the first with `marker` in it, which is the last; fails when none comes."""
        frames: list[bytes] = []
        end = time.monotonic() + deadline_s
        while (left := end - time.monotonic()) > 0:
            frame = self.receive(left)
            if frame is not None:
                frames.append(frame)
                if marker in frame:
                    return frames
        heard = [Ether(frame).summary() for frame in frames]
        raise AssertionError(f"no {marker!r} came on {self._socket.getsockname()} in {deadline_s:.0f} s, only {heard}")

    def until_idle(self, idle_s: float = 0.2) -> list[bytes]:
        """All frames that came in, until none does for a while."""
        frames = []
        while (frame := self.receive(idle_s)) is not None:
            frames.append(frame)
        return frames


def _with_tag(data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The kernel keeps a frame's outer VLAN tag beside it (packet(7), PACKET_AUXDATA)."""
    for level, kind, body in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = _AUXDATA.unpack(body[: _AUXDATA.size])
            if status & _TP_STATUS_VLAN_VALID:
                return data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
    return data


class Place:
    """A network namespace that traffic starts from or ends in, seen from `host`'s mount namespace at `netns`."""

    def __init__(self, host: Host, name: str, netns: str, ifname: str) -> None:
        self.host, self.name, self.netns, self.ifname = host, name, netns, ifname

    @property
    def path(self) -> str:
        """The namespace's file, reachable from the test's own mount namespace."""
        return f"/proc/{self.host.pid}/root{self.netns}"

    def command(self, *command: str) -> list[str]:
        return self.host.inside(self.netns, *command)

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ip(self, *args: str) -> Any:
        return json.loads(self.run("ip", "-json", "-d", "-s", *args).stdout or "[]")

    def link(self) -> Any:
        """`ip -s -json link` of its device."""
        return self.ip("link", "show", "dev", self.ifname)[0]

    def addresses(self) -> list[str]:
        """Its device's addresses, as address/length, link-local ones left out."""
        return [
            f"{address['local']}/{address['prefixlen']}"
            for address in self.ip("addr", "show", "dev", self.ifname)[0]["addr_info"]
            if address["scope"] == "global"
        ]

    @cached_property
    def mac(self) -> str:
        return str(self.link()["address"])

    @cached_property
    def ip4(self) -> str:
        return next(address.partition("/")[0] for address in self.addresses() if ":" not in address)

    @cached_property
    def ip6(self) -> str:
        return next(address.partition("/")[0] for address in self.addresses() if ":" in address)

    @cached_property
    def ip6_ll(self) -> str:
        infos = self.ip("addr", "show", "dev", self.ifname)[0]["addr_info"]
        return str(next(info["local"] for info in infos if info["family"] == "inet6" and info["scope"] == "link"))

    def default_route(self, version: int = 4) -> tuple[str, str] | None:
        """Where its default route goes, as (gateway, device), None without one."""
        routes = self.ip(f"-{version}", "route", "show", "default")
        assert len(routes) <= 1, routes
        return (routes[0]["gateway"], routes[0]["dev"]) if routes else None

    def gateway(self, version: int = 4) -> str | None:
        route = self.default_route(version)
        return route[0] if route else None

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        made = socket_in(self.path, family, kind, protocol)
        made.settimeout(DEADLINE_S)
        return made

    def wire(self) -> Wire:
        return Wire(self.path, self.ifname)

    def pings(self, target: str, *args: str, wait_s: float = 5.0) -> bool:
        """Whether `target` answers one echo request in time; a short time for those that it should not answer."""
        return self.run("ping", "-n", "-c1", f"-W{wait_s:g}", *args, target, check=False).returncode == 0


class Station(Place):
    """The sandbox `name` on a host, on its network `network` (its first when left out)."""

    def __init__(self, host: Host, name: str, network: str | None = None) -> None:
        facts = host.api("GET", f"/linkspan/sandboxes/{name}")
        networks = facts["Networks"]
        joined = networks[network] if network else next(iter(networks.values()))
        super().__init__(host, name, facts["NetnsPath"], joined["InterfaceName"])
        self.endpoint_id: str = joined["EndpointID"]
        self.host_ifname = f"ls{self.endpoint_id[:12]}"


def is_v6(address: str) -> bool:
    return ":" in address


def family(address: str) -> int:
    return socket.AF_INET6 if is_v6(address) else socket.AF_INET


def udp_echo(client: Place, server: Place, address: str, payload: bytes, *, times: int = 1) -> None:
    """Sends datagrams to the server at `address` and back; fails when one is lost or changed."""
    with (
        server.socket(family(address), socket.SOCK_DGRAM) as there,
        client.socket(family(address), socket.SOCK_DGRAM) as here,
    ):
        there.bind((address, 0))
        for _ in range(times):
            here.sendto(payload, there.getsockname())
            heard, sender = there.recvfrom(1 << 16)
            assert heard == payload
            there.sendto(heard, sender)
            assert here.recv(1 << 16) == payload


@contextmanager
def tcp_pair(client: Place, server: Place, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: (the client's end, the server's end)."""
    with (
        server.socket(family(address), socket.SOCK_STREAM) as listener,
        client.socket(family(address), socket.SOCK_STREAM) as here,
    ):
        listener.bind((address, 0))
        listener.listen()
        here.connect(listener.getsockname())
        there, _ = listener.accept()
        there.settimeout(DEADLINE_S)
        with there:
            yield here, there


def connects(client: Place, listener_at: Place, address: str, timeout_s: float = 0.5) -> bool:
    """Whether a TCP connection to a listener at `address` comes about."""
    with (
        listener_at.socket(family(address), socket.SOCK_STREAM) as listener,
        client.socket(family(address), socket.SOCK_STREAM) as here,
    ):
        listener.bind((address, 0))
        listener.listen()
        here.settimeout(timeout_s)
        try:
            here.connect(listener.getsockname())
        except OSError as error:
            if isinstance(error, TimeoutError) or error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM):
                return False
            raise
        return True


def iperf3(client: Place, server: Place, address: str, *args: str) -> Any:
    """The client's report of one iperf3 run to `address`, parsed."""
    command = server.command("iperf3", "-s", "-1", "-B", address, "--forceflush")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listening:
        try:
            assert listening.stdout is not None
            while "listening" not in listening.stdout.readline():
                assert listening.poll() is None, "iperf3 -s ended"
            done = client.run("iperf3", "--json", "-c", address, *args)
            listening.wait(DEADLINE_S)
        finally:
            listening.kill()
    return json.loads(done.stdout)


Tallies = dict[tuple[str, ...], int]


def tallies(host: Host, sandbox: str, network: str | None = None) -> Tallies:
    """One endpoint's counters as Prometheus reads them.

    By ("packets" or "bytes", direction, path), and ("drops", reason) for what was dropped at least once.
    """
    return all_tallies(host, network).get(sandbox, {})


def all_tallies(host: Host, network: str | None = None) -> dict[str, Tallies]:
    """The counters of all endpoints, or those on one network, by sandbox."""
    text = host.run("curl", "-sS", "--fail", "http://127.0.0.1:9478/metrics").stdout
    found: dict[str, Tallies] = {}
    for metric in text_string_to_metric_families(text):
        if not metric.name.startswith("linkspan_endpoint_") or metric.type != "counter":
            continue
        what = metric.name.removeprefix("linkspan_endpoint_")
        for sample in metric.samples:
            labels = sample.labels
            if network in (None, labels["network"]):
                rest = (labels["reason"],) if what == "drops" else (labels["direction"], labels["path"])
                found.setdefault(labels["sandbox"], {})[what, *rest] = int(sample.value)
    return found


def growth(before: Tallies, after: Tallies) -> Tallies:
    """What grew, by how much."""
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


def settled(read: Callable[[], Any], what: str) -> Any:
    """Reads until twice the same comes out, half a second apart: a namespace chatters for a while after a join."""
    last: list[Any] = [read()]

    def is_steady() -> bool:
        end = time.monotonic() + 0.5
        wait_for(lambda: time.monotonic() > end, "time to pass")
        last.append(read())
        return bool(last[-1] == last[-2])

    wait_for(is_steady, what)
    return last[-1]
