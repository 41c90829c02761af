"""GET /events: Docker's JSON lines, its filters, and what happens to readers that do not keep up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from control.api.events import HISTORY, QUEUE_MAX
from control.config import ApiSection
from control.events import Event
from tests.api_server import DEADLINE_SECONDS, ApiServer, UnixConnection
from tests.fakes import fake_controller


class Stream:
    """An open /events request, read line by line."""

    def __init__(self, server: ApiServer, query: str) -> None:
        self.connection = UnixConnection(server.socket_path)
        self.connection.request("GET", f"/events{query}")
        self.response = self.connection.getresponse()
        assert self.response.status == 200

    def next(self) -> dict[str, Any]:
        return dict(json.loads(self.response.readline()))

    def rest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.response.read().splitlines()]


@contextmanager
def stream(server: ApiServer, query: str = "", **filters: Any) -> Iterator[Stream]:
    if filters:
        query = f"?filters={quote(json.dumps(filters))}" + query.replace("?", "&")
    opened = Stream(server, query)
    try:
        yield opened
    finally:
        opened.response.close()
        opened.connection.close()


def emit(server: ApiServer, count: int) -> None:
    for number in range(count):
        server.controller._bus.emit(
            Event("network", "create", f"{number:064x}", {"name": f"n{number}", "x": "y" * 500})
        )


def test_what_happens_is_told_as_docker_tells_it(server: ApiServer) -> None:
    with stream(server) as events:
        network_id = server.ask("POST", "/networks/create", {"Name": "blue"}).json["Id"]
        sandbox_id = server.ask("POST", "/linkspan/sandboxes", {"Name": "web", "Networks": [{"Network": "blue"}]}).json[
            "Id"
        ]
        server.ask("POST", "/networks/blue/disconnect", {"Container": "web"})
        server.ask("DELETE", "/networks/blue")
        seen = [events.next() for _ in range(5)]
    created = seen[0]
    assert abs(created["time"] - time.time()) < 60
    assert created["timeNano"] // 10**9 == created["time"]
    assert {key: created[key] for key in ("Type", "Action", "scope", "Actor")} == {
        "Type": "network",
        "Action": "create",
        "scope": "local",
        "Actor": {"ID": network_id, "Attributes": {"name": "blue", "type": "bridge"}},
    }
    assert [(event["Type"], event["Action"]) for event in seen] == [
        ("network", "create"),
        ("network", "connect"),
        ("container", "create"),
        ("network", "disconnect"),
        ("network", "destroy"),
    ]
    assert seen[1]["Actor"]["Attributes"]["container"] == sandbox_id
    assert seen[2]["Actor"] == {"ID": sandbox_id, "Attributes": {"name": "web"}}


def test_filters_choose_events(server: ApiServer) -> None:
    with (
        stream(server, type=["container"]) as containers,
        stream(server, event=["destroy"]) as destroyed,
        stream(server, network=["green"]) as green,
        stream(server, container=["we"]) as web,
        stream(server, volume=["blue"]) as nothing,
    ):
        for name in ("blue", "green"):
            server.ask("POST", "/networks/create", {"Name": name})
        sandbox_id = server.ask("POST", "/linkspan/sandboxes", {"Name": "web"}).json["Id"]
        server.ask("DELETE", "/networks/blue")
        assert containers.next()["Actor"]["ID"] == sandbox_id
        assert destroyed.next()["Actor"]["Attributes"]["name"] == "blue"
        assert green.next()["Actor"]["Attributes"]["name"] == "green"
        assert web.next()["Actor"]["ID"] == sandbox_id
        nothing.connection.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            nothing.next()


def test_since_and_until_in_the_past_give_what_is_kept_and_end(server: ApiServer) -> None:
    server.ask("POST", "/networks/create", {"Name": "blue"})
    server.ask("DELETE", "/networks/blue")
    with stream(server, f"?since=1h&until={time.time():.6f}") as events:
        assert [event["Action"] for event in events.rest()][-2:] == ["create", "destroy"]
    with stream(server, f"?since=0&until={time.time() - 3600:.0f}") as events:
        assert events.rest() == []


def test_until_in_the_future_ends_the_stream_then(server: ApiServer) -> None:
    begin = time.monotonic()
    with stream(server, f"?until={time.time() + 0.3:.3f}") as events:
        server.ask("POST", "/networks/create", {"Name": "blue"})
        assert [event["Action"] for event in events.rest()] == ["create"]
    assert time.monotonic() - begin < 10


def test_history_is_bounded(server: ApiServer) -> None:
    emit(server, HISTORY + 50)
    with stream(server, f"?since=0&until={time.time() + 0.2:.3f}") as events:
        assert len(events.rest()) == HISTORY


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?since=soon", "invalid time 'soon'"),
        ("?until=1e400", "invalid time"),
        ("?since=200&until=100", "`since` time (200) cannot be after `until` time (100)"),
        ('?filters={"colour":["red"]}', "invalid filter 'colour'"),
        ("?filters=x", "invalid filter"),
    ],
)
def test_questions_that_make_no_sense_are_refused(server: ApiServer, query: str, says: str) -> None:
    reply = server.ask("GET", f"/events{quote(query, safe='?=&')}")
    assert reply.status == 400
    assert says in reply.message


def test_a_reader_that_leaves_is_forgotten(server: ApiServer) -> None:
    assert server.context is not None
    with stream(server):
        assert server.context.events.readers == 1
    deadline = time.monotonic() + DEADLINE_SECONDS
    while server.context.events.readers:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_slow_reader_is_cut_off_and_others_lose_nothing(tmp_path: Path) -> None:
    limits = ApiSection(body_timeout_seconds=0.3)
    with ApiServer(fake_controller(tmp_path), tmp_path / "api.sock", limits) as server, stream(server) as slow:
        assert server.context is not None
        total = QUEUE_MAX + 400
        with stream(server) as quick:
            for burst in range(0, total, 100):
                emit(server, 100)
                for number in range(100):
                    assert quick.next()["Actor"]["Attributes"]["name"] == f"n{number}", burst
            deadline = time.monotonic() + DEADLINE_SECONDS
            while server.context.events.readers > 1:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        lines = 0
        try:
            while slow.response.readline():
                lines += 1
        except (OSError, ValueError):
            pass  # cut off in the middle of a line
        assert lines < total
