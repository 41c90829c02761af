"""Clients that hang, vanish or flood: they are cut off, and nobody else notices."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from control.config import ApiSection
from tests.api_server import DEADLINE_SECONDS, ApiServer, UnixConnection
from tests.fakes import FakeDriver, fake_controller
from tests.waiting import until

LIMITS = ApiSection(idle_timeout_seconds=0.4, body_timeout_seconds=0.4, stop_timeout_seconds=1.0, workers=4)


@pytest.fixture
def server(tmp_path: Path, driver: FakeDriver) -> Iterator[ApiServer]:
    with ApiServer(fake_controller(tmp_path, driver), tmp_path / "api.sock", LIMITS) as running:
        yield running


def connected(server: ApiServer, sent: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE_SECONDS)
    sock.connect(str(server.socket_path))
    sock.sendall(sent)
    return sock


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET /networks HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_sends_half_a_head_is_cut_off(server: ApiServer, sent: bytes) -> None:
    with connected(server, sent) as sock:
        assert sock.recv(100) == b""


def test_an_idle_connection_is_closed(server: ApiServer) -> None:
    with connected(server, b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        assert sock.recv(100) == b""


def test_a_client_that_sends_half_a_body_gets_408_and_is_cut_off(server: ApiServer) -> None:
    head = b"POST /networks/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with connected(server, head + b'{"Name":') as sock:
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 408
        assert "did not arrive within 0.4 s" in json.loads(response.read())["message"]
        response.close()
        assert sock.recv(100) == b""


def test_many_hanging_clients_stop_nobody(server: ApiServer) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(server, b"GET /networks HTTP/1.1\r\n"))
        begin = time.monotonic()
        assert server.ask("GET", "/networks").status == 200
        assert time.monotonic() - begin < 5


def test_changes_that_wait_for_the_kernel_stop_no_reader(server: ApiServer, driver: FakeDriver) -> None:
    driver.gate = threading.Event()
    threads = [
        threading.Thread(target=server.ask, args=("POST", "/networks/create", {"Name": f"net{number}"}))
        for number in range(LIMITS.workers * 2)
    ]
    try:
        for thread in threads:
            thread.start()
        until(lambda: len(server.controller.networks()) == 3 + LIMITS.workers)
        assert server.ask("GET", "/networks").status == 200
        assert server.ask("GET", "/linkspan/status").status == 200
    finally:
        driver.gate.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    assert len(server.ask("GET", "/networks").json) == 3 + LIMITS.workers * 2


def test_a_change_goes_on_when_its_client_leaves(server: ApiServer, driver: FakeDriver) -> None:
    driver.gate = threading.Event()
    body = b'{"Name":"blue"}'
    head = f"POST /networks/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with connected(server, head.encode() + b"\r\n\r\n" + body):
        until(lambda: any(network.name == "blue" for network in server.controller.networks()))
    driver.gate.set()
    until(lambda: any(n.name == "blue" and n.state == "active" for n in server.controller.networks()))


def test_an_unexpected_fault_is_500_without_a_stack_trace_and_is_counted(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(ref: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(server.controller, "network", fail)
    reply = server.ask("GET", "/networks/blue")
    assert reply.status == 500
    assert reply.message.startswith("internal error: look for ")
    assert "secret" not in reply.message
    reference = reply.message.split()[4]
    logged = next(record for record in caplog.records if reference in record.getMessage())
    assert logged.exc_info is not None
    assert b'linkspan_errors_total{kind="unexpected"} 1.0' in b"".join(server.metrics.expose())


def test_a_broken_connection_of_ours_is_not_taken_for_the_clients(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ref: str) -> None:
        raise ConnectionResetError(104, "netlink")

    monkeypatch.setattr(server.controller, "network", fail)
    assert server.ask("GET", "/networks/blue").status == 500


def test_requests_on_one_connection_follow_each_other(server: ApiServer) -> None:
    connection = UnixConnection(server.socket_path)
    for method, target in (("HEAD", "/_ping"), ("GET", "/networks"), ("GET", "/nowhere"), ("GET", "/v1.41/networks")):
        connection.request(method, target)
        connection.getresponse().read()
    connection.close()
