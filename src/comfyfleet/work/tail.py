"""The tail rule: no fast worker waits at the end of a run for a slow one."""

from __future__ import annotations

import bisect
import itertools
import math

from comfyfleet.work.roster import Place, place_of
from comfyfleet.work.speed import Speed
from comfyfleet.work.state import Attempt, Job, Worker

_CHUNK = 16  # workers looked at between two looks at whether the rest can matter


class Ladder:
    """All measured workers that will take more units, fastest first."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._places: dict[str, Place] = {}
        self._order: list[Place] = []
        #: Sums of 1 / slowness from the fastest on: what they do together. Slightly outdated.
        self._rates: list[float] = [0.0]
        self._num_changes = 0

    def __contains__(self, worker: Worker) -> bool:
        return worker.id in self._places

    def set(self, worker: Worker) -> None:
        """Put the worker where its newest speed belongs, if it will take more units."""
        self.discard(worker)
        if worker.slowness.value is not None and worker.health.takes_units:
            place = self._places[worker.id] = place_of(worker)
            bisect.insort(self._order, place)

    def discard(self, worker: Worker) -> None:
        place = self._places.pop(worker.id, None)
        if place is not None:
            del self._order[bisect.bisect_left(self._order, place)]
        self._num_changes += 1

    def find_wait(
        self, worker: Worker, job: Job, num_pending: int, now: float
    ) -> tuple[float, Attempt] | None:
        """Should the worker leave the job to faster ones, who end ALL pending ones sooner?

        None: it should take it. Else the seconds that the job would take here, and what one of
        those waited for has in hand. Only busy workers count as faster ones, because the
        idle ones are asked in order of speed: so for all that waits there is somebody coming.
        """
        place = self._places.get(worker.id)
        mine = self._speed.find(worker, job.unit)
        if place is None or not mine:
            return None
        rates = self._current_rates()
        num_faster = bisect.bisect_left(self._order, place)
        for first in range(0, num_faster, _CHUNK):
            # At best, with nothing in hand: no need to look closer as long as much is pending.
            if num_pending >= place[0] * (rates[num_faster] - rates[first]):
                return None
            others = self._order[first : min(first + _CHUNK, num_faster)]
            num, attempt = self._count_sooner(others, job, now, now + mine)
            num_pending -= num
            if num_pending <= 0 and attempt is not None:
                return mine, attempt
        return None

    def _count_sooner(
        self, others: list[Place], job: Job, now: float, until: float
    ) -> tuple[int, Attempt | None]:
        """How many average units they end before ``until``, after what they have in hand.

        With the last attempt in hand of those who end any.
        """
        # The one loop over workers there is: no call in it that can be spared.
        run, model_key = job.run, job.unit.model_key
        cost = run.pool.cost / len(run.pool)
        scopes, barred = run.scopes, job.barred
        num, coming = 0, None
        for _, _, other in others:
            attempt = other.attempt
            if attempt is None or attempt.expected is None or other.stuck:
                continue
            free_at = attempt.start + attempt.expected
            if free_at < now:
                # One that is late by x is taken to need x more: nobody waits for it for ever.
                free_at = now + now - free_at
            if free_at >= until or attempt.job is job or other.scope not in scopes:
                continue
            own = other.paces.get(model_key)
            pace = own.value if own is not None else self._speed.find_pace(other, model_key)
            each_s = (pace or 0.0) * cost
            if each_s <= 0 or other.id in barred:
                continue
            more = math.ceil((until - free_at) / each_s) - 1
            if more:
                num, coming = num + more, attempt
        return num, coming

    def _current_rates(self) -> list[float]:
        """Good to some part in sixteen of the workers: that keeps it cheap for a thousand."""
        num = len(self._order)
        if self._num_changes * 16 > num or len(self._rates) != num + 1:
            inverse = (1 / place[0] for place in self._order)
            self._rates = list(itertools.accumulate(inverse, initial=0.0))
            self._num_changes = 0
        return self._rates
