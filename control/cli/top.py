"""`linkspan top`: networks and endpoints by rate, latency and drops, on a terminal or as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from control.cli.client import Client
from control.cli.command import NO_ARGUMENTS, Flag, command
from control.cli.errors import USAGE, CliError
from control.cli.values import Bool, Filter, Seconds, String

if TYPE_CHECKING:
    from control.cli.rates import Rates, Row
    from control.cli.top_rows import Filters
    from datapath.latency import Histogram

_INTERVAL_LEAST_S: Final = 0.1
_INTERVAL_MOST_S: Final = 3600.0


@command(
    "top",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("filter", Filter(), 'Show only what fits (e.g. "name=web"): driver, id, name, network', short="f"),
    Flag(
        "interval",
        Seconds(_INTERVAL_LEAST_S, _INTERVAL_MOST_S),
        "Time between two looks at the counters",
        short="i",
        default=1.0,
        shown="1",
    ),
    Flag("json", Bool(), "Measure once for the interval, and print in JSON format"),
    Flag("sort", String(), "Order by rate, out, in, packets, fast, p50, p99, rtt, drops or name", default="rate"),
)
def top(
    client: Client,
    args: list[str],
    filter: Filters,
    interval: float,
    json: bool | None,
    sort: str,
) -> None:
    """Show networks and endpoints by rate, latency and drops"""
    from control.cli.top_rows import SORT_NAMES, check

    if sort not in SORT_NAMES:
        raise CliError(f'linkspan: there is no order "{sort}": use {", ".join(SORT_NAMES)}', USAGE)
    check(filter)
    if json:
        click.echo(_once(client, filter, interval, sort))
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CliError("linkspan: top needs a terminal: use linkspan top --json")
    from control.cli.top_screen import show
    from control.cli.top_view import View

    text = " ".join(f"{name}={value}" for name, values in filter.items() for value in values)
    show(client, View(interval, sort=sort, filters=filter, filter_text=text))


def _once(client: Client, filters: Filters, interval_s: float, sort: str) -> str:
    import json
    import time

    from control.cli.rates import STATS_PATH, Recorder
    from control.cli.top_rows import ordered, select

    recorder = Recorder(interval_s)
    recorder.add(client.get(STATS_PATH))
    time.sleep(interval_s)
    recorder.add(client.get(STATS_PATH))
    document = recorder.document
    assert document is not None
    shown = {
        "at": document["at"],
        "seconds": recorder.seconds,
        "host": document["host"],
        "networks": [_network(row) for row in ordered(select(recorder.rows, filters), sort)],
        "fallbacks": document["fallbacks"],
    }
    return json.dumps(shown, indent=4, ensure_ascii=False)


def _network(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "driver": row.driver,
        **_rates(row.rates),
        "endpoints": [
            {"id": each.id, "sandbox": each.name, "addresses": list(each.addresses), **_rates(each.rates)}
            for each in row.endpoints
        ],
    }


def _rates(rates: Rates | None) -> dict[str, Any]:
    """Names say the unit; all are null where nothing is known."""
    if rates is None:
        return {"rates": None}
    return {
        "rates": {
            "out_bits_per_second": rates.out_bits,
            "in_bits_per_second": rates.in_bits,
            "out_packets_per_second": rates.out_packets,
            "in_packets_per_second": rates.in_packets,
            "fast_share": rates.fast_share,
            "drops_per_second": dict(rates.drops),
            "forwarding_seconds": _latency(rates.forwarding),
            "tcp_rtt_seconds": _latency(rates.tcp_rtt),
        }
    }


def _latency(found: Histogram) -> dict[str, float] | None:
    if not found.buckets:
        return None
    return {"samples": found.count, "p50": found.quantile(0.5), "p99": found.quantile(0.99)}
