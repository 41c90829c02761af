"""Metrics of linkspand for Prometheus: requests and joins as they happen, everything else read at scrape time.

Adding a metric: one line in `Metrics.__init__`, one family in `StateCollector`, or lines in `endpoint_text`.
"""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics import Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from control.controller import NetworkController
from control.drivers.base import EndpointCounters
from control.model import Endpoint, Network

LOG = logging.getLogger(__name__)

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@cache
def release() -> str:
    """The version of this linkspand, "unknown" when it runs from files that were never installed."""
    try:
        return version("linkspan")
    except PackageNotFoundError:
        return "unknown"


class StateCollector(Collector):
    """Reads networks, endpoints, sandboxes and fallbacks from the controller at every scrape."""

    def __init__(self, controller: NetworkController) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        yield from self._objects()
        fallbacks = GaugeMetricFamily(
            "linkspan_fallback", "1 for a feature that this host lacks, with the reason.", labels=("feature", "reason")
        )
        for feature, reason in self._controller.status()["fallbacks"].items():
            fallbacks.add_metric((feature, reason), 1)
        yield fallbacks
        parents = GaugeMetricFamily(
            "linkspan_parent_up",
            "1 when packets can pass the device of the host that a network is on, 0 when it is down or gone.",
            labels=("network", "parent"),
        )
        for network, parent in self._controller.parents():
            parents.add_metric((network.name, parent.ifname), parent.is_up)
        yield parents

    def describe(self) -> list[Metric]:
        """Empty, so that registering reads nothing."""
        return []

    def _objects(self) -> Iterator[Metric]:
        networks = self._controller.networks()
        by_driver = GaugeMetricFamily("linkspan_networks", "Networks.", labels=("driver",))
        for driver, count in Tally(network.driver for network in networks).items():
            by_driver.add_metric((driver,), count)
        yield by_driver
        joined = Tally(endpoint.network_id for endpoint in self._controller.endpoints())
        by_network = GaugeMetricFamily("linkspan_endpoints", "Endpoints on a network.", labels=("network", "driver"))
        for network in networks:
            by_network.add_metric((network.name, network.driver), joined[network.id])
        yield by_network
        by_state = GaugeMetricFamily("linkspan_sandboxes", "Sandboxes.", labels=("state",))
        for state, count in Tally(sandbox.state for sandbox in self._controller.sandboxes()).items():
            by_state.add_metric((state.value,), count)
        yield by_state
        leases = GaugeMetricFamily(
            "linkspan_dhcp_leases", "Leases of DHCP servers: kept, or lost by an endpoint.", labels=("network", "state")
        )
        kept = Tally((network.name, kept) for network, kept in self._controller.lease_states())
        for labels, count in kept.items():
            leases.add_metric(labels, count)
        yield leases


Row = tuple[Network, Endpoint, str, EndpointCounters]
"""The text is the sandbox's name."""


def endpoint_text(rows: Iterable[Row]) -> Iterator[str]:
    """Yields the counters of endpoints in the text exposition format, a part at a time.

    Written directly: as objects of the client library, the counters of 4,000 endpoints would take 50 MB and a second. A
    reason appears with its first drop. Source: Prometheus, Exposition formats, text-based format.
    """
    labelled = [
        (
            f'network="{_escape(network.name)}",driver="{_escape(network.driver)}",'
            f'endpoint="{endpoint.id[:12]}",sandbox="{_escape(sandbox)}"',
            counted,
        )
        for network, endpoint, sandbox, counted in rows
    ]
    yield _head("packets", "Packets an endpoint sent (out) and was delivered (in), by the path that carried them.")
    for who, counted in labelled:
        yield (
            f'linkspan_endpoint_packets_total{{{who},direction="out",path="fast"}} {counted.out_fast_packets}\n'
            f'linkspan_endpoint_packets_total{{{who},direction="out",path="slow"}} {counted.out_slow_packets}\n'
            f'linkspan_endpoint_packets_total{{{who},direction="in",path="fast"}} {counted.in_fast_packets}\n'
            f'linkspan_endpoint_packets_total{{{who},direction="in",path="slow"}} {counted.in_slow_packets}\n'
        )
    yield _head("bytes", "Bytes of those packets, Ethernet headers included.")
    for who, counted in labelled:
        yield (
            f'linkspan_endpoint_bytes_total{{{who},direction="out",path="fast"}} {counted.out_fast_bytes}\n'
            f'linkspan_endpoint_bytes_total{{{who},direction="out",path="slow"}} {counted.out_slow_bytes}\n'
            f'linkspan_endpoint_bytes_total{{{who},direction="in",path="fast"}} {counted.in_fast_bytes}\n'
            f'linkspan_endpoint_bytes_total{{{who},direction="in",path="slow"}} {counted.in_slow_bytes}\n'
        )
    yield _head("drops", "Packets of an endpoint that were dropped, by reason.")
    for who, counted in labelled:
        for reason, count in counted.drops.items():
            if count:
                yield f'linkspan_endpoint_drops_total{{{who},reason="{_escape(reason)}"}} {count}\n'


def _head(what: str, help_text: str) -> str:
    name = f"linkspan_endpoint_{what}_total"
    return f"# HELP {name} {help_text}\n# TYPE {name} counter\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class Metrics:
    """All metrics of one linkspand, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each histogram, which nobody reads
        self._registry = CollectorRegistry()
        self._controller: NetworkController | None = None
        self.request_seconds = Histogram(
            "linkspan_request_seconds",
            "Time to work on a request, until its answer was ready to be sent.",
            ("route", "method", "status"),
            buckets=_SECONDS_BUCKETS,
            registry=self._registry,
        )
        self.join_seconds = Histogram(
            "linkspan_join_seconds", "Time to join an endpoint.", buckets=_SECONDS_BUCKETS, registry=self._registry
        )
        self.errors = Counter(
            "linkspan_errors_total",
            "Requests that failed through no fault of the client, by kind.",
            ("kind",),
            registry=self._registry,
        )
        Gauge("linkspan_build_info", "1, with the version.", ("version",), registry=self._registry).labels(
            release()
        ).set(1)
        ProcessCollector(registry=self._registry)

    def watch(self, controller: NetworkController) -> None:
        """Adds the controller's state to every scrape, and has its joins timed."""
        self._controller = controller
        self._registry.register(StateCollector(controller))
        controller.observe_joins(self.join_seconds.observe)

    def expose(self) -> bytearray:
        """Returns a scrape's body; blocks for as long as the counters take to be read."""
        body = bytearray(generate_latest(self._registry))
        if self._controller is not None:
            for text in endpoint_text(self._controller.endpoint_counters()):
                body += text.encode()
        return body
