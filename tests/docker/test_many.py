"""A hundred containers, attached by ten clients at a time: none fails, and nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from typing import Final

import pytest

from tests.docker.image import NAME
from tests.docker.lab import Container, Lab
from tests.docker.leftovers import leftovers

CONTAINERS: Final = 100
CLIENTS: Final = 10
SUBNET: Final = "10.110.0.0/24"


def in_parallel(work: Callable[[Sequence[str]], object], names: Sequence[str]) -> None:
    """Gives each of the clients its share; fails with the first that does."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work, names[number::CLIENTS]) for number in range(CLIENTS)]:
            done.result()


@pytest.mark.parametrize("ipam", ["linkspan", "default"])
def test_a_hundred_containers_come_and_go(lab: Lab, ipam: str) -> None:
    lab.network("crowd", "--ipam-driver", ipam, "--subnet", SUBNET)
    names = [f"crowd-{number}" for number in range(CONTAINERS)]

    def create(share: Sequence[str]) -> None:
        for name in share:
            lab.docker("create", "--name", name, "--network", "crowd", NAME, "sleep", "100000")

    def remove(share: Sequence[str]) -> None:
        lab.remove(*share)

    in_parallel(create, names)
    in_parallel(lambda share: lab.docker("start", *share, timeout_s=200), names)
    joins = lab.joins()
    assert len(joins) == CONTAINERS
    assert len({ip_interface(ipv4).ip for _, ipv4, _ in joins.values()}) == CONTAINERS
    assert len({mac for mac, _, _ in joins.values()}) == CONTAINERS
    lab.assert_agreement()
    first, last = Container(lab, names[0]), Container(lab, names[-1])
    assert first.pings(last.ip4)
    in_parallel(remove, names)
    lab.docker("network", "rm", "crowd")
    assert leftovers(lab) == []
