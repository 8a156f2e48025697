"""Events into dispatch, instructions out: the runs of a fleet, and the attempts at their units.

Everything here happens on the fleet's loop. Policy lives in ``work``, none of it here.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from comfyfleet.errors import FleetError, RunCancelled, RunError, RunFailed
from comfyfleet.fleet.ledger import Ledger
from comfyfleet.fleet.loop import Loop
from comfyfleet.fleet.redact import without_secrets
from comfyfleet.fleet.run import Delivery, Observer, OnEnd, Run, RunEvent
from comfyfleet.fleet.seat import MASTER
from comfyfleet.work import (
    CancelRun,
    Deliver,
    Discard,
    Dispatch,
    Event,
    FailRun,
    Failure,
    FinishRun,
    Halved,
    Heal,
    Instruction,
    Interrupt,
    Policy,
    Progress,
    Quarantine,
    Result,
    RunSubmitted,
    Start,
    Tick,
    Told,
    Unit,
    UnitDone,
    UnitFailed,
    UnitProgress,
    WorkerLost,
)

if TYPE_CHECKING:
    from comfyfleet.fleet.actors import Actors

logger = logging.getLogger(__name__)


class Conductor:
    """Carries out what dispatch decides."""

    def __init__(self, dispatch: Dispatch, ledger: Ledger, loop: Loop) -> None:
        self._dispatch = dispatch
        self._ledger = ledger
        self._loop = loop
        #: Set once they are there.
        self.actors: Actors | None = None
        #: Told the id of each worker whose process has ended.
        self.on_worker_lost: Callable[[str], None] = lambda worker_id: None
        #: Those that have not ended, by id.
        self.runs: dict[str, tuple[Run, Observer | None, OnEnd | None]] = {}
        self._arrived: dict[tuple[str, str], Result] = {}
        self._timer: asyncio.TimerHandle | None = None

    def handle_lost(self, event: Event) -> None:
        """A worker joined or was lost: its attempt is over before dispatch gives it to another."""
        if isinstance(event, WorkerLost) and event.worker_id in self._dispatch.workers:
            self.on_worker_lost(event.worker_id)
            self._ledger.hear(event)  # before its attempt is told of as any other that failed
            unit = self._dispatch.find_unit_on(event.worker_id)
            if unit is not None:
                lost = Failure(message=f"the worker was lost: {event.reason}")
                self._tell(
                    RunEvent(kind="failed", unit=unit, worker_id=event.worker_id, failure=lost)
                )
        self.handle(event)

    def submit(
        self,
        run: Run,
        event: RunSubmitted,
        observer: Observer | None,
        on_end: OnEnd | None,
    ) -> None:
        """Begin a run."""
        self.runs[run.id] = (run, observer, on_end)
        self._ledger.begin(event)
        self.handle(event)

    def set_policy(self, policy: Policy) -> None:
        """Go by other numbers from now on."""
        self._obey(self._dispatch.set_policy(policy, self._loop.time()))

    # Events in, instructions out.

    def handle(self, event: Event) -> None:
        """Tell dispatch of an event, and do what it answers."""
        self._ledger.hear(event)
        self._obey(self._dispatch.handle(event, self._loop.time()))

    def _obey(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            self._carry_out(instruction)
        self._ledger.sync()
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._dispatch.next_deadline()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self.handle(Tick())

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start():
                self._begin(instruction)
            case Interrupt(worker_id=worker_id, unit_id=unit_id):
                self._interrupt(worker_id, unit_id)
            case Deliver(unit=unit, worker_id=worker_id, seconds=seconds):
                self._deliver(unit, worker_id, seconds)
            case Discard(unit_id=unit_id, worker_id=worker_id):
                self._arrived.pop((worker_id, unit_id), None)
            case Halved():
                self._note_halved(instruction)
            case Quarantine() | Heal():
                self._ledger.note(instruction)
            case FinishRun(run_id=run_id):
                self._end(run_id, None)
            case FailRun(run_id=run_id, message=message):
                self._end(run_id, RunFailed(message))
            case CancelRun(run_id=run_id, reason=reason):
                self._end(run_id, RunCancelled(reason))
            case _:
                raise TypeError(f"unknown instruction {instruction!r}")

    def _begin(self, start: Start) -> None:
        unit, worker_id = start.unit, start.worker_id
        self._tell(RunEvent(kind="started", unit=unit, worker_id=worker_id))
        if worker_id == MASTER:
            return  # its run's observer knows what to do
        if worker_id == local_worker(unit.run_id):
            self.runs[unit.run_id][0].offer(unit)
        else:
            self._loop.spawn(self._attempt(worker_id, unit, start.free_first))

    async def _attempt(self, worker_id: str, unit: Unit, free_first: bool) -> None:
        assert self.actors is not None
        if unit.run_id not in self.runs:
            # Nothing would let go of its values.
            self.fail(worker_id, unit, Failure(message="its run ended before it began"))
            return
        async for event in self.actors.run(worker_id, unit, free_first=free_first):
            if not self._has(worker_id, unit):
                return  # the worker was lost, and this was still on its way
            match event:
                case Progress(fraction=fraction):
                    self._progress(worker_id, unit, fraction)
                case Told():
                    self._tell(RunEvent(kind="told", unit=unit, worker_id=worker_id, told=event))
                case Failure():
                    self.fail(worker_id, unit, without_secrets(event, unit))
                case Result():
                    self.hand_in(worker_id, unit, event)

    def _has(self, worker_id: str, unit: Unit) -> bool:
        known = worker_id in self._dispatch.workers
        return known and self._dispatch.find_unit_on(worker_id) is unit

    def _progress(self, worker_id: str, unit: Unit, fraction: float) -> None:
        self.handle(UnitProgress(worker_id=worker_id, unit_id=unit.id, fraction=fraction))
        self._tell(RunEvent(kind="progress", unit=unit, worker_id=worker_id, fraction=fraction))

    def fail(self, worker_id: str, unit: Unit, failure: Failure) -> None:
        """A worker could not do a unit."""
        self._tell(RunEvent(kind="failed", unit=unit, worker_id=worker_id, failure=failure))
        self.handle(UnitFailed(worker_id=worker_id, unit_id=unit.id, failure=failure))

    def hand_in(self, worker_id: str, unit: Unit, result: Result) -> None:
        """A worker has ended a unit."""
        self._arrived[worker_id, unit.id] = result
        self.handle(UnitDone(worker_id=worker_id, unit_id=unit.id))

    def _interrupt(self, worker_id: str, unit_id: str) -> None:
        run_id = unit_id.rpartition(":")[0]
        if worker_id == MASTER:
            return  # its own ComfyUI was told by whoever cancelled
        if worker_id != local_worker(run_id):
            assert self.actors is not None
            self._loop.spawn(self.actors.interrupt(worker_id, unit_id))
        elif run_id in self.runs and self.runs[run_id][0].withdraw(unit_id):
            failure = Failure(message="withdrawn before it began")
            withdrawn = UnitFailed(worker_id=worker_id, unit_id=unit_id, failure=failure)
            self._loop.post(self.handle, withdrawn)

    def _deliver(self, unit: Unit, worker_id: str, seconds: float) -> None:
        delivery = Delivery(
            unit=unit,
            worker_id=worker_id,
            seconds=seconds,
            result=self._arrived.pop((worker_id, unit.id)),
        )
        if self.actors is not None:
            self.actors.let_go(unit)
        self.runs[unit.run_id][0].deliver(delivery)
        self._tell(RunEvent(kind="delivered", unit=unit, worker_id=worker_id, delivery=delivery))

    def _note_halved(self, halved: Halved) -> None:
        self._ledger.note_halved(halved)
        self.runs[halved.unit.run_id][0].expect_more(len(halved.halves) - 1)
        logger.warning(
            "unit %s: no worker has the memory for its %d items; it goes on as units of %s items",
            halved.unit.id,
            halved.unit.items,
            " and ".join(str(half.items) for half in halved.halves),
        )

    def _end(self, run_id: str, error: RunError | None) -> None:
        run, _, on_end = self.runs.pop(run_id)
        self._ledger.end(run_id, error)
        if self.actors is not None:
            self.actors.forget(run_id)
        run.finish(error)
        if on_end is not None:
            on_end(error)

    def fail_all(self, error: FleetError) -> None:
        """End all runs: nobody is left to run them."""
        for run_id in list(self.runs):
            self._end(run_id, RunFailed(str(error)))

    def _tell(self, event: RunEvent) -> None:
        self._ledger.take(event)
        entry = self.runs.get(event.unit.run_id)
        if entry is not None and entry[1] is not None:
            entry[1](event)


def local_worker(run_id: str) -> str:
    """The worker id of a master's own process while it takes part in one run."""
    return f"master:{run_id}"


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]
