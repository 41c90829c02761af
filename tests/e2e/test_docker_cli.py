"""The docker commands of this machine against a real linkspand: what they say is what the kernel has."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docker_client import CLIENTS, NONE_FOUND, Docker, DockerClient
from tests.e2e.agreement import assert_agreement
from tests.hosts import Host, host, wait_for

pytestmark = pytest.mark.root


def addresses(machine: Host, sandbox: str, scope: str = "global") -> set[str]:
    """The addresses of a scope of every interface in a sandbox's namespace, as `ip` shows them there."""
    netns = machine.api("GET", f"/linkspan/sandboxes/{sandbox}")["NetnsPath"]
    shown = json.loads(machine.run("nsenter", f"--net={netns}", "--", "ip", "-json", "address").stdout)
    return {
        f"{address['local']}/{address['prefixlen']}"
        for link in shown
        for address in link["addr_info"]
        if address["scope"] == scope
    }


def devices(machine: Host) -> set[str]:
    return {link["ifname"] for link in machine.ip("link")}


def inspected(docker: Docker, name: str) -> dict[str, Any]:
    [network] = json.loads(docker("network", "inspect", name).stdout)
    return dict(network)


@pytest.mark.parametrize("client", CLIENTS or [None], ids=str)
def test_a_docker_command_manages_networks_that_carry_packets(client: DockerClient | None, tmp_path: Path) -> None:
    if client is None:
        pytest.fail(NONE_FOUND)
    with host() as machine:
        machine.start("--metrics-listen", "off")
        docker = Docker(client, f"unix://{machine.socket}", tmp_path)
        at_first = devices(machine)
        command = docker.command(
            *("events", "--filter", "network=fast", "--filter", "network=settings", "--filter", "network=made"),
            *("--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"),
        )
        with subprocess.Popen(command, env=docker.environment, stdout=subprocess.PIPE, text=True) as events:
            try:
                wait_for(
                    lambda: json.loads(docker("info", "--format", "{{json .NEventsListener}}").stdout) == 1, "events"
                )
                walk_through(docker, machine)
                assert devices(machine) == at_first
                assert events.stdout is not None
                seen = [events.stdout.readline().strip() for _ in range(10)]
            finally:
                events.kill()
        told = ["create fast", "connect fast", "connect fast", "disconnect fast", "create settings", "create made"]
        told += ["destroy made", "destroy settings", "disconnect fast", "destroy fast"]
        assert seen == [f"network {words}" for words in told]
        info = docker("info")
        assert "WARNING" not in info.stdout + info.stderr
        assert_agreement(machine)


def walk_through(docker: Docker, machine: Host) -> None:
    network_id = docker(
        *("network", "create", "--ipv6", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64", "--label", "team=a"),
        *("-o", "com.docker.network.driver.mtu=1400", "fast"),
    ).stdout.strip()
    bridge = f"br-{network_id[:12]}"
    [link] = machine.ip("address", "show", bridge)
    assert {a["local"] for a in link["addr_info"] if a["scope"] == "global"} == {"10.9.0.1", "fd00:9::1"}
    assert link["mtu"] == 1400

    for name in ("web", "db"):
        machine.linkspan("run", "-d", "--net", "none", "--name", name, "--", "sleep", "3600")
        docker("network", "disconnect", "none", name)
    docker("network", "connect", "--ip", "10.9.0.9", "--ip6", "fd00:9::9", "--alias", "www", "fast", "web")
    docker("network", "connect", "--link-local-ip", "169.254.7.7,fe80::77", "fast", "db")
    assert {"169.254.7.7/16", "fe80::77/64"} < addresses(machine, "db", scope="link")
    assert addresses(machine, "web") == {"10.9.0.9/24", "fd00:9::9/64"}
    joined = {entry["Name"]: entry["IPv4Address"] for entry in inspected(docker, "fast")["Containers"].values()}
    assert joined["web"] == "10.9.0.9/24"
    assert joined["db"] in addresses(machine, "db")
    machine.linkspan("exec", "db", "ping", "-c1", "-W5", "www")

    assert "has active endpoints" in docker("network", "rm", "fast", status=1).stderr
    assert docker("network", "prune", "-f").stdout == ""
    docker("network", "disconnect", "fast", "web")
    assert addresses(machine, "web") == set()

    docker("network", "create", "--config-only", "--subnet", "10.8.0.0/24", "settings")
    docker("network", "create", "--config-from", "settings", "--internal", "made")
    assert inspected(docker, "made")["IPAM"]["Config"] == [{"Subnet": "10.8.0.0/24", "Gateway": "10.8.0.1"}]
    assert docker("network", "rm", "made", "settings").stdout == "made\nsettings\n"

    docker("network", "disconnect", "--force", "fast", "db")
    assert docker("network", "prune", "-f", "--filter", "label=team=a").stdout == "Deleted Networks:\nfast\n\n"
    machine.linkspan("rm", "-f", "web", "db")
