"""A hundred containers, attached by ten clients at a time: none fails, and nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from tests.docker.image import NAME
from tests.docker.lab import METRICS, Container, Lab
from tests.docker.leftovers import leftovers

CONTAINERS: Final = 100
CLIENTS: Final = 10
SUBNET: Final = "10.110.0.0/24"
JOINS: Final = 15
CALLS: Final = (
    *("NetworkDriver.CreateEndpoint", "NetworkDriver.Join", "NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"),
    *("IpamDriver.RequestAddress", "IpamDriver.ReleaseAddress"),
)


def in_parallel(work: Callable[[Sequence[str]], object], names: Sequence[str]) -> None:
    """Gives each of the clients its share; fails with the first that does."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work, names[number::CLIENTS]) for number in range(CLIENTS)]:
            done.result()


def quick(lab: Lab, call: str, limit_s: float) -> float:
    """The share of a call's answers that came within the limit, one of the histogram's, by linkspand's own clock."""
    buckets = {
        sample.labels["le"]: sample.value
        for metric in text_string_to_metric_families(lab.host.run("curl", "-sS", "--fail", METRICS).stdout)
        for sample in metric.samples
        if sample.name == "linkspan_request_seconds_bucket" and sample.labels["route"] == f"/{call}"
    }
    return float(buckets[str(limit_s)] / buckets["+Inf"])


def test_a_join_takes_less_than_ten_milliseconds(lab: Lab) -> None:
    lab.network("quick")
    lab.run("guest", "quick")
    for _ in range(JOINS):
        lab.docker("network", "disconnect", "quick", "guest")
        lab.docker("network", "connect", "quick", "guest")
    assert quick(lab, "NetworkDriver.CreateEndpoint", 0.0025) > 0.5
    assert quick(lab, "NetworkDriver.Join", 0.01) > 0.5


def test_a_hundred_containers_come_and_go(lab: Lab) -> None:
    lab.network("crowd", "--ipam-driver", "linkspan", "--subnet", SUBNET)
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
    for call in CALLS:
        assert quick(lab, call, 0.1) > 0.5, call  # not all: containers are started and ended on the same cores
    lab.docker("network", "rm", "crowd")
    assert leftovers(lab) == []
