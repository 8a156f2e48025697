"""Which worker gets which unit: a state machine without threads, sockets or a clock.

Events go in with the time at which they happened, instructions come out. An idle worker takes
one unit from the first run that has one for it. See docs/architecture.md for the rules.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from comfyfleet.work import messages
from comfyfleet.work.alarms import Alarms
from comfyfleet.work.events import (
    CancelRun,
    Deliver,
    Discard,
    Event,
    FailRun,
    FinishRun,
    Instruction,
    Interrupt,
    RunCancelled,
    RunSubmitted,
    Start,
    Tick,
    UnitDone,
    UnitFailed,
    UnitProgress,
    WorkerJoined,
    WorkerLent,
    WorkerLost,
    WorkerReturned,
)
from comfyfleet.work.guesses import Guesses
from comfyfleet.work.invariants import check_invariants
from comfyfleet.work.matching import Matcher
from comfyfleet.work.policy import Policy
from comfyfleet.work.pool import Rank
from comfyfleet.work.roster import Bench, Roster
from comfyfleet.work.speed import Speed
from comfyfleet.work.state import Attempt, Job, Run, Worker, WorkerState
from comfyfleet.work.tail import Ladder
from comfyfleet.work.units import Failure, Unit

#: A worker for one run may join just after its run ended; it is turned away.
_ENDED_KEPT = 1000


class InvalidEventError(RuntimeError):
    """An event that cannot be, with the story of the unit: a fault of the engine."""


class Dispatch:
    """Events in, instructions out: ``handle`` is the only way to change anything.

    ``validate`` re-checks everything after each event; it is for tests, being slow.
    """

    def __init__(self, policy: Policy | None = None, *, validate: bool = False) -> None:
        self._policy = policy or Policy()
        self._validate = validate
        self._now = -math.inf
        self._out: list[Instruction] = []
        self._roster = Roster()
        self._bench = Bench()
        self._speed = Speed(self._policy.smoothing)
        self._ladder = Ladder(self._speed)
        self._matcher = Matcher(self._policy, self._bench, self._ladder)
        self._alarms = Alarms()
        self._runs: dict[str, Run] = {}
        self._ended: deque[str] = deque(maxlen=_ENDED_KEPT)
        self._order = itertools.count()
        self._guesses = Guesses(self._speed)
        #: Unit id -> job, of all runs.
        self._jobs: dict[str, Job] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            WorkerJoined: self._on_worker_joined,
            WorkerLost: self._on_worker_lost,
            WorkerLent: self._on_worker_lent,
            WorkerReturned: self._on_worker_returned,
            RunSubmitted: self._on_run_submitted,
            RunCancelled: self._on_run_cancelled,
            UnitDone: self._on_unit_done,
            UnitFailed: self._on_unit_failed,
            UnitProgress: self._on_unit_progress,
            Tick: lambda event: None,  # alarms and waits are looked after on every event
        }

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in what happened at ``now`` (seconds of any steady clock); say what to do."""
        handler = self._handlers.get(type(event))
        if handler is None:
            raise TypeError(f"unknown event {event!r}")
        self._now = max(self._now, now)  # threads stamp events before they queue for us
        self._out = []
        handler(event)
        for attempt in self._alarms.due(self._now):
            self._on_alarm(attempt)
        for worker, job in self._matcher.match(self._now):
            self._start(worker, job)
        if self._validate:
            check_invariants(self._roster, self._bench, self._matcher, self._runs, self._jobs)
        return self._out

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, if nothing else happens before."""
        times = [at for at in (self._alarms.next(), self._matcher.recheck_at) if at is not None]
        return min(times, default=None)

    # Questions; they change nothing.

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(self._roster.workers)

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs that have not ended, in order of submission."""
        return tuple(self._runs)

    @property
    def num_pending(self) -> int:
        """Units that wait for a worker."""
        return sum(len(run.pool) for run in self._runs.values())

    def state_of(self, worker_id: str) -> WorkerState:
        return self._roster.workers[worker_id].state

    def find_unit_on(self, worker_id: str) -> Unit | None:
        """What the worker has in hand, wanted or not."""
        attempt = self._roster.workers[worker_id].attempt
        return None if attempt is None else attempt.job.unit

    # Workers.

    def _on_worker_joined(self, event: WorkerJoined) -> None:
        if event.worker_id in self._roster.workers:
            raise InvalidEventError(f"worker {event.worker_id} joined twice without being lost")
        if event.only_run not in self._ended:
            self._bench.add(self._roster.add(event.worker_id, event.only_run))

    def _on_worker_lost(self, event: WorkerLost) -> None:
        worker = self._roster.workers.get(event.worker_id)
        if worker is None:
            return
        self._remove(worker)
        text = f"{worker.id} ({event.reason})"
        for run in self._runs.values():
            if worker.only_run in (None, run.id):
                run.lost.append(text)
        attempt = self._take_from(worker)
        # One that was given up has been counted as lost before.
        if attempt is not None and attempt.wanted and not attempt.interrupted:
            attempt.job.losses += (text,)
            self._note(attempt.job, "was lost with", worker)
            self._retry(attempt.job)
        self._go_on_without()

    def _on_worker_lent(self, event: WorkerLent) -> None:
        self._bench.lend(self._roster.workers[event.worker_id])

    def _on_worker_returned(self, event: WorkerReturned) -> None:
        self._bench.take_back(self._roster.workers.get(event.worker_id))

    def _remove(self, worker: Worker) -> None:
        self._roster.remove(worker)
        self._bench.discard(worker)
        self._ladder.discard(worker)

    def _take_from(self, worker: Worker) -> Attempt | None:
        """End the worker's attempt."""
        attempt, worker.attempt = worker.attempt, None
        if attempt is not None:
            attempt.over = True
            attempt.job.attempts.pop(worker.id, None)
            attempt.job.run.running.pop(worker.id, None)
        return attempt

    def _set_stuck(self, worker: Worker) -> None:
        self._roster.set_stuck(worker, True)
        self._go_on_without()

    # Runs.

    def _on_run_submitted(self, event: RunSubmitted) -> None:
        if event.run_id in self._runs or event.run_id in self._ended:
            raise ValueError(f"run {event.run_id} was submitted before; each needs a new id")
        run = Run(id=event.run_id, seq=next(self._order))
        self._runs[run.id] = run
        for unit in event.units:
            job = Job(unit=unit, id=unit.id, run=run)
            run.jobs[job.id] = self._jobs[job.id] = job
            run.pool.put(job, Rank.FRESH)
        self._matcher.enqueue(run)
        if not event.units:
            self._end(run, FinishRun(run_id=run.id))
        elif not self._roster.num_able(run.id):
            self._fail_for_nobody(run)

    def _on_run_cancelled(self, event: RunCancelled) -> None:
        run = self._runs.get(event.run_id)
        if run is not None:
            self._end(run, CancelRun(run_id=run.id, reason=event.reason))

    def _end(self, run: Run, instruction: FinishRun | FailRun | CancelRun) -> None:
        """Stop what still runs of it, forget it, and say so."""
        run.ended = True
        run.pool.clear()
        del self._runs[run.id]
        self._ended.append(run.id)
        for job_id in run.jobs:
            del self._jobs[job_id]
        for attempt in run.running.values():
            self._interrupt(attempt)
        for worker in self._roster.only_for(run.id):
            self._remove(worker)
        self._out.append(instruction)

    def _fail(self, run: Run, message: str) -> None:
        self._end(run, FailRun(run_id=run.id, message=message))

    def _fail_for_nobody(self, run: Run) -> None:
        self._fail(run, messages.nobody_serves(run, self._roster.stuck_ids()))

    def _go_on_without(self) -> None:
        """After a worker is lost or stuck: fail the runs with a unit that nobody may take now."""
        self._matcher.end_waits()
        for run in [run for run in self._matcher.queue if not run.ended]:
            job = run.pool.find_stranded(partial(self._roster.num_able, run.id))
            if job is not None:
                self._fail_stranded(job)

    def _fail_stranded(self, job: Job) -> None:
        if job.failures:
            self._fail(job.run, messages.unit_failed(job, "no other worker may try it"))
        else:
            self._fail_for_nobody(job.run)

    # Attempts.

    def _on_unit_done(self, event: UnitDone) -> None:
        attempt = self._find_attempt(event.worker_id, event.unit_id)
        if attempt is None:
            self._out.append(Discard(unit_id=event.unit_id, worker_id=event.worker_id))
            return
        worker, seconds = attempt.worker, self._now - attempt.start
        known = self._speed.knowledge(attempt.job.unit)
        self._speed.record(worker, attempt.job.unit, seconds, warm=attempt.warm)
        self._ladder.set(worker)
        self._free(worker)
        if self._speed.knowledge(attempt.job.unit) > known:
            for guess, expected_s in self._guesses.judge():
                self._set_deadline(guess, expected_s)
        if attempt.wanted:
            self._deliver(attempt.job, worker, seconds)
        else:
            self._out.append(Discard(unit_id=event.unit_id, worker_id=event.worker_id))

    def _on_unit_failed(self, event: UnitFailed) -> None:
        attempt = self._find_attempt(event.worker_id, event.unit_id)
        if attempt is None:
            return
        self._free(attempt.worker)
        if attempt.wanted and not attempt.interrupted:
            attempt.job.failures[event.worker_id] = event.failure
            self._note(attempt.job, "failed on", attempt.worker)
            self._retry(attempt.job)

    def _on_unit_progress(self, event: UnitProgress) -> None:
        attempt = self._find_attempt(event.worker_id, event.unit_id)
        if attempt is None or attempt.interrupted:
            return
        known = attempt.expected is not None
        left_s = attempt.advance(event.fraction, self._now)
        if left_s is None:
            return
        at = self._now + max(self._policy.min_deadline_s, attempt.patience * left_s)
        if not attempt.overdue:
            self._alarms.set(attempt, max(at, attempt.alarm or at) if known else at)
        else:
            attempt.overdue = False
            self._alarms.set(attempt, at)
            self._offer(attempt.job)

    def _find_attempt(self, worker_id: str, unit_id: str) -> Attempt | None:
        """The attempt that an event is about; None for a late word on something long over."""
        worker = self._roster.workers.get(worker_id)
        if worker is not None and worker.attempt is not None and worker.attempt.job.id == unit_id:
            return worker.attempt
        job = self._jobs.get(unit_id)
        if job is not None and not job.was_on(worker_id):
            raise InvalidEventError(
                f"worker {worker_id} reported unit {unit_id} that it was never given: {job.tell()}"
            )
        return None

    def _free(self, worker: Worker) -> None:
        self._take_from(worker)
        self._roster.set_stuck(worker, False)
        self._bench.add(worker)

    def _deliver(self, job: Job, worker: Worker, seconds: float) -> None:
        job.done = True
        job.run.pool.discard(job)
        del self._jobs[job.id], job.run.jobs[job.id]
        self._out.append(Deliver(unit=job.unit, worker_id=worker.id, seconds=seconds))
        for attempt in job.attempts.values():
            self._interrupt(attempt)
        if not job.run.jobs:
            self._end(job.run, FinishRun(run_id=job.run.id))

    def _retry(self, job: Job) -> None:
        """After an attempt that brought nothing: let another worker try, or give up."""
        if len(job.failures) >= self._policy.max_failures:
            self._fail(job.run, messages.unit_failed(job))
        elif len(job.losses) >= self._policy.max_losses:
            self._fail(job.run, messages.unit_kills_workers(job))
        elif job.attempts or self._roster.num_able(job.run.id, job.failures):
            self._offer(job)
        else:
            self._fail_stranded(job)

    def _offer(self, job: Job) -> None:
        """Make the job pending if it should be: it runs nowhere, or once and is overdue there."""
        attempts = job.attempts
        if not attempts or (len(attempts) == 1 and all(a.overdue for a in attempts.values())):
            rank = Rank.BACKUP if attempts else Rank.RETURNED
            job.run.pool.put(job, rank, barred=frozenset((*job.failures, *attempts)))
            self._matcher.enqueue(job.run)
        else:
            job.run.pool.discard(job)

    def _on_alarm(self, attempt: Attempt) -> None:
        if attempt.interrupted:
            self._set_stuck(attempt.worker)
        elif attempt.overdue:
            self._give_up(attempt)
        else:
            attempt.overdue = True
            self._note(attempt.job, "is overdue on", attempt.worker)
            allowed_s = self._now - attempt.start
            self._alarms.set(attempt, attempt.start + self._policy.hard_factor * allowed_s)
            self._offer(attempt.job)

    def _give_up(self, attempt: Attempt) -> None:
        """Expect nothing more of an attempt that is hopelessly overdue, nor of its worker."""
        job, worker = attempt.job, attempt.worker
        why = f"no answer for {self._now - attempt.start:.0f} s"
        self._note(job, "was given up on", worker)
        del job.attempts[worker.id]
        self._roster.set_stuck(worker, True)
        self._interrupt(attempt)
        if job.attempts or self._roster.num_able(job.run.id, job.failures):
            job.losses += (f"{worker.id} ({why})",)
        else:
            job.failures[worker.id] = Failure(message=why)
        self._retry(job)
        self._go_on_without()

    def _interrupt(self, attempt: Attempt) -> None:
        if not attempt.interrupted:
            attempt.interrupted = True
            self._alarms.set(attempt, self._now + self._policy.interrupt_patience_s)
            self._out.append(Interrupt(worker_id=attempt.worker.id, unit_id=attempt.job.id))

    def _start(self, worker: Worker, job: Job) -> None:
        self._bench.discard(worker)
        job.run.pool.discard(job)
        warm = worker.model_key == job.unit.model_key
        sure = warm and self._speed.find_own(worker, job.unit) is not None
        attempt = Attempt(
            job=job,
            worker=worker,
            start=self._now,
            expected=self._speed.find(worker, job.unit),
            warm=warm,
            patience=self._policy.deadline_factor if sure else self._policy.guess_factor,
        )
        worker.attempt, worker.model_key = attempt, job.unit.model_key
        job.attempts[worker.id] = job.run.running[worker.id] = attempt
        self._guesses.note(attempt)
        if attempt.expected is None:
            self._alarms.set(attempt, self._now + self._policy.first_patience_s)
        else:
            self._set_deadline(attempt, attempt.expected)
        self._note(job, "was started on", worker)
        self._out.append(Start(worker_id=worker.id, unit=job.unit))

    def _set_deadline(self, attempt: Attempt, expected_s: float) -> None:
        patience_s = max(self._policy.min_deadline_s, attempt.patience * expected_s)
        self._alarms.set(attempt, max(self._now, attempt.start + patience_s))

    def _note(self, job: Job, what: str, worker: Worker) -> None:
        job.story += ((self._now, what, worker.id),)
