"""A Docker host with containers that should not notice what happens to dockerd and linkspand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.docker import lab as labs
from tests.docker.lab import Container, Lab
from tests.docker.leftovers import leftovers
from tests.docker.witness import goes_on, no_loss
from tests.hosts import wait_for
from tests.netns.outside import HOST4, OUTSIDE4

NETWORKS = {"net-docker": "default", "net-linkspan": "linkspan"}
"""Networks by name, and who gives their addresses."""
PORTS = dict(zip(NETWORKS, (8000, 8001), strict=True))
"""The port of the host that the container b of each network is published at."""


@contextmanager
def populated(*flags: str) -> Iterator[Lab]:
    """A host with two networks and two containers a and b on each, which come back with dockerd."""
    with labs.lab(*flags) as made:
        for number, (network, ipam) in enumerate(NETWORKS.items()):
            made.network(network, "--ipam-driver", ipam, "--subnet", f"10.{100 + number}.0.0/24")
            made.run(f"{network}-a", network, "--restart", "always")
            publish = ("-p", f"{PORTS[network]}:80")
            made.run(f"{network}-b", network, "--restart", "always", *publish, command=("httpd", "-f"))
        yield made
        made.clear()
        assert leftovers(made) == []


def _pairs(lab: Lab) -> list[tuple[Container, Container]]:
    return [(Container(lab, f"{network}-a"), Container(lab, f"{network}-b")) for network in NETWORKS]


@contextmanager
def unharmed(lab: Lab) -> Iterator[None]:
    """Fails if a packet between containers, or to the outside, is lost while the block runs, or a connection ends."""
    pairs = _pairs(lab)
    ways = [way for one, other in pairs for way in ((one, other.ip4), (other, OUTSIDE4))]
    with no_loss(*ways), goes_on(*((one, other, other.ip4) for one, other in pairs)):
        yield


def assert_all_well(lab: Lab) -> None:
    """Everybody agrees, all containers talk, on the fast path, and everything can still be done with them."""
    wait_for(lambda: len(lab.docker("ps", "-q").stdout.split()) == 2 * len(NETWORKS), "the containers to come back")
    lab.assert_agreement()
    for (one, other), network in zip(_pairs(lab), NETWORKS, strict=True):
        before = lab.packets(one, other)["fast"]
        assert one.pings(other.ip4)
        assert lab.packets(one, other)["fast"] > before
        assert one.pings(str(one.gateway()))
        assert other.pings(OUTSIDE4)
        assert "404" in lab.outside.run("curl", "-sS", "-m", "5", f"http://{HOST4}:{PORTS[network]}/").stdout
        lab.docker("network", "disconnect", network, one.name)
        lab.docker("network", "connect", network, one.name)
        lab.docker("restart", "-t0", other.name)
        assert Container(lab, one.name).pings(Container(lab, other.name).ip4)
    lab.assert_agreement()
