"""A host whose linkspand dies or fails when it is told to, and the changes to be cut off."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.api_server import Reply
from tests.e2e import crashing
from tests.e2e.agreement import assert_agreement
from tests.hosts import ROOT, Host, wait_for

NETWORK = {
    "Name": "net",
    "EnableIPv6": True,
    "IPAM": {"Config": [{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.254"}, {"Subnet": "fd07::/64"}]},
}
PEER = {"Name": "peer", "Networks": [{"Network": "other"}]}
ADDRESSES = {"IPAMConfig": {"IPv4Address": "10.7.0.7", "IPv6Address": "fd07::7"}}


class FragileHost(Host):
    """A host whose linkspand dies or fails when it is told to."""

    @property
    def orders(self) -> Path:
        return self.dir / "orders.json"

    def arm(self, phase: str, number: int, how: str) -> None:
        # With the time, so that the same orders given again are new ones.
        orders = {"phase": phase, "number": number, "how": how, "given": time.monotonic_ns()}
        self.orders.write_text(json.dumps(orders))

    def disarm(self) -> None:
        self.orders.unlink(missing_ok=True)

    def start_fragile(self, *, wait: bool = True) -> None:
        program = [sys.executable, crashing.__file__, str(self.orders)]
        self.start("--metrics-listen", "off", program=program, env={"PYTHONPATH": str(ROOT)}, wait=wait)

    def gets_through(self, change: Callable[[Any], Reply], phase: str, number: int, how: str) -> bool:
        """Makes the change with a step armed; False when that killed linkspand, which is started again then."""
        self.arm(phase, number, how)
        try:
            reply = change(self)
        except OSError:
            self.await_death()
            self.disarm()
            self.start_fragile()
            return False
        self.disarm()
        assert reply.status in (200, 201, 204), reply.body
        return True

    def survives_start(self) -> bool:
        """Starts linkspand; False when it is killed before it is ready."""
        self.start_fragile(wait=False)
        assert self._daemon is not None
        try:
            wait_for(self._answers, "linkspand to answer or to die")
        except AssertionError:
            self.await_death()
            return False
        return True

    @property
    def is_dead(self) -> bool:
        assert self._daemon is not None
        return self._daemon.poll() is not None

    def await_death(self) -> None:
        assert self._daemon is not None
        assert self._daemon.wait(20) == -9, self.log()
        self._daemon = None


@contextmanager
def fragile_host() -> Iterator[FragileHost]:
    """The host, with a network `other` and a sandbox `peer` on it that no change is about."""
    host = FragileHost()
    try:
        host.start_fragile()
        assert host.ask("POST", "/networks/create", {"Name": "other", "EnableIPv6": True}).status == 201
        assert host.ask("POST", "/linkspan/sandboxes", PEER).status == 201
        yield host
    finally:
        host.close()


def ensure_network(host: Host) -> None:
    assert host.ask("POST", "/networks/create", NETWORK).status in (201, 409)


def ensure_no_sandbox(host: Host) -> None:
    assert host.ask("DELETE", "/linkspan/sandboxes/box?force=1").status in (204, 404)


def ensure_no_network(host: Host) -> None:
    ensure_no_sandbox(host)
    assert host.ask("DELETE", "/networks/net").status in (204, 404)


def ensure_sandbox(host: Host) -> None:
    ensure_network(host)
    if host.ask("GET", "/linkspan/sandboxes/box").status == 404:
        assert create_sandbox(host).status == 201


def ensure_network_alone(host: Host) -> None:
    ensure_no_sandbox(host)
    ensure_network(host)


def ensure_two_joins(host: Host) -> None:
    ensure_sandbox(host)
    for reply in (connect(host), host.ask("POST", "/networks/other/connect", {"Container": "box"})):
        assert reply.status == 200 or "already exists" in reply.message


def ensure_other_join_only(host: Host) -> None:
    ensure_two_joins(host)
    disconnect(host)


def create_network(host: Host) -> Reply:
    return host.ask("POST", "/networks/create", NETWORK)


def remove_network(host: Host) -> Reply:
    return host.ask("DELETE", "/networks/net")


def create_sandbox(host: Host) -> Reply:
    return host.ask("POST", "/linkspan/sandboxes", {"Name": "box", "Networks": [{"Network": "net", **ADDRESSES}]})


def remove_sandbox(host: Host) -> Reply:
    return host.ask("DELETE", "/linkspan/sandboxes/box")


def connect(host: Host) -> Reply:
    return host.ask("POST", "/networks/net/connect", {"Container": "box", "EndpointConfig": ADDRESSES})


def disconnect(host: Host) -> Reply:
    return host.ask("POST", "/networks/net/disconnect", {"Container": "box"})


def has_network(host: Host) -> bool:
    return host.ask("GET", "/networks/net").status == 200


def has_sandbox(host: Host) -> bool:
    return host.ask("GET", "/linkspan/sandboxes/box").status == 200


def has_exited(host: Host) -> bool:
    try:
        box = host.ask("GET", "/linkspan/sandboxes/box").json
    except OSError:
        return False
    return box["State"] == "exited" and not box["Networks"]


def has_join(host: Host) -> bool:
    return "net" in host.ask("GET", "/linkspan/sandboxes/box").json["Networks"]


Action = Callable[[Host], Any]
CASES = {
    # phase, what must be there before, the change, what it makes or removes
    "network create": ("apply", ensure_no_network, create_network, has_network),
    "sandbox create": ("apply", ensure_network_alone, create_sandbox, has_sandbox),
    "connect": ("apply", ensure_other_join_only, connect, has_join),
    "disconnect": ("revert", ensure_two_joins, disconnect, has_join),
    "sandbox rm": ("revert", ensure_two_joins, remove_sandbox, has_sandbox),
    "network rm": ("revert", ensure_network_alone, remove_network, has_network),
}


def other_works(host: Host) -> None:
    peer = host.ask("GET", "/linkspan/sandboxes/peer").json
    gateway = peer["Networks"]["other"]["Gateway"]
    host.run(*host_in(peer), "ping", "-c1", "-W2", gateway)


def host_in(sandbox: Any) -> list[str]:
    return ["nsenter", f"--net={sandbox['NetnsPath']}"]


def kill_at_every_step(machine: FragileHost, name: str) -> None:
    """Makes the change again and again, killing linkspand one step later each time, until it gets through."""
    phase, prepare, change, is_there = CASES[name]
    is_whole = False
    for number in count(1):
        # Before step 1, and after each; before a later step is after the one before it.
        for how in ("before", "after")[number > 1 :]:
            prepare(machine)
            if machine.gets_through(change, phase, number, how):
                assert number > 3, "the change has at least three steps"
                assert is_there(machine) == (phase == "apply")
                assert_agreement(machine)
                other_works(machine)
                return
            assert not is_whole, "nothing but the last step, which stores it, makes it whole"
            is_whole = is_there(machine)
            assert_agreement(machine)
