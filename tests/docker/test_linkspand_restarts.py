"""linkspand ends and comes back, in order or not, under running containers: nothing is lost, nothing leaks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docker.engine import PLUGIN_SOCKET
from tests.docker.lab import Container, Lab
from tests.docker.populated import NETWORKS, assert_all_well, populated, unharmed
from tests.docker.stand_in import stand_in
from tests.hosts import wait_for

MORE_PORTS = dict(zip(NETWORKS, (8100, 8101), strict=True))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with populated() as made:
        yield made


def run_one_more(lab: Lab) -> list[Container]:
    """A container on each network, with a port."""
    return [lab.run(f"more-{network}", network, "-p", f"{MORE_PORTS[network]}:80") for network in NETWORKS]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
def test_running_containers_do_not_notice(lab: Lab, signal_number: signal.Signals) -> None:
    with unharmed(lab):
        lab.host.stop(signal_number)
        lab.host.start()
    assert_all_well(lab)


def test_containers_end_while_linkspand_is_away(lab: Lab) -> None:
    """Docker asks again until linkspand is there."""
    ending = run_one_more(lab)
    lab.host.stop(signal.SIGKILL)
    with ThreadPoolExecutor() as pool:
        removals = [pool.submit(lab.remove, container.name) for container in ending]
        wait_for(lambda: not any(map(_has_processes, ending)), "the containers to end")
        lab.host.start()
        for removal in removals:
            removal.result(60)
    run_one_more(lab)  # their addresses and ports are free
    lab.remove(*(container.name for container in ending))
    assert_all_well(lab)


def _has_processes(container: Container) -> bool:
    return container.host.seen(Path(container.netns)).exists()


@pytest.mark.parametrize(
    "command", [("rm", "-f"), ("stop", "-t0"), ("network", "disconnect")], ids=["removed", "stopped", "disconnected"]
)
def test_linkspand_never_hears_that_endpoints_are_gone(lab: Lab, command: tuple[str, ...]) -> None:
    lost = run_one_more(lab)
    lab.host.stop(signal.SIGKILL)
    with stand_in(lab.host.seen(PLUGIN_SOCKET)):
        for container, network in zip(lost, NETWORKS, strict=True):
            lab.docker(*command, *([network] if command[0] == "network" else []), container.name)
    lab.host.start()
    wait_for(lambda: lab.linkspan_joins() == lab.joins(), "linkspand to find that endpoints are gone", 10)
    lab.assert_agreement()
    lab.docker("rm", "-f", *(container.name for container in lost))
    run_one_more(lab)  # their addresses and ports are free
    lab.remove(*(container.name for container in lost))
    assert_all_well(lab)
