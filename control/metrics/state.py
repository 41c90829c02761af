"""Gauges that are read from the controller at every scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from control.controller import NetworkController


class StateCollector(Collector):
    """Networks, endpoints, sandboxes, pools, parents, maps, the cluster, and fallbacks in force."""

    def __init__(self, controller: NetworkController) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        yield from self._objects()
        yield self._fallbacks()
        yield self._parents()
        yield self._pools()
        yield from self._maps()
        yield from self._cluster()

    def describe(self) -> list[Metric]:
        """Empty, so that registering reads nothing."""
        return []

    def _objects(self) -> Iterator[Metric]:
        networks = self._controller.networks()
        by_driver = GaugeMetricFamily("linkspan_networks", "Networks.", labels=("driver",))
        for driver, count in Counter(network.driver for network in networks).items():
            by_driver.add_metric((driver,), count)
        yield by_driver
        joined = Counter(endpoint.network_id for endpoint in self._controller.endpoints())
        by_network = GaugeMetricFamily("linkspan_endpoints", "Endpoints on a network.", labels=("network", "driver"))
        for network in networks:
            by_network.add_metric((network.name, network.driver), joined[network.id])
        yield by_network
        by_state = GaugeMetricFamily("linkspan_sandboxes", "Sandboxes.", labels=("state",))
        for state, count in Counter(sandbox.state for sandbox in self._controller.sandboxes()).items():
            by_state.add_metric((state.value,), count)
        yield by_state
        leases = GaugeMetricFamily(
            "linkspan_dhcp_leases", "Leases of DHCP servers: kept, or lost by an endpoint.", labels=("network", "state")
        )
        kept = Counter((network.name, kept) for network, kept in self._controller.lease_states())
        for labels, count in kept.items():
            leases.add_metric(labels, count)
        yield leases

    def _fallbacks(self) -> Metric:
        family = GaugeMetricFamily(
            "linkspan_fallback", "1 for a feature that this host lacks, with the reason.", labels=("feature", "reason")
        )
        for feature, reason in self._controller.status()["fallbacks"].items():
            family.add_metric((feature, reason), 1)
        return family

    def _parents(self) -> Metric:
        family = GaugeMetricFamily(
            "linkspan_parent_up",
            "1 when packets can pass the device of the host that a network is on, 0 when it is down or gone.",
            labels=("network", "parent"),
        )
        for network, parent in self._controller.parents():
            family.add_metric((network.name, parent.ifname), parent.is_up)
        return family

    def _pools(self) -> Metric:
        family = GaugeMetricFamily(
            "linkspan_pool_addresses",
            "Addresses of a network's subnet that endpoints may have: in use, and still to be had.",
            labels=("network", "subnet", "state"),
        )
        for network in self._controller.networks():
            for subnet, (used, free) in self._controller.pool_usage(network).items():
                family.add_metric((network.name, subnet, "used"), used)
                family.add_metric((network.name, subnet, "free"), free)
        return family

    def _maps(self) -> Iterator[Metric]:
        entries = GaugeMetricFamily("linkspan_map_entries", "Entries of a map of the programs.", labels=("map",))
        most = GaugeMetricFamily("linkspan_map_max_entries", "Entries that the map has room for.", labels=("map",))
        for name, (count, limit) in self._controller.map_fill().items():
            entries.add_metric((name,), count)
            most.add_metric((name,), limit)
        yield entries
        yield most

    def _cluster(self) -> Iterator[Metric]:
        health = self._controller.cluster.health()
        if health is None:
            return
        yield GaugeMetricFamily(
            "linkspan_cluster_connected", "1 while the cluster's changes come as they are made.", health.is_connected
        )
        yield GaugeMetricFamily(
            "linkspan_cluster_lag_seconds",
            "Time since this node last heard what the cluster's store holds, 0 while it is up to date.",
            health.lag_s,
        )
        nodes = GaugeMetricFamily("linkspan_cluster_nodes", "Nodes of the cluster.", labels=("state",))
        for state, count in health.nodes.items():
            nodes.add_metric((state,), count)
        yield nodes
