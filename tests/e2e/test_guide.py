"""The Docker networking guide's examples, in its order, with `linkspan` in the place of `docker`."""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e.agreement import assert_agreement
from tests.hosts import Host, host

pytestmark = pytest.mark.root

DEFAULTS = [("bridge", "bridge"), ("host", "host"), ("none", "null")]


def listed(machine: Host) -> list[tuple[str, str]]:
    """(name, driver) of every line of `network ls`, whose header is Docker's."""
    header, *lines = machine.linkspan("network", "ls").stdout.splitlines()
    assert re.fullmatch(r"NETWORK ID +NAME +DRIVER +SCOPE", header)
    rows = [line.split() for line in lines]
    assert all(re.fullmatch("[0-9a-f]{12}", row[0]) and row[3] == "local" for row in rows)
    return [(row[1], row[2]) for row in rows]


def containers(machine: Host) -> dict[str, str]:
    """Sandbox id to name, as `network inspect my_br_net` shows them under Containers."""
    (network,) = json.loads(machine.linkspan("network", "inspect", "my_br_net").stdout)
    assert (network["Name"], network["Driver"], network["Scope"]) == ("my_br_net", "bridge", "local")
    return {id_: entry["Name"] for id_, entry in network["Containers"].items()}


def test_every_example_of_the_docker_networking_guide_works() -> None:
    with host() as machine:
        machine.start("--metrics-listen", "off")

        usage = machine.linkspan("network", "--help").stdout
        commands = re.findall(r"^  (\w+) ", usage, re.MULTILINE)
        assert {"connect", "create", "disconnect", "inspect", "ls", "prune", "rm"} <= set(commands)

        assert listed(machine) == DEFAULTS

        created = machine.linkspan("network", "create", "-d", "bridge", "my_br_net").stdout
        assert re.fullmatch("[0-9a-f]{64}\n", created)
        assert listed(machine) == sorted([*DEFAULTS, ("my_br_net", "bridge")])

        ran = machine.linkspan("run", "-d", "--net=my_br_net", "--name", "my_container", "--", "sleep", "3600").stdout
        assert re.fullmatch("[0-9a-f]{64}\n", ran)
        assert containers(machine) == {ran.strip(): "my_container"}

        assert machine.linkspan("network", "disconnect", "my_br_net", "my_container").stdout == ""
        assert containers(machine) == {}

        second = machine.linkspan("run", "-d", "--name", "my_container2", "sleep", "3600").stdout
        assert machine.linkspan("network", "connect", "my_br_net", "my_container2").stdout == ""
        assert containers(machine) == {second.strip(): "my_container2"}

        refused = machine.linkspan("network", "rm", "my_br_net", check=False)
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert re.search(
            r"error while removing network: network my_br_net .*has active endpoints .*my_container2", refused.stderr
        )
        machine.linkspan("network", "disconnect", "my_br_net", "my_container2")
        assert machine.linkspan("network", "rm", "my_br_net").stdout == "my_br_net\n"
        assert listed(machine) == DEFAULTS

        for name in ("my_net1", "my_net2"):
            machine.linkspan("network", "create", name)
        machine.linkspan("network", "create", "in_use")
        machine.linkspan("network", "connect", "in_use", "my_container")
        declined = machine.linkspan("network", "prune", input="n\n", check=False)
        assert "Are you sure you want to continue? [y/N]" in declined.stdout
        assert len(listed(machine)) == 6
        nothing = machine.linkspan("network", "prune", "-f", "--filter", "until=1h").stdout
        assert nothing == ""
        pruned = machine.linkspan("network", "prune", input="y\n").stdout
        assert "WARNING! This will remove all custom networks not used by at least one container." in pruned
        assert pruned.endswith("Deleted Networks:\nmy_net1\nmy_net2\n\n")
        assert listed(machine) == sorted([*DEFAULTS, ("in_use", "bridge")])

        assert machine.linkspan("rm", "-f", "my_container", "my_container2").stdout == "my_container\nmy_container2\n"
        assert machine.linkspan("network", "prune", "-f").stdout == "Deleted Networks:\nin_use\n\n"
        assert listed(machine) == DEFAULTS
        assert_agreement(machine)
