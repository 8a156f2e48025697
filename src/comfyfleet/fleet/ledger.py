"""What happens in a fleet, for whoever watches it: who does what now, and what became of runs.

Nothing of a prompt is kept here but its id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from comfyfleet.errors import RunCancelled, RunError
from comfyfleet.fleet.insight import AttemptOutcome, Snapshot, Totals
from comfyfleet.fleet.insight_records import (
    ERROR_CHARS,
    AttemptRecord,
    RunRecord,
    WorkerRecord,
)
from comfyfleet.fleet.insight_stream import Stream, Subscription
from comfyfleet.fleet.run import RunEvent
from comfyfleet.work import (
    Dispatch,
    Event,
    Failure,
    Halved,
    Heal,
    Quarantine,
    RunSubmitted,
    Told,
    UnitsAdded,
    WorkerInfo,
    WorkerJoined,
    WorkerLent,
    WorkerLost,
)

logger = logging.getLogger(__name__)

#: Ended runs that are remembered, and waiting ones that a snapshot shows.
_RUNS_KEPT = 200


class Ledger:
    """Written on the fleet's loop; ``snapshot`` and subscriptions are for any thread."""

    def __init__(
        self,
        dispatch: Dispatch,
        devices: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """``devices``: worker id -> device, of the workers that the fleet starts."""
        self._dispatch = dispatch
        self._clock = clock
        self._timer = timer
        self._lock = threading.Lock()
        self._stream = Stream()
        self._workers = {name: WorkerRecord(name, device) for name, device in devices.items()}
        self._live: dict[str, RunRecord] = {}
        self._ended: deque[RunRecord] = deque(maxlen=_RUNS_KEPT)
        #: Dispatch's worker id -> what it has in hand; also of a master in a single run.
        self._open: dict[str, AttemptRecord] = {}
        self._totals: Counter[str] = Counter()

    # From any thread.

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        with self._lock:
            now = self._timer()
            waiting = [run for run in self._live.values() if not run.num_attempts]
            begun = [run for run in self._live.values() if run.num_attempts]
            shown = [*self._ended, *begun, *waiting[:_RUNS_KEPT]]
            return Snapshot(
                seq=self._stream.seq,
                time=self._clock(),
                workers=tuple(each.status(now) for each in self._workers.values() if each.shown),
                runs=tuple(run.status(now) for run in shown),
                runs_waiting=len(waiting),
                totals=Totals(**self._totals),
            )

    def subscribe(self, wake: Callable[[], None]) -> Subscription:
        """Begin to collect events; see ``Subscription``."""
        reader = Subscription(wake)
        self._stream.subscribe(reader)
        return reader

    def unsubscribe(self, reader: Subscription) -> None:
        """Collect no more for this one."""
        self._stream.unsubscribe(reader)

    # On the fleet's loop.

    def meet(self, infos: Sequence[WorkerInfo]) -> None:
        """These workers' processes are alive."""
        with self._lock:
            for info in infos:
                self._workers[info.id].meet(info)

    def expect(self, worker_id: str, device: str) -> None:
        """A worker that the fleet did not have at first."""
        with self._lock:
            self._workers.setdefault(worker_id, WorkerRecord(worker_id, device))

    def begin(self, event: RunSubmitted) -> None:
        """A run was submitted."""
        with self._lock:
            run = RunRecord(event, self._clock())
            self._live[run.id] = run
            self._publish("run.submitted", {**run.label, "units": run.units})

    def hear(self, event: Event) -> None:
        """Dispatch is about to be told of this; of a loss it may be said twice."""
        with self._lock:
            match event:
                case WorkerJoined(only_run=None):
                    self._join(event.worker_id)
                case WorkerLost():
                    self._lose(event)
                case UnitsAdded() if event.run_id in self._live:
                    self._live[event.run_id].units += len(event.units)
                case WorkerLent():
                    self._workers[event.worker_id].model_key = None

    def take(self, event: RunEvent) -> None:
        """Something happened to a unit."""
        with self._lock:
            if event.kind == "started":
                self._start(event)
                return
            attempt = self._open.get(event.worker_id)
            if attempt is None or not attempt.is_of(event.unit):
                return  # a late word on something long over
            match event.kind:
                case "progress":
                    attempt.fraction = event.fraction
                    self._publish("unit.progress", attempt.progress)
                case "told":
                    assert event.told is not None
                    self._note_node(attempt, event.told)
                case "failed":
                    assert event.failure is not None
                    self._fail(event.worker_id, attempt, event.failure)
                case "delivered":
                    attempt.run.done.add(event.unit.index)
                    self._close(event.worker_id, "done")

    def note(self, instruction: Quarantine | Heal) -> None:
        """Dispatch changed what it thinks of a worker."""
        with self._lock:
            worker = self._workers.get(instruction.worker_id)
            if worker is not None and isinstance(instruction, Quarantine):
                worker.counts["quarantines"] += 1

    def note_halved(self, instruction: Halved) -> None:
        """A unit needed too much memory everywhere: its halves take its place."""
        with self._lock:
            unit, halves = instruction.unit, instruction.halves
            run = self._live[unit.run_id]
            run.units += len(halves) - 1
            run.units_halved += 1
            parts = {"into": [half.index for half in halves], "items": [h.items for h in halves]}
            self._publish("unit.halved", {**run.label, "unit": unit.index, **parts})

    def end(self, run_id: str, error: RunError | None) -> None:
        """A run ended."""
        with self._lock:
            run = self._live.pop(run_id)
            cancelled = isinstance(error, RunCancelled)
            run.outcome = "cancelled" if cancelled else "failed" if error else "done"
            run.error = str(error)[-ERROR_CHARS:] if error else ""
            run.ended = self._clock()
            self._ended.append(run)
            for what in ("runs", "prompts") if run.prompt_id else ("runs",):
                self._totals[f"{what}_{run.outcome}"] += 1
            self._publish("run.ended", {**run.label, "outcome": run.outcome, "error": run.error})

    def sync(self) -> None:
        """Dispatch has dealt with something: see what became of the workers."""
        with self._lock:
            here = set(self._dispatch.workers)
            for worker_id in list(self._open):
                self._check(worker_id, worker_id in here)
            for worker in self._workers.values():
                if worker.id in here:
                    state = self._dispatch.state_of(worker.id)
                    changed = worker.be(state, self._dispatch.reason_of(worker.id))
                else:
                    changed = worker.be(worker.absence, worker.loss)
                if changed:
                    label = {"worker": worker.id, "state": worker.state, "reason": worker.reason}
                    self._publish("worker.changed", label)

    # Workers.

    def _join(self, worker_id: str) -> None:
        worker = self._workers.get(worker_id)
        if worker is None:  # the master, who shares its queue
            worker = self._workers[worker_id] = WorkerRecord(worker_id, is_master=True)
        worker.join()

    def _lose(self, event: WorkerLost) -> None:
        worker = self._workers.get(event.worker_id)
        if worker is None:
            return
        if event.worker_id in self._open:
            self._close(event.worker_id, "lost", event.reason)
        worker.lose(event.reason, returns=event.returns)
        if not worker.is_master:
            worker.remember(event.reason, self._clock())

    # Attempts.

    def _start(self, event: RunEvent) -> None:
        unit, worker_id = event.unit, event.worker_id
        if worker_id in self._open:
            self._close(worker_id, "interrupted")
        worker, run = self._workers.get(worker_id), self._live[unit.run_id]
        attempt = AttemptRecord(run, unit, worker_id, self._clock(), self._timer())
        self._open[worker_id] = attempt
        run.add(attempt)
        if worker is not None:
            worker.attempt, worker.model_key = attempt, unit.model_key
            self._measure(worker)
        self._publish("unit.started", {**attempt.label, "model_key": unit.model_key})

    def _note_node(self, attempt: AttemptRecord, told: Told) -> None:
        if attempt.note(told):
            self._publish("unit.progress", attempt.progress)

    def _fail(self, worker_id: str, attempt: AttemptRecord, failure: Failure) -> None:
        """It brought nothing: as it failed, or as it was stopped."""
        worker = self._workers.get(worker_id)
        if worker is not None and failure.kind == "out_of_memory":
            worker.model_key = None  # ComfyUI unloads all models then
        if attempt.wanted:
            self._close(worker_id, "failed", str(failure))
            said = attempt.run.prompt_id  # by whoever mirrors it
            if not said and attempt.run.is_news(worker_id, str(failure)):
                which = f"unit {attempt.run.id}:{attempt.unit}"
                logger.warning("%s on worker %s: %s", which, attempt.worker_id, failure)
        else:
            self._close(worker_id, "interrupted")

    def _check(self, worker_id: str, here: bool) -> None:
        """Close what nobody told the end of: its result came too late, or its worker left."""
        unit = self._dispatch.find_unit_on(worker_id) if here else None
        if unit is None or not self._open[worker_id].is_of(unit):
            self._close(worker_id, "interrupted")

    def _close(self, worker_id: str, outcome: AttemptOutcome, error: str = "") -> None:
        attempt = self._open.pop(worker_id)
        attempt.close(outcome, self._timer(), error)
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.settle(attempt, self._clock())
            self._measure(worker)
        end = {"outcome": outcome, "seconds": attempt.seconds, "error": attempt.error}
        self._publish("unit.ended", {**attempt.label, **end})

    def _measure(self, worker: WorkerRecord) -> None:
        speeds = self._dispatch.speeds(worker.id)
        worker.speed = None if worker.model_key is None else speeds.get(worker.model_key)

    def _publish(self, kind: str, data: Mapping[str, object]) -> None:
        self._stream.publish(kind, self._clock(), data)
