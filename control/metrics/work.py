"""Metrics of what linkspand does, counted and timed as it is done."""

from __future__ import annotations

from typing import Final

from prometheus_client.metrics import Counter, Histogram
from prometheus_client.registry import CollectorRegistry

from control.observing import Observers
from control.plan import Step

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHORT_SECONDS: Final = (0.00001, 0.000025, 0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5)
_EXEMPLAR_CHARS: Final = 100
"""OpenMetrics allows an exemplar 128 characters, names of labels included."""


class Work:
    """The metrics themselves; `watch` has them follow a controller. Exemplars tell what the latest one of a bucket
    was about, by the names that are in the log."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.request_seconds = Histogram(
            "linkspan_request_seconds",
            "Time to work on a request, until its answer was ready to be sent.",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.errors = Counter(
            "linkspan_errors_total",
            "Requests that failed through no fault of the client, by kind.",
            ("kind",),
            registry=registry,
        )
        self._joins = Histogram(
            "linkspan_join_seconds", "Time to join an endpoint.", buckets=_SECONDS, registry=registry
        )
        self._operations = Histogram(
            "linkspan_operation_seconds",
            "Time for an operation of the control plane; one that was refused or failed is an error.",
            ("operation", "outcome"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._steps = Histogram(
            "linkspan_plan_step_seconds",
            "Time for one step of a plan, by kind of step.",
            ("step", "direction"),
            buckets=_SHORT_SECONDS,
            registry=registry,
        )
        self._differences = Counter(
            "linkspan_reconcile_differences_total",
            "Objects of which the kernel did not hold what the records say, by whether they were mended.",
            ("what", "outcome"),
            registry=registry,
        )
        self._store = Histogram(
            "linkspan_store_seconds",
            "Time for an operation of a store: sqlite has this host's records, etcd the cluster's.",
            ("store", "operation"),
            buckets=_SHORT_SECONDS,
            registry=registry,
        )

    def watch(self, observers: Observers) -> None:
        observers.ended = self._ended
        observers.step = self._step
        observers.difference = self._difference
        observers.stored = self._stored
        observers.joined = self._joins.observe

    def request(self, route: str, method: str, status: int, seconds: float, path: str) -> None:
        """Counts a request that was answered; `path` is what it was for."""
        child = self.request_seconds.labels(route, method, str(status))
        child.observe(seconds, {"path": path[:_EXEMPLAR_CHARS]})

    def _ended(self, operation: str, is_ok: bool, seconds: float, subject: str) -> None:
        exemplar = {"subject": subject[:_EXEMPLAR_CHARS]} if subject else None
        self._operations.labels(operation, "ok" if is_ok else "error").observe(seconds, exemplar)

    def _step(self, direction: str, step: Step, seconds: float) -> None:
        self._steps.labels(step.kind, direction).observe(seconds, {"step": step.name[:_EXEMPLAR_CHARS]})

    def _difference(self, what: str, is_mended: bool) -> None:
        self._differences.labels(what, "mended" if is_mended else "left").inc()

    def _stored(self, store: str, operation: str, seconds: float) -> None:
        self._store.labels(store, operation).observe(seconds)
