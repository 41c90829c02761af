"""Many clients at once: parallel changes, clients that hang, and a linkspand that is killed in the midst of them."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Event
from typing import Any

import pytest

from tests.e2e.agreement import assert_agreement
from tests.hosts import Host, host, wait_for

pytestmark = pytest.mark.root

CROWD = 50
ROUNDS = 10


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with host() as machine:
        machine.start("--metrics-listen", "off")
        for name, subnet in (("net", "10.6.0.0/24"), ("small", "10.6.1.0/29")):
            body = {"Name": name, "EnableIPv6": True, "IPAM": {"Config": [{"Subnet": subnet}]}}
            assert machine.ask("POST", "/networks/create", body).status == 201
        yield machine


def create(machine: Host, name: str, network: str = "net") -> Any:
    return machine.ask("POST", "/linkspan/sandboxes", {"Name": name, "Networks": [{"Network": network}]})


def remove(machine: Host, name: str) -> Any:
    return machine.ask("DELETE", f"/linkspan/sandboxes/{name}?force=1")


def test_fifty_sandboxes_join_in_parallel_and_leave_in_parallel(machine: Host) -> None:
    names = [f"box{number}" for number in range(CROWD)]
    with ThreadPoolExecutor(CROWD) as pool:
        replies = list(pool.map(lambda name: create(machine, name), names))
        assert {reply.status for reply in replies} == {201}
        endpoints = [reply.json["Networks"]["net"] for reply in replies]
        for key in ("IPAddress", "GlobalIPv6Address", "MacAddress"):
            assert len({endpoint[key] for endpoint in endpoints}) == CROWD
        assert_agreement(machine)
        first, last = replies[0].json, endpoints[-1]["IPAddress"]
        machine.run("nsenter", f"--net={first['NetnsPath']}", "ping", "-q", "-c1", "-W2", last)
        assert set(pool.map(lambda name: remove(machine, name).status, names)) == {204}
    assert_agreement(machine)


def test_of_many_parallel_creations_of_one_name_exactly_one_wins(machine: Host) -> None:
    with ThreadPoolExecutor(CROWD) as pool:
        networks = list(pool.map(lambda _: machine.ask("POST", "/networks/create", {"Name": "wanted"}), range(CROWD)))
        sandboxes = list(pool.map(lambda _: create(machine, "wanted"), range(CROWD)))
    for replies, says in (
        (networks, "network with name wanted already exists"),
        (sandboxes, '"wanted" is already in use'),
    ):
        assert Counter(reply.status for reply in replies) == {201: 1, 409: CROWD - 1}
        assert all(says in reply.message for reply in replies if reply.status == 409)
    assert_agreement(machine)
    assert remove(machine, "wanted").status == 204
    assert machine.ask("DELETE", "/networks/wanted").status == 204


def test_of_many_networks_that_want_one_bridge_exactly_one_gets_it(machine: Host) -> None:
    def create_with_bridge(number: int) -> Any:
        body = {"Name": f"net{number}", "Options": {"com.docker.network.bridge.name": "wanted0"}}
        return machine.ask("POST", "/networks/create", body)

    with ThreadPoolExecutor(CROWD) as pool:
        replies = list(pool.map(create_with_bridge, range(20)))
    assert Counter(reply.status for reply in replies) == {201: 1, 409: 19}
    assert_agreement(machine)
    for number, reply in enumerate(replies):
        if reply.status == 201:
            assert machine.ask("DELETE", f"/networks/net{number}").status == 204
        else:
            assert "wanted0" in reply.message


def test_a_pool_that_is_exhausted_in_parallel_hands_out_every_address_once(machine: Host) -> None:
    names = [f"box{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        replies = dict(zip(names, pool.map(lambda name: create(machine, name, "small"), names), strict=True))
    made = {name: reply for name, reply in replies.items() if reply.status == 201}
    assert len(made) == 5, "a /29 has six addresses, and the gateway takes one"
    for reply in replies.values():
        if reply.status != 201:
            assert reply.status == 503
            assert "no available addresses on this pool: all of 10.6.1.0/29 of network small are taken" in reply.message
    assert_agreement(machine)
    for name in made:
        assert remove(machine, name).status == 204
    assert create(machine, "late", "small").status == 201
    assert remove(machine, "late").status == 204


def test_clients_that_hang_do_not_keep_others_from_being_served(machine: Host) -> None:
    sent = [
        b"",
        b"POST /networks/create HTTP/1.1\r\n",
        b"POST /networks/create HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
        b"GET /events HTTP/1.1\r\nHost: l\r\n\r\n",
    ]
    with ExitStack() as stack:
        for number in range(200):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(str(machine.socket))
            client.sendall(sent[number % len(sent)])
        begin = time.monotonic()
        assert create(machine, "served").status == 201
        assert machine.ask("GET", "/networks").status == 200
        assert remove(machine, "served").status == 204
        assert time.monotonic() - begin < 5
        begin = time.monotonic()
        machine.stop()
        assert time.monotonic() - begin < 8
    machine.start("--metrics-listen", "off")
    assert_agreement(machine)


class Crowd:
    """Threads that make, join, leave and remove at random until they are told to stop; errors of a dying server are
    expected."""

    def __init__(self, machine: Host, seed: int) -> None:
        self._machine = machine
        self._seed = seed
        self._stop = Event()
        self.unexpected: list[str] = []

    def run(self, number: int) -> None:
        rng = random.Random(self._seed * 100 + number)
        while not self._stop.is_set():
            name, network = f"c{rng.randrange(8)}", rng.choice(["net", "small", f"n{rng.randrange(3)}"])
            method, path, body = rng.choice(
                [
                    ("POST", "/linkspan/sandboxes", {"Name": name, "Networks": [{"Network": network}]}),
                    ("POST", f"/networks/{network}/connect", {"Container": name}),
                    ("POST", f"/networks/{network}/disconnect", {"Container": name}),
                    ("DELETE", f"/linkspan/sandboxes/{name}?force=1", None),
                    ("POST", "/networks/create", {"Name": network, "EnableIPv6": True}),
                    ("DELETE", f"/networks/{network}" if network.startswith("n") else "/networks/n0", None),
                ]
            )
            if path in ("/networks/net", "/networks/small"):
                continue
            try:
                reply = self._machine.ask(method, path, body)
            except OSError:
                self._stop.wait(0.01)
                continue
            if reply.status >= 500 and reply.status != 503:
                self.unexpected.append(f"{method} {path}: {reply.body!r}")

    def stop(self) -> None:
        self._stop.set()


def changes(machine: Host) -> int:
    return machine.log().count(" control.events: ")


def has_changes(machine: Host, count: int) -> bool:
    return changes(machine) >= count


def test_killed_at_random_times_under_load_the_next_start_agrees_with_everything(machine: Host) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number in range(ROUNDS):
        crowd = Crowd(machine, seed + number)
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(crowd.run, client) for client in range(8)]
            wait_for(partial(has_changes, machine, changes(machine) + rng.randrange(1, 20)), "the crowd to get on")
            machine.stop(signal.SIGKILL)
            crowd.stop()
            for client in clients:
                client.result()
        assert crowd.unexpected == []
        machine.start("--metrics-listen", "off")
        assert_agreement(machine)
