"""`linkspan network` against the real docker client: same requests, same stdout, same exit status, same complaints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli_fake import FakeDaemon, fake_daemon
from tests.docker_client import Pair, docker_needed, renamed
from tests.samples import B9, B10, NET1, SWARM, WIDE

pytestmark = docker_needed


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeDaemon]:
    with tempfile.TemporaryDirectory() as directory, fake_daemon(Path(directory)) as daemon:
        daemon.on("GET", "/networks", [NET1, WIDE, B9, B10])
        for network in (NET1, B10, B9):
            daemon.on("GET", f"/networks/{network['Name']}", network)
        daemon.on("GET", "/networks/ingress", SWARM)
        daemon.on("DELETE", "/networks/net1", status=204)
        daemon.on("DELETE", "/networks/ingress", status=204)
        daemon.on("DELETE", "/networks/b10", {"message": "network b10 has active endpoints (name:web)"}, 403)
        daemon.on("POST", "/networks/create", {"Id": "f" * 64, "Warning": ""}, 201)
        daemon.on("POST", "/networks/net1/connect")
        daemon.on("POST", "/networks/net1/disconnect")
        daemon.on("POST", "/networks/b9/connect", {"message": "container web is on net host"}, 403)
        daemon.on("POST", "/networks/prune", {"NetworksDeleted": ["x", "y"]})
        yield daemon


@pytest.fixture
def pair(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pair:
    daemon.requests.clear()
    monkeypatch.setenv("COLUMNS", "80")
    return Pair(daemon, capsys, monkeypatch)


LS = [
    ["ls"],
    ["list", "-q"],
    ["ls", "--no-trunc"],
    ["ls", "--quiet", "--no-trunc"],
    ["ls", "-f", "driver=bridge", "--filter", "label=a=b", "-f", "driver=host", "-f", "Name = x"],
    ["ls", "-f", "", "-f", "dangling=true"],
    ["ls", "-fname=x"],
    ["ls", "-qf", "id=3"],
    ["ls", "-q=false"],
    ["ls", "--quiet=T"],
    ["ls", "--format", ""],
    ["ls", "--format", "table"],
    ["ls", "--format", "json"],
    ["ls", "--format", "raw"],
    ["ls", "-q", "--format", "raw"],
    ["ls", "-q", "--format", "table"],
    ["ls", "-q", "--format", "{{.Name}}"],
    ["ls", "--format", "pretty"],
    ["ls", "--format", "tablex{{.Name}}"],
    ["ls", "--format", " {{.Name}} "],
    ["ls", "--format", "{{json .}}"],
    ["ls", "--no-trunc", "--format", "{{.ID}}\\t{{.Driver}}\\n"],
    ["ls", "--format", 'table {{.ID}}\t{{.Name}}\\t{{.Labels}}\\t{{.Label "one"}}\\t{{.CreatedAt}}\\t{{.Internal}}'],
    ["ls", "--format", 'table {{.Label "com.example.some-name_x"}}\\t{{.IPv4}}\\t{{.IPv6}}\\t{{.Scope}}'],
    ["ls", "--format", "table {{upper .Name}} {{json .ID}} {{truncate .Driver 3}} {{pad .Scope 2 3}}"],
    ["ls", "--format", 'table {{.Name}}\\t{{if eq .Driver "host"}}H\\t{{end}}{{.ID}}\\tend'],
    ["ls", "--format", "{{.Foo}}"],
    ["ls", "--format", "{{.ID"],
    ["ls", "--format", "{{.Label}}"],
    ["ls", "--format", '{{.ID "x"}}'],
    ["ls", "--format", "{{.Name.Foo}}"],
    ["ls", "--format", "{{.}}x{{range .Labels}}{{end}}"],
]
CREATE = [
    ["n"],
    ["--", "-n"],
    ["n", "--internal"],
    [""],
    ["--ipv6", "false"],
    ["--internal=true", "--internal=false", "n"],
    ["-dfoo", "n"],
    ["-d=foo", "n"],
    ["-d", "null", "-o", "=x", "-o", "", "-o", "a=b=c", "-o", "a=d", "n"],
    "-d macvlan -o parent=eth0 --opt x --opt=a=b=c --label a=b --label c --internal --attachable --ingress "
    "--scope swarm --config-only --config-from cf --ipam-driver foo --ipam-opt k=v --ipv6 --ipv4=false "
    "--subnet 10.0.0.0/24,fd00::/64 --gateway 10.0.0.1 --gateway fd00::1 "
    "--ip-range 10.0.0.128/25 --aux-address h=10.0.0.5 --aux-address g=fd00::5 n",
    ["--subnet", "", "n"],
    ["--subnet", '10.0.0.0/24,"fd00::/64"', "n"],
    "--subnet foo n",
    "--subnet 10.0.0.5/24 n",
    "--subnet 10.0.0.0/24 --ip-range 10.0.0.128/24 n",
    ["--subnet", "10.0.0.0/24", "--ip-range", "", "n"],
    ["--label", " a=b", "n"],
    "--subnet 10.0.0.0/24 --aux-address a=10.0.0.1 --aux-address a=10.0.0.2 n",
]
CREATE_REFUSED = [
    "",
    "a b",
    "--subnet 10.0.0.0/24 --subnet 10.0.0.128/25 n",
    "--subnet 10.0.0.0/24 --subnet 10.0.0.0/24 n",
    "--ip-range 10.0.0.0/25 n",
    "--gateway 10.0.0.1 n",
    "--subnet 10.0.0.0/24 --gateway 10.0.1.1 n",
    "--subnet 10.0.0.0/24 --gateway zz n",
    "--subnet 10.0.0.0/24 --ip-range 10.0.1.0/25 n",
    "--subnet 10.0.0.0/24 --ip-range zz n",
    "--subnet 10.0.0.0/24 --ip-range zz/4 n",
    "--subnet 10.0.0.0/24 --aux-address a=10.0.1.1 n",
    "--subnet 10.0.0.0/24 --aux-address h=zz n",
    "--subnet 10.0.0.0/24 --aux-address h n",
    "--aux-address h=1.2.3.4 n",
    "--subnet 10.0.0.0/24 --subnet 10.1.0.0/24 --ip-range 10.0.0.0/25 --ip-range 10.0.0.128/25 n",
    "--subnet 10.0.0.0/24 --subnet 10.1.0.0/24 --gateway 10.0.0.1 --gateway 10.0.0.2 n",
    "--subnet foo --subnet bar n",
    "--subnet 10.0.0.0/33 --gateway 10.0.0.1 n",
    ["--label", "=x", "n"],
    ["--label", "", "n"],
    ["--label", "a b=c", "n"],
    "--ipv6=x n",
    "-d n",
    "--driver",
    "---x n",
    "--=x n",
]
INSPECT = [
    ["inspect", "net1"],
    ["inspect", "net1", "nope", "b10"],
    ["inspect", "nope"],
    ["inspect", ""],
    ["inspect", "-v", "net1"],
    ["inspect", "-f", "", "nope", "net1"],
    ["inspect", "-f", "json", "net1", "b9"],
    ["inspect", "-f", "json", "nope"],
    ["inspect", "-f", "{{.Name}}", "nope", "net1"],
    ["inspect", "-f", "{{.Nope}}", "net1"],
    ["inspect", "-f", "{{.Nope}}", "nope", "net1", "b10"],
    ["inspect", "-f", "{{.Na", "net1"],
    ["inspect", "--format={{.Id}}", "net1"],
    ["inspect", "-f", "{{.Containers}} {{.Created}} {{.ConfigFrom}} {{.Labels}}", "net1", "b10"],
]
CHANGE = [
    ["rm", "net1", "nope", "b10"],
    ["remove", "net1"],
    ["rm", "-f", "nope"],
    ["rm", "-f", "nope", "b10"],
    ["rm", ""],
    ["prune", "-f"],
    ["prune", "-f", "--filter", "until=24h", "--filter", "label!=x"],
    ["connect", "net1", "web"],
    "connect --alias a,b --alias c --ip 1.2.3.4 --ip6 ::1 --link x:y --link-local-ip 169.254.1.1,169.254.1.2 "
    "--driver-opt a=b --gw-priority -3 net1 web",
    ["connect", "--driver-opt", " c = d ", "--gw-priority=0x10", "net1", "web"],
    ["connect", "--driver-opt", "a", "net1", "web"],
    ["connect", "--driver-opt", "=a", "net1", "web"],
    ["connect", "--ip", "zz", "net1", "web"],
    ["connect", "nope", "web"],
    ["connect", "b9", "web"],
    ["connect", "", "web"],
    ["disconnect", "-f", "net1", "web"],
    ["disconnect", "net1", "web"],
    ["disconnect", "", "web"],
]
WRONG = [
    ["ls", "x"],
    ["ls", "--foo"],
    ["ls", "--foo=1"],
    ["ls", "-x"],
    ["ls", "-qx"],
    ["ls", "-f"],
    ["ls", "-f", "bad"],
    ["ls", "-q=maybe"],
    ["ls", "--quiet=", "x"],
    ["inspect"],
    ["rm"],
    ["prune", "x"],
    ["connect", "net1"],
    ["connect", "a", "b", "c"],
    ["connect", "--gw-priority", "x", "net1", "web"],
    ["connect", "--gw-priority", "99999999999999999999", "net1", "web"],
    ["connect", "--link", ":a:b", "net1", "web"],
    ["connect", "--link", "", "net1", "web"],
    ["disconnect", "net1"],
    ["foo"],
    ["--foo"],
    [],
]


def words(case: str | list[str]) -> list[str]:
    return case.split() if isinstance(case, str) else case


@pytest.mark.parametrize("case", LS + INSPECT + CHANGE + WRONG, ids=str)
def test_network_commands_ask_print_and_exit_as_docker(pair: Pair, case: str | list[str]) -> None:
    pair.assert_same("network", *words(case))


@pytest.mark.parametrize("case", CREATE, ids=str)
def test_create_sends_dockers_request(pair: Pair, case: str | list[str]) -> None:
    pair.assert_same("network", "create", *words(case))


@pytest.mark.parametrize("case", CREATE_REFUSED, ids=str)
def test_create_refuses_in_dockers_words_without_a_request(pair: Pair, case: str | list[str]) -> None:
    pair.assert_same("network", "create", *words(case))
    assert not pair.ours("network", "create", *words(case)).requests


@pytest.mark.parametrize("answer", ["", "y\n", "Y", " y \n", "yes\n", "n\n", "\n", "\ny\n"], ids=repr)
def test_prompts_take_the_same_answers(pair: Pair, answer: str) -> None:
    pair.assert_same("network", "prune", stdin=answer)
    pair.assert_same("network", "rm", "ingress", "net1", stdin=answer)


@pytest.mark.parametrize("name", ["create", "inspect", "disconnect", "ls", "prune", None])
def test_help_is_dockers_but_for_the_name(pair: Pair, name: str | None) -> None:
    theirs = pair.docker("network", *([name] if name else []), "--help")
    ours = pair.ours("network", *([name] if name else []), "--help")
    assert ours.stdout == renamed(theirs.stdout)
    assert ours.status == theirs.status


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("connect", '--mac-address string MAC address (e.g., "92:d0:c6:0a:29:33")'),
        ("rm", "--abandoned Also remove a network whose container engine is gone"),
    ],
)
def test_help_differs_by_the_flag_that_docker_has_not(pair: Pair, name: str, own: str) -> None:
    theirs = [line.split() for line in renamed(pair.docker("network", name, "--help").stdout).splitlines()]
    ours = [line.split() for line in pair.ours("network", name, "--help").stdout.splitlines()]
    assert [line for line in ours if line not in theirs] == [own.split()]
    assert [line for line in ours if line in theirs] == theirs


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"message": "no space left"}),
        (400, {"message": "bad"}),
        (409, {"message": "network with name n already exists"}),
    ],
)
def test_a_refusal_is_shown_as_dockers(pair: Pair, status: int, body: Any) -> None:
    with tempfile.TemporaryDirectory() as directory, fake_daemon(Path(directory)) as daemon:
        for key in (("GET", "/networks"), ("POST", "/networks/create"), ("POST", "/networks/prune")):
            daemon.on(*key, body, status)
        pair.daemon = daemon
        for args in (["ls"], ["create", "n"], ["prune", "-f"]):
            pair.assert_same("network", *args)


@pytest.mark.parametrize(
    "args",
    [
        ["ls"],
        ["ls", "-q"],
        ["ls", "--format", "json"],
        ["ls", "--format", "{{.Foo}}"],
        ["ls", "--format", "table {{.Foo}}"],
    ],
)
def test_an_empty_list_prints_as_dockers(pair: Pair, args: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory, fake_daemon(Path(directory)) as daemon:
        daemon.on("GET", "/networks", [])
        daemon.on("POST", "/networks/prune", {"NetworksDeleted": None})
        pair.daemon = daemon
        pair.assert_same("network", *args)
        pair.assert_same("network", "prune", "-f")
