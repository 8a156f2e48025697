"""What dispatch is told (events) and what it answers (instructions)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from comfyfleet.work.units import Failure, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker is ready. With ``only_run`` it serves that run alone and leaves with it."""

    worker_id: str
    only_run: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    worker_id: str
    reason: str


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
    """A run wants all of its units done. Run ids are never used twice."""

    run_id: str
    units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        seen = set()
        for unit in self.units:
            if unit.run_id != self.run_id:
                raise ValueError(f"unit {unit.id} is not of run {self.run_id}")
            if unit.index in seen:
                raise ValueError(f"index {unit.index} occurs twice in run {self.run_id}")
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
    worker_id: str
    unit: Unit


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


Event = (
    WorkerJoined
    | WorkerLost
    | WorkerLent
    | WorkerReturned
    | RunSubmitted
    | RunCancelled
    | UnitDone
    | UnitFailed
    | UnitProgress
    | Tick
)
Instruction = Start | Interrupt | Deliver | Discard | FinishRun | FailRun | CancelRun
