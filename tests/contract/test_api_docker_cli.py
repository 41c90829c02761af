"""The docker command as the oracle: every example of the networking guide, with linkspand for an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api_server import ApiServer

DOCKER = shutil.which("docker")
pytestmark = pytest.mark.skipif(DOCKER is None, reason="needs the docker command: apt install docker-cli")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(server: ApiServer, tmp_path: Path) -> Run:
    def run(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {"DOCKER_HOST": f"unix://{server.socket_path}", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [str(DOCKER), *words], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def test_version_and_info_name_the_server(run: Run) -> None:
    assert run("version", "--format", "{{.Server.Os}} {{.Server.MinAPIVersion}}").stdout == "linux 1.24\n"
    assert "Linkspan" in run("version").stdout
    info = run("info").stdout
    assert "Network: bridge host null" in info
    assert "Swarm: inactive" in info


def test_ls_shows_the_three_defaults(run: Run) -> None:
    lines = run("network", "ls").stdout.splitlines()
    assert lines[0].split() == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert [line.split()[1:] for line in lines[1:]] == [
        ["bridge", "bridge", "local"],
        ["host", "host", "local"],
        ["none", "null", "local"],
    ]


def test_the_guides_walk_through_works(run: Run, server: ApiServer) -> None:
    network_id = run("network", "create", "-d", "bridge", "my_br_net").stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{64}", network_id)
    body = {"Name": "my_container", "Networks": [{"Network": "my_br_net"}]}
    sandbox_id = server.ask("POST", "/linkspan/sandboxes", body).json["Id"]
    inspected = json.loads(run("network", "inspect", "my_br_net").stdout)
    assert inspected[0]["Id"] == network_id
    assert inspected[0]["Containers"][sandbox_id]["Name"] == "my_container"
    refused = run("network", "rm", "my_br_net", status=1)
    assert "has active endpoints" in refused.stderr
    assert "my_container" in refused.stderr
    run("network", "disconnect", "my_br_net", "my_container")
    run("network", "connect", "--alias", "www", "my_br_net", "my_container")
    assert run("network", "inspect", "-f", "{{len .Containers}}", "my_br_net").stdout == "1\n"
    run("network", "disconnect", "-f", "my_br_net", "my_container")
    assert run("network", "rm", "my_br_net").stdout == "my_br_net\n"


def test_create_takes_all_flags_that_linkspan_knows(run: Run) -> None:
    run(
        *("network", "create", "--internal", "--attachable", "--ipv6", "--label", "team=a", "-o", "fake.option=1"),
        *("--subnet", "10.9.0.0/16", "--ip-range", "10.9.1.0/24", "--gateway", "10.9.0.254"),
        *("--aux-address", "printer=10.9.0.7", "--subnet", "fd00:9::/64", "--gateway", "fd00:9::1", "blue"),
    )
    shown = json.loads(run("network", "inspect", "blue").stdout)[0]
    assert (shown["Internal"], shown["Attachable"], shown["EnableIPv6"]) == (True, True, True)
    # The docker command sends subnets in any order.
    assert sorted(shown["IPAM"]["Config"], key=lambda pool: pool["Subnet"]) == [
        {
            "Subnet": "10.9.0.0/16",
            "IPRange": "10.9.1.0/24",
            "Gateway": "10.9.0.254",
            "AuxiliaryAddresses": {"printer": "10.9.0.7"},
        },
        {"Subnet": "fd00:9::/64", "Gateway": "fd00:9::1"},
    ]


def test_filters_reach_the_server(run: Run) -> None:
    run("network", "create", "--label", "team=a", "blue")
    for given in ("name=lu", "label=team", "label=team=a", "type=custom", "dangling=true"):
        assert run("network", "ls", "-q", "--no-trunc", "--format", "{{.Name}}", "--filter", given).stdout == "blue\n"
    assert "invalid filter 'colour'" in run("network", "ls", "--filter", "colour=red", status=1).stderr


def test_prune_keeps_the_defaults(run: Run) -> None:
    run("network", "create", "blue")
    assert run("network", "prune", "-f", "--filter", "until=24h").stdout == ""
    assert run("network", "prune", "-f").stdout == "Deleted Networks:\nblue\n\n"
    assert len(run("network", "ls", "-q").stdout.split()) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("create", "bridge"), "operation is not permitted on predefined bridge network"),
        (("create", "--subnet", "10.0.0.1/8", "x"), "it should be 10.0.0.0/8"),
        (("create", "-d", "nosuch", "x"), 'plugin "nosuch" not found'),
        (("create", "a b"), "only [a-zA-Z0-9][a-zA-Z0-9_.-]"),
        (("rm", "host"), "is a pre-defined network and cannot be removed"),
        (("rm", "nosuch"), "network nosuch not found"),
        (("inspect", "nosuch"), "network nosuch not found"),
        (("connect", "bridge", "nobody"), "No such container: nobody"),
        (("disconnect", "nosuch", "nobody"), "network nosuch not found"),
    ],
)
def test_errors_read_as_dockers(run: Run, words: tuple[str, ...], says: str) -> None:
    assert says in run("network", *words, status=1).stderr


def test_other_docker_commands_say_what_to_use_instead(run: Run) -> None:
    assert "linkspan run" in run("ps", status=1).stderr


def test_a_client_of_an_old_version_is_served(run: Run, monkeypatch: pytest.MonkeyPatch, server: ApiServer) -> None:
    for version, expected in (("1.24", True), ("1.40", True), ("1.23", False), ("1.99", False)):
        environment = {"DOCKER_HOST": f"unix://{server.socket_path}", "DOCKER_API_VERSION": version, "PATH": "/usr/bin"}
        done = subprocess.run(
            [str(DOCKER), "network", "ls", "-q"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode == 0) is expected, (version, done.stderr)
