"""``comfyfleet run``: start a fleet, run a batch on it, save and show what it makes."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from comfyfleet.cli.show import Progress, closing_table, console, progress_view
from comfyfleet.config import Remote
from comfyfleet.errors import InputError, WorkflowError
from comfyfleet.fleet import Delivery, Fleet, Host, Run, RunEvent, new_run_id
from comfyfleet.fleet.batch import Batch, OutputFolder
from comfyfleet.fleet.cluster import Cluster
from comfyfleet.graph import missing_files
from comfyfleet.planner import Device, choose_devices, find_devices
from comfyfleet.work import Result


def run_command(
    batch: Batch,
    host: Host,
    *,
    out: Path,
    resume: bool,
    workers: str,
    remotes: Sequence[Remote] = (),
    cluster: Cluster | None = None,
) -> None:
    """Run a batch into a folder; all that can be checked is checked before a worker starts."""
    check_files(batch, host)
    elsewhere = [each for each in remotes if each.enabled]
    others = bool(cluster or (elsewhere and workers == "0"))
    devices = devices_beside(workers) if others else devices_for(workers)
    with closing(OutputFolder(out, batch, resume=resume)) as folder:
        done = [index for index in folder.finished if index < batch.count]
        if len(done) == batch.count:
            console.print(f"nothing to do: all {batch.count} runs are in {out}")
            return
        with closing(Fleet(devices, host, remotes=elsewhere, cluster=cluster)) as fleet:
            with console.status(_starting(len(devices) + len(elsewhere), cluster)):
                fleet.start()
            for note in fleet.notes:
                console.print(note)
            for worker in fleet.workers:
                if worker.note:
                    told = f"worker {worker.id}: {worker.note}"
                    console.print(told, markup=False, highlight=False)
            run_batch(fleet, batch, folder, done)


def devices_for(workers: str) -> list[Device]:
    """The devices that a request names; without any accelerator, "auto" is the CPU."""
    found = find_devices()
    chosen = choose_devices(workers, found)
    if chosen:
        return chosen
    if workers == "auto":
        return choose_devices("cpu", found)
    raise InputError(f"--workers {workers}: nothing runs without a worker. Give 1 or more.")


def devices_beside(workers: str) -> list[Device]:
    """The same beside a cluster, whose devices may be enough."""
    return [] if workers == "0" else choose_devices(workers, find_devices())


def _starting(workers: int, cluster: Cluster | None) -> str:
    elsewhere = f" and those of the cluster at {cluster.address}" if cluster else ""
    return f"starting {workers} workers{elsewhere}"


def check_files(batch: Batch, host: Host) -> None:
    """Refuse a batch whose input files ComfyUI would not find.

    With flags ComfyUI may look elsewhere; then its own validation on a worker says it.
    """
    if host.flags:
        return
    problems = missing_files(
        batch.prompt, lambda folder, name: (host.comfyui / folder / name).is_file()
    )
    if problems:
        raise WorkflowError(problems)


def run_batch(fleet: Fleet, batch: Batch, folder: OutputFolder, done: list[int]) -> list[Delivery]:
    """Run what is left of a batch on a running fleet, saving it; the deliveries, emptied."""
    units = batch.units(new_run_id(), skip=done)
    problems = fleet.check(units[0].prompt)
    if problems:
        raise WorkflowError(problems)
    events: queue.SimpleQueue[RunEvent] = queue.SimpleQueue()
    started = time.monotonic()
    run = fleet.submit(units, events.put)
    with progress_view(total=len(units)) as progress:
        deliveries = _follow(run, events, folder, progress)
    console.print(closing_table(deliveries, time.monotonic() - started, fleet.workers))
    console.print(f"{len(deliveries)} runs saved in {folder.folder}")
    return deliveries


def _follow(
    run: Run, events: queue.SimpleQueue[RunEvent], folder: OutputFolder, progress: Progress
) -> list[Delivery]:
    """Save each delivery as it comes, until all are saved or the run has failed."""
    deliveries: list[Delivery] = []
    while len(deliveries) < run.total:
        try:
            event = events.get(timeout=0.2)
        except queue.Empty:
            run.wait(0)
            continue
        if event.delivery is not None:
            folder.save(event.delivery)
            run.forget(event.unit.index)
            deliveries.append(replace(event.delivery, result=Result(values=None)))
        progress.show(event)
    return deliveries
