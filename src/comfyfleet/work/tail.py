"""The tail rule: no fast worker waits at the end of a run for a slow one."""

from __future__ import annotations

import bisect
import math

from comfyfleet.work.roster import Place, place_of
from comfyfleet.work.speed import Speed
from comfyfleet.work.state import Job, Worker


class Ladder:
    """All measured workers, fastest first."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._places: dict[str, Place] = {}
        self._order: list[Place] = []
        #: Sum of 1 / slowness: the speed of all together.
        self._rate = 0.0

    def set(self, worker: Worker) -> None:
        """Put the worker where its newest speed belongs."""
        self.discard(worker)
        if worker.slowness.value is not None:
            place = self._places[worker.id] = place_of(worker)
            bisect.insort(self._order, place)
            self._rate += 1 / place[0]

    def discard(self, worker: Worker) -> None:
        place = self._places.pop(worker.id, None)
        if place is not None:
            del self._order[bisect.bisect_left(self._order, place)]
            self._rate = self._rate - 1 / place[0] if self._order else 0.0

    def find_wait(self, worker: Worker, job: Job, num_pending: int, now: float) -> float | None:
        """Seconds that the job would take here, if faster workers end ALL pending ones sooner.

        None: the worker should take it. Only busy workers count as faster ones, because the
        idle ones are asked in order of speed: so for all that waits there is somebody coming.
        """
        place = self._places.get(worker.id)
        mine = self._speed.find(worker, job.unit)
        if place is None or not mine:
            return None
        if num_pending >= place[0] * self._rate:  # more than all together can do: the usual case
            return None
        pool = job.run.pool
        scale = pool.cost / len(pool) / job.unit.cost
        for _, _, other in self._order[: bisect.bisect_left(self._order, place)]:
            num_pending -= self._num_sooner(other, job, mine, scale, now)
            if num_pending <= 0:
                return mine
        return None

    def _num_sooner(
        self, other: Worker, job: Job, limit_s: float, scale: float, now: float
    ) -> int:
        """How many average units ``other`` ends within the limit, after what it has in hand."""
        attempt = other.attempt
        if attempt is None or attempt.job is job or other.id in job.failures:
            return 0
        if not other.serves(job.run.id):
            return 0
        in_hand, each = attempt.remaining(now), self._speed.find(other, job.unit)
        if in_hand is None or not each or not scale:
            return 0
        return max(0, math.ceil((limit_s - in_hand) / (each * scale)) - 1)
