"""What the ledger remembers of workers, runs and attempts, and how it is shown."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Literal

from comfyfleet.fleet.insight import (
    AttemptOutcome,
    AttemptStatus,
    Fault,
    RunOutcome,
    RunStatus,
    State,
    Task,
    WorkerStatus,
)
from comfyfleet.work import RunSubmitted, Told, Unit, WorkerInfo

logger = logging.getLogger(__name__)

#: Of a run of thousands of units the latest starts; the counts are of all.
_ATTEMPTS_KEPT = 100
#: An error may hold a traceback of any length; its end says most.
ERROR_CHARS = 4000


class RunRecord:
    """One run."""

    def __init__(self, event: RunSubmitted, now: float) -> None:
        mirrored = event.units[0].mirrored if event.units else None
        self.id = event.run_id
        self.lane = event.lane
        self.prompt_id = mirrored.prompt_id if mirrored else ""
        self.units = len(event.units)
        self.units_halved = 0
        self.submitted = now
        self.ended: float | None = None
        self.outcome: RunOutcome = "waiting"
        self.error = ""
        #: Indices of units that were delivered.
        self.done: set[int] = set()
        self.num_attempts = 0
        self._attempts: deque[AttemptRecord] = deque(maxlen=_ATTEMPTS_KEPT)
        self._told: set[tuple[str, str]] = set()

    @property
    def label(self) -> dict[str, Any]:
        return {"run": self.id, "lane": self.lane, "prompt_id": self.prompt_id}

    def add(self, attempt: AttemptRecord) -> None:
        self.outcome = "running"
        self.num_attempts += 1
        self._attempts.append(attempt)

    def is_news(self, worker_id: str, failure: str) -> bool:
        """Has nobody been told of it yet? A worker may lack the same for each of many units."""
        count = len(self._told)
        self._told.add((worker_id, failure))
        return len(self._told) > count

    def status(self, now: float) -> RunStatus:
        return RunStatus(
            id=self.id,
            lane=self.lane,
            prompt_id=self.prompt_id,
            units=self.units,
            units_done=len(self.done),
            units_halved=self.units_halved,
            submitted=self.submitted,
            ended=self.ended,
            outcome=self.outcome,
            error=self.error,
            attempts=tuple(attempt.status(now) for attempt in self._attempts),
            num_attempts=self.num_attempts,
        )


class AttemptRecord:
    """One start of a unit on one worker."""

    def __init__(
        self, run: RunRecord, unit: Unit, worker_id: str, started: float, begin: float
    ) -> None:
        self.run = run
        self.unit = unit.index
        #: A master that takes part in one run is called by its id and the run's.
        self.worker_id = worker_id.partition(":")[0]
        self.started = started
        self.outcome: AttemptOutcome = "running"
        self.error = ""
        self.fraction = 0.0
        self.node = ""
        self.step: int | None = None
        self.steps: int | None = None
        #: By the timer, as the clock may be set meanwhile.
        self._begin = begin
        self._end: float | None = None

    @property
    def wanted(self) -> bool:
        """Does anybody wait for its result?"""
        return self.run.ended is None and self.unit not in self.run.done

    @property
    def label(self) -> dict[str, Any]:
        own = {"unit": self.unit, "worker": self.worker_id}
        return {"run": self.run.id, "prompt_id": self.run.prompt_id, **own}

    @property
    def progress(self) -> dict[str, Any]:
        place = {"node": self.node, "step": self.step, "steps": self.steps}
        return {**self.label, "fraction": self.fraction, **place}

    @property
    def seconds(self) -> float:
        """From its start to its end, which must have come."""
        assert self._end is not None
        return self._end - self._begin

    def is_of(self, unit: Unit) -> bool:
        return (self.run.id, self.unit) == (unit.run_id, unit.index)

    def note(self, told: Told) -> bool:
        """Take node and step from what ComfyUI tells a client; True if it is another node.

        Any pack may send such events, with anything in them.
        """
        data = told.data
        if told.event not in ("executing", "progress") or not isinstance(data, Mapping):
            return False
        before, self.node = self.node, str(data.get("node") or "")
        self.step, self.steps = _whole(data.get("value")), _whole(data.get("max"))
        return self.node not in ("", before)

    def close(self, outcome: AttemptOutcome, now: float, error: str) -> None:
        self.outcome, self._end, self.error = outcome, now, error[-ERROR_CHARS:]

    def status(self, now: float) -> AttemptStatus:
        return AttemptStatus(
            unit=self.unit,
            worker=self.worker_id,
            started=self.started,
            seconds=(now if self._end is None else self._end) - self._begin,
            outcome=self.outcome,
            error=self.error,
        )

    def task(self) -> Task:
        return Task(
            run=self.run.id,
            unit=self.unit,
            prompt_id=self.run.prompt_id,
            started=self.started,
            fraction=self.fraction,
            node=self.node,
            step=self.step,
            steps=self.steps,
        )


class WorkerRecord:
    """One worker of the fleet, or the master while it shares its queue."""

    def __init__(self, worker_id: str, device: str = "", *, is_master: bool = False) -> None:
        self.id = worker_id
        self.is_master = is_master
        self.shown = True
        self.alive = False
        self.state: State = "starting"
        self.reason = ""
        #: What it is, and why, whenever dispatch does not have it.
        self.absence: Literal["starting", "restarting", "gone"] = "starting"
        self.loss = ""
        self.attempt: AttemptRecord | None = None
        self.model_key: str | None = None
        self.speed: float | None = None
        self.counts: Counter[str] = Counter()
        self._device = device
        self._info: WorkerInfo | None = None
        self._busy_s = 0.0
        self._failures_in_row = 0
        self._last_error: Fault | None = None
        self._told = ""

    def meet(self, info: WorkerInfo) -> None:
        """Its process says this of itself."""
        self._info, self.alive = info, True

    def be(self, state: State, reason: str) -> bool:
        """This is how it is now; True if that is new."""
        if self.is_master and state == "paused":
            state = "busy"  # nobody pauses it: it runs what is no unit
        before = (self.state, self.reason)
        self.state, self.reason = state, reason
        if reason and not self.is_master:
            self._log(reason)
        return before != (state, reason)

    def join(self) -> None:
        self.counts["restarts"] += self.absence == "restarting"
        self.shown, self.absence, self.loss = True, "starting", ""
        if self._info and self._info.note:
            self._log(self._info.note)

    def lose(self, reason: str, *, returns: bool) -> None:
        self.absence, self.loss = "restarting" if returns else "gone", reason
        self.shown = not self.is_master
        self.alive, self.model_key, self.speed = False, None, None

    def _log(self, text: str) -> None:
        """In the owner's log; once, though a worker that is away is asked for again and again."""
        if text != self._told:
            named = text.startswith(f"worker {self.id} ")
            logger.warning("%s", text if named else f"worker {self.id}: {text}")
        self._told = text

    def settle(self, attempt: AttemptRecord, now: float) -> None:
        """Count what it had in hand."""
        self.attempt = None
        self._busy_s += attempt.seconds
        if attempt.outcome == "done":
            self.counts["units_done"] += 1
            self._failures_in_row = 0
        elif attempt.outcome != "interrupted":
            self.counts[f"units_{attempt.outcome}"] += 1
            self._failures_in_row += 1
            self.remember(attempt.error, now)

    def remember(self, error: str, now: float) -> None:
        """Keep this as the last error."""
        self._last_error = Fault(message=error, time=now)

    def status(self, now: float) -> WorkerStatus:
        attempt, info = self.attempt, self._info
        busy_s = 0.0 if attempt is None else attempt.status(now).seconds
        return WorkerStatus(
            id=self.id,
            state=self.state,
            reason=self.reason,
            device=self._device,
            device_name=info.device_name if info else "",
            host=info.host if info else "",
            note=info.note if info else "",
            pid=info.pid if info and self.alive else None,
            log_file=info.log_file if info else "",
            model_key=self.model_key,
            task=None if attempt is None else attempt.task(),
            units_per_second=self.speed,
            failures_in_row=self._failures_in_row,
            last_error=self._last_error,
            busy_seconds=self._busy_s + busy_s,
            units_done=self.counts["units_done"],
            units_failed=self.counts["units_failed"],
            units_lost=self.counts["units_lost"],
            restarts=self.counts["restarts"],
            quarantines=self.counts["quarantines"],
        )


def _whole(value: object) -> int | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return int(value)
    return None
