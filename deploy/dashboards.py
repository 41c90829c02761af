"""The Grafana dashboards: `python -m deploy.dashboards` writes `deploy/grafana/*.json` from this description.

Every panel answers one question, which is its description. Widths are in Grafana's 24 columns. Panels follow each other
from left to right and wrap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parent / "grafana"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS: Final = 24
_RATE: Final = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """`queries` holds (PromQL, legend). `unit` is one of Grafana's. Red is from `limit` on, and below `least`."""

    title: str
    question: str
    unit: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    limit: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """`variables` holds (name, PromQL of the series whose label of that name has the choices)."""

    name: str
    title: str
    about: str
    variables: Sequence[tuple[str, str]]
    panels: Sequence[Panel]


def quantiles(metric: str, labels: str, *keep: str) -> list[tuple[str, str]]:
    """The median and the 99th percentile of a histogram, by the labels to keep."""
    by, legend = ", ".join(("le", *keep)), " ".join(f"{{{{{label}}}}}" for label in keep)
    return [
        (f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{{{labels}}}[{_RATE}])))", f"{name} {legend}")
        for q, name in ((0.5, "p50"), (0.99, "p99"))
    ]


def rate(metric: str, labels: str, *keep: str, times: int = 1) -> tuple[str, str]:
    """The sum of a counter's rates, by the labels to keep."""
    query = f"sum by ({', '.join(keep)}) (rate({metric}{{{labels}}}[{_RATE}]))"
    return query if times == 1 else f"{times} * {query}", " ".join(f"{{{{{label}}}}}" for label in keep)


HOST: Final = 'instance=~"$instance"'
NETWORK: Final = f'{HOST}, network=~"$network"'
ENDPOINT: Final = f'{NETWORK}, sandbox=~"$sandbox", endpoint=~"$endpoint"'
OVERLAY: Final = f'{HOST}, driver="overlay"'
PROBES_LOST: Final = "instance_network:linkspan_probes_lost:ratio_rate5m"
BETWEEN_ENDPOINTS: Final = f'{NETWORK}, kind="endpoint"'
BETWEEN_NODES: Final = f'{HOST}, kind="node"'

HOSTS: Final = Dashboard(
    "hosts",
    "Linkspan / Hosts",
    "linkspand on every host: is it there, what does it hold, how fast does it work.",
    (("instance", 'up{job="linkspan"}'),),
    (
        Panel(
            "linkspand", "Which hosts answer?", "none",
            [(f'up{{job="linkspan", {HOST}}}', "{{instance}}")], "stat", 6, 5, least=1,
        ),
        Panel(
            "Release", "Does every host run the same release?", "none",
            [(f"sum by (instance, version) (linkspan_build_info{{{HOST}}})", "")], "table", 6, 5,
        ),
        Panel(
            "Fallbacks in force", "What do hosts do without, and why?", "none",
            [(f"max by (instance, feature, reason) (linkspan_fallback{{{HOST}}})", "")], "table", 12, 5,
        ),
        Panel(
            "Endpoints", "How much is there on a host?", "short",
            [(f"sum by (instance) (linkspan_endpoints{{{HOST}}})", "{{instance}}")],
        ),
        Panel(
            "Joins", "How long does a join take?", "s",
            quantiles("linkspan_join_seconds", HOST, "instance"),
        ),
        Panel(
            "Operations that fail", "What does not work?", "ops",
            [rate("linkspan_operation_seconds_count", f'{HOST}, outcome="error"', "instance", "operation")],
        ),
        Panel(
            "Slowest plan steps, p99", "Which change of the kernel do joins wait for?", "s",
            [(
                f"topk(5, histogram_quantile(0.99, sum by (le, step, direction) "
                f"(rate(linkspan_plan_step_seconds_bucket{{{HOST}}}[{_RATE}]))))",
                "{{direction}} {{step}}",
            )],
        ),
        Panel(
            "Stores, p99", "Are SQLite and etcd fast enough?", "s",
            [(f"instance_store:linkspan_store_seconds:p99_rate5m{{{HOST}}}", "{{instance}} {{store}}")], limit=0.25,
        ),
        Panel(
            "Requests", "Who is asked how often, and with which end?", "reqps",
            [rate("linkspan_request_seconds_count", HOST, "instance", "status")],
        ),
        Panel(
            "Differences found", "Does somebody change what linkspand has made?", "short",
            [(
                f"sum by (instance, outcome) (increase(linkspan_reconcile_differences_total{{{HOST}}}[5m])) "
                f'or 0 * up{{job="linkspan", {HOST}}}',
                "{{instance}} {{outcome}}",
            )],
        ),
        Panel(
            "Fullest maps", "Is there room for more endpoints?", "percentunit",
            [(f"topk(5, instance_map:linkspan_map_used:ratio{{{HOST}}})", "{{instance}} {{map}}")], limit=0.8,
        ),
        Panel(
            "Memory of linkspand", "Does it grow?", "bytes",
            [(f'process_resident_memory_bytes{{job="linkspan", {HOST}}}', "{{instance}}")],
        ),
    ),
)  # fmt: skip

NETWORKS: Final = Dashboard(
    "networks",
    "Linkspan / Networks",
    "What networks carry, by which path, how fast, and what they drop.",
    (("instance", 'up{job="linkspan"}'), ("network", 'linkspan_network_packets_total{instance=~"$instance"}')),
    (
        Panel(
            "Throughput", "How much do endpoints get?", "bps",
            [rate("linkspan_network_bytes_total", f'{NETWORK}, direction="in"', "instance", "network", times=8)],
        ),
        Panel(
            "Packets by path", "How many packets take which path?", "pps",
            [rate("linkspan_network_packets_total", NETWORK, "network", "path")],
        ),
        Panel(
            "Share of the fast path", "Is the network accelerated?", "percentunit",
            [(f"1 - instance_network:linkspan_slow_path:ratio_rate5m{{{NETWORK}}}", "{{instance}} {{network}}")],
        ),
        Panel(
            "Forwarding latency", "How long is a packet in the host?", "s",
            quantiles("linkspan_network_forwarding_seconds", NETWORK, "network", "path"),
        ),
        Panel(
            "TCP round trip", "How far are endpoints from whom they talk to?", "s",
            quantiles("linkspan_network_tcp_rtt_seconds", NETWORK, "network"),
        ),
        Panel(
            "Round trip of probes", "How far are endpoints from each other, where the prober is on?", "s",
            quantiles("linkspan_probe_rtt_seconds", BETWEEN_ENDPOINTS, "network"),
        ),
        Panel(
            "Probes lost", "Do endpoints reach each other?", "percentunit",
            [(
                f"avg by (instance, network) ({PROBES_LOST}{{{BETWEEN_ENDPOINTS}}})",
                "{{instance}} {{network}}",
            )],
            limit=0.05,
        ),
        Panel(
            "Drops by reason", "Who sends what is not let through?", "pps",
            [rate("linkspan_network_drops_total", NETWORK, "network", "reason")],
        ),
        Panel(
            "Endpoints", "How many endpoints has a network?", "short",
            [(f"sum by (instance, network) (linkspan_endpoints{{{NETWORK}}})", "{{instance}} {{network}}")],
        ),
        Panel(
            "Pools", "How full are the subnets?", "percentunit",
            [(
                f"instance_network_subnet:linkspan_pool_used:ratio{{{NETWORK}}}",
                "{{instance}} {{network}} {{subnet}}",
            )],
            limit=0.9,
        ),
        Panel(
            "Devices of the host", "Can packets pass the parents of macvlan networks?", "none",
            [(
                f"min by (instance, network, parent) (linkspan_parent_up{{{HOST}}})",
                "{{instance}} {{network}} {{parent}}",
            )],
            "stat", least=1,
        ),
        Panel(
            "DHCP leases", "Do endpoints keep the addresses that DHCP servers lend them?", "short",
            [(
                f"sum by (instance, network, state) (linkspan_dhcp_leases{{{NETWORK}}})",
                "{{instance}} {{network}} {{state}}",
            )],
        ),
    ),
)  # fmt: skip

ENDPOINTS: Final = Dashboard(
    "endpoint",
    "Linkspan / Endpoint",
    "One endpoint, or the few that are chosen. Empty where linkspan.toml says per-endpoint = false in [metrics].",
    (
        ("instance", 'up{job="linkspan"}'),
        ("network", 'linkspan_endpoint_packets_total{instance=~"$instance"}'),
        ("sandbox", f"linkspan_endpoint_packets_total{{{NETWORK}}}"),
        ("endpoint", f'linkspan_endpoint_packets_total{{{NETWORK}, sandbox=~"$sandbox"}}'),
    ),
    (
        Panel(
            "Throughput", "How much does it send and get?", "bps",
            [rate("linkspan_endpoint_bytes_total", ENDPOINT, "sandbox", "network", "direction", times=8)], width=12,
        ),
        Panel(
            "Packets by path", "Which path do its packets take?", "pps",
            [rate("linkspan_endpoint_packets_total", ENDPOINT, "sandbox", "network", "path")], width=12,
        ),
        Panel(
            "Forwarding latency", "How long are packets for it in the host?", "s",
            quantiles("linkspan_endpoint_forwarding_seconds", ENDPOINT, "sandbox", "path"),
        ),
        Panel(
            "TCP round trip", "How far is it from whom it talks to?", "s",
            quantiles("linkspan_endpoint_tcp_rtt_seconds", ENDPOINT, "sandbox"),
        ),
        Panel(
            "Drops by reason", "What does it send that is not let through?", "pps",
            [rate("linkspan_endpoint_drops_total", ENDPOINT, "sandbox", "network", "reason")],
        ),
        Panel(
            "Busiest endpoints", "Who of those chosen gets most?", "bps",
            [(
                f"topk(10, 8 * sum by (instance, network, sandbox, endpoint) "
                f'(rate(linkspan_endpoint_bytes_total{{{ENDPOINT}, direction="in"}}[{_RATE}])))',
                "",
            )],
            "table", 24, 8,
        ),
    ),
)  # fmt: skip

OVERLAYS: Final = Dashboard(
    "overlay",
    "Linkspan / Overlay",
    "A cluster of hosts: do they see each other and etcd, and what do their overlay networks carry.",
    (("instance", "linkspan_cluster_connected"),),
    (
        Panel(
            "Nodes", "How many nodes are there for each, and in which state?", "none",
            [(f"max by (instance, state) (linkspan_cluster_nodes{{{HOST}}})", "{{instance}} {{state}}")], "stat", 12, 5,
        ),
        Panel(
            "Connected", "Who hears the cluster's changes as they are made?", "none",
            [(f"linkspan_cluster_connected{{{HOST}}}", "{{instance}}")], "stat", 12, 5, least=1,
        ),
        Panel(
            "Lag", "Who is behind, and by how much?", "s",
            [(f"linkspan_cluster_lag_seconds{{{HOST}}}", "{{instance}}")], limit=30,
        ),
        Panel(
            "etcd, p99", "Is etcd fast enough?", "s",
            [(f'instance_store:linkspan_store_seconds:p99_rate5m{{{HOST}, store="etcd"}}', "{{instance}}")], limit=0.25,
        ),
        Panel(
            "Throughput", "How much do endpoints get on a node?", "bps",
            [rate("linkspan_network_bytes_total", f'{OVERLAY}, direction="in"', "instance", "network", times=8)],
        ),
        Panel(
            "Share of the fast path", "Do packets between nodes take the programs' path?", "percentunit",
            [(f"1 - instance_network:linkspan_slow_path:ratio_rate5m{{{OVERLAY}}}", "{{instance}} {{network}}")],
        ),
        Panel(
            "Forwarding latency", "How long is a packet in the node that delivers it?", "s",
            quantiles("linkspan_network_forwarding_seconds", OVERLAY, "instance", "path"),
        ),
        Panel(
            "TCP round trip", "How far are endpoints from whom they talk to?", "s",
            quantiles("linkspan_network_tcp_rtt_seconds", OVERLAY, "instance"),
        ),
        Panel(
            "Round trip between nodes", "How far are the nodes from each other?", "s",
            quantiles("linkspan_probe_rtt_seconds", BETWEEN_NODES, "source", "target"), width=12,
        ),
        Panel(
            "Probes lost between nodes", "Does the underlay lose packets?", "percentunit",
            [(f"{PROBES_LOST}{{{BETWEEN_NODES}}}", "{{source}} to {{target}}")], width=12, limit=0.05,
        ),
    ),
)  # fmt: skip

DASHBOARDS: Final = (HOSTS, NETWORKS, ENDPOINTS, OVERLAYS)


def document(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it, schema version 39 (Grafana 10 and later)."""
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    ]
    for name, series in dashboard.variables:
        variables.append(
            {
                "name": name,
                "label": name.capitalize(),
                "type": "query",
                "datasource": SOURCE,
                "query": {"query": f"label_values({series}, {name})", "refId": name},
                "refresh": 2,
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": ["All"], "value": ["$__all"]},
            }
        )
    return {
        "uid": f"linkspan-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["linkspan"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "title": "Linkspan",
                "type": "dashboards",
                "tags": ["linkspan"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": variables},
        "panels": _panels(dashboard.panels),
    }


def _panels(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    placed = []
    x = y = row_height = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        position = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        placed.append({"id": number, "gridPos": position, **_panel(panel)})
        x, row_height = x + panel.width, max(row_height, panel.height)
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.least is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.least}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.limit is not None and panel.kind == "timeseries":
        defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
    is_table = panel.kind == "table"
    made: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.question,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend or "__auto",
                **({"instant": True, "format": "table"} if is_table else {}),
            }
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }
    if panel.kind == "stat":
        made["options"] = {"textMode": "value_and_name", "reduceOptions": {"calcs": ["lastNotNull"]}}
    if is_table:
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
    return made


def text(dashboard: Dashboard) -> str:
    """What stands in the dashboard's file."""
    return json.dumps(document(dashboard), indent=2) + "\n"


def main() -> None:
    """Writes the files of all dashboards."""
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(text(dashboard))


if __name__ == "__main__":
    main()
