"""Everything that a user may get wrong, through the real command line and API: a clear error, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.agreement import assert_agreement, shown
from tests.hosts import Host, host

pytestmark = pytest.mark.root

LONG = "n" * 10_000


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with host() as machine:
        machine.start("--metrics-listen", "off")
        machine.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "wire")
        body = {"Name": "taken", "IPAM": {"Config": [{"Subnet": "10.4.0.0/24"}]}}
        assert machine.ask("POST", "/networks/create", body).status == 201
        address = {"IPAMConfig": {"IPv4Address": "10.4.0.9"}, "MacAddress": "02:00:00:00:00:09"}
        for name, networks in (("box", [{"Network": "taken", **address}]), ("free", [{"Network": "bridge"}])):
            reply = machine.ask("POST", "/linkspan/sandboxes", {"Name": name, "Networks": networks})
            assert reply.status == 201, reply.body
        yield machine
        machine.run("ip", "link", "delete", "uplink")
        assert_agreement(machine)


@pytest.fixture
def machine(shared: Host) -> Iterator[Host]:
    before = shown(shared)
    yield shared
    assert shown(shared) == before


CREATE = ("network", "create")
COMMANDS: list[tuple[tuple[str, ...], str]] = [
    # subnets
    ((*CREATE, "--subnet", "10.4.0.0/24", "new"), "Pool overlaps with other one on this address space"),
    ((*CREATE, "--subnet", "10.4.0.0/16", "new"), "Pool overlaps with other one on this address space"),
    ((*CREATE, "--subnet", "10.4.0.128/25", "new"), "Pool overlaps with other one on this address space"),
    ((*CREATE, "--subnet", "10.9.0.1/24", "new"), "10.9.0.1/24"),
    ((*CREATE, "--subnet", "10.9.0.0/33", "new"), "10.9.0.0/33"),
    ((*CREATE, "--subnet", "nonsense", "new"), "nonsense"),
    ((*CREATE, "--subnet", "10.9.0.0/24", "--gateway", "10.10.0.1", "new"), "10.10.0.1"),
    ((*CREATE, "--subnet", "10.9.0.0/24", "--ip-range", "10.10.0.0/25", "new"), "10.10.0.0/25"),
    ((*CREATE, "--subnet", "10.9.0.0/24", "--aux-address", "x=10.9.1.1", "new"), "10.9.1.1"),
    ((*CREATE, "--gateway", "10.9.0.1", "new"), "subnet"),
    ((*CREATE, "--subnet", "fd09::/64", "new"), "--ipv6"),
    ((*CREATE, "--subnet", "224.0.0.0/24", "new"), "224.0.0.0/24"),
    # names
    ((*CREATE, "taken"), "network with name taken already exists"),
    ((*CREATE, ""), "name cannot be empty"),
    ((*CREATE, LONG), "10000 characters"),
    ((*CREATE, "a b"), "only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed"),
    ((*CREATE, "host"), "predefined host network"),
    # drivers and options
    ((*CREATE, "-d", "nosuch", "new"), 'could not find plugin "nosuch"'),
    ((*CREATE, "-d", "host", "new"), 'only one instance of "host" network is allowed'),
    ((*CREATE, "-o", "linkspan.nosuch=1", "new"), "unknown option 'linkspan.nosuch'"),
    ((*CREATE, "-o", "linkspan.accel=perhaps", "new"), "use true or false"),
    ((*CREATE, "-o", "com.docker.network.driver.mtu=9", "new"), "from 68 to 65535"),
    ((*CREATE, "-o", "com.docker.network.bridge.name=uplink", "new"), "device uplink exists on this host"),
    *(
        ((*CREATE, "-o", f"com.docker.network.bridge.name={name}", "new"), "no quotes, no")
        for name in ("br+", "b'r", 'b"r', "b\\r")
    ),
    ((*CREATE, "-o", "com.docker.network.bridge.name=far-too-long-for-one", "new"), "at most 15 characters"),
    # joins
    (("network", "connect", "taken", "nobody"), "No such container: nobody"),
    (("network", "connect", "nowhere", "free"), "network nowhere not found"),
    (("network", "connect", "taken", "box"), "endpoint with name box already exists in network taken"),
    (("network", "connect", "--ip", "10.4.0.9", "taken", "free"), "Address already in use: 10.4.0.9"),
    (("network", "connect", "--ip", "10.4.0.1", "taken", "free"), "gateway of network taken"),
    (("network", "connect", "--ip", "10.4.0.255", "taken", "free"), "broadcast address of 10.4.0.0/24"),
    (("network", "connect", "--ip", "10.5.0.9", "taken", "free"), "no configured subnet contains it"),
    (("network", "connect", "--ip", "10.4.0.999", "taken", "free"), "10.4.0.999"),
    (("network", "connect", "--ip6", "fd00::1", "taken", "free"), "has no IPv6 subnet"),
    (("network", "disconnect", "taken", "free"), "container free is not connected to network taken"),
    (("network", "disconnect", "taken", "nobody"), "No such container: nobody"),
    # removals
    (("network", "rm", "taken"), "has active endpoints (box:"),
    (("network", "rm", "bridge"), "bridge is a pre-defined network and cannot be removed"),
    (("network", "rm", "nowhere"), "network nowhere not found"),
    (("network", "inspect", "nowhere"), "network nowhere not found"),
    (("rm", "nobody"), "No such container: nobody"),
    # run and exec
    (("run", "--name", "box", "--", "true"), 'The name "box" is already in use by sandbox'),
    (("run", "--name", LONG, "--", "true"), "10000 characters"),
    (("run", "--net", "nowhere", "--", "true"), "network nowhere not found"),
    (("run", "--net", "taken", "--ip", "10.4.0.9", "--", "true"), "Address already in use: 10.4.0.9"),
    (("run", "--net", "taken", "--mac-address", "02:00:00:00:00:09", "--", "true"), "02:00:00:00:00:09 is in use"),
    (("run", "--net", "taken", "--mac-address", "03:00:00:00:00:09", "--", "true"), "must be a unicast address"),
    (("exec", "nobody", "true"), "No such container: nobody"),
]


@pytest.mark.parametrize(("command", "says"), COMMANDS, ids=[" ".join(command)[:60] for command, _ in COMMANDS])
def test_a_command_that_cannot_work_says_why(machine: Host, command: tuple[str, ...], says: str) -> None:
    done = machine.linkspan(*command, check=False)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000


BODIES: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"{" + b'"Name": "new", ' + b'"x": "' + b"x" * (1 << 20) + b'"}', {}, 413, "over the limit of 1048576 bytes"),
    (b'{"Name": "new"', {}, 400, "invalid JSON"),
    (b"Name=new", {}, 400, "invalid JSON"),
    (b"", {}, 400, "invalid JSON"),
    (b"[]", {}, 400, "Expected `object`"),
    (b'{"Name": 7}', {}, 400, "Expected `str"),
    (b"\xff\xfe", {}, 400, "invalid JSON"),
    (b'{"Name": "new"}', {"Content-Type": "text/plain"}, 400, "must be 'application/json'"),
]


@pytest.mark.parametrize(("raw", "headers", "status", "says"), BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", ["/networks/create", "/networks/taken/connect", "/linkspan/sandboxes"])
def test_a_body_that_is_not_what_is_asked_for_is_refused(
    machine: Host, path: str, raw: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    if b'"Name": 7' in raw and "connect" in path:
        raw = json.dumps({"Container": 7}).encode()
    reply: Any = machine.ask("POST", path, raw=raw, headers=headers)
    assert reply.status == status
    assert says in reply.message
