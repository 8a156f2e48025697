"""Who takes what: pending units meet idle workers."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from operator import itemgetter

from comfyfleet.work.policy import Policy
from comfyfleet.work.roster import Bench
from comfyfleet.work.state import Attempt, Job, Run, Wait, Worker
from comfyfleet.work.tail import Ladder


class Matcher:
    """The line of runs with pending units, and the rules by which idle workers take them."""

    def __init__(self, policy: Policy, bench: Bench, ladder: Ladder) -> None:
        self.policy = policy
        self._bench = bench
        self._ladder = ladder
        self._now = -math.inf
        #: By priority, then order of submission: all that have, or just had, something pending.
        self.queue: list[Run] = []
        #: Counts what may end a wait before its time.
        self._num_news = 0
        #: When to ask again the workers that wait by the tail rule, or to load a model.
        self.recheck_at: float | None = None
        #: When a worker last began with a model that it did not hold.
        self._last_load = -math.inf

    def enqueue(self, run: Run) -> None:
        """Something of the run has become pending."""
        self.end_waits()
        if not run.queued:
            run.queued = True
            bisect.insort(self.queue, run, key=lambda queued: (queued.priority, queued.seq))

    def end_waits(self) -> None:
        """Ask anew who should wait: there is more to do, or fewer to do it."""
        self._num_news += 1

    def match(self, now: float) -> Iterator[tuple[Worker, Job]]:
        """Pairs to start, first run first. Each must be started before the next is asked for."""
        self._now, self.recheck_at = now, None
        i = num_ahead = 0
        while i < len(self.queue) and len(self._bench):
            run = self.queue[i]
            yield from self._serve(run, num_ahead)
            num_ahead += len(run.pool)
            if run.pool:
                i += 1
            else:
                del self.queue[i]
                run.queued = False

    def _serve(self, run: Run, num_ahead: int) -> Iterator[tuple[Worker, Job]]:
        if not self._bench.line(run):
            return
        for model in run.pool.models():
            if self._bench.line(run, model):
                yield from self._hand_out(run, model, num_ahead)
        yield from self._hand_out(run, None, num_ahead)

    def _hand_out(
        self, run: Run, model: str | None, num_ahead: int
    ) -> Iterator[tuple[Worker, Job]]:
        """Let idle workers, fastest first, take units of the model that they hold, or of any."""
        i = 0
        while run.pool and i < len(line := self._bench.line(run, model)):
            slowness, _, worker = line[i]
            if self._waits(run, slowness):
                i = bisect.bisect_left(line, math.inf, key=itemgetter(0))
                continue
            job = run.pool.find_first(worker.id, model)
            if job is None:
                i += 1
                continue
            num_pending = num_ahead + len(run.pool)
            found = self._ladder.find_wait(worker, job, num_pending, self._now)
            if found is not None:
                self._let_wait(run, slowness, *found)
            elif worker.model_key == job.unit.model_key or self._may_load():
                yield worker, job
            else:
                return  # those who hold a model that is wanted have been served before

    def _may_load(self) -> bool:
        """May a worker begin with a model that it does not hold? If so, this was the one."""
        if self.holds_back_loads:
            self._recheck(self._last_load + self.policy.stagger_s)
            return False
        self._last_load = self._now
        return True

    @property
    def holds_back_loads(self) -> bool:
        """Has a worker just begun with a model that it did not hold?"""
        return self._now < self._last_load + self.policy.stagger_s

    def _recheck(self, at: float) -> None:
        self.recheck_at = at if self.recheck_at is None else min(at, self.recheck_at)

    def _let_wait(self, run: Run, slowness: float, seconds: float, coming: Attempt) -> None:
        """Let measured workers as slow as this leave the run alone for a part of that time."""
        until = self._now + max(self.policy.min_recheck_s, self.policy.recheck_fraction * seconds)
        run.wait = Wait(slowness=slowness, until=until, coming=coming, news=self._num_news)

    def _waits(self, run: Run, slowness: float) -> bool:
        wait = run.wait
        if wait is None or not wait.slowness <= slowness < math.inf:
            return False
        if self._now >= wait.until or wait.coming.over or self._num_news != wait.news:
            run.wait = None
            return False
        self._recheck(wait.until)
        return True
