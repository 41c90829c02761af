"""Start-up, completion, help, version and doctor of the command line."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cli import doctor
from control.cli.main import main
from datapath.features import Answer, Check
from tests.cli_fake import FakeDaemon, fake_daemon
from tests.samples import B9, B10, NET1

ROOT = Path(__file__).resolve().parents[2]
SANDBOXES = [{"Name": name, "Id": name[0] * 64} for name in ("web", "worker", "db")]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path) as daemon:
        daemon.on("GET", "/networks", [NET1, B9, B10])
        daemon.on("GET", "/linkspan/sandboxes", SANDBOXES)
        yield daemon


def linkspan(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out, output.err


def test_listing_imports_nothing_heavy(daemon: FakeDaemon) -> None:
    script = (
        "import sys\n"
        "from control.cli.main import main\n"
        f"try: main(['-H', {daemon.url!r}, 'network', 'ls'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    heavy = {"aiohttp", "asyncio", "cffi", "ctypes", "datapath", "msgspec", "pyroute2", "control.cli.template"}
    assert not loaded & heavy


COMPLETIONS = [
    ("linkspan net", ["network"]),
    ("linkspan network ", ["connect", "create", "disconnect", "inspect", "ls", "prune", "rm"]),
    ("linkspan network rm ", ["net1", "b9", "b10"]),
    ("linkspan network rm b", ["b9", "b10"]),
    ("linkspan network rm b9 b", ["b10"]),
    ("linkspan network rm -f ", ["net1", "b9", "b10"]),
    ("linkspan network inspect -v n", ["net1"]),
    ("linkspan network connect ", ["net1", "b9", "b10"]),
    ("linkspan network connect net1 w", ["web", "worker"]),
    ("linkspan network connect --ip 1.2.3.4 net1 d", ["db"]),
    ("linkspan network connect net1 web ", []),
    ("linkspan network disconnect net1 ", ["web", "worker", "db"]),
    ("linkspan network create --int", ["--internal"]),
    ("linkspan network create --ip", ["--ip-range", "--ipam-driver", "--ipam-opt", "--ipv4", "--ipv6"]),
    ("linkspan rm -f w", ["web", "worker"]),
    ("linkspan exec ", ["web", "worker", "db"]),
    ("linkspan exec web ", []),
    ("linkspan logs w", ["web", "worker"]),
    ("linkspan run --net b", ["b9", "b10"]),
    ("linkspan run --network net1,b1", ["net1,b10"]),
    ("linkspan c", ["cluster", "completion"]),
    ("linkspan cluster ", ["info", "join", "leave", "ls"]),
    ("linkspan cluster join --c", ["--cacert", "--cert", "--cluster"]),
    ("linkspan doctor --m", ["--mend"]),
    ("linkspan completion ", ["bash", "fish", "zsh"]),
    ("linkspan network rm --nonsense n", ["net1"]),
]


def completed(line: str, host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    words = shlex.split(line)
    word_count = len(words) if line.endswith(" ") else len(words) - 1
    monkeypatch.setenv("_LINKSPAN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(word_count))
    monkeypatch.setenv("LINKSPAN_HOST", host)
    with pytest.raises(SystemExit):
        main([])
    return [entry.partition(",")[2] for entry in capsys.readouterr().out.splitlines() if entry]


@pytest.mark.parametrize(("line", "expected"), COMPLETIONS)
def test_completion_offers_what_fits(
    daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    expected: list[str],
) -> None:
    assert completed(line, daemon.url, monkeypatch, capsys) == expected


def test_completion_without_a_daemon_offers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed("linkspan network rm ", f"unix://{tmp_path}/none", monkeypatch, capsys) == []


def test_completion_does_not_wait_for_a_slow_daemon(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.on("GET", "/networks", [NET1], delay=1.5)
    assert completed("linkspan network rm ", daemon.url, monkeypatch, capsys) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, the shell whose script is tried")
def test_bash_completes_with_the_script(daemon: FakeDaemon, tmp_path: Path) -> None:
    program = tmp_path / "linkspan"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m control.cli.main "$@"\n')
    program.chmod(0o755)
    script = (
        f"PATH={tmp_path}:$PATH; export LINKSPAN_HOST={daemon.url}; source <(linkspan completion bash);"
        "COMP_WORDS=(linkspan network rm b); COMP_CWORD=3;"
        "$(complete -p linkspan | sed 's/.*-F \\([^ ]*\\) .*/\\1/') linkspan; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "b9 b10\n", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_every_shell(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    status, script, _ = linkspan(capsys, "completion", shell)
    assert status == 0
    assert f"_LINKSPAN_COMPLETE={shell}_complete" in script


def test_an_unknown_shell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "linkspan: there is no completion for 'tcsh', only for bash, fish, zsh\n"
    assert linkspan(capsys, "completion", "tcsh") == (1, "", expected)


def test_version_tells_client_and_server(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.on("GET", "/version", {"Version": "9.9", "ApiVersion": "1.51"})
    status, text, _ = linkspan(capsys, "-H", daemon.url, "version")
    assert status == 0
    assert text.startswith("Client:\n Version:  ")
    assert "Server:\n Version:              9.9\n API version:          1.51\n" in text
    assert linkspan(capsys, "-H", daemon.url, "version", "-f", "{{.Server.Version}}") == (0, "9.9\n", "")


def test_version_without_a_server_tells_the_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text, problem = linkspan(capsys, "-H", f"unix://{tmp_path}/none", "version")
    assert status == 1
    assert "Client:" in text
    assert "Server:" not in text
    assert problem.startswith("Cannot connect to linkspand")
    assert linkspan(capsys, "--version")[1].startswith("Linkspan version ")


def checks(**answers: Answer) -> list[Check]:
    return [
        Check(name, answers.get(name, Answer.YES), f"about {name}", "something", (5, 10) if name == "tcx" else None)
        for name in ("veth", "bridge", "nftables", "tcx")
    ]


def test_doctor_shows_answers_and_the_daemon(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status: dict[str, Any] = {
        "drivers": {"bridge": {"path": "eBPF"}, "null": {}},
        "fallbacks": {"tcx": "clsact instead"},
        "parents": [
            {"network": "pub", "parent": "eth1", "state": "up", "up": True},
            {"network": "lab", "parent": "eth2", "state": "gone", "up": False},
        ],
        "broken": {"endpoint 0123456789ab": "parent eth2 of network lab is gone"},
        "networks": 3,
    }
    daemon.on("GET", "/linkspan/status", status)
    daemon.on("GET", "/linkspan/doctor", {"findings": [], "attached": []})
    monkeypatch.setattr("datapath.features.report", lambda: checks(tcx=Answer.NO))
    code, text, _ = linkspan(capsys, "-H", daemon.url, "doctor")
    assert code == 0
    rows = text.splitlines()
    assert rows[0].split("   ")[0] == "CHECK"
    assert [row.split()[:2] for row in rows[1:5]] == [
        ["veth", "yes"],
        ["bridge", "yes"],
        ["nftables", "yes"],
        ["tcx", "no"],
    ]
    assert rows[6:] == [
        f"linkspand at {daemon.url}: 3 networks",
        "  driver bridge: path eBPF",
        "  driver null: ready",
        "  fallback, tcx: clsact instead",
        "  parent eth2 of network lab is gone",
        "  not whole, endpoint 0123456789ab: parent eth2 of network lab is gone",
        "",
        "Nothing is wrong.",
    ]
    document = json.loads(linkspan(capsys, "-H", daemon.url, "doctor", "--json")[1])
    assert document["daemon"] == status
    assert document["checks"][3] == {
        "name": "tcx",
        "answer": "no",
        "reason": "about tcx",
        "needed_for": "something",
        "minimum_kernel": "5.10",
        "required": False,
    }


def found(code: str, severity: str) -> dict[str, str]:
    return {"code": code, "severity": severity, "where": "eth0", "what": "is odd", "why": "it hurts", "mend": "do that"}


def test_doctor_shows_findings_and_fails_for_errors_alone(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.on("GET", "/linkspan/status", {"networks": 3})
    known = {"held_by": ["curl (process 9)"], "loaded_by": "ann", "loaded": "2026-01-01T00:00:00Z"}
    attached = {"device": "lsx", "hook": "ingress", "by": "tcx", "program": "p", "id": 7, "owner": "other", **known}
    monkeypatch.setattr("datapath.features.report", checks)
    said = {"findings": [found("gro-off", "warning")], "attached": [attached]}
    daemon.on("GET", "/linkspan/doctor", said)
    code, text, _ = linkspan(capsys, "-H", daemon.url, "doctor")
    assert code == 0
    assert text.endswith("\n\nwarning gro-off: eth0: is odd\n    why: it hurts\n    mend: do that\n")
    assert "lsx" not in text
    code, text, _ = linkspan(capsys, "-H", daemon.url, "doctor", "--attached")
    (row,) = (line.split(maxsplit=5) for line in text.splitlines() if line.startswith("lsx"))
    owner = "other: held by curl (process 9), loaded by ann at 2026-01-01T00:00:00Z"
    assert row == ["lsx", "ingress", "tcx", "p", "7", owner]
    daemon.on("GET", "/linkspan/doctor", {**said, "findings": [found("map-wrong", "error")]})
    assert linkspan(capsys, "-H", daemon.url, "doctor")[0] == 1
    code, text, _ = linkspan(capsys, "-H", daemon.url, "doctor", "--json")
    assert code == 1
    document = json.loads(text)
    assert (document["findings"], document["attached"], document["mended"]) == (
        [found("map-wrong", "error")], [attached], [],
    )  # fmt: skip


def test_doctor_mends_and_shows_what_is_left(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapath.features.report", checks)
    daemon.on("GET", "/linkspan/status", {"networks": 3})
    daemon.on("POST", "/linkspan/doctor/mend", {"mended": [found("map-wrong", "error")], "findings": []})
    daemon.on("GET", "/linkspan/doctor", {"findings": [], "attached": []})
    code, text, _ = linkspan(capsys, "-H", daemon.url, "doctor", "--mend")
    assert (code, text.splitlines()[-3:]) == (0, ["mended: eth0: is odd", "", "Nothing is wrong."])
    assert [(each.method, each.path.partition("/linkspan")[2]) for each in daemon.asked()] == [
        ("GET", "/status"), ("POST", "/doctor/mend"), ("GET", "/doctor"),
    ]  # fmt: skip


def test_doctor_asks_nobody_about_the_kernel(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapath.features.report", checks)
    code, text, _ = linkspan(capsys, "-H", daemon.url, "doctor", "--kernel")
    assert (code, len(text.splitlines()), daemon.asked()) == (0, 5, [])
    for flags in (("--kernel", "--mend"), ("--kernel", "--cluster"), ("--attached", "--cluster")):
        assert linkspan(capsys, "-H", daemon.url, "doctor", *flags)[0] == 125


def test_doctor_without_a_daemon_mends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapath.features.report", checks)
    code, _, problem = linkspan(capsys, "-H", f"unix://{tmp_path}/none", "doctor", "--mend")
    assert code == 1
    assert problem.startswith("Cannot connect")


def test_doctor_fails_when_something_required_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"unix://{tmp_path}/none"
    monkeypatch.setattr("datapath.features.report", lambda: checks(veth=Answer.NO, nftables=Answer.NO))
    code, text, _ = linkspan(capsys, "-H", host, "doctor")
    assert code == 1
    assert "Linkspan cannot work here without veth and nftables.\n" in text
    code, text, _ = linkspan(capsys, "-H", host, "doctor", "--json")
    assert code == 1
    assert json.loads(text)["daemon_error"].startswith("Cannot connect")
    monkeypatch.setattr("datapath.features.report", lambda: checks(veth=Answer.UNKNOWN))
    assert linkspan(capsys, "-H", host, "doctor")[0] == 0


def test_doctor_requires_only_what_is_probed() -> None:
    from datapath.features import PROBES

    assert {probe.name for probe in PROBES} >= doctor.REQUIRED


def test_run_and_exec_ask_for_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for args in (["run", "true"], ["exec", "web", "true"]):
        status, _, problem = linkspan(capsys, *args)
        assert status == 125
        assert problem.startswith(
            f"linkspan: {args[0]} needs root, because it enters the sandbox's namespaces: use sudo"
        )


@pytest.mark.parametrize(
    "name",
    [
        *("run", "exec", "ps", "rm", "logs", "doctor", "version", "completion"),
        *("cluster", "cluster join", "cluster leave", "cluster ls", "cluster info"),
    ],
)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, text, problem = linkspan(capsys, *name.split(), "--help")
    assert (status, problem) == (0, "")
    assert text.startswith(f"Usage:  linkspan {name} ")
    assert all(len(line) < 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["run"], "linkspan: 'linkspan run' requires at least 1 argument"),
        (["exec", "web"], "linkspan: 'linkspan exec' requires at least 2 arguments"),
        (["exec", "web", "--"], "linkspan: exec needs a command after --"),
        (["run", "--foo", "x"], "unknown flag: --foo"),
        (
            ["run", "--network", "name=a,b=c", "x"],
            'invalid argument "name=a,b=c" for "--network" flag: invalid field key b',
        ),
        (["run", "--network", "ip=1.2.3.4", "x"], "network name/id is not specified"),
        (["run", "--net", "name=a,ip=1.2.3.4", "--ip", "1.2.3.5", "x"], "--ip and --network both set IPv4Address"),
        (["run", "-e", "=x", "x"], 'invalid argument "=x" for "-e, --env" flag: invalid environment variable: =x'),
        (["run", "-l", "=x", "x"], "invalid label '=x': empty name"),
        (["ps", "x"], "linkspan: 'linkspan ps' accepts no arguments"),
        (["ps", "-f", "colour=red"], "invalid filter 'colour'"),
        (["logs", "-n", "x", "web"], "no log"),
        (["cluster", "ls", "x"], "linkspan: 'linkspan cluster ls' accepts no arguments"),
        (["cluster", "leave", "--fource"], "unknown flag: --fource"),
        (["cluster", "nonsense"], "linkspan: unknown command: linkspan cluster nonsense"),
        (["rm", ""], "invalid sandbox name or ID: value is empty"),
        (["nonsense"], "linkspan: unknown command: linkspan nonsense"),
    ],
)
def test_wrong_command_lines_are_explained(
    daemon: FakeDaemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    problem: str,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    daemon.on("GET", "/linkspan/sandboxes/web", {"Id": "5" * 64, "ExitStatusPath": "/nonexistent/exit-status"})
    status, _, text = linkspan(capsys, "-H", daemon.url, *args)
    assert status in (1, 125)
    assert problem in text


def test_the_reference_in_docs_is_what_the_commands_say() -> None:
    from control.cli.reference import reference

    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "python -m control.cli.reference > docs/cli.md"
