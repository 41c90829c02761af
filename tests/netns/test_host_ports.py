"""Ports that are held: who is kept out, who is in the way, and that nothing is left half done."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from datapath import netns
from datapath.host_ports import HostPorts, PortInUse
from tests.isolated import isolated, run

LOCAL4, LOCAL6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@contextmanager
def ports() -> Iterator[HostPorts]:
    with closing(HostPorts()) as made:
        yield made


def bound(protocol: str, address: str, port: int, *, both: bool = False) -> socket.socket:
    """A socket as a server makes it: its address may be used again, and TCP listens."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, KINDS[protocol])
    try:
        if protocol == "tcp":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.bind((address, port))
        if protocol == "tcp":
            made.listen()
    except OSError:
        made.close()
        raise
    return made


def is_free(protocol: str, address: str, port: int) -> bool:
    try:
        bound(protocol, address, port).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def refuse(*args: object) -> None:
    """What the kernel tells a process without rights."""
    raise PermissionError(errno.EACCES, "denied")


def sockets(port: int) -> list[str]:
    """The local addresses of UDP sockets that `ss` shows at a port; of TCP it shows those that listen."""
    return sorted(line.split()[3] for line in run(f"ss -Huan sport = :{port}").splitlines())


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@isolated
def test_a_held_port_is_taken_for_everybody_else_until_it_is_released(protocol: str) -> None:
    with ports() as held:
        held.hold(protocol, None, 8080)
        for address in ("0.0.0.0", "127.0.0.1", "::", "::1"):
            assert not is_free(protocol, address, 8080)
        assert is_free("udp" if protocol == "tcp" else "tcp", "0.0.0.0", 8080)
        for _ in range(2):
            held.release(protocol, None, 8080)
            assert is_free(protocol, "0.0.0.0", 8080)
            assert is_free(protocol, "::", 8080)


@isolated
def test_only_what_is_asked_for_is_held() -> None:
    with ports() as held:
        held.hold("udp", None, 8079)
        held.hold("udp", None, 8080, v6=False)
        held.hold("udp", None, 8081, v4=False)
        held.hold("udp", LOCAL4, 8082)
        held.hold("udp", LOCAL6, 8083, 2)
        assert [sockets(port) for port in range(8079, 8086)] == [
            ["0.0.0.0:8079", "[::]:8079"],
            ["0.0.0.0:8080"],
            ["[::]:8081"],
            ["127.0.0.1:8082"],
            ["[::1]:8083"],
            ["[::1]:8084"],
            [],
        ]


@isolated
def test_closing_releases_all_and_may_be_repeated() -> None:
    held = HostPorts()
    held.hold("udp", None, 5000, 10)
    held.close()
    held.close()
    assert all(is_free("udp", "0.0.0.0", port) for port in range(5000, 5010))
    held.hold("udp", None, 5000)
    held.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("theirs", "both", "wanted", "says"),
    [
        ("127.0.0.1", False, None, "0.0.0.0"),
        ("0.0.0.0", False, None, "0.0.0.0"),
        ("0.0.0.0", False, LOCAL4, "127.0.0.1"),
        ("127.0.0.1", False, LOCAL4, "127.0.0.1"),
        ("::1", False, None, "::"),
        ("::", False, LOCAL6, "::1"),
        ("::", True, LOCAL4, "127.0.0.1"),
        ("::ffff:127.0.0.1", True, None, "0.0.0.0"),
    ],
)
@isolated
def test_a_port_in_use_is_told_with_its_owner_and_nothing_is_held(
    protocol: str, theirs: str, both: bool, wanted: IPv4Address | IPv6Address | None, says: str
) -> None:
    owner = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
    with ports() as held, bound(protocol, theirs, 8081, both=both):
        with pytest.raises(PortInUse) as caught:
            held.hold(protocol, wanted, 8080, 3)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.strerror == f"port 8081/{protocol} of {says} is in use by {owner}"
        for port in (8080, 8082):
            assert is_free(protocol, "0.0.0.0", port)
            assert is_free(protocol, "::", port)


@isolated
def test_the_owner_is_another_process_by_name_and_number() -> None:
    code = "import socket; s = socket.create_server(('', 8080)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdout.readline()
        name = Path(f"/proc/{server.pid}/comm").read_text().strip()
        with ports() as held, pytest.raises(PortInUse, match=rf"is in use by {name} \(process {server.pid}\)$"):
            held.hold("tcp", None, 8080)
        server.communicate(b"\n")


@isolated
def test_who_cannot_be_seen_is_another_process() -> None:
    """A process of another user, for one that is not root; or a socket that does not listen, which no list has."""
    says = r"port 8080/tcp of 0\.0\.0\.0 is in use by another process$"
    with ports() as held:
        with bound("tcp", "0.0.0.0", 8080), pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "readlink", refuse)
            with pytest.raises(PortInUse, match=says):
                held.hold("tcp", None, 8080)
        with socket.socket() as silent:
            silent.bind(("0.0.0.0", 8080))
            with pytest.raises(PortInUse, match=says):
                held.hold("tcp", None, 8080)


@isolated
def test_a_port_that_is_held_already_is_told_as_published() -> None:
    with ports() as held:
        held.hold("tcp", None, 8080)
        held.hold("tcp", LOCAL4, 8090)
        for address, port, says in (
            (None, 8080, "port 8080/tcp of 0.0.0.0 is published already"),
            (LOCAL4, 8080, "port 8080/tcp of 127.0.0.1 is published already with 0.0.0.0"),
            (None, 8090, "port 8090/tcp of 0.0.0.0 is published already with 127.0.0.1"),
        ):
            with pytest.raises(PortInUse) as caught:
                held.hold("tcp", address, port)
            assert caught.value.strerror == says
        held.hold("udp", None, 8080)
        held.hold("tcp", ip_address("127.0.0.2"), 8090)


@isolated
def test_an_address_that_the_host_does_not_have_is_told() -> None:
    with ports() as held:
        for address in ("192.0.2.1", "2001:db8::1"):
            with pytest.raises(OSError, match=f"this host has no address {address} to publish a port of") as caught:
                held.hold("tcp", ip_address(address), 80)
            assert caught.value.errno == errno.EADDRNOTAVAIL


@isolated
def test_what_else_the_kernel_refuses_is_told_with_the_port() -> None:
    with ports() as held, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "bind", refuse)
        with pytest.raises(OSError, match=r"cannot hold port 80/udp of 127\.0\.0\.1: denied$"):
            held.hold("udp", LOCAL4, 80)


@isolated
def test_connections_that_were_closed_do_not_keep_a_port() -> None:
    """As those of a server that was stopped a moment ago, which the kernel remembers for a minute (TIME_WAIT)."""
    with bound("tcp", "127.0.0.1", 8080) as server, socket.create_connection(("127.0.0.1", 8080)) as caller:
        there, _ = server.accept()
        there.close()
        assert caller.recv(1) == b""
    assert "TIME-WAIT" in run("ss -Htan sport = :8080")
    with ports() as held:
        held.hold("tcp", None, 8080)
        assert not is_free("tcp", "0.0.0.0", 8080)


@isolated
def test_a_connection_to_a_held_port_is_refused_at_once() -> None:
    with ports() as held:
        held.hold("tcp", None, 8080)
        for address in ("127.0.0.1", "::1"):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, 8080), timeout=5)


@isolated
def test_a_range_takes_what_descriptors_there_are_and_too_many_are_told() -> None:
    """In a process of its own, for the limit is the process's; it may have 200 and could have 900."""
    program = """
import os, resource
from datapath.host_ports import HostPorts
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 900))
held = HostPorts()
held.hold("tcp", None, 1000, 400)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
count = len(os.listdir("/proc/self/fd"))
try:
    held.hold("udp", None, 1000, 400)
except OSError as error:
    print(error.strerror)
print(len(os.listdir("/proc/self/fd")) - count)
held.close()
print(count - len(os.listdir("/proc/self/fd")))
"""
    limit, says, more, given_back = run(f"{sys.executable} -c '{program}'").splitlines()
    assert (limit, more, given_back) == ("900", "0", "800")
    assert says.startswith("no room for port 10")
    assert says.endswith("each takes a file descriptor, and linkspand may have 900 (LimitNOFILE= of its unit)")


@isolated
def test_ports_may_be_held_from_many_threads(tmp_path: Path) -> None:
    run(f"mount -t tmpfs sandboxes {tmp_path}")
    here = str(tmp_path / "here")
    run(f"touch {here}; mount --bind /proc/thread-self/ns/net {here}")

    def take(attempt: int) -> int | None:
        """The first of 20 ports that is free."""
        for port in range(9000, 9020):
            try:
                held.hold("tcp", None, port)
            except PortInUse:
                continue
            return port
        return None

    with ports() as held, ThreadPoolExecutor(4, initializer=lambda: netns.enter(here)) as pool:
        taken = list(pool.map(take, range(24)))
    assert sorted(port for port in taken if port is not None) == list(range(9000, 9020))


@isolated
def test_ephemeral_ports_are_those_of_the_kernel() -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40009")
    assert HostPorts().ephemeral_ports() == range(40000, 40010)
