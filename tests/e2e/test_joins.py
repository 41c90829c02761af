"""A join is complete when it returns: the first packet to the new endpoint arrives, whichever path it takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.hosts import Host, host

pytestmark = pytest.mark.root

JOINS = 20


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with host() as machine:
        machine.start("--metrics-listen", "off")
        yield machine


@pytest.mark.parametrize("accel", ["on", "off"])
@pytest.mark.parametrize("address", ["fresh", "again"])
def test_the_first_packet_after_a_join_arrives(machine: Host, accel: str, address: str) -> None:
    """An address that is had again needs no neighbour look-up, whose retries would hide a loss."""
    network = f"{accel}-{address}"
    body = {"Name": network, "Options": {"linkspan.accel": accel}}
    assert machine.ask("POST", "/networks/create", body).status == 201
    inside = ["nsenter", f"--net={machine.sandbox(f'sender-{network}', network)}", "sh"]
    wanted: dict[str, object] = {}
    lost = 0
    # A shell that is in the namespace already, so that the packet follows at once.
    with machine.popen(*inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        for _ in range(JOINS):
            spec = {"Name": "box", "Networks": [{"Network": network, **wanted}]}
            box = machine.ask("POST", "/linkspan/sandboxes", spec).json
            target = box["Networks"][network]["IPAddress"]
            if address == "again":
                wanted = {"IPAMConfig": {"IPv4Address": target}}
            shell.stdin.write(f"ping -q -c1 -W0.5 {target} >/dev/null; echo $?\n")
            shell.stdin.flush()
            lost += shell.stdout.readline() != "0\n"
            assert machine.ask("DELETE", "/linkspan/sandboxes/box").status == 204
        shell.stdin.close()
    assert lost == 0
