"""Which worker gets which unit: a state machine without threads, sockets or a clock.

Events go in with the time at which they happened, instructions come out. An idle worker takes
one unit from the first run that has one for it. See docs/architecture.md for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfyfleet.work.board import Board
from comfyfleet.work.care import Care
from comfyfleet.work.events import (
    Discard,
    Event,
    Instruction,
    RunCancelled,
    RunSubmitted,
    Start,
    Tick,
    UnitDone,
    UnitFailed,
    UnitProgress,
    UnitsAdded,
    WorkerHealed,
    WorkerJoined,
    WorkerLent,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
    WorkerReturned,
)
from comfyfleet.work.guesses import Guesses
from comfyfleet.work.invariants import check_invariants
from comfyfleet.work.policy import Policy
from comfyfleet.work.runs import Runs
from comfyfleet.work.state import Attempt, Job, Worker, WorkerState
from comfyfleet.work.units import Failure, Unit


class InvalidEventError(RuntimeError):
    """An event that cannot be, with the story of the unit: a fault of the engine."""


class Dispatch:
    """Events in, instructions out: ``handle`` is the only way to change anything but the policy.

    ``validate`` re-checks everything after each event; it is for tests, being slow.
    """

    def __init__(self, policy: Policy | None = None, *, validate: bool = False) -> None:
        self._validate = validate
        self._board = Board(policy or Policy())
        self._runs = Runs(self._board)
        self._care = Care(self._board)
        self._guesses = Guesses(self._board.speed)
        self._handlers: dict[type, Callable[[Any], None]] = {
            WorkerJoined: self._on_worker_joined,
            WorkerLost: self._on_worker_lost,
            WorkerLent: self._on_worker_lent,
            WorkerReturned: self._on_worker_returned,
            WorkerPaused: self._care.pause,
            WorkerResumed: self._care.resume,
            WorkerHealed: self._care.heal,
            RunSubmitted: self._runs.submit,
            UnitsAdded: self._runs.add,
            RunCancelled: self._runs.cancel,
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
        board = self._board
        board.now = max(board.now, now)  # threads stamp events before they queue for us
        board.out = []
        handler(event)
        for attempt in board.alarms.due(board.now):
            self._on_alarm(attempt)
        self._care.release_due()
        for worker, job in board.matcher.match(board.now):
            self._start(worker, job)
        if self._validate:
            check_invariants(board, self._runs, self._care)
        return board.out

    def set_policy(self, policy: Policy, now: float) -> list[Instruction]:
        """Go by other numbers from ``now`` on; deadlines and quarantines that run stay."""
        self._board.set_policy(policy)
        return self.handle(Tick(), now)

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, if nothing else happens before."""
        board = self._board
        times = (board.alarms.next(), board.matcher.recheck_at, self._care.next_release())
        return min((at for at in times if at is not None), default=None)

    # Questions; they change nothing.

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(self._board.roster.workers)

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs that have not ended, in order of submission."""
        return tuple(self._runs.live)

    @property
    def num_pending(self) -> int:
        """Units that wait for a worker."""
        return sum(len(run.pool) for run in self._runs.live.values())

    def state_of(self, worker_id: str) -> WorkerState:
        return self._board.roster.workers[worker_id].state

    def reason_of(self, worker_id: str) -> str:
        """Why the worker is stuck, paused or in quarantine, here or not; "" if it is not."""
        worker = self._board.roster.find(worker_id)
        if worker is not None and worker.stuck:
            return worker.stuck
        health = self._care.find(worker_id)
        return "" if health is None else health.pause or health.quarantine

    def speeds(self, worker_id: str) -> Mapping[str, float]:
        """model_key -> units (of cost 1) per second, as measured; of an unknown worker nothing."""
        worker = self._board.roster.find(worker_id)
        paces = {} if worker is None else worker.paces
        return {model: 1 / pace.value for model, pace in paces.items() if pace.value}

    def slowness(self, worker_id: str) -> float | None:
        """The worker's time for any unit, relative to the fleet's; None before it is measured."""
        worker = self._board.roster.find(worker_id)
        return None if worker is None else worker.slowness.value

    def find_unit_on(self, worker_id: str) -> Unit | None:
        """What the worker has in hand, wanted or not."""
        attempt = self._board.roster.workers[worker_id].attempt
        return None if attempt is None else attempt.job.unit

    # Workers.

    def _on_worker_joined(self, event: WorkerJoined) -> None:
        roster = self._board.roster
        if event.worker_id in roster.workers:
            raise InvalidEventError(f"worker {event.worker_id} joined twice without being lost")
        expected = roster.absent.get(event.worker_id)
        if self._runs.has_ended(event.only_run):
            if expected is not None:
                roster.remove(expected)
        else:
            worker = roster.add(event)
            self._care.admit(worker, event.pause)
            self._board.seat(worker)
        if expected is not None:
            self._runs.go_on_without()  # it may serve less than before

    def _on_worker_lost(self, event: WorkerLost) -> None:
        worker = self._board.roster.find(event.worker_id)
        if worker is None:
            return
        crashed = event.returns or worker.id in self._board.roster.workers
        self._board.unseat(worker)
        if event.returns:
            self._board.roster.expect(worker)
        else:
            self._board.roster.remove(worker)
        self._runs.note_lost(worker, event.reason)
        attempt = self._board.take_from(worker)
        # One that was given up has been counted as lost before.
        if attempt is not None and attempt.wanted and not attempt.interrupted:
            self._lose(attempt.job, worker, event.reason)
        elif crashed and not worker.trusted:  # that one leaves, and comes again, as its owner says
            self._care.blame(worker, f"lost ({event.reason})")
        self._runs.go_on_without()

    def _lose(self, job: Job, worker: Worker, reason: str) -> None:
        job.losses += ((worker.id, reason),)
        self._board.note(job, "was lost with", worker)
        self._care.blame(worker, f"lost ({reason}) with unit {job.id}", job)
        self._runs.retry(job)

    def _on_worker_lent(self, event: WorkerLent) -> None:
        self._board.bench.lend(self._board.roster.workers[event.worker_id])

    def _on_worker_returned(self, event: WorkerReturned) -> None:
        self._board.bench.take_back(self._board.roster.workers.get(event.worker_id))

    # Attempts.

    def _on_unit_done(self, event: UnitDone) -> None:
        attempt = self._find_attempt(event.worker_id, event.unit_id)
        if attempt is None:
            self._board.out.append(Discard(unit_id=event.unit_id, worker_id=event.worker_id))
            return
        worker, unit, seconds = attempt.worker, attempt.job.unit, self._board.now - attempt.start
        speed = self._board.speed
        known = speed.knowledge(unit)
        speed.record(worker, unit, seconds, warm=attempt.warm)
        self._care.praise(worker)
        self._free(worker)
        if speed.knowledge(unit) > known:
            for guess, expected_s in self._guesses.judge():
                self._set_deadline(guess, expected_s)
        if attempt.wanted:
            self._runs.deliver(attempt.job, worker, seconds)
        else:
            self._board.out.append(Discard(unit_id=event.unit_id, worker_id=event.worker_id))

    def _on_unit_failed(self, event: UnitFailed) -> None:
        attempt = self._find_attempt(event.worker_id, event.unit_id)
        if attempt is None:
            return
        if event.failure.kind == "out_of_memory":
            attempt.worker.model_key = None  # ComfyUI unloads all models then
        self._free(attempt.worker)
        if attempt.wanted and not attempt.interrupted:
            self._take_failure(attempt.job, attempt.worker, event.failure)

    def _take_failure(self, job: Job, worker: Worker, failure: Failure) -> None:
        if worker.id in job.shortages:
            job.second_try, job.tried_again = None, True
        if failure.kind == "unfit":
            job.unfit[worker.id] = failure
            self._board.note(job, "was refused by", worker)
        elif failure.kind == "out_of_memory":
            job.shortages[worker.id] = failure
            self._board.note(job, "ran out of memory on", worker)
        else:
            job.failures[worker.id] = failure
            self._board.note(job, "failed on", worker)
            # Where nobody else can try it, nothing tells a bad worker from a bad workflow.
            if self._board.roster.num_able(job.run, job.failures) or len(job.failures) > 1:
                self._care.blame(worker, f"unit {job.id}: {failure.message}", job)
        self._runs.retry(job)

    def _on_unit_progress(self, event: UnitProgress) -> None:
        attempt = self._find_attempt(event.worker_id, event.unit_id)
        if attempt is None or attempt.interrupted:
            return
        board, known = self._board, attempt.expected is not None
        left_s = attempt.advance(event.fraction, board.now)
        if left_s is None:
            return
        at = board.now + max(board.policy.min_deadline_s, attempt.patience * left_s)
        if not attempt.overdue:
            board.alarms.set(attempt, max(at, attempt.alarm or at) if known else at)
        else:
            attempt.overdue = False
            board.alarms.set(attempt, at)
            self._runs.offer(attempt.job)

    def _find_attempt(self, worker_id: str, unit_id: str) -> Attempt | None:
        """The attempt that an event is about; None for a late word on something long over."""
        worker = self._board.roster.workers.get(worker_id)
        if worker is not None and worker.attempt is not None and worker.attempt.job.id == unit_id:
            return worker.attempt
        job = self._runs.jobs.get(unit_id)
        if job is not None and not job.was_on(worker_id):
            raise InvalidEventError(
                f"worker {worker_id} reported unit {unit_id} that it was never given: {job.tell()}"
            )
        return None

    def _free(self, worker: Worker) -> None:
        self._board.take_from(worker)
        self._board.roster.set_stuck(worker, "")
        self._board.seat(worker)

    def _on_alarm(self, attempt: Attempt) -> None:
        board = self._board
        allowed_s = board.now - attempt.start
        if attempt.worker.trusted:
            return
        if attempt.interrupted:
            patience_s = board.policy.interrupt_patience_s
            why = f"no answer to an interrupt for {patience_s:.0f} s"
            board.roster.set_stuck(attempt.worker, attempt.worker.stuck or why)
            self._runs.go_on_without()
        elif attempt.overdue:
            self._give_up(attempt)
        else:
            attempt.overdue = True
            board.note(attempt.job, "is overdue on", attempt.worker)
            board.alarms.set(attempt, attempt.start + board.policy.hard_factor * allowed_s)
            self._runs.offer(attempt.job)

    def _give_up(self, attempt: Attempt) -> None:
        """Expect nothing more of an attempt that is hopelessly overdue, nor of its worker."""
        job, worker, board = attempt.job, attempt.worker, self._board
        why = f"no answer for {board.now - attempt.start:.0f} s"
        board.note(job, "was given up on", worker)
        del job.attempts[worker.id]
        board.roster.set_stuck(worker, why)
        board.interrupt(attempt)
        if self._runs.may_go_on(job):
            job.losses += ((worker.id, why),)
        else:
            job.failures[worker.id] = Failure(message=why)
        self._runs.retry(job)
        self._runs.go_on_without()

    def _start(self, worker: Worker, job: Job) -> None:
        board, unit = self._board, job.unit
        board.bench.discard(worker)
        job.run.pool.discard(job)
        attempt = self._begin(worker, job)
        worker.attempt, worker.model_key = attempt, unit.model_key
        job.attempts[worker.id] = job.run.running[worker.id] = attempt
        self._guesses.note(attempt)
        if attempt.expected is None:
            board.alarms.set(attempt, board.now + board.policy.first_patience_s)
        else:
            self._set_deadline(attempt, attempt.expected)
        board.note(job, "was started on", worker)
        short = worker.id in job.shortages
        board.out.append(Start(worker_id=worker.id, unit=unit, free_first=short))

    def _begin(self, worker: Worker, job: Job) -> Attempt:
        speed, policy = self._board.speed, self._board.policy
        warm = worker.model_key == job.unit.model_key and worker.id not in job.shortages
        sure = warm and speed.find_own(worker, job.unit) is not None
        return Attempt(
            job=job,
            worker=worker,
            start=self._board.now,
            expected=speed.find(worker, job.unit),
            warm=warm,
            patience=policy.deadline_factor if sure else policy.guess_factor,
        )

    def _set_deadline(self, attempt: Attempt, expected_s: float) -> None:
        board = self._board
        patience_s = max(board.policy.min_deadline_s, attempt.patience * expected_s)
        board.alarms.set(attempt, max(board.now, attempt.start + patience_s))
