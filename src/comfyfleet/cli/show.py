"""What the commands print: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from comfyfleet.fleet import Delivery, RunEvent
from comfyfleet.work import WorkerInfo

console = Console()


class Progress(Protocol):
    """Shows what happens to units."""

    def show(self, event: RunEvent) -> None: ...


@contextmanager
def progress_view(total: int) -> Iterator[Progress]:
    """Bars per worker and in all if a person watches, else one line per finished unit."""
    if not console.is_terminal:
        yield _Lines(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=console) as bars:
        yield _Bars(bars, total)


class _Lines:
    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def show(self, event: RunEvent) -> None:
        if event.delivery is None:
            return
        self._done += 1
        console.print(
            f"{self._done}/{self._total}: run {event.unit.index} on {event.worker_id} "
            f"in {event.delivery.seconds:.2f} s"
        )


class _Bars:
    """One bar for all units and one for the unit that each worker has in hand."""

    def __init__(self, bars: Bars, total: int) -> None:
        self._bars = bars
        self._all = bars.add_task("all", total=total)
        self._workers: dict[str, TaskID] = {}

    def show(self, event: RunEvent) -> None:
        bar = self._bar(event.worker_id)
        done = 100 if event.kind == "delivered" else int(100 * event.fraction)
        text = f"{event.worker_id}  run {event.unit.index}"
        self._bars.update(bar, description=text, completed=done)
        if event.kind == "delivered":
            self._bars.advance(self._all)

    def _bar(self, worker_id: str) -> TaskID:
        if worker_id not in self._workers:
            self._workers[worker_id] = self._bars.add_task(worker_id, total=100)
        return self._workers[worker_id]


def closing_table(
    deliveries: Sequence[Delivery], wall_s: float, workers: Sequence[WorkerInfo]
) -> Table:
    """Who ran how much, and how much faster that was than one worker after another."""
    devices = {worker.id: worker.device for worker in workers}
    busy = sum(delivery.seconds for delivery in deliveries)
    table = Table(title=f"{len(deliveries)} runs in {wall_s:.1f} s")
    for column in ("worker", "device", "runs", "seconds", "seconds per run"):
        table.add_column(column, justify="left" if column in ("worker", "device") else "right")
    for worker_id in sorted({delivery.worker_id for delivery in deliveries}):
        own = [each.seconds for each in deliveries if each.worker_id == worker_id]
        row = (str(len(own)), f"{sum(own):.1f}", f"{sum(own) / len(own):.2f}")
        table.add_row(worker_id, devices.get(worker_id, "gone"), *row)
    speed_up = f"{busy / wall_s:.2f} times one worker" if wall_s > 0 else ""
    table.add_section()
    table.add_row("all", "", str(len(deliveries)), f"{busy:.1f}", speed_up)
    return table
