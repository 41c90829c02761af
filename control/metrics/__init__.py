"""Metrics of linkspand for Prometheus: what is done as it happens, everything else read at scrape time.

Adding a metric: one line in `Work`, or one family in `control.metrics.state`, and a row in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.metrics import Gauge, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from control.controller import NetworkController
from control.metrics import counting
from control.metrics.state import StateCollector
from control.metrics.text import Text
from control.metrics.work import Work
from control.metrics.writer import Writer


@cache
def release() -> str:
    """The version of this linkspand, "unknown" when it runs from files that were never installed."""
    try:
        return version("linkspan")
    except PackageNotFoundError:
        return "unknown"


class Metrics:
    """All metrics of one linkspand, in a registry of their own. `per_endpoint` is whether each endpoint has series."""

    def __init__(self, *, per_endpoint: bool = True) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each histogram, which nobody reads
        self._per_endpoint = per_endpoint
        self._registry = CollectorRegistry()
        self._controller: NetworkController | None = None
        self.work = Work(self._registry)
        Gauge("linkspan_build_info", "1, with the version.", ("version",), registry=self._registry).labels(
            release()
        ).set(1)
        ProcessCollector(registry=self._registry)

    def register(self, collector: Collector) -> None:
        """Adds what `collector` has to every scrape."""
        self._registry.register(collector)

    def watch(self, controller: NetworkController) -> None:
        """Adds the controller's state to every scrape, and has its work timed."""
        self._controller = controller
        self.register(StateCollector(controller))
        self.work.watch(controller.observers)

    def expose(self, writer: Writer | None = None) -> Iterator[bytes]:
        """Yields a scrape's body a part at a time, as text unless another `writer` is given; each part blocks for as
        long as it takes to be put together."""
        writer = writer or Text()
        if self._controller is not None:
            counts = self._controller.counted()
            if self._per_endpoint:
                yield from counting.endpoints(counts, writer)
            yield from counting.networks(counts, writer)
        yield from writer.registry(self._registry)
