"""A snapshot as text for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from comfyfleet.fleet.insight import Snapshot, State, WorkerStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Value = Callable[[WorkerStatus], float | None]

#: Name without its prefix, help, and where the value is; None is left out.
_GAUGES: tuple[tuple[str, str, Value], ...] = (
    ("rss_bytes", "Main memory of the worker's process.", lambda w: w.memory.rss_bytes),
    (
        "device_free_bytes",
        "Free memory of the worker's device.",
        lambda w: w.memory.device_free_bytes,
    ),
    ("device_total_bytes", "Memory of the worker's device.", lambda w: w.memory.device_total_bytes),
    (
        "units_per_second",
        "Measured speed with the models that the worker holds.",
        lambda w: w.units_per_second,
    ),
    (
        "failures_in_row",
        "Failures since the last unit that succeeded.",
        lambda w: w.failures_in_row,
    ),
    (
        "unit_fraction",
        "Done share of the unit in hand.",
        lambda w: w.task.fraction if w.task else None,
    ),
)
_COUNTERS: tuple[tuple[str, str, Value], ...] = (
    ("busy_seconds", "Time with a unit in hand.", lambda w: w.busy_seconds),
    ("restarts", "How often the worker was started again.", lambda w: w.restarts),
    ("quarantines", "How often the worker was put into quarantine.", lambda w: w.quarantines),
)


def metrics(snapshot: Snapshot, *, running: bool) -> bytes:
    """All metrics of a fleet, in Prometheus' text format (``CONTENT_TYPE``)."""
    registry = CollectorRegistry()
    registry.register(_Once(snapshot, running))
    return generate_latest(registry)


class _Once:
    """Gives the registry the figures of one snapshot."""

    def __init__(self, snapshot: Snapshot, running: bool) -> None:
        self._snapshot = snapshot
        self._running = running

    def describe(self) -> list[Metric]:
        """Nothing: the registry would collect once more to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("comfyfleet_up", "1 while a fleet runs, else 0.")
        up.add_metric([], self._running)
        yield up
        yield from _of_workers(self._snapshot.workers)
        yield from _of_runs(self._snapshot)


def _of_workers(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "comfyfleet_worker_state", "1 for the state of the worker.", labels=["worker", "state"]
    )
    units = CounterMetricFamily(
        "comfyfleet_worker_units", "Starts of units, by how they ended.", labels=["worker", "end"]
    )
    for worker in workers:
        for state in get_args(State):
            states.add_metric([worker.id, state], float(worker.state == state))
        units.add_metric([worker.id, "done"], worker.units_done)
        units.add_metric([worker.id, "failed"], worker.units_failed)
        units.add_metric([worker.id, "lost"], worker.units_lost)
    yield states
    yield units
    yield from _each(workers, GaugeMetricFamily, _GAUGES)
    yield from _each(workers, CounterMetricFamily, _COUNTERS)


def _each(
    workers: tuple[WorkerStatus, ...],
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    rows: tuple[tuple[str, str, Value], ...],
) -> Iterator[Metric]:
    for name, text, value_of in rows:
        metric = family(f"comfyfleet_worker_{name}", text, labels=["worker"])
        for worker in workers:
            value = value_of(worker)
            if value is not None:
                metric.add_metric([worker.id], value)
        yield metric


def _of_runs(snapshot: Snapshot) -> Iterator[Metric]:
    totals = snapshot.totals
    runs = CounterMetricFamily("comfyfleet_runs", "Runs that have ended.", labels=["end"])
    runs.add_metric(["done"], totals.runs_done)
    runs.add_metric(["failed"], totals.runs_failed)
    runs.add_metric(["cancelled"], totals.runs_cancelled)
    yield runs
    prompts = CounterMetricFamily(
        "comfyfleet_prompts", "Prompts of ComfyUI's queue that have ended.", labels=["end"]
    )
    prompts.add_metric(["done"], totals.prompts_done)
    prompts.add_metric(["failed"], totals.prompts_failed)
    prompts.add_metric(["cancelled"], totals.prompts_cancelled)
    yield prompts
    waiting = GaugeMetricFamily("comfyfleet_runs_waiting", "Runs of which nothing has begun.")
    waiting.add_metric([], snapshot.runs_waiting)
    yield waiting
