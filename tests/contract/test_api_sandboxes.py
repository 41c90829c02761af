"""Linkspan's own operations: sandboxes, their processes, the daemon's status."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control import watch
from tests.api_server import DEADLINE_SECONDS, ApiServer
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "300"]) as running:
        yield running
        running.kill()


def make(server: ApiServer, **body: Any) -> dict[str, Any]:
    reply = server.ask("POST", "/linkspan/sandboxes", body)
    assert reply.status == 201, reply.body
    return dict(reply.json)


def wait_for_state(server: ApiServer, ref: str, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (found := server.ask("GET", f"/linkspan/sandboxes/{ref}").json)["State"] != state:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return dict(found)


def test_a_sandbox_has_all_that_was_asked_for(server: ApiServer) -> None:
    server.ask(
        "POST",
        "/networks/create",
        {
            "Name": "blue",
            "EnableIPv6": True,
            "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}, {"Subnet": "fd00:9::/64"}]},
        },
    )
    network = {"Network": "blue", "Aliases": ["www", "www"], "MacAddress": "02:00:00:00:00:05"}
    network |= {"IPAMConfig": {"IPv4Address": "10.9.0.5", "IPv6Address": "fd00:9::5"}}
    network |= {"Links": ["db:store", "other"], "GwPriority": 7}
    made = make(server, Name="web", Networks=[network], Command=["sleep", "1"], Labels={"a": "b"})
    endpoint = made["Networks"]["blue"]
    assert endpoint.pop("NetworkID") == server.ask("GET", "/networks/blue").json["Id"]
    assert len(endpoint.pop("EndpointID")) == 64
    assert endpoint == {
        "IPAMConfig": None,
        "Gateway": "10.9.0.1",
        "IPAddress": "10.9.0.5",
        "IPPrefixLen": 24,
        "IPv6Gateway": "fd00:9::1",
        "GlobalIPv6Address": "fd00:9::5",
        "GlobalIPv6PrefixLen": 64,
        "MacAddress": "02:00:00:00:00:05",
        "Aliases": ["www"],
        "DNSNames": ["web", "www"],
        "Links": ["db:store", "other:other"],
        "DriverOpts": {},
        "GwPriority": 7,
        "InterfaceName": "eth0",
    }
    assert (made["Name"], made["State"], made["OwnsNetns"]) == ("web", "created", True)
    assert (made["Command"], made["Labels"]) == (["sleep", "1"], {"a": "b"})
    assert [made[key] for key in ("Started", "Finished", "Pid", "ExitCode")] == [None] * 4
    assert Path(made["HostnamePath"]).read_text() == "web\n"
    assert all(Path(made[key]).is_absolute() for key in ("NetnsPath", "HostsPath", "ResolvConfPath", "ExitStatusPath"))
    assert server.ask("GET", f"/linkspan/sandboxes/{made['Id'][:12]}").json["Id"] == made["Id"]


def test_without_networks_a_sandbox_joins_the_predefined_bridge(server: ApiServer) -> None:
    assert list(make(server)["Networks"]) == ["bridge"]


def test_an_internal_network_gives_no_gateway(server: ApiServer) -> None:
    server.ask("POST", "/networks/create", {"Name": "cage", "Internal": True})
    assert make(server, Networks=[{"Network": "cage"}])["Networks"]["cage"]["Gateway"] == ""


def test_a_sandbox_on_the_hosts_network_has_no_address_or_namespace(server: ApiServer) -> None:
    made = make(server, Networks=[{"Network": "host"}])
    assert made["OwnsNetns"] is False
    assert made["Networks"]["host"]["IPAddress"] == ""


def test_the_end_of_a_process_is_noticed_with_its_exit_code(
    server: ApiServer, driver: FakeDriver, process: subprocess.Popen[bytes]
) -> None:
    made = make(server, Name="web")
    assert server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": process.pid}).status == 204
    running = server.ask("GET", "/linkspan/sandboxes/web").json
    assert (running["State"], running["Pid"]) == ("running", process.pid)
    assert server.ask("DELETE", "/linkspan/sandboxes/web").status == 409
    Path(made["ExitStatusPath"]).write_text("42")
    process.kill()
    ended = wait_for_state(server, "web", "exited")
    assert (ended["ExitCode"], ended["Networks"]) == (42, {})
    assert ended["Finished"] >= ended["Started"]
    assert driver.endpoints == {}
    assert server.ask("GET", "/linkspan/sandboxes").json == []
    assert [s["Name"] for s in server.ask("GET", "/linkspan/sandboxes?all=1").json] == ["web"]
    assert server.ask("GET", "/linkspan/sandboxes?all=false").json == []
    assert server.ask("DELETE", "/linkspan/sandboxes/web").status == 204
    assert server.ask("GET", "/linkspan/sandboxes/web").status == 404


def test_a_process_whose_supervisor_died_exits_with_an_unknown_code(
    server: ApiServer, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "STATUS_DEADLINE_S", 0.1)
    make(server, Name="web")
    server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": process.pid})
    process.kill()
    assert wait_for_state(server, "web", "exited")["ExitCode"] is None


def test_an_exit_code_that_comes_a_little_late_is_taken(server: ApiServer, process: subprocess.Popen[bytes]) -> None:
    made = make(server, Name="web")
    server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": process.pid})
    process.kill()
    process.wait()
    Path(made["ExitStatusPath"]).write_text("137")
    assert wait_for_state(server, "web", "exited")["ExitCode"] == 137


def test_force_removes_a_running_sandbox_and_kills_its_process(
    server: ApiServer, process: subprocess.Popen[bytes]
) -> None:
    make(server, Name="web")
    server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": process.pid})
    assert server.ask("DELETE", "/linkspan/sandboxes/web?force=1").status == 204
    assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert server.ask("GET", "/linkspan/sandboxes?all=1").json == []


def test_started_twice_is_refused_and_the_first_process_stays_watched(
    server: ApiServer, process: subprocess.Popen[bytes]
) -> None:
    make(server, Name="web")
    assert server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": process.pid}).status == 204
    assert server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": os.getpid()}).status == 403
    process.kill()
    wait_for_state(server, "web", "exited")


def test_a_restart_watches_running_sandboxes_again(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    store = KeptStore()
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "api.sock") as server:
        made = make(server, Name="web")
        server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": process.pid})
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "api.sock") as server:
        assert server.ask("GET", "/linkspan/sandboxes/web").json["State"] == "running"
        Path(made["ExitStatusPath"]).write_text("3")
        process.kill()
        assert wait_for_state(server, "web", "exited")["ExitCode"] == 3


def test_a_restart_finds_a_sandbox_that_ended_meanwhile(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    store = KeptStore()
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "api.sock") as server:
        made = make(server, Name="web")
        server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": process.pid})
    Path(made["ExitStatusPath"]).write_text("9")
    process.kill()
    process.wait()
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "api.sock") as server:
        assert wait_for_state(server, "web", "exited")["ExitCode"] == 9


def test_another_process_with_the_same_number_is_not_taken_for_it(tmp_path: Path) -> None:
    store = KeptStore()
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "api.sock") as server:
        made = make(server, Name="web")
        server.ask("POST", "/linkspan/sandboxes/web/started", {"Pid": os.getpid()})
    body = store.bodies("sandbox")[made["Id"]]
    start = int(body.partition(b'"pid_start":')[2].partition(b",")[0])
    store.replace("sandbox", made["Id"], body.replace(b'"pid_start":%d' % start, b'"pid_start":%d' % (start - 1)))
    Path(made["ExitStatusPath"]).write_text("0")
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "api.sock") as server:
        wait_for_state(server, "web", "exited")


def test_status_tells_drivers_fallbacks_and_counts(server: ApiServer, driver: FakeDriver) -> None:
    driver.fallbacks = {"tcx": "the kernel has none"}
    make(server)
    status = server.ask("GET", "/linkspan/status").json
    assert set(status["drivers"]) == {"bridge", "host", "null"}
    assert status["fallbacks"] == {"tcx": "the kernel has none"}
    assert (status["networks"], status["endpoints"], status["sandboxes"]) == (3, 1, 1)
    info = server.ask("GET", "/info").json
    assert info["Warnings"] == ["WARNING: tcx: the kernel has none"]


class KeptStore(MemoryStore):
    """A store that outlives the controller which closes it."""

    def close(self) -> None:
        """Nothing: the next controller goes on with it."""

    def bodies(self, kind: str) -> dict[str, bytes]:
        return dict(self.read(kind))

    def replace(self, kind: str, record_id: str, body: bytes) -> None:
        self._records[kind][record_id] = body
