"""`linkspan cluster` and `doctor --cluster` in front of canned answers: requests, texts, formats, exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from control.cli.main import main
from tests.api_server import ApiServer
from tests.cli_fake import FakeDaemon, fake_daemon
from tests.fake_cluster import SPEC, FakeCluster
from tests.fakes import fake_controller

JOINED = {
    "Joined": True,
    "Cluster": "east",
    "Node": "a",
    "Advertise": "10.0.0.1",
    "Etcd": ["http://10.0.0.7:2379", "http://10.0.0.8:2379"],
    "State": "waiting for etcd: connection refused",
    "Revision": 17,
    "Since": "2026-01-02T03:04:05.6Z",
}
ALONE = dict.fromkeys(("Cluster", "Node", "Advertise"), "") | {
    "Joined": False,
    "Etcd": [],
    "State": "not joined",
    "Revision": 0,
    "Since": None,
}
JOIN = ("cluster", "join", "--etcd", "http://10.0.0.7:2379", "--advertise", "10.0.0.1", "--name", "a")
NOT_JOINED = "This node is not in a cluster: run `linkspan cluster join --etcd URL --advertise ADDR --name NODE` first"


def node(name: str, age: float, **more: Any) -> dict[str, Any]:
    since = datetime.now(UTC) - timedelta(seconds=age)
    return {
        "Name": name,
        "ID": 3,
        "Address": "10.0.0.3",
        "State": "ready",
        "Since": since.isoformat().replace("+00:00", "Z"),
        "Self": False,
        "Networks": 2,
        **more,
    }


def difference(what: str) -> dict[str, str]:
    return {"Node": "a", "Network": "blue", "What": what, "Mend": "replace it"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    nodes = [
        node("n10", 90.0),
        node("n9", 7200.0, Self=True, ID=1, Address="10.0.0.1", Networks=0),
        node("db", 3.5, ID=2, Address="fd00::2", State="lost"),
    ]
    with fake_daemon(tmp_path) as daemon:
        daemon.on("GET", "/linkspan/cluster", JOINED)
        daemon.on("GET", "/linkspan/cluster/nodes", nodes)
        daemon.on("POST", "/linkspan/cluster/join", JOINED)
        daemon.on("POST", "/linkspan/cluster/leave", status=204)
        yield daemon


@pytest.fixture
def linkspan(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]):
    def run(*args: str, host: str = "") -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["-H", host or daemon.url, *args])
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, output.out, output.err

    return run


# -- join and leave ------------------------------------------------------------------------------------------------


def test_join_sends_what_was_given_and_says_what_came_of_it(linkspan, daemon: FakeDaemon) -> None:
    assert linkspan(*JOIN) == (0, "This node joined the cluster east as a.\n", "")
    (request,) = daemon.asked()
    assert (request.method, request.path) == ("POST", "/linkspan/cluster/join")
    assert request.body == {
        "Etcd": ["http://10.0.0.7:2379"],
        "Name": "a",
        "Advertise": "10.0.0.1",
        "Cluster": "default",
    }


def test_join_takes_members_of_etcd_one_by_one_or_together(linkspan, daemon: FakeDaemon) -> None:
    assert linkspan(*JOIN, "--etcd=http://b:1,http://c:1", "--cluster", "east")[0] == 0
    (request,) = daemon.asked()
    assert request.body["Etcd"] == ["http://10.0.0.7:2379", "http://b:1", "http://c:1"]
    assert request.body["Cluster"] == "east"


def test_paths_of_certificates_are_the_users(
    linkspan, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert linkspan(*JOIN, "--cacert", "ca.pem", "--cert", "../a.pem", "--key", "/etc/a.key")[0] == 0
    (request,) = daemon.asked()
    assert request.body["CACert"] == f"{tmp_path}/ca.pem"
    assert request.body["Cert"] == f"{tmp_path.parent}/a.pem"
    assert request.body["Key"] == "/etc/a.key"


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        ((), '"advertise", "etcd", "name"'),
        (("--name", "a", "--etcd="), '"advertise", "etcd"'),
        (("--name", "a", "--advertise", "10.0.0.1"), '"etcd"'),
    ],
)
def test_what_a_join_cannot_do_without_is_asked_for(
    linkspan, daemon: FakeDaemon, args: tuple[str, ...], missing: str
) -> None:
    usage = "Usage:  linkspan cluster join [OPTIONS]\n\nRun 'linkspan cluster join --help' for more information\n"
    assert linkspan("cluster", "join", *args) == (125, "", f"required flag(s) {missing} not set\n\n{usage}")
    assert daemon.asked() == []


def test_leave_says_that_it_is_done(linkspan, daemon: FakeDaemon) -> None:
    assert linkspan("cluster", "leave") == (0, "This node left the cluster.\n", "")
    assert linkspan("cluster", "leave", "-f")[0] == 0
    assert [request.path for request in daemon.asked()] == [
        "/linkspan/cluster/leave",
        "/linkspan/cluster/leave?force=1",
    ]


@pytest.mark.parametrize(
    "args", [JOIN, ("cluster", "leave"), ("cluster", "ls"), ("cluster", "info"), ("doctor", "--cluster", "--mend")]
)
def test_a_refusal_is_printed_and_fails(linkspan, daemon: FakeDaemon, args: tuple[str, ...]) -> None:
    for asked in (*daemon.answers, ("POST", "/linkspan/cluster/mend")):
        daemon.on(*asked, {"message": "etcd is read-only"}, 503)
    assert linkspan(*args) == (1, "", "Error response from daemon: etcd is read-only\n")


# -- ls and info ---------------------------------------------------------------------------------------------------


def test_nodes_are_listed_in_the_order_of_their_names(linkspan) -> None:
    status, text, _ = linkspan("cluster", "ls")
    assert status == 0
    assert text.splitlines() == [
        "NODE      ADDRESS    STATE     SINCE",
        "db        fd00::2    lost      3 seconds ago",
        "n9        10.0.0.1   ready     2 hours ago",
        "n10       10.0.0.3   ready     About a minute ago",
    ]
    assert linkspan("cluster", "list") == (0, text, "")


def test_no_nodes_are_a_heading(linkspan, daemon: FakeDaemon) -> None:
    daemon.on("GET", "/linkspan/cluster/nodes", [])
    assert linkspan("cluster", "ls") == (0, "NODE      ADDRESS   STATE     SINCE\n", "")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["name=n"], ["n9", "n10"]),
        (["state=lost"], ["db"]),
        (["state=lost", "state=ready"], ["db", "n9", "n10"]),
        (["state=ready", "name=1"], ["n10"]),
        (["address=10.0.0.1"], ["n9"]),
        (["id=2"], ["db"]),
        (["state=gone"], []),
    ],
)
def test_filters_select(linkspan, filters: list[str], names: list[str]) -> None:
    arguments = [part for entry in filters for part in ("-f", entry)]
    assert linkspan("cluster", "ls", "-q", *arguments)[1].split() == names


def test_a_filter_that_there_is_not_is_named(linkspan) -> None:
    problem = "invalid filter 'colour': nodes are filtered by address, id, name, state\n"
    assert linkspan("cluster", "ls", "-f", "colour=red") == (1, "", problem)


def test_formats_name_all_fields(linkspan, daemon: FakeDaemon) -> None:
    fields = "{{.Name}}|{{.ID}}|{{.Address}}|{{.State}}|{{.Self}}|{{.Networks}}|{{.Since}}"
    lines = linkspan("cluster", "ls", "--format", fields)[1].splitlines()
    assert lines[1] == "n9|1|10.0.0.1|ready|true|0|2 hours ago"
    table = linkspan("cluster", "ls", "--format", "table {{.Name}}\\t{{.Networks}}")[1]
    assert table.splitlines()[:2] == ["NODE      NETWORKS", "db        2"]
    rows = [json.loads(line) for line in linkspan("cluster", "ls", "--format", "json")[1].splitlines()]
    assert [row["Name"] for row in rows] == ["db", "n9", "n10"]
    exact = linkspan("cluster", "ls", "--no-trunc", "--format", "{{.Since}}")[1].splitlines()
    nodes = json.loads(linkspan("cluster", "ls", "--json")[1])
    assert exact == [node["Since"] for node in nodes]
    assert nodes[0] == {**daemon.answers["GET", "/linkspan/cluster/nodes"].body[2]}
    status, _, problem = linkspan("cluster", "ls", "--format", "{{.Foo}}")
    assert status == 1
    assert problem.startswith("template parsing error: ")


def test_info_shows_the_membership(linkspan) -> None:
    assert linkspan("cluster", "info") == (
        0,
        "Cluster: east\n"
        " Node:     a\n"
        " Address:  10.0.0.1\n"
        " Etcd:     http://10.0.0.7:2379, http://10.0.0.8:2379\n"
        " State:    waiting for etcd: connection refused\n"
        " Revision: 17\n"
        " Since:    2026-01-02T03:04:05.6Z\n",
        "",
    )
    assert json.loads(linkspan("cluster", "info", "--json")[1]) == JOINED
    assert json.loads(linkspan("cluster", "info", "--format", "json")[1]) == JOINED
    assert linkspan("cluster", "info", "-f", "{{.Node}}: {{range .Etcd}}<{{.}}>{{end}}")[1] == (
        "a: <http://10.0.0.7:2379><http://10.0.0.8:2379>\n"
    )
    status, _, problem = linkspan("cluster", "info", "-f", "{{.Node")
    assert (status, problem.startswith("template parsing error: ")) == (64, True)


def test_info_of_a_host_in_no_cluster_is_one_line(linkspan, daemon: FakeDaemon) -> None:
    daemon.on("GET", "/linkspan/cluster", ALONE)
    assert linkspan("cluster", "info") == (0, "Cluster: not joined\n", "")
    assert linkspan("cluster", "info", "-f", "{{.Joined}}") == (0, "false\n", "")


# -- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_says_when_nothing_differs(linkspan, daemon: FakeDaemon) -> None:
    daemon.on("GET", "/linkspan/cluster/check", [])
    assert linkspan("doctor", "--cluster") == (0, "This node holds what the cluster's store has.\n", "")
    assert json.loads(linkspan("doctor", "--cluster", "--json")[1]) == {"mended": [], "differences": []}
    assert {request.method for request in daemon.asked()} == {"GET"}


def test_doctor_fails_while_something_differs(linkspan, daemon: FakeDaemon) -> None:
    daemon.on("GET", "/linkspan/cluster/check", [difference("FDB entry of 02:00:00:00:00:05 is missing")])
    status, text, _ = linkspan("doctor", "--cluster")
    assert status == 1
    assert text.splitlines() == [
        "NODE      NETWORK   DIFFERENCE                                  MENDED BY",
        "a         blue      FDB entry of 02:00:00:00:00:05 is missing   replace it",
    ]
    status, text, _ = linkspan("doctor", "--cluster", "--json")
    assert (status, len(json.loads(text)["differences"])) == (1, 1)


def test_doctor_mends_and_shows_what_is_left(linkspan, daemon: FakeDaemon) -> None:
    gone, left = difference("one"), difference("two")
    daemon.on("POST", "/linkspan/cluster/mend", [gone, left])
    daemon.on("GET", "/linkspan/cluster/check", [left])
    status, text, _ = linkspan("doctor", "--cluster", "--mend")
    assert status == 1
    assert text.splitlines() == [
        "Mended on network blue: one",
        "NODE      NETWORK   DIFFERENCE   MENDED BY",
        "a         blue      two          replace it",
    ]
    document = json.loads(linkspan("doctor", "--cluster", "--mend", "--json")[1])
    assert document == {"mended": [gone], "differences": [left]}
    daemon.on("GET", "/linkspan/cluster/check", [])
    status, text, _ = linkspan("doctor", "--cluster", "--mend")
    assert (status, text.splitlines()[-1]) == (0, "This node holds what the cluster's store has.")


# -- against the real API ------------------------------------------------------------------------------------------


def test_commands_and_api_speak_of_the_same(linkspan, tmp_path: Path) -> None:
    cluster = FakeCluster()
    with ApiServer(fake_controller(tmp_path, cluster=cluster), tmp_path / "api.sock") as server:
        host = f"unix://{server.socket_path}"
        refused = (1, "", f"Error response from daemon: {NOT_JOINED}\n")
        assert linkspan("cluster", "ls", host=host) == refused
        assert linkspan("cluster", "leave", host=host) == refused
        assert linkspan("doctor", "--cluster", host=host) == refused
        assert linkspan("cluster", "info", host=host) == (0, "Cluster: not joined\n", "")
        assert linkspan(*JOIN, host=host) == (0, "This node joined the cluster default as a.\n", "")
        assert cluster.spec == SPEC
        assert linkspan("cluster", "ls", "-q", host=host) == (0, "a\n", "")
        assert linkspan("cluster", "info", host=host)[1].startswith("Cluster: default\n Node:     a\n")
        assert linkspan("doctor", "--cluster", "--mend", host=host)[0] == 0
        assert linkspan("cluster", "leave", host=host) == (0, "This node left the cluster.\n", "")
        assert linkspan(*JOIN[:3], "ftp://x", *JOIN[4:], host=host) == (
            1,
            "",
            'Error response from daemon: --etcd: "ftp://x" has the scheme ftp: etcd speaks http and https\n',
        )
