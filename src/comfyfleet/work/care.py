"""Workers that take nothing for a while: paused by their owner, or in quarantine.

What is remembered of a worker's health outlives its process: a worker in a crash loop, or one
that was paused, is the same when it joins again. Workers of a single run are never in
quarantine, because they leave with it.
"""

from __future__ import annotations

from comfyfleet.work import messages
from comfyfleet.work.board import Board
from comfyfleet.work.events import (
    Heal,
    Quarantine,
    WorkerHealed,
    WorkerPaused,
    WorkerResumed,
)
from comfyfleet.work.state import Health, Job, Worker

#: 30 s doubled so often is beyond any limit, and a float holds it.
_MAX_DOUBLINGS = 50


class Care:
    def __init__(self, board: Board) -> None:
        self._board = board
        #: Worker id -> health, of every worker that ever joined for more than one run.
        self._known: dict[str, Health] = {}
        #: Those of them that are in quarantine.
        self._quarantined: dict[str, Health] = {}

    def admit(self, worker: Worker, pause: str) -> None:
        """Give a worker that joins the health that is remembered of it."""
        if worker.only_run is None:
            worker.health = self._known.setdefault(worker.id, worker.health)
        worker.health.pause = pause or worker.health.pause

    def next_release(self) -> float | None:
        return min((health.until for health in self._quarantined.values()), default=None)

    def find(self, worker_id: str) -> Health | None:
        worker = self._board.roster.find(worker_id)
        return self._known.get(worker_id) if worker is None else worker.health

    # What the owner wants.

    def pause(self, event: WorkerPaused) -> None:
        health = self.find(event.worker_id)
        if health is not None:
            health.pause = event.reason or "paused"
            self._reseat(event.worker_id)

    def resume(self, event: WorkerResumed) -> None:
        health = self.find(event.worker_id)
        if health is not None:
            health.pause = ""
            self._reseat(event.worker_id)

    def heal(self, event: WorkerHealed) -> None:
        health = self.find(event.worker_id)
        if health is not None:
            health.blames.clear()
            self._release(event.worker_id)

    # What the worker does.

    def blame(self, worker: Worker, why: str, job: Job | None = None) -> None:
        """Count a failure against the worker, unless the unit has troubled others as well."""
        if worker.only_run is not None:
            return
        others = job.troubled - {worker.id} if job is not None else frozenset()
        if job is not None and others:
            self._acquit(others, job)
        elif not worker.health.quarantine:
            worker.health.blames.append((job.id if job is not None else "", why))
            if len(worker.health.blames) >= self._limit(worker.health.num_quarantines):
                self._confine(worker)

    def praise(self, worker: Worker) -> None:
        """It finished a unit: what was before is forgiven."""
        worker.health.blames.clear()
        worker.health.num_quarantines = 0

    def release_due(self) -> None:
        """End the quarantines whose time has come; those workers are on probation."""
        now = self._board.now
        for worker_id in [who for who, health in self._quarantined.items() if health.until <= now]:
            self._quarantined[worker_id].blames.clear()
            self._release(worker_id)

    def _limit(self, num_quarantines: int) -> int:
        """Failures in a row that lead to quarantine: on probation a single one."""
        return 1 if num_quarantines else self._board.policy.max_worker_failures

    def _confine(self, worker: Worker) -> None:
        policy, health = self._board.policy, worker.health
        health.quarantine = messages.quarantined(health)
        doubled = policy.quarantine_s * 2.0 ** min(health.num_quarantines, _MAX_DOUBLINGS)
        seconds = min(doubled, policy.max_quarantine_s)
        health.until = self._board.now + seconds
        health.num_quarantines += 1
        self._quarantined[worker.id] = health
        self._reseat(worker.id)
        self._board.out.append(
            Quarantine(worker_id=worker.id, reason=health.quarantine, seconds=seconds)
        )

    def _acquit(self, worker_ids: frozenset[str], job: Job) -> None:
        """The unit fails elsewhere too: those who were blamed for it were not to blame."""
        for worker_id in worker_ids:
            health = self._known.get(worker_id)
            if health is None or all(unit_id != job.id for unit_id, _ in health.blames):
                continue
            health.blames = [blame for blame in health.blames if blame[0] != job.id]
            num_before = health.num_quarantines - 1
            if health.quarantine and len(health.blames) < self._limit(num_before):
                health.num_quarantines = num_before
                self._release(worker_id)

    def _release(self, worker_id: str) -> None:
        health = self._quarantined.pop(worker_id, None)
        if health is not None:
            health.quarantine = ""
            self._reseat(worker_id)
            self._board.out.append(Heal(worker_id=worker_id))

    def _reseat(self, worker_id: str) -> None:
        worker = self._board.roster.workers.get(worker_id)
        if worker is None:
            return
        self._board.unseat(worker)
        self._board.seat(worker)
