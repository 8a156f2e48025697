"""What dispatch is told (events) and what it answers (instructions)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from comfyfleet.work.units import Failure, Unit

#: A unit of several items, and the first of two indices that are free -> its two halves, in order.
Halve = Callable[[Unit, int], tuple[Unit, Unit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker is ready.

    With ``only_run`` it serves that run alone and leaves with it; with a ``lane`` it serves the
    runs of that lane alone. What a ``trusted`` worker has in hand is never started elsewhere for
    being late: it is the owner's own process, and cannot be taken for dead. With a ``pause``, which
    says why, it takes nothing before it is resumed.
    """

    worker_id: str
    only_run: str | None = None
    lane: str | None = None
    trusted: bool = False
    pause: str = ""

    def __post_init__(self) -> None:
        if self.only_run is not None and self.lane is not None:
            raise ValueError(
                f"worker {self.worker_id} is for run {self.only_run} and for lane {self.lane!r}; "
                "give one of them"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone. With ``returns`` it is being restarted: runs wait for it if need be.

    That ends when it joins again, or is lost for good (told while it is gone).
    """

    worker_id: str
    reason: str
    returns: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPaused:
    """The worker shall finish what it has and take nothing new; runs wait for it if need be.

    It stays paused until it is resumed, even if it is lost and joins again.
    """

    worker_id: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResumed:
    """A paused worker may take units again."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHealed:
    """The owner says: try this worker again now. Ends a quarantine and forgets failures."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLent:
    """An idle worker does something that is no unit; it takes none until it is returned."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReturned:
    """A lent worker is free again."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSubmitted:
    """A run wants all of its units done. Run ids are never used twice.

    Runs of lower ``priority`` are served first, equal ones in order of submission. With ``more``
    the run is open: further units come (`UnitsAdded`), and it does not end before. With ``halve``
    a unit of several items for which no worker has the memory is replaced by its halves.
    """

    run_id: str
    units: tuple[Unit, ...]
    lane: str = ""
    priority: float = 0.0
    more: bool = False
    halve: Halve | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.priority):
            raise ValueError(f"run {self.run_id}: priority is {self.priority}; it must be finite")
        if self.more and self.halve:
            raise ValueError(f"run {self.run_id}: an open run chooses its indices; none are free")
        _check_units(self.run_id, self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsAdded:
    """Further units of an open run, perhaps made of what its earlier ones gave.

    Without ``more`` these are the last, and there may be none. Nothing happens if it has ended.
    """

    run_id: str
    units: tuple[Unit, ...]
    more: bool

    def __post_init__(self) -> None:
        _check_units(self.run_id, self.units)


def _check_units(run_id: str, units: tuple[Unit, ...]) -> None:
    seen = set()
    for unit in units:
        if unit.run_id != run_id:
            raise ValueError(f"unit {unit.id} is not of run {run_id}")
        if unit.index in seen:
            raise ValueError(f"index {unit.index} occurs twice in run {run_id}")
        if not (math.isfinite(unit.cost) and unit.cost >= 0):
            raise ValueError(f"unit {unit.id}: cost is {unit.cost}; it must be 0 or more")
        seen.add(unit.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled:
    run_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitDone:
    worker_id: str
    unit_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFailed:
    """The attempt ended without a result; also the answer to an `Interrupt`."""

    worker_id: str
    unit_id: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitProgress:
    """``fraction`` of the unit (0 to 1) is done."""

    worker_id: str
    unit_id: str
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Only time has passed; due at `Dispatch.next_deadline`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Run this unit. With ``free_first`` free all memory before: it ran out of memory there."""

    worker_id: str
    unit: Unit
    free_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt:
    """Stop this unit; the worker counts as busy until it reports done or failed."""

    worker_id: str
    unit_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """This worker's result is the result of the unit: said exactly once per unit."""

    unit: Unit
    worker_id: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Halved:
    """No worker has the memory for this unit: there are two smaller ones in its place."""

    unit: Unit
    halves: tuple[Unit, Unit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Nobody wants this result any more."""

    unit_id: str
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRun:
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRun:
    run_id: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRun:
    run_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """The worker failed too often and takes nothing for so long; it may be lost just now."""

    worker_id: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heal:
    """The worker's quarantine is over; it may be lost just now."""

    worker_id: str


Event = (
    WorkerJoined
    | WorkerLost
    | WorkerLent
    | WorkerReturned
    | WorkerPaused
    | WorkerResumed
    | WorkerHealed
    | RunSubmitted
    | UnitsAdded
    | RunCancelled
    | UnitDone
    | UnitFailed
    | UnitProgress
    | Tick
)
Instruction = (
    Start
    | Interrupt
    | Deliver
    | Halved
    | Discard
    | FinishRun
    | FailRun
    | CancelRun
    | Quarantine
    | Heal
)
