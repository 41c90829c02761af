"""`linkspan ps` and `rm` in front of canned sandboxes: columns, filters, formats, exit status."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from control.cli.main import main
from control.cli.rows import human_duration
from tests.cli_fake import FakeDaemon, fake_daemon


def sandbox(name: str, age: float, state: str = "running", **more: Any) -> dict[str, Any]:
    created = datetime.now(UTC) - timedelta(seconds=age)
    return {
        "Id": (name * 64)[:64],
        "Name": name,
        "State": state,
        "Created": created.isoformat().replace("+00:00", "Z"),
        "Command": ["sleep", "60"],
        "Labels": {},
        "Pid": 42,
        "ExitCode": None,
        "Networks": {"net1": {"NetworkID": "a" * 64}},
        **more,
    }


def sandboxes() -> list[dict[str, Any]]:
    return [
        sandbox("old", 7200.0, "exited", ExitCode=3, Networks={}),
        sandbox(
            "web",
            90.0,
            Labels={"tier": "front", "x": ""},
            Networks={"b": {"NetworkID": "b" * 64}, "a": {"NetworkID": "c"}},
        ),
        sandbox(
            "db", 3.0, "created", Pid=None, Command=["sh", "-c", "echo a long command line"], Labels={"tier": "back"}
        ),
    ]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path) as daemon:
        daemon.on("GET", "/linkspan/sandboxes", sandboxes())
        yield daemon


@pytest.fixture
def linkspan(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]):
    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["-H", daemon.url, *args])
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, output.out, output.err

    return run


def test_the_newest_comes_first_in_dockers_columns(linkspan, daemon: FakeDaemon) -> None:
    status, text, _ = linkspan("ps", "-a")
    assert status == 0
    assert text.splitlines() == [
        "SANDBOX ID     NAME      STATE        PID       NETWORKS   COMMAND                  CREATED",
        'dbdbdbdbdbdb   db        created                net1       "sh -c \'echo a long …"   3 seconds ago',
        'webwebwebweb   web       running      42        a,b        "sleep 60"               About a minute ago',
        'oldoldoldold   old       exited (3)                        "sleep 60"               2 hours ago',
    ]
    assert [request.path for request in daemon.asked()] == ["/linkspan/sandboxes?all=1"]


def test_without_all_the_daemon_is_asked_for_the_live_ones(linkspan, daemon: FakeDaemon) -> None:
    linkspan("ps", "-q")
    linkspan("ps", "-f", "status=exited")
    assert [request.path for request in daemon.asked()] == ["/linkspan/sandboxes", "/linkspan/sandboxes?all=1"]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["name=e"], ["web"]),
        (["id=old"], ["old"]),
        (["status=created"], ["db"]),
        (["status=created", "status=exited"], ["db", "old"]),
        (["network=net1"], ["db"]),
        (["network=bbbb"], ["web"]),
        (["label=tier"], ["db", "web"]),
        (["label=tier=front"], ["web"]),
        (["label=tier", "label=x"], ["web"]),
        (["label=tier", "status=created"], ["db"]),
        (["label=none"], []),
    ],
)
def test_filters_select(linkspan, filters: list[str], names: list[str]) -> None:
    arguments = [part for entry in filters for part in ("--filter", entry)]
    assert linkspan("ps", "--format", "{{.Name}}", *arguments)[1].split() == names


def test_formats_name_all_fields(linkspan) -> None:
    assert linkspan("ps", "-q")[1].split() == ["dbdbdbdbdbdb", "webwebwebweb", "oldoldoldold"]
    assert linkspan("ps", "-q", "--no-trunc")[1].split()[0] == "db" * 32
    text = linkspan("ps", "--format", '{{.State}}|{{.Status}}|{{.ExitCode}}|{{.PID}}|{{.Labels}}|{{.Label "tier"}}')[1]
    assert text.splitlines() == [
        "created|created|||tier=back|back",
        "running|running||42|tier=front,x=|front",
        "exited|exited (3)|3|||",
    ]
    table = linkspan("ps", "--format", "table {{.Name}}\\t{{.RunningFor}}\\t{{.ExitCode}}")[1]
    assert table.splitlines()[0] == "NAME      CREATED              EXIT CODE"
    assert (
        linkspan("ps", "--no-trunc", "--format", "{{.Command}}")[1].splitlines()[0]
        == "\"sh -c 'echo a long command line'\""
    )
    status, _, problem = linkspan("ps", "--format", "{{.Foo}}")
    assert status == 1
    assert problem.startswith("template parsing error: ")


def test_rm_goes_on_after_an_error(linkspan, daemon: FakeDaemon) -> None:
    daemon.on("DELETE", "/linkspan/sandboxes/web", status=204)
    daemon.on("DELETE", "/linkspan/sandboxes/old", {"message": "it is running"}, 409)
    status, text, problem = linkspan("rm", "old", "web", "gone")
    assert (status, text) == (1, "web\n")
    assert problem.splitlines() == [
        "Error response from daemon: it is running",
        "Error response from daemon: page not found: /linkspan/sandboxes/gone",
    ]
    # As docker rm -f: said, but no failure.
    assert linkspan("rm", "-f", "gone")[0] == 0
    assert linkspan("rm", "--force", "old")[0] == 1
    assert daemon.asked()[-1].path == "/linkspan/sandboxes/old?force=1"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (180, "3 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (86400 * 2, "2 days"),
        (86400 * 14, "2 weeks"),
        (86400 * 61, "2 months"),
        (86400 * 365 * 3, "3 years"),
    ],
)
def test_ages_are_in_dockers_words(seconds: float, words: str) -> None:
    assert human_duration(seconds) == words
