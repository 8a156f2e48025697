"""What dispatch remembers: workers, runs, their jobs and the attempts at them.

A *job* is a unit and its fate; an *attempt* is one start of it on one worker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from comfyfleet.work.events import Halve
from comfyfleet.work.pool import Pool
from comfyfleet.work.units import Failure, Unit

#: No sampler makes that many steps: less is noise, and would give absurd estimates.
_MIN_PROGRESS = 1e-4

WorkerState = Literal["idle", "busy", "stuck", "lent", "paused", "quarantined"]

#: Which runs a worker serves: all (None), those of a lane, or a single one.
Scope = str | None


def lane_scope(lane: str) -> Scope:
    return f"lane {lane}"


def run_scope(run_id: str) -> Scope:
    return f"run {run_id}"


@dataclass(slots=True)
class Estimate:
    """A smoothed measurement.

    Cold samples (the model had to be loaded) count only until there is a warm one.
    """

    value: float | None = None
    warm: bool = False

    def update(self, sample: float, *, warm: bool, smoothing: float) -> None:
        if self.value is None or (warm and not self.warm):
            self.value, self.warm = sample, warm
        elif warm == self.warm:
            self.value += smoothing * (sample - self.value)


@dataclass(slots=True, eq=False, kw_only=True)
class Health:
    """What is remembered of a worker while it is restarted (see `care`)."""

    #: Why its owner paused it; empty: it is not paused.
    pause: str = ""
    #: Why it is in quarantine; empty: it is not.
    quarantine: str = ""
    #: When the quarantine ends.
    until: float = 0.0
    #: Since the last success. One that is not in quarantine but was is on probation.
    num_quarantines: int = 0
    #: (unit id or nothing, why) of each failure in a row that was its own fault.
    blames: list[tuple[str, str]] = field(default_factory=list)

    @property
    def takes_units(self) -> bool:
        return not (self.pause or self.quarantine)


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    id: str
    #: Order of joining: the last tie-break.
    seq: int
    only_run: str | None = None
    scope: Scope = None
    #: Nothing that it has in hand is ever late.
    trusted: bool = False
    #: The model_key that it ran last; None before its first unit.
    model_key: str | None = None
    attempt: Attempt | None = None
    #: Why it is stuck: it did not answer for far too long; no units until it does. Else empty.
    stuck: str = ""
    #: It does something that is no unit.
    lent: bool = False
    #: model_key -> seconds per cost.
    paces: dict[str, Estimate] = field(default_factory=dict)
    #: Its time for any unit, relative to the fleet's yardstick (see `speed`).
    slowness: Estimate = field(default_factory=Estimate)
    health: Health = field(default_factory=Health)

    @property
    def state(self) -> WorkerState:
        if self.stuck:
            return "stuck"
        if self.lent:
            return "lent"
        if self.attempt is not None:
            return "busy"
        if self.health.pause:
            return "paused"
        return "quarantined" if self.health.quarantine else "idle"

    def serves(self, run: Run) -> bool:
        """May it take units of the run, now or later?"""
        return not self.stuck and self.scope in run.scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Measured workers of this slowness or more leave a run to faster ones for a while."""

    slowness: float
    until: float
    #: What one of those faster ones has in hand: when it is over, all is reckoned anew.
    coming: Attempt
    #: See `Matcher.end_waits`.
    news: int


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    id: str
    #: Lower comes first.
    priority: float
    #: Order of submission.
    seq: int
    #: Of workers that serve it.
    scopes: tuple[Scope, Scope, Scope]
    #: Further units come: it does not end before.
    more: bool = False
    #: See `RunSubmitted`.
    halve: Halve | None = None
    #: The first index that none of its units has.
    next_index: int = 0
    #: Nobody had the memory for a unit of so many items.
    too_many: float = math.inf
    #: Unit id -> job, all and only those not yet delivered.
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Those of them that a worker may take.
    pool: Pool = field(default_factory=Pool)
    #: Worker id -> attempt at a unit of this run.
    running: dict[str, Attempt] = field(default_factory=dict)
    #: "worker (reason)" of each worker that was lost while the run lived.
    lost: list[str] = field(default_factory=list)
    #: Who leaves the rest of it to faster workers.
    wait: Wait | None = None
    #: Is it in the line of runs that have something pending?
    queued: bool = False
    ended: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    unit: Unit
    #: ``unit.id``, which is put together anew each time.
    id: str
    run: Run
    #: Worker id -> attempt that may still bring the result.
    attempts: dict[str, Attempt] = field(default_factory=dict)
    #: Worker id -> why it failed there.
    failures: dict[str, Failure] = field(default_factory=dict)
    #: Worker id -> how it ran out of memory there, the first one first.
    shortages: dict[str, Failure] = field(default_factory=dict)
    #: Worker id -> what it lacks to run it.
    unfit: dict[str, Failure] = field(default_factory=dict)
    #: Of those short of memory, one that may take it again, all memory free: for want of others.
    second_try: str | None = None
    #: Has a second try failed?
    tried_again: bool = False
    #: (worker id, reason) of each attempt that vanished.
    losses: tuple[tuple[str, str], ...] = ()
    #: (time, what, worker id)
    story: tuple[tuple[float, str, str], ...] = ()
    #: Marks its valid entry in the pool.
    token: int = 0
    done: bool = False

    @property
    def barred(self) -> frozenset[str]:
        """Workers that may not take it (again)."""
        short = (who for who in self.shortages if who != self.second_try)
        return frozenset((*self.failures, *self.unfit, *short))

    @property
    def too_large(self) -> bool:
        """Did it run out of memory, as units of its size do everywhere?"""
        return bool(self.shortages) and self.unit.items >= self.run.too_many

    @property
    def troubled(self) -> frozenset[str]:
        """Workers that failed with it, or were lost."""
        return frozenset((*self.failures, *(who for who, _ in self.losses)))

    def was_on(self, worker_id: str) -> bool:
        return any(who == worker_id for _, _, who in self.story)

    def tell(self) -> str:
        if not self.story:
            return "it was never started"
        return "; ".join(f"at {time:.3f} {what} {who}" for time, what, who in self.story)


@dataclass(slots=True, eq=False, kw_only=True)
class Attempt:
    job: Job
    worker: Worker
    start: float
    #: Seconds from start to end as estimated; None when nothing is known.
    expected: float | None
    #: Did the worker hold the model at the start?
    warm: bool
    #: Seconds of patience per second expected.
    patience: float
    fraction: float = 0.0
    #: Time and fraction of the first progress: what came before was loading.
    first_progress: tuple[float, float] | None = None
    overdue: bool = False
    interrupted: bool = False
    over: bool = False
    #: When to look after it, and the time of its entry in the heap of alarms.
    alarm: float | None = None
    alarm_entry: float | None = None

    @property
    def wanted(self) -> bool:
        return not (self.job.done or self.job.run.ended)

    def advance(self, fraction: float, now: float) -> float | None:
        """Take in progress; returns the seconds left as estimated, None if there is nothing new."""
        fraction = min(fraction, 1.0)
        if not fraction - self.fraction >= _MIN_PROGRESS:  # written so that NaN ends here too
            return None
        self.fraction = fraction
        if self.first_progress is None:
            self.first_progress = (now, fraction)
            whole_s = self.expected
        else:
            since, first = self.first_progress
            whole_s = (now - since) / (fraction - first)
        if whole_s is None:
            return None
        left_s = whole_s * (1 - fraction)
        self.expected = now - self.start + left_s
        return left_s
