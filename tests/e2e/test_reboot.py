"""After a reboot, which leaves the state directory alone, networks and sandboxes are what they were."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.e2e.agreement import assert_agreement, shown
from tests.hosts import Host, host, wait_for

pytestmark = pytest.mark.root

NETWORKS: list[dict[str, Any]] = [
    {
        "Name": "six",
        "EnableIPv6": True,
        "IPAM": {
            "Config": [
                {"Subnet": "10.3.0.0/24", "IPRange": "10.3.0.128/25", "AuxiliaryAddresses": {"router": "10.3.0.200"}},
                {"Subnet": "fd03::/64"},
            ]
        },
        "Options": {"com.docker.network.bridge.name": "mybridge", "com.docker.network.driver.mtu": "1400"},
        "Labels": {"kept": "yes"},
    },
    {"Name": "cut-off", "Internal": True, "Options": {"com.docker.network.bridge.enable_icc": "false"}},
    {"Name": "plain", "Options": {"linkspan.accel": "off"}},
]


def ping(machine: Host, box: Any, address: str) -> None:
    machine.run("nsenter", f"--net={box['NetnsPath']}", "ping", "-q", "-c1", "-W2", address)


def without_paths(sandbox: Any) -> Any:
    return {key: value for key, value in sandbox.items() if not key.endswith("Path")}


def test_networks_and_sandboxes_without_processes_are_rebuilt_and_the_others_have_exited() -> None:
    with host() as before, host() as after:
        before.start("--metrics-listen", "off")
        for body in NETWORKS:
            assert before.ask("POST", "/networks/create", body).status == 201
        for name, networks in (("a", ["six", "cut-off"]), ("b", ["cut-off", "six", "plain"]), ("lone", ["none"])):
            body = {"Name": name, "Networks": [{"Network": n, "Aliases": [f"{name}-{n}"]} for n in networks]}
            assert before.ask("POST", "/linkspan/sandboxes", body).status == 201
        before.linkspan("run", "-d", "--name", "busy", "--net", "six", "--", "sleep", "600")
        before.linkspan("run", "--name", "done", "--net", "six", "--", "sh", "-c", "exit 3", check=False)
        wait_for(lambda: not before.ask("GET", "/linkspan/sandboxes/done").json["Networks"], "its endpoints to leave")
        old = shown(before)
        before.stop(9)
        shutil.copytree(before.state_dir, after.state_dir, dirs_exist_ok=True)
        before.end_processes()

        after.start("--metrics-listen", "off")
        wait_for(lambda: after.ask("GET", "/linkspan/sandboxes/busy").json["State"] == "exited", "busy to have exited")
        wait_for(lambda: not after.ask("GET", "/linkspan/sandboxes/busy").json["Networks"], "its endpoints to leave")
        new = shown(after)
        assert new.networks == old.networks
        boxes = {box["Name"]: box for box in new.sandboxes}
        for box in old.sandboxes:
            if box["Name"] != "busy":
                assert without_paths(boxes[box["Name"]]) == without_paths(box)
        assert (boxes["done"]["ExitCode"], boxes["busy"]["ExitCode"]) == (3, None)
        assert_agreement(after)

        address = boxes["b"]["Networks"]["six"]
        ping(after, boxes["a"], address["IPAddress"])
        ping(after, boxes["a"], address["GlobalIPv6Address"])
        ping(after, boxes["b"], boxes["b"]["Networks"]["plain"]["Gateway"])
        (link,) = after.ip("link", "show", "mybridge")
        assert link["mtu"] == 1400
        hosts = after.run("cat", boxes["a"]["HostsPath"]).stdout
        assert f"{address['IPAddress']}\tb b-six\n" in hosts
        assert "busy" not in hosts
