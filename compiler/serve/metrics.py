"""/metrics: what happened, for Prometheus."""

from __future__ import annotations

import collections
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from .memory import Ledger
from .scheduler import Scheduler

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.replica = ""  # on a cluster: a label of every line, for each replica counts by itself
        by, home = ["model"], self.registry
        self._requests = Counter(
            "bertc_requests", "Answers by route and HTTP status.", ["route", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "bertc_request_seconds",
            "From the first byte of a request to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._queue = Histogram("bertc_queue_seconds", "What rows waited for a worker.", by, buckets=SECONDS, registry=home)
        self._batch = Histogram("bertc_batch_seconds", "What batches took in a worker.", by, buckets=SECONDS, registry=home)
        self._rows = Histogram("bertc_batch_rows", "Rows of a batch.", by, buckets=ROWS, registry=home)
        self._tokens = Counter("bertc_tokens", "Tokens of the rows, without padding.", by, registry=home)
        self._computed = Counter("bertc_computed_tokens", "Tokens that were computed, with padding.", by, registry=home)
        self._waiting = Gauge("bertc_waiting_rows", "Rows that wait now.", by, registry=home)
        self._workers = Gauge("bertc_workers", "Workers that live now.", registry=self.registry)
        self._deaths = Counter("bertc_worker_deaths", "Workers that ended and were replaced.", registry=self.registry)

        self._loads = Histogram(
            "bertc_model_load_seconds", "What workers took to load models.", by, buckets=SECONDS, registry=home
        )
        self._unloads = Counter("bertc_model_unloads", "Models unloaded to stay within the memory.", by, registry=home)
        self._loaded = Gauge("bertc_models_loaded", "Models that are loaded now.", registry=home)
        self._bytes = Gauge("bertc_models_bytes", "What the loaded models take, equal weights once.", registry=home)
        self._budget = Gauge("bertc_models_budget_bytes", "What they may take; 0: no limit.", registry=home)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def batch(self, model: str, rows: int, tokens: int, computed: int, seconds: float) -> None:
        """Count a batch."""
        model = _own(model)
        self._rows.labels(model).observe(rows)
        self._batch.labels(model).observe(seconds)
        self._tokens.labels(model).inc(tokens)
        self._computed.labels(model).inc(computed)

    def waited(self, model: str, seconds: float) -> None:
        """What a row waited."""
        self._queue.labels(_own(model)).observe(seconds)

    def death(self) -> None:
        """A worker ended."""
        self._deaths.inc()

    def loaded(self, name: str, seconds: float) -> None:
        """A worker loaded a model."""
        self._loads.labels(name).observe(seconds)

    def unloaded(self, name: str) -> None:
        """A model was unloaded in all workers."""
        self._unloads.labels(name).inc()

    def text(self, scheduler: Scheduler, workers: int, ledger: Ledger | None = None) -> bytes:
        """All of it, in Prometheus' text form."""
        if ledger is not None:
            self._loaded.set(len(ledger.loaded))
            self._bytes.set(ledger.bytes())
            self._budget.set(ledger.budget or 0)
        self._workers.set(workers)
        rows = collections.Counter[str]()
        for name, lane in scheduler.lanes.items():
            rows[_own(name)] += len(lane.waiting)
        for name, waiting in rows.items():
            self._waiting.labels(name).set(waiting)
        return bytes(generate_latest(_Labelled(self.registry, self.replica) if self.replica else self.registry))


class _Labelled:
    """A registry with one label more."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self.registry, self.replica = registry, replica

    def collect(self) -> Iterator[Metric]:
        for family in self.registry.collect():
            family.samples = [each._replace(labels=each.labels | {"replica": self.replica}) for each in family.samples]
            yield family


def _own(lane: str) -> str:
    """The model's name, whichever build of it this is: a reload makes `name@1` of it."""
    return lane.partition("@")[0]
