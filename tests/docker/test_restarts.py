"""dockerd and linkspand end and come back, in order or not, with containers running: nothing is lost, nothing leaks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.docker import lab as labs
from tests.docker.engine import PLUGIN_SOCKET
from tests.docker.lab import Container, Lab
from tests.docker.leftovers import leftovers
from tests.docker.stand_in import stand_in
from tests.docker.witness import goes_on, no_loss
from tests.hosts import wait_for
from tests.netns.outside import HOST4, OUTSIDE4

NETWORKS = {"net-docker": "default", "net-linkspan": "linkspan"}
"""Networks by name, and who gives their addresses."""


def populate(made: Lab) -> None:
    """Two networks with two containers each, one of them with a published port; all come back with dockerd."""
    for number, (network, ipam) in enumerate(NETWORKS.items()):
        made.network(network, "--ipam-driver", ipam, "--subnet", f"10.{100 + number}.0.0/24")
        made.run(f"{network}-a", network, "--restart", "always")
        made.run(f"{network}-b", network, "--restart", "always", "-p", f"{8000 + number}:80", command=("httpd", "-f"))


@pytest.fixture(scope="module", params=["--live-restore", "--live-restore=false"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with labs.lab(request.param) as made:
        populate(made)
        yield made
        made.clear()
        assert leftovers(made) == []


@pytest.fixture
def is_live(lab: Lab) -> bool:
    """Whether containers go on while dockerd is away."""
    return lab.docker("info", "--format", "{{.LiveRestoreEnabled}}").stdout == "true\n"


def members(lab: Lab) -> list[tuple[Container, Container]]:
    """The pairs of containers, one pair a network."""
    return [(Container(lab, f"{network}-a"), Container(lab, f"{network}-b")) for network in NETWORKS]


@contextmanager
def unharmed(lab: Lab) -> Iterator[None]:
    """Fails if a packet between containers, or to the outside, is lost while the block runs, or a connection ends."""
    pairs = members(lab)
    ways = [way for one, other in pairs for way in ((one, other.ip4), (other, OUTSIDE4))]
    with no_loss(*ways), goes_on(*((one, other, other.ip4) for one, other in pairs)):
        yield


def assert_all_well(lab: Lab) -> None:
    """Everybody agrees, all containers talk, on the fast path, and everything can still be done with them."""
    wait_for(lambda: _running(lab) == len(NETWORKS) * 2, "the containers to come back")
    lab.assert_agreement()
    for number, (one, other) in enumerate(members(lab)):
        before = lab.packets(one, other)["fast"]
        assert one.pings(other.ip4)
        assert lab.packets(one, other)["fast"] > before
        assert one.pings(str(one.gateway()))
        assert other.pings(OUTSIDE4)
        assert "404" in lab.outside.run("curl", "-sS", "-m", "5", f"http://{HOST4}:{8000 + number}/").stdout
    for network in NETWORKS:
        fresh = lab.run(f"fresh-{network}", network)
        assert fresh.pings(Container(lab, f"{network}-a").ip4)
        lab.docker("network", "disconnect", network, f"{network}-a")
        lab.docker("network", "connect", network, f"{network}-a")
        assert fresh.pings(Container(lab, f"{network}-a").ip4)
        lab.docker("restart", "-t0", f"{network}-b")
        assert fresh.pings(Container(lab, f"{network}-b").ip4)
        lab.remove(f"fresh-{network}")
    lab.assert_agreement()


def _running(lab: Lab) -> int:
    return len(lab.docker("ps", "-q").stdout.split())


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
def test_linkspand_comes_back(lab: Lab, signal_number: signal.Signals) -> None:
    with unharmed(lab):
        lab.host.stop(signal_number)
        lab.host.start()
    assert_all_well(lab)


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_dockerd_comes_back(lab: Lab, is_live: bool, end: str) -> None:
    with ExitStack() as stack:
        if is_live:
            stack.enter_context(unharmed(lab))
        getattr(lab.engine, end)()
        lab.engine.start("--live-restore" if is_live else "--live-restore=false")
    assert_all_well(lab)


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_both_come_back_dockerd_first(lab: Lab, is_live: bool, end: str) -> None:
    """linkspand is absent when dockerd starts, and appears."""
    with ExitStack() as stack:
        if is_live:
            stack.enter_context(unharmed(lab))
        lab.host.stop(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        getattr(lab.engine, end)()
        lab.engine.start("--live-restore" if is_live else "--live-restore=false", wait=False)
        wait_for(lambda: _asks_for_linkspan(lab), "dockerd to ask for its plugin", 10)
        lab.host.start()
        lab.engine.wait()
    assert_all_well(lab)


def _asks_for_linkspan(lab: Lab) -> bool:
    return "linkspan" in lab.engine.log()


def test_linkspand_is_away_while_containers_end(lab: Lab) -> None:
    """Docker asks again until linkspand is there."""
    names = [f"ending-{network}" for network in NETWORKS]
    ending = [lab.run(name, network, "-p", "80") for name, network in zip(names, NETWORKS, strict=True)]
    lab.host.stop(signal.SIGKILL)
    with ThreadPoolExecutor() as pool:
        removals = [pool.submit(lab.remove, name) for name in names]
        wait_for(lambda: not any(map(_has_processes, ending)), "the containers to end")
        lab.host.start()
        for removal in removals:
            removal.result(60)
    assert_all_well(lab)


def _has_processes(container: Container) -> bool:
    try:
        return container.host.seen(Path(container.netns)).stat().st_ino > 0
    except OSError:
        return False


@pytest.mark.parametrize(
    "command", [("rm", "-f"), ("stop", "-t0"), ("network", "disconnect")], ids=["removed", "stopped", "disconnected"]
)
def test_linkspand_never_hears_that_an_endpoint_is_gone(lab: Lab, command: tuple[str, ...]) -> None:
    for network in NETWORKS:
        lab.run(f"lost-{network}", network, "-p", f"{8200 + list(NETWORKS).index(network)}:80")
    lab.host.stop(signal.SIGKILL)
    with stand_in(lab.host.seen(PLUGIN_SOCKET)):
        for network in NETWORKS:
            lab.docker(*command, *([network] if command[0] == "network" else []), f"lost-{network}")
    lab.host.start()
    wait_for(lambda: lab.linkspan_joins() == lab.joins(), "linkspand to find that endpoints are gone", 10)
    lab.assert_agreement()
    for network in NETWORKS:  # their addresses and ports are free again
        lab.docker("rm", "-f", f"lost-{network}")
        lab.run(f"lost-{network}", network, "-p", f"{8200 + list(NETWORKS).index(network)}:80")
    assert_all_well(lab)
