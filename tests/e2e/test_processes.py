"""Processes in sandboxes, as users run them: exit codes, signals, logs, names, and what happens when they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agreement import assert_agreement
from tests.hosts import Host, host, wait_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with host() as machine:
        machine.start("--metrics-listen", "off")
        body = {
            "Name": "net",
            "EnableIPv6": True,
            "IPAM": {"Config": [{"Subnet": "10.5.0.0/24"}, {"Subnet": "fd05::/64"}]},
        }
        assert machine.ask("POST", "/networks/create", body).status == 201
        assert machine.ask("POST", "/networks/create", {"Name": "other"}).status == 201
        yield machine


@pytest.fixture
def machine(shared: Host) -> Iterator[Host]:
    """The host, whose sandboxes are removed after each test."""
    yield shared
    for sandbox in shared.ask("GET", "/linkspan/sandboxes?all=1").json:
        reply = shared.ask("DELETE", f"/linkspan/sandboxes/{sandbox['Id']}?force=1")
        assert reply.status == 204, f"{reply.message}\n{shared.log()}"
    assert_agreement(shared)


def detached(machine: Host, name: str, *options: str, command: tuple[str, ...] = ("sleep", "600")) -> str:
    return machine.linkspan("run", "-d", "--name", name, "--net", "net", *options, "--", *command).stdout.strip()


def inspect(machine: Host, name: str) -> Any:
    return machine.ask("GET", f"/linkspan/sandboxes/{name}").json


def is_alive(pid: int) -> bool:
    """Alive, and not a zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def exited(machine: Host, name: str) -> Any:
    """The sandbox, once its process has ended and its endpoints have left."""

    def settled() -> Any:
        box = inspect(machine, name)
        return box if box["State"] == "exited" and not box["Networks"] else None

    return wait_for(settled, f"{name} to have exited")


# -- run, in the foreground


@pytest.mark.parametrize("code", [0, 42])
def test_run_returns_the_commands_exit_code(machine: Host, code: int) -> None:
    done = machine.linkspan(
        "run", "--name", "fg", "--net", "net", "--", "sh", "-c", f"echo out; exit {code}", check=False
    )
    assert (done.returncode, done.stdout) == (code, "out\n")
    assert exited(machine, "fg")["ExitCode"] == code


def test_run_returns_128_and_the_number_of_the_signal_that_ended_the_command(machine: Host) -> None:
    done = machine.linkspan("run", "--name", "fg", "--", "sh", "-c", "kill -TERM $$", check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert exited(machine, "fg")["ExitCode"] == 128 + signal.SIGTERM


def test_run_hands_on_signals_and_standard_input(machine: Host) -> None:
    done = machine.linkspan("run", "--rm", "--", "cat", input="hello\n")
    assert done.stdout == "hello\n"
    script = "trap 'echo asked to end; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    command = machine.enter(*machine.cli("run", "--name", "fg", "--", "sh", "-c", script))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "asked to end\n"
        assert process.wait(20) == 7


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (("no-such-command",), 127, "no-such-command"),
        (("/etc",), 126, "/etc"),
    ],
)
@pytest.mark.parametrize("mode", [(), ("-d",)], ids=["foreground", "detached"])
def test_a_command_that_cannot_be_run_leaves_no_sandbox(
    machine: Host, mode: tuple[str, ...], command: tuple[str, ...], code: int, says: str
) -> None:
    done = machine.linkspan("run", *mode, "--name", "bad", "--net", "net", "--", *command, check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert machine.ask("GET", "/linkspan/sandboxes/bad").status == 404


def test_run_with_rm_leaves_no_sandbox(machine: Host) -> None:
    assert machine.linkspan("run", "--rm", "--name", "gone", "--", "true").returncode == 0
    assert machine.ask("GET", "/linkspan/sandboxes/gone").status == 404
    detached(machine, "gone", "--rm", command=("true",))
    wait_for(lambda: machine.ask("GET", "/linkspan/sandboxes/gone").status == 404, "the sandbox to be removed")


def test_run_uses_the_addresses_that_are_asked_for(machine: Host) -> None:
    asked = ("--ip", "10.5.0.77", "--ip6", "fd05::77", "--mac-address", "02:11:22:33:44:55")
    done = machine.linkspan("run", "--net", "net", *asked, "--", "ip", "-json", "address", "show", "dev", "eth0")
    (link,) = json.loads(done.stdout)
    assert link["address"] == "02:11:22:33:44:55"
    assert {"10.5.0.77", "fd05::77"} <= {address["local"] for address in link["addr_info"]}


# -- detached, exec, ps, logs, rm


def test_a_detached_sandbox_is_listed_entered_logged_and_removed(machine: Host) -> None:
    identity = detached(machine, "web", command=("sh", "-c", "echo one; echo two >&2; exec sleep 600"))
    box = inspect(machine, "web")
    assert (box["Id"], box["State"]) == (identity, "running")
    inode = machine.run("stat", "-L", "-c", "%i", box["NetnsPath"]).stdout.strip()
    assert os.readlink(f"/proc/{box['Pid']}/ns/net") == f"net:[{inode}]"
    row = machine.linkspan("ps").stdout.splitlines()[1]
    assert row.startswith(identity[:12])
    assert "web" in row
    assert "sh -c" in row
    assert machine.linkspan("ps", "-q").stdout == f"{identity[:12]}\n"
    hostname = machine.linkspan("exec", "web", "hostname").stdout
    assert hostname == "web\n"
    assert machine.linkspan("exec", "web", "sh", "-c", "exit 9", check=False).returncode == 9
    wait_for(lambda: machine.linkspan("logs", "web").stdout == "one\ntwo\n", "both lines in the log")

    refused = machine.linkspan("rm", "web", check=False)
    assert refused.returncode != 0
    assert "web" in refused.stderr
    assert "running" in refused.stderr
    assert is_alive(box["Pid"])
    assert machine.linkspan("rm", "-f", "web").stdout == "web\n"
    wait_for(lambda: not is_alive(box["Pid"]), "the process to be killed")
    assert machine.linkspan("ps", "-aq").stdout == ""


def test_rm_with_force_kills_what_the_command_has_started_too(machine: Host) -> None:
    detached(machine, "family", command=("sh", "-c", "setsid sleep 601 & echo $!; exec sleep 600"))
    child = int(wait_for(lambda: machine.linkspan("logs", "family").stdout, "the child's pid"))
    assert is_alive(child)
    machine.linkspan("rm", "-f", "family")
    wait_for(lambda: not is_alive(child), "the child to be killed")


# -- names


def as_process_of(box: Any, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the main process's own view of network, files and host name."""
    entered = ["nsenter", f"--target={box['Pid']}", "--net", "--mount", "--uts", "--", *command]
    return subprocess.run(entered, capture_output=True, text=True, timeout=20, check=False)


def resolves(box: Any, name: str) -> set[str]:
    return {line.split()[0] for line in as_process_of(box, "getent", "-s", "files", "ahosts", name).stdout.splitlines()}


def is_at(box: Any, name: str, addresses: set[str]) -> bool:
    return resolves(box, name) == addresses


def test_names_and_aliases_resolve_as_endpoints_come_and_go(machine: Host) -> None:
    detached(machine, "client")
    client = inspect(machine, "client")
    assert resolves(client, "server") == set()
    detached(machine, "server", "--network-alias", "db", "--ip", "10.5.0.30", "--ip6", "fd05::30")
    server = inspect(machine, "server")
    for name in ("server", "db"):
        wait_for(partial(is_at, client, name, {"10.5.0.30", "fd05::30"}), f"{name} to resolve")
        for family in ("-4", "-6"):
            assert as_process_of(client, "ping", family, "-q", "-c1", "-W2", name).returncode == 0
    assert resolves(server, "server") == resolves(server, server["Id"][:12]) == {"10.5.0.30", "fd05::30"}
    assert resolves(client, "localhost") <= {"127.0.0.1", "::1"} != set()

    machine.linkspan("network", "disconnect", "net", "server")
    wait_for(lambda: resolves(client, "db") == set(), "the alias to be forgotten")
    machine.linkspan("network", "connect", "--alias", "cache", "net", "server")
    wait_for(lambda: len(resolves(client, "cache")) == 2, "the new alias to resolve")
    assert resolves(client, "db") == set()
    machine.linkspan("rm", "-f", "server")
    wait_for(lambda: resolves(client, "server") == set(), "the name to be forgotten")


def test_names_of_other_networks_do_not_resolve(machine: Host) -> None:
    detached(machine, "here")
    machine.linkspan("run", "-d", "--name", "there", "--net", "other", "--", "sleep", "600")
    here, there = inspect(machine, "here"), inspect(machine, "there")
    wait_for(lambda: resolves(there, "there"), "its own name to resolve")
    assert resolves(here, "there") == set()


def test_a_sandbox_has_the_hosts_resolver_without_name_servers_on_loopback(machine: Host) -> None:
    resolv = machine.dir / "resolv.conf"
    resolv.write_text(
        "search example.org\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\noptions ndots:2\n"
    )
    machine.run("mount", "--bind", str(resolv), "/etc/resolv.conf")
    machine.stop()
    machine.start("--metrics-listen", "off")
    try:
        done = machine.linkspan("run", "--rm", "--net", "net", "--", "cat", "/etc/resolv.conf")
        assert done.stdout == "search example.org\nnameserver 192.0.2.1\noptions ndots:2\n"
        done = machine.linkspan("run", "--rm", "--net", "host", "--", "cat", "/etc/resolv.conf")
        assert done.stdout == resolv.read_text()
    finally:
        machine.run("umount", "/etc/resolv.conf")


# -- host and none


def test_a_sandbox_on_the_host_network_has_the_hosts_own_stack(machine: Host) -> None:
    own = machine.run("readlink", "/proc/self/ns/net").stdout
    assert machine.linkspan("run", "--rm", "--net", "host", "--", "readlink", "/proc/self/ns/net").stdout == own


def test_a_sandbox_on_none_has_loopback_alone(machine: Host) -> None:
    links = machine.linkspan("run", "--rm", "--net", "none", "--", "ip", "-json", "link").stdout
    assert [(link["ifname"], "UP" in link["flags"]) for link in json.loads(links)] == [("lo", True)]


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("host", "net", "container sharing network namespace with another container or host"),
        ("net", "host", "container sharing network namespace with another container or host"),
        ("none", "net", "one of the networks in private (none) mode"),
        ("net", "none", "one of the networks in private (none) mode"),
        ("net", "net", "endpoint with name box already exists in network net"),
    ],
)
def test_networks_that_do_not_go_together_are_refused(machine: Host, first: str, second: str, says: str) -> None:
    machine.linkspan("run", "-d", "--name", "box", "--net", first, "--", "sleep", "600")
    done = machine.linkspan("network", "connect", second, "box", check=False)
    assert done.returncode == 1
    assert says in done.stderr
    both = machine.linkspan("run", "--name", "box2", "--net", first, "--net", second, "--", "true", check=False)
    assert both.returncode != 0
    assert says.replace("box", "box2") in both.stderr
    assert machine.ask("GET", "/linkspan/sandboxes/box2").status == 404


def test_a_sandbox_cannot_leave_the_host_network(machine: Host) -> None:
    machine.linkspan("run", "-d", "--name", "box", "--net", "host", "--", "sleep", "600")
    done = machine.linkspan("network", "disconnect", "host", "box", check=False)
    assert done.returncode == 1
    assert "cannot be disconnected from host network" in done.stderr


# -- the end of a process


def test_when_its_process_ends_a_sandboxs_endpoints_leave_and_the_address_is_free(machine: Host) -> None:
    detached(machine, "short", "--ip", "10.5.0.9", command=("sleep", "600"))
    os.kill(inspect(machine, "short")["Pid"], signal.SIGTERM)
    assert exited(machine, "short")["ExitCode"] == 128 + signal.SIGTERM
    row = machine.linkspan("ps", "-a").stdout.splitlines()[1]
    assert "exited (143)" in row
    detached(machine, "next", "--ip", "10.5.0.9")
    assert machine.linkspan("exec", "short", "true", check=False).returncode != 0
    refused = machine.linkspan("network", "connect", "net", "short", check=False)
    assert "container short is not running" in refused.stderr
    assert machine.linkspan("rm", "short").stdout == "short\n"


def test_a_process_that_ends_while_linkspand_is_down_is_noticed_at_its_next_start(machine: Host) -> None:
    detached(machine, "short", "--ip", "10.5.0.9", command=("sh", "-c", "read line </dev/null; exec sleep 600"))
    detached(machine, "long")
    pid = inspect(machine, "short")["Pid"]
    machine.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: not is_alive(pid), "the process to end")
    machine.start("--metrics-listen", "off")
    assert exited(machine, "short")["ExitCode"] == 128 + signal.SIGINT
    assert inspect(machine, "long")["State"] == "running"
    detached(machine, "next", "--ip", "10.5.0.9")


def test_the_exit_code_is_unknown_when_the_supervisor_was_killed_too(machine: Host) -> None:
    detached(machine, "orphan")
    pid = inspect(machine, "orphan")["Pid"]
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    assert exited(machine, "orphan")["ExitCode"] is None
