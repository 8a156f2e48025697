"""What becomes of runs and their units: delivered, tried again, or given up with the run."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from functools import partial

from comfyfleet.work import messages
from comfyfleet.work.board import Board
from comfyfleet.work.events import (
    CancelRun,
    Deliver,
    FailRun,
    FinishRun,
    Halved,
    RunCancelled,
    RunSubmitted,
    UnitsAdded,
)
from comfyfleet.work.pool import Rank
from comfyfleet.work.state import Job, Run, Worker, lane_scope, run_scope
from comfyfleet.work.units import Unit

#: A worker for one run may join just after its run ended; it is turned away.
_ENDED_KEPT = 1000


class Runs:
    """All runs that have not ended."""

    def __init__(self, board: Board) -> None:
        self._board = board
        #: In order of submission.
        self.live: dict[str, Run] = {}
        #: Unit id -> job, of all runs.
        self.jobs: dict[str, Job] = {}
        self._ended: deque[str] = deque(maxlen=_ENDED_KEPT)
        self._order = itertools.count()

    def has_ended(self, run_id: str | None) -> bool:
        return run_id in self._ended

    def submit(self, event: RunSubmitted) -> None:
        if event.run_id in self.live or event.run_id in self._ended:
            raise ValueError(f"run {event.run_id} was submitted before; each needs a new id")
        run = Run(
            id=event.run_id,
            priority=event.priority,
            seq=next(self._order),
            scopes=(None, lane_scope(event.lane), run_scope(event.run_id)),
            halve=event.halve,
        )
        self.live[run.id] = run
        self._take_in(run, event)

    def add(self, event: UnitsAdded) -> None:
        run = self.live.get(event.run_id)
        if run is None:
            return
        if not run.more:
            raise ValueError(f"run {run.id} was closed before; it takes no further units")
        self._take_in(run, event)

    def _take_in(self, run: Run, event: RunSubmitted | UnitsAdded) -> None:
        run.more = event.more
        self._put(run, event.units, Rank.FRESH)
        if not run.jobs and not run.more:
            self._end(run, FinishRun(run_id=run.id))
        elif event.units and not self._board.roster.num_able(run):
            self._fail_for_nobody(run)

    def _put(self, run: Run, units: Iterable[Unit], rank: Rank) -> None:
        for unit in units:
            job = Job(unit=unit, id=unit.id, run=run)
            if job.id in self.jobs:
                raise ValueError(f"unit {job.id} was added before")
            run.jobs[job.id] = self.jobs[job.id] = job
            run.next_index = max(run.next_index, unit.index + 1)
            run.pool.put(job, rank)
        self._board.matcher.enqueue(run)

    def cancel(self, event: RunCancelled) -> None:
        run = self.live.get(event.run_id)
        if run is not None:
            self._end(run, CancelRun(run_id=run.id, reason=event.reason))

    def note_lost(self, worker: Worker, reason: str) -> None:
        """Remember it for the message of a run that has nobody left."""
        for run in self.live.values():
            if worker.scope in run.scopes:
                run.lost.append(f"{worker.id} ({reason})")

    def deliver(self, job: Job, worker: Worker, seconds: float) -> None:
        job.done = True
        job.run.pool.discard(job)
        del self.jobs[job.id], job.run.jobs[job.id]
        self._board.out.append(Deliver(unit=job.unit, worker_id=worker.id, seconds=seconds))
        for attempt in job.attempts.values():
            self._board.interrupt(attempt)
        if not job.run.jobs and not job.run.more:
            self._end(job.run, FinishRun(run_id=job.run.id))

    def retry(self, job: Job) -> None:
        """After an attempt that brought nothing: let another worker try, or give up."""
        if len(job.failures) >= self._board.policy.max_failures:
            self._fail(job.run, messages.unit_failed(job))
        elif len(job.losses) >= self._board.policy.max_losses:
            self._fail(job.run, messages.unit_kills_workers(job))
        elif self.may_go_on(job):
            self.offer(job)
        else:
            self._halve_or_fail(job)

    def offer(self, job: Job) -> None:
        """Make the job pending if it should be: it runs nowhere, or once and is overdue there."""
        attempts = job.attempts
        if not attempts or (len(attempts) == 1 and all(a.overdue for a in attempts.values())):
            rank = Rank.BACKUP if attempts else Rank.RETURNED
            job.run.pool.put(job, rank, barred=job.barred.union(attempts))
            self._board.matcher.enqueue(job.run)
        else:
            job.run.pool.discard(job)

    def may_go_on(self, job: Job) -> bool:
        """Does a worker have it, or may one take it? If need be, one that ran out of memory."""
        if job.attempts:
            return True
        if job.too_large and self._may_halve(job):
            return False
        if self._board.roster.num_able(job.run, job.barred) and not self._others_rest(job):
            return True
        job.second_try = self._find_second_try(job)
        return job.second_try is not None

    def _others_rest(self, job: Job) -> bool:
        """Has the run's own process no memory for it, and are all others paused?

        Whoever waits for a node to end does not know that. Quarantines end by themselves.
        """
        roster = self._board.roster
        if not any(own.id in job.shortages for own in roster.only_for(job.run.id)):
            return False
        return all(other.health.pause for other in roster.able(job.run, job.barred))

    def _find_second_try(self, job: Job) -> str | None:
        """The first that ran out of memory and still can take it, unless one has tried again."""
        if job.tried_again:
            return None
        able = partial(self._board.roster.is_able, run=job.run)
        return next((who for who in job.shortages if who not in job.failures and able(who)), None)

    def go_on_without(self) -> None:
        """After a worker is lost or stuck: fail the runs with a unit that nobody may take now."""
        self._board.matcher.end_waits()
        for run in [run for run in self._board.matcher.queue if not run.ended]:
            num_able = partial(self._board.roster.num_able, run)
            while (job := run.pool.find_stranded(num_able)) is not None:
                if self.may_go_on(job):
                    self.offer(job)
                else:
                    self._halve_or_fail(job)

    def _halve_or_fail(self, job: Job) -> None:
        """Nobody may take it: if for want of memory, a smaller one may fit."""
        if job.shortages and self._may_halve(job):
            self._halve(job)
        else:
            self._fail_stranded(job)

    def _may_halve(self, job: Job) -> bool:
        run = job.run
        return bool(run.halve and job.unit.items > 1 and self._board.roster.num_able(run))

    def _halve(self, job: Job) -> None:
        run, unit = job.run, job.unit
        assert run.halve is not None
        halves = run.halve(unit, run.next_index)
        run.too_many = min(run.too_many, unit.items)
        job.done = True  # a worker that did not answer may still bring its result
        run.pool.discard(job)
        self._board.out.append(Halved(unit=unit, halves=halves))
        self._put(run, halves, Rank.RETURNED)
        del self.jobs[job.id], run.jobs[job.id]

    def _end(self, run: Run, instruction: FinishRun | FailRun | CancelRun) -> None:
        """Stop what still runs of it, forget it, and say so."""
        run.ended = True
        run.pool.clear()
        del self.live[run.id]
        self._ended.append(run.id)
        for job_id in run.jobs:
            del self.jobs[job_id]
        for attempt in run.running.values():
            self._board.interrupt(attempt)
        for worker in self._board.roster.only_for(run.id):
            self._board.unseat(worker)
            self._board.roster.remove(worker)
        self._board.out.append(instruction)

    def _fail(self, run: Run, message: str) -> None:
        self._end(run, FailRun(run_id=run.id, message=message))

    def _fail_for_nobody(self, run: Run) -> None:
        self._fail(run, messages.nobody_serves(run, self._board.roster.stuck_ids()))

    def _fail_stranded(self, job: Job) -> None:
        if job.shortages:
            self._fail(job.run, messages.unit_out_of_memory(job))
        elif job.failures:
            self._fail(job.run, messages.unit_failed(job, "no other worker may try it"))
        elif job.unfit:
            self._fail(job.run, messages.nobody_fits(job))
        else:
            self._fail_for_nobody(job.run)
