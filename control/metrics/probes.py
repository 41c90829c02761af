"""What the prober has counted, for every scrape."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from control.prober import BUCKETS, Prober

_LABELS = ("network", "kind", "source", "target")
_BOUNDS = [*map(str, BUCKETS), "+Inf"]


class ProbeCollector(Collector):
    """Pairs whose endpoints have gone are left out; without `per_endpoint` all but those of nodes."""

    def __init__(self, prober: Prober, *, per_endpoint: bool = True) -> None:
        self._prober = prober
        self._per_endpoint = per_endpoint

    def collect(self) -> Iterator[Metric]:
        sent = CounterMetricFamily(
            "linkspan_probes",
            "Echo requests between endpoints and between nodes, by what became of them.",
            labels=(*_LABELS, "result"),
        )
        times = HistogramMetricFamily("linkspan_probe_rtt_seconds", "Round trips of those answered.", labels=_LABELS)
        for pair, tally in self._prober.tallies().items():
            if pair.kind == "endpoint" and not self._per_endpoint:
                continue
            sent.add_metric((*pair, "answered"), tally.answered)
            sent.add_metric((*pair, "lost"), tally.lost)
            counts = zip(_BOUNDS, map(float, accumulate(tally.buckets)), strict=True)
            times.add_metric(pair, list(counts), sum_value=tally.seconds)
        yield sent
        yield times

    def describe(self) -> list[Metric]:
        """Empty, so that registering reads nothing."""
        return []
