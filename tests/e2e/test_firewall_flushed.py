"""What others flush out of the firewall comes back, while everything runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts import Host, host, wait_for
from tests.traffic import Place

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with host() as made:
        made.start()
        yield made


def table(machine: Host) -> str:
    return machine.run("nft", "--stateless", "list", "table", "inet", "linkspan", check=False).stdout


@pytest.mark.parametrize("command", [("flush", "ruleset"), ("delete", "table", "inet", "linkspan")], ids=" ".join)
def test_networks_are_isolated_again(machine: Host, command: tuple[str, ...]) -> None:
    names = ("one", "two")
    for name in names:
        machine.linkspan("network", "create", name)
    before = table(machine)
    machine.run("nft", *command)
    wait_for(lambda: table(machine) == before, lambda: f"the table to come back:\n{machine.log()}")
    assert "somebody else has deleted the firewall's table" in machine.log()
    one, two = (Place(machine, name, machine.sandbox(name, name), "eth0") for name in names)
    assert one.pings(machine.api("GET", "/networks/one")["IPAM"]["Config"][0]["Gateway"])
    assert not one.pings(two.ip4)
    for name in names:
        machine.api("DELETE", f"/linkspan/sandboxes/{name}?force=1")
        machine.linkspan("network", "rm", name)
