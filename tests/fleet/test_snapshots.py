"""What is made of a snapshot: metrics, and memory that is asked rarely."""

from __future__ import annotations

import os

from prometheus_client.parser import text_string_to_metric_families

from comfyfleet.fleet.insight import Snapshot, Task, Totals, WorkerStatus
from comfyfleet.fleet.insight_memory import DeviceMemory, MemoryWatch
from comfyfleet.fleet.insight_metrics import metrics

BUSY = WorkerStatus(
    id='odd "name"\n',
    state="busy",
    reason="",
    device="cuda:1",
    pid=os.getpid(),
    task=Task(run="r", unit=0, prompt_id="p", started=5.0, fraction=0.5),
    units_done=3,
    units_lost=1,
    busy_seconds=1.5,
    quarantines=2,
)
GONE = WorkerStatus(id="cuda2", state="gone", reason="given up", device="cuda:2", restarts=5)
SNAPSHOT = Snapshot(
    seq=1,
    time=9.0,
    workers=(BUSY, GONE),
    runs_waiting=7,
    totals=Totals(runs_done=4, prompts_done=2, prompts_failed=1),
)


def samples(snapshot: Snapshot, *, running: bool = True) -> dict[tuple[str, ...], float]:
    """Name and labels (the worker first) -> value, as Prometheus reads them."""
    text = metrics(snapshot, running=running).decode()
    return {
        (
            sample.name,
            *(text for _, text in sorted(sample.labels.items(), reverse=True)),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_read_as_they_were_meant() -> None:
    found, name = samples(SNAPSHOT), BUSY.id
    assert found["comfyfleet_up",] == 1
    assert found["comfyfleet_worker_state", name, "busy"] == 1
    assert found["comfyfleet_worker_state", name, "idle"] == 0
    assert found["comfyfleet_worker_state", "cuda2", "gone"] == 1
    assert found["comfyfleet_worker_units_total", name, "done"] == 3
    assert found["comfyfleet_worker_units_total", name, "lost"] == 1
    assert found["comfyfleet_worker_busy_seconds_total", name] == 1.5
    assert found["comfyfleet_worker_quarantines_total", name] == 2
    assert found["comfyfleet_worker_restarts_total", "cuda2"] == 5
    assert found["comfyfleet_worker_unit_fraction", name] == 0.5
    assert ("comfyfleet_worker_unit_fraction", "cuda2") not in found
    assert found["comfyfleet_runs_total", "done"] == 4
    assert found["comfyfleet_prompts_total", "failed"] == 1
    assert found["comfyfleet_runs_waiting",] == 7


def test_without_a_fleet_there_are_metrics_too() -> None:
    found = samples(Snapshot(seq=0, time=0.0), running=False)
    assert found["comfyfleet_up",] == 0
    assert not [key for key in found if key[0].startswith("comfyfleet_worker")]


def test_devices_are_asked_rarely_and_the_dead_never() -> None:
    now, asked = [100.0], []

    def ask() -> DeviceMemory:
        asked.append(now[0])
        return {BUSY.id: (3, 8), GONE.id: (1, 1)}

    watch = MemoryWatch(ask, timer=lambda: now[0])
    for now[0] in (100.0, 101.0, 104.9, 105.0, 109.0):
        busy, gone = watch.complete(SNAPSHOT).workers
    assert asked == [100.0, 105.0]
    assert (busy.memory.device_free_bytes, busy.memory.device_total_bytes) == (3, 8)
    assert busy.memory.rss_bytes and busy.memory.rss_bytes > 1_000_000
    assert gone.memory.rss_bytes is gone.memory.device_free_bytes is None
