"""The docker commands of this machine as the oracles: every flag of `docker network`, with linkspand for an engine."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.api_server import DEADLINE_SECONDS, ApiServer
from tests.docker_client import CLIENTS, NONE_FOUND, Docker, DockerClient
from tests.fakes import fake_controller

NEW = (28, 0)
"""From here on the command has --ipv4, --gw-priority, rm --force and --format json."""


@pytest.fixture(params=CLIENTS or [None], ids=str)
def client(request: pytest.FixtureRequest) -> DockerClient:
    if request.param is None:
        pytest.fail(NONE_FOUND)
    assert isinstance(request.param, DockerClient)
    return request.param


@pytest.fixture
def docker(client: DockerClient, server: ApiServer, tmp_path: Path) -> Docker:
    return Docker(client, f"unix://{server.socket_path}", tmp_path)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One server for all commands that are refused, and that therefore leave it as it is."""
    directory = tmp_path_factory.mktemp("refusing")
    with ApiServer(fake_controller(directory), directory / "api.sock") as running:
        body = {"Name": "taken", "IPAM": {"Config": [{"Subnet": "10.50.0.0/24"}]}}
        assert running.ask("POST", "/networks/create", body).status == 201
        for name, network in (("web", "taken"), ("db", "bridge")):
            body = {"Name": name, "Networks": [{"Network": network}]}
            assert running.ask("POST", "/linkspan/sandboxes", body).status == 201
        yield running


@pytest.fixture
def refused(client: DockerClient, refusing: ApiServer, tmp_path: Path) -> Docker:
    return Docker(client, f"unix://{refusing.socket_path}", tmp_path)


def inspected(docker: Docker, *names: str) -> Any:
    return json.loads(docker("network", "inspect", *names).stdout)


def listed(docker: Docker, *filters: str) -> list[str]:
    options = [word for given in filters for word in ("--filter", given)]
    return docker("network", "ls", "--format", "{{.Name}}", *options).stdout.split()


def test_version_names_both_sides(docker: Docker) -> None:
    shown = docker("version").stdout
    assert "Server: Linkspan" in shown
    assert "linkspand:" in shown
    assert docker("version", "--format", "{{.Server.Os}} {{.Server.MinAPIVersion}}").stdout == "linux 1.24\n"


def test_info_warns_of_nothing_that_is_not_so(docker: Docker) -> None:
    shown = docker("info")
    assert "Network: bridge host null" in shown.stdout
    assert "Swarm: inactive" in shown.stdout
    is_forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    warnings = [line for line in (shown.stdout + shown.stderr).splitlines() if "WARNING" in line]
    assert set(warnings) <= (set() if is_forwarding else {"WARNING: IPv4 forwarding is disabled"})


def test_ls_shows_the_three_defaults(docker: Docker) -> None:
    lines = docker("network", "ls").stdout.splitlines()
    assert lines[0].split() == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert [line.split()[1:] for line in lines[1:]] == [
        ["bridge", "bridge", "local"],
        ["host", "host", "local"],
        ["none", "null", "local"],
    ]


def test_ls_prints_every_column_in_every_format(docker: Docker) -> None:
    network_id = docker("network", "create", "--label", "team=a", "--internal", "--ipv6", "blue").stdout.strip()
    blue = ("network", "ls", "--filter", "name=blue")
    template = '{{.ID}} {{.Name}} {{.Driver}} {{.Scope}} {{.IPv6}} {{.Internal}} {{.Labels}} {{.Label "team"}}'
    assert docker(*blue, "--format", template).stdout == f"{network_id[:12]} blue bridge local true true team=a a\n"
    assert docker(*blue, "--format", "table {{.Name}}\t{{.IPv6}}").stdout.split() == ["NAME", "IPV6", "blue", "true"]
    assert docker(*blue, "--no-trunc", "--format", "{{.ID}}").stdout == f"{network_id}\n"
    assert docker(*blue, "-q").stdout == f"{network_id[:12]}\n"
    assert docker(*blue, "-q", "--no-trunc").stdout == f"{network_id}\n"
    row = json.loads(docker(*blue, "--format", "{{json .}}").stdout)
    assert (row["Name"], row["ID"], row["Internal"]) == ("blue", network_id[:12], "true")
    created = datetime.fromisoformat(row["CreatedAt"].split(".")[0])
    assert abs(created.timestamp() - datetime.now().astimezone().replace(tzinfo=None).timestamp()) < 86_400
    if docker.client.version >= NEW:
        assert json.loads(docker(*blue, "--format", "json").stdout) == row
        assert row["IPv4"] == "true"


def test_ls_filters_choose_as_dockers_engine_does(docker: Docker) -> None:
    network_id = docker("network", "create", "--label", "team=a", "--label", "tier", "blue").stdout.strip()
    for given in ("name=lu", "name=^bl.e$", f"id={network_id[:8]}", "label=team", "label=team=a", "type=custom"):
        assert listed(docker, given) == ["blue"], given
    assert listed(docker, "label=team", "label=tier") == ["blue"]
    assert listed(docker, "label=team=b") == []
    assert listed(docker, "dangling=true") == ["blue"]
    assert listed(docker, "dangling=0") == ["bridge", "host", "none"]
    assert listed(docker, "driver=null", "driver=host") == ["host", "none"]
    assert listed(docker, "type=builtin") == ["bridge", "host", "none"]
    assert listed(docker, "scope=local", "driver=bridge") == ["blue", "bridge"]
    assert listed(docker, "scope=swarm") == []


def test_the_guides_walk_through_works(docker: Docker, server: ApiServer) -> None:
    network_id = docker("network", "create", "-d", "bridge", "my_br_net").stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{64}", network_id)
    body = {"Name": "my_container", "Networks": [{"Network": "my_br_net"}]}
    sandbox_id = server.ask("POST", "/linkspan/sandboxes", body).json["Id"]
    shown = inspected(docker, "my_br_net")
    assert shown[0]["Id"] == network_id
    assert shown[0]["Containers"][sandbox_id]["Name"] == "my_container"
    refusal = docker("network", "rm", "my_br_net", status=1)
    assert "has active endpoints" in refusal.stderr
    assert "my_container" in refusal.stderr
    docker("network", "disconnect", "my_br_net", "my_container")
    docker("network", "connect", "--alias", "www", "my_br_net", "my_container")
    assert docker("network", "inspect", "-f", "{{len .Containers}}", "my_br_net").stdout == "1\n"
    docker("network", "disconnect", "-f", "my_br_net", "my_container")
    assert docker("network", "rm", "my_br_net").stdout == "my_br_net\n"


def test_create_takes_every_flag_of_a_network_that_stays_on_one_host(docker: Docker) -> None:
    docker(
        *("network", "create", "--driver", "bridge", "--internal", "--attachable", "--ipv6", "--scope", "local"),
        *("--label", "team=a", "-o", "fake.option=1", "--ipam-driver", "default", "--ipam-opt", "x=y"),
        *("--subnet", "10.9.0.0/16", "--ip-range", "10.9.1.0/24", "--gateway", "10.9.0.254"),
        *("--aux-address", "printer=10.9.0.7", "--subnet", "fd00:9::/64", "--gateway", "fd00:9::1", "blue"),
    )
    [shown] = inspected(docker, "blue")
    assert (shown["Internal"], shown["Attachable"], shown["EnableIPv6"], shown["Scope"]) == (True, True, True, "local")
    assert (shown["Labels"], shown["Options"]) == ({"team": "a"}, {"fake.option": "1"})
    assert (shown["IPAM"]["Driver"], shown["IPAM"]["Options"]) == ("default", {"x": "y"})
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


def test_networks_are_made_from_a_configuration(docker: Docker) -> None:
    docker(
        *("network", "create", "--config-only", "--subnet", "10.9.0.0/16", "--ip-range", "10.9.1.0/24"),
        *("--label", "team=a", "-o", "fake.option=1", "settings"),
    )
    docker("network", "create", "--config-from", "settings", "--internal", "blue")
    configuration, made = inspected(docker, "settings", "blue")
    assert (configuration["Driver"], configuration["ConfigOnly"]) == ("null", True)
    assert (made["Driver"], made["ConfigOnly"], made["ConfigFrom"]) == ("bridge", False, {"Network": "settings"})
    assert (made["Labels"], made["Options"], made["Internal"]) == ({"team": "a"}, {"fake.option": "1"}, True)
    assert {**made["IPAM"]["Config"][0], "Gateway": ""} == {**configuration["IPAM"]["Config"][0], "Gateway": ""}
    refusal = docker("network", "rm", "settings", status=1)
    assert 'configuration network "settings" is in use' in refusal.stderr
    docker("network", "prune", "-f")
    assert listed(docker, "type=custom") == ["settings"]
    assert docker("network", "rm", "settings").stdout == "settings\n"


def test_inspect_prints_what_is_there_and_fails_for_what_is_not(docker: Docker) -> None:
    docker("network", "create", "blue")
    assert [network["Name"] for network in inspected(docker, "blue", "host")] == ["blue", "host"]
    assert inspected(docker, "--verbose", "blue") == inspected(docker, "blue")
    assert docker("network", "inspect", "-f", "{{json .IPAM.Driver}}", "blue").stdout == '"default"\n'
    partly = docker("network", "inspect", "-f", "{{.Name}}", "blue", "nosuch", "host", status=1)
    assert partly.stdout.split() == ["blue", "host"]
    assert re.search("network nosuch not found|No such network: nosuch", partly.stderr)


def test_inspect_without_a_kind_finds_networks_too(docker: Docker) -> None:
    network_id = docker("network", "create", "blue").stdout.strip()
    assert json.loads(docker("inspect", "blue").stdout)[0]["Id"] == network_id
    assert json.loads(docker("inspect", "--type", "network", "blue").stdout)[0]["Id"] == network_id


def test_connect_takes_addresses_and_aliases(docker: Docker, server: ApiServer) -> None:
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    docker("network", "create", "--ipv6", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64", "blue")
    priority = ("--gw-priority", "5") if docker.client.version >= NEW else ()
    docker(
        *("network", "connect", "--ip", "10.9.0.9", "--ip6", "fd00:9::9", "--alias", "www", "--alias", "w", *priority),
        *("blue", "web"),
    )
    endpoint = server.ask("GET", "/linkspan/sandboxes/web").json["Networks"]["blue"]
    assert (endpoint["IPAddress"], endpoint["GlobalIPv6Address"]) == ("10.9.0.9", "fd00:9::9")
    assert endpoint["Aliases"] == ["www", "w"]
    assert endpoint["GwPriority"] == (5 if priority else 0)


def test_connect_takes_link_local_addresses(docker: Docker, server: ApiServer) -> None:
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    docker("network", "create", "--ipv6", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64", "blue")
    flags = ("--link-local-ip", "169.254.7.7,fe80::77", "--link-local-ip", "169.254.7.8")
    docker("network", "connect", *flags, "blue", "web")
    endpoint = server.ask("GET", "/linkspan/sandboxes/web").json["Networks"]["blue"]
    assert endpoint["IPAMConfig"] == {"LinkLocalIPs": ["169.254.7.7", "fe80::77", "169.254.7.8"]}


def test_connect_links_give_names_that_nobody_else_sees(docker: Docker, server: ApiServer) -> None:
    docker("network", "create", "--subnet", "10.9.0.0/24", "blue")
    for name in ("web", "db", "other"):
        server.ask("POST", "/linkspan/sandboxes", {"Name": name})
    docker("network", "connect", "--link", "db:store", "--link", "nobody:ghost", "blue", "web")
    docker("network", "connect", "--ip", "10.9.0.9", "blue", "db")
    docker("network", "connect", "blue", "other")

    def hosts(name: str) -> list[str]:
        path = server.ask("GET", f"/linkspan/sandboxes/{name}").json["HostsPath"]
        return Path(path).read_text().splitlines()

    deadline = time.monotonic() + DEADLINE_SECONDS
    while "10.9.0.9\tstore" not in hosts("web"):
        assert time.monotonic() < deadline, hosts("web")
        time.sleep(0.005)
    assert not any("store" in line or "ghost" in line for line in hosts("other") + hosts("db"))


def test_rm_removes_what_it_can_and_fails_for_the_rest(docker: Docker) -> None:
    docker("network", "create", "blue")
    network_id = docker("network", "create", "green").stdout.strip()
    partly = docker("network", "rm", "blue", "nosuch", network_id[:12], status=1)
    assert partly.stdout.split() == ["blue", network_id[:12]]
    assert "nosuch" in partly.stderr
    assert listed(docker, "type=custom") == []
    if docker.client.version >= NEW:
        docker("network", "rm", "--force", "nosuch")


def test_prune_keeps_the_defaults_and_what_its_filters_keep(docker: Docker) -> None:
    docker("network", "create", "--label", "keep", "blue")
    docker("network", "create", "green")
    assert docker("network", "prune", "-f", "--filter", "until=24h").stdout == ""
    assert docker("network", "prune", "-f", "--filter", "label=nosuch").stdout == ""
    docker("network", "prune", stdin="n\n")
    assert listed(docker, "type=custom") == ["blue", "green"]
    assert docker("network", "prune", "-f", "--filter", "label!=keep").stdout == "Deleted Networks:\ngreen\n\n"
    assert docker("network", "prune", stdin="y\n").stdout.endswith("Deleted Networks:\nblue\n\n")
    assert listed(docker) == ["bridge", "host", "none"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("create", "taken"), "network with name taken already exists"),
        (("create", "bridge"), "operation is not permitted on predefined bridge network"),
        (("create", "default"), "operation is not permitted on predefined default network"),
        (("create", "--subnet", "10.0.0.1/8", "x"), "it should be 10.0.0.0/8"),
        (("create", "--subnet", "10.50.0.0/16", "x"), "Pool overlaps with other one on this address space"),
        (("create", "--subnet", "10.1.0.0/24", "--ip-range", "10.1.0.0/16", "x"), "ip-range 10.1.0.0/16"),
        (("create", "-d", "nosuch", "x"), 'plugin "nosuch" not found'),
        (("create", "--ipam-driver", "nosuch", "x"), 'plugin "nosuch" not found'),
        (("create", "-o", "nosuch=1", "x"), "unknown option 'nosuch'"),
        (("create", "a b"), "only [a-zA-Z0-9][a-zA-Z0-9_.-]"),
        (("create", "--ingress", "x"), "Ingress network can only be global scope network"),
        (("create", "--scope", "swarm", "x"), "cannot create a swarm scoped network when swarm is not active"),
        (("create", "--config-only", "--internal", "x"), "configuration network can only contain network specific"),
        (("create", "--config-from", "taken", "x"), 'configuration network "taken" does not exist'),
        (("create", "--config-from", "x", "--label", "a", "y"), "user-specified configurations are not supported"),
        (("rm", "host"), "is a pre-defined network and cannot be removed"),
        (("rm", "taken"), "network taken id"),
        (("rm", "taken"), "has active endpoints"),
        (("rm", "nosuch"), "nosuch"),
        (("inspect", "nosuch"), "nosuch"),
        (("ls", "--filter", "colour=red"), "invalid filter 'colour'"),
        (("ls", "--filter", "type=mine"), "invalid filter: 'type'='mine'"),
        (("prune", "-f", "--filter", "driver=x"), "invalid filter 'driver'"),
        (("prune", "-f", "--filter", "until=1h", "--filter", "until=2h"), "more than one until filter specified"),
        (("connect", "bridge", "nobody"), "No such container: nobody"),
        (("connect", "nosuch", "web"), "network nosuch not found"),
        (("connect", "taken", "web"), "endpoint with name web already exists in network taken"),
        (("connect", "host", "web"), "cannot be connected to any other network"),
        (("connect", "--ip", "10.51.0.9", "taken", "db"), "no configured subnet contains"),
        (("connect", "--ip", "10.50.0.2", "taken", "db"), "10.50.0.2"),
        (("connect", "--link", "web:a b", "taken", "db"), "invalid alias 'a b'"),
        (("connect", "--link-local-ip", "10.0.0.1", "taken", "db"), "invalid link local IP address: 10.0.0.1"),
        (("connect", "--link-local-ip", "fe80::1", "taken", "db"), "network taken has no IPv6 subnet"),
        (("connect", "--driver-opt", "nosuch=1", "taken", "db"), "unknown option 'nosuch'"),
        (("disconnect", "nosuch", "web"), "network nosuch not found"),
        (("disconnect", "taken", "nobody"), "No such container: nobody"),
        (("disconnect", "taken", "db"), "is not connected to network taken"),
        (("disconnect", "--force", "taken", "db"), "is not connected to network taken"),
    ],
)
def test_errors_read_as_dockers(refused: Docker, words: tuple[str, ...], says: str) -> None:
    assert says in refused("network", *words, status=1).stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ps",), "linkspan ps"),
        (("run", "alpine"), "linkspan run"),
        (("exec", "web", "true"), "exec"),
        (("rm", "web"), "rm"),
        (("images",), "docker network create -d linkspan"),
        (("pull", "alpine"), "docker network create -d linkspan"),
        (("volume", "ls"), "Docker's own engine"),
        (("system", "df"), "Docker's own engine"),
        (("swarm", "init"), "Docker's own engine"),
        (("service", "ls"), "Docker's own engine"),
        (("plugin", "ls"), "Docker's own engine"),
    ],
)
def test_other_docker_commands_say_what_to_use_instead(refused: Docker, words: tuple[str, ...], says: str) -> None:
    complaint = refused(*words, status=125 if words[0] == "run" else 1).stderr
    assert "linkspand serves Docker's network API only" in complaint
    assert says in complaint


def test_events_stream_as_they_happen_and_end_with_the_client(docker: Docker, server: ApiServer) -> None:
    assert server.context is not None
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    command = docker.command("events", "--filter", "type=network", "--filter", "network=blue", "--format", "{{json .}}")
    with subprocess.Popen(command, env=docker.environment, stdout=subprocess.PIPE, text=True) as following:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not server.context.events.readers:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            docker("network", "create", "green")
            network_id = docker("network", "create", "blue").stdout.strip()
            docker("network", "connect", "blue", "web")
            docker("network", "disconnect", "blue", "web")
            docker("network", "rm", "blue")
            assert following.stdout is not None
            seen = [json.loads(following.stdout.readline()) for _ in range(4)]
        finally:
            following.kill()
    assert [event["Action"] for event in seen] == ["create", "connect", "disconnect", "destroy"]
    assert {(event["Type"], event["Actor"]["ID"]) for event in seen} == {("network", network_id)}
    assert {event["Actor"]["Attributes"]["type"] for event in seen} == {"bridge"}


def test_past_events_are_chosen_by_filters_and_end_by_themselves(docker: Docker, server: ApiServer) -> None:
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    docker("network", "create", "blue")
    docker("network", "prune", "-f")
    past = ("events", "--since", "1h", "--until", f"{time.time():.6f}")

    def events(*filters: str) -> list[str]:
        options = [word for given in filters for word in ("--filter", given)]
        return docker(*past, "--format", "{{.Type}} {{.Action}}", *options).stdout.splitlines()

    assert events("type=network") == ["network connect", "network create", "network destroy", "network prune"]
    assert events("event=create") == ["container create", "network create"]
    assert events("network=blu", "event=destroy") == ["network destroy"]
    assert events("container=web") == ["container create"]
    assert events("label=name=blue") == ["network create", "network destroy"]
    assert events("scope=swarm") == events("image=x") == events("volume=x", "type=network") == []
    assert re.search(r"network create [0-9a-f]{64} \(name=blue, type=bridge\)", docker(*past).stdout)


def test_a_client_of_any_version_in_between_is_served_and_no_other(docker: Docker) -> None:
    for version in ("1.24", "1.40"):
        assert len(docker("network", "ls", "-q", env={"DOCKER_API_VERSION": version}).stdout.split()) == 3
    for version, says in (("1.23", "is too old. Minimum supported API version is 1.24"), ("1.99", "is too new")):
        assert says in docker("network", "ls", env={"DOCKER_API_VERSION": version}, status=1).stderr


def test_ipv4_may_be_left_out(docker: Docker) -> None:
    if docker.client.version < NEW:
        assert "unknown flag" in docker("network", "create", "--ipv4=false", "six", status=125).stderr
        return
    docker("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd00:6::/64", "six")
    [shown] = inspected(docker, "six")
    assert (shown["EnableIPv4"], shown["EnableIPv6"]) == (False, True)
    assert [pool["Subnet"] for pool in shown["IPAM"]["Config"]] == ["fd00:6::/64"]
    assert "IPv4 or IPv6 must be enabled" in docker("network", "create", "--ipv4=false", "none-at-all", status=1).stderr
