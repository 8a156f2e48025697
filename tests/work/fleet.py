"""Dispatch in few words, for tests of its rules."""

from __future__ import annotations

from dataclasses import replace

from comfyfleet.work import (
    Deliver,
    Discard,
    Dispatch,
    FailRun,
    Failure,
    Interrupt,
    Policy,
    RunCancelled,
    RunSubmitted,
    Start,
    Tick,
    Unit,
    UnitDone,
    UnitFailed,
    UnitProgress,
    WorkerHealed,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)

ERROR = Failure(message="out of memory", traceback="Traceback: boom", node_id="5", class_type="VAE")
SHORTAGE = Failure(message="CUDA out of memory", kind="out_of_memory")


class Fleet:
    """Dispatch with short words for its events, checked after each of them."""

    def __init__(self, *workers: str, **policy: float) -> None:
        self.dispatch = Dispatch(Policy(**policy), validate=True)
        self.now = 0.0
        for worker in workers:
            self.join(worker)

    def handle(self, event, at=None):
        self.now = self.now if at is None else at
        return self.dispatch.handle(event, self.now)

    def join(self, worker, only_run=None, at=None, lane=None, pause=""):
        joined = WorkerJoined(worker_id=worker, only_run=only_run, lane=lane, pause=pause)
        return self.handle(joined, at)

    def lose(self, worker, at=None, returns=False):
        return self.handle(WorkerLost(worker_id=worker, reason="killed", returns=returns), at)

    def pause(self, worker, reason=""):
        return self.handle(WorkerPaused(worker_id=worker, reason=reason))

    def resume(self, worker):
        return self.handle(WorkerResumed(worker_id=worker))

    def heal(self, worker, at=None):
        return self.handle(WorkerHealed(worker_id=worker), at)

    def submit(self, *units, at=None, **how):
        return self.handle(RunSubmitted(run_id=units[0].run_id, units=units, **how), at)

    def cancel(self, run_id, at=None):
        return self.handle(RunCancelled(run_id=run_id, reason="user"), at)

    def done(self, worker, unit, at=None):
        return self.handle(UnitDone(worker_id=worker, unit_id=unit.id), at)

    def fail(self, worker, unit, at=None):
        return self.handle(UnitFailed(worker_id=worker, unit_id=unit.id, failure=ERROR), at)

    def run_short(self, worker, unit, at=None):
        """The worker runs out of memory with the unit."""
        event = UnitFailed(worker_id=worker, unit_id=unit.id, failure=SHORTAGE)
        return self.handle(event, at)

    def state(self, worker):
        return self.dispatch.state_of(worker)

    def progress(self, worker, unit, fraction, at=None):
        event = UnitProgress(worker_id=worker, unit_id=unit.id, fraction=fraction)
        return self.handle(event, at)

    def tick(self, at):
        return self.handle(Tick(), at)

    def measure(self, model="", **seconds):
        """Let workers finish two units each, the second of them warm, in so many seconds."""
        name = f"measure{self.now}{model}"
        units = make_units(2 * len(seconds), run_id=name, model=model)
        begun = {s.worker_id: (s.unit, self.now) for s in self.submit(*units)}
        assert begun.keys() == seconds.keys()
        while begun:
            worker = min(begun, key=lambda w: begun[w][1] + seconds[w])
            unit, start = begun.pop(worker)
            answer = self.done(worker, unit, at=max(self.now, start + seconds[worker]))
            begun |= {i.worker_id: (i.unit, self.now) for i in answer if isinstance(i, Start)}


def make_units(num, run_id="r", model="", cost=1.0):
    return tuple(
        Unit(run_id=run_id, index=i, prompt={}, model_key=model, cost=cost) for i in range(num)
    )


def halve(unit, index):
    """Its halves; a second half has the odd item."""
    first = unit.items // 2
    return (
        replace(unit, index=index, items=first, cost=unit.cost / 2),
        replace(unit, index=index + 1, items=unit.items - first, cost=unit.cost / 2),
    )


def unit_of(run_id="r", index=0, model=""):
    return Unit(run_id=run_id, index=index, prompt={}, model_key=model)


def start(worker, unit, free_first=False):
    return Start(worker_id=worker, unit=unit, free_first=free_first)


def deliver(worker, unit, seconds):
    return Deliver(unit=unit, worker_id=worker, seconds=seconds)


def interrupt(worker, unit):
    return Interrupt(worker_id=worker, unit_id=unit.id)


def discard(worker, unit):
    return Discard(unit_id=unit.id, worker_id=worker)


def failure_of(instructions):
    """The message of the only FailRun."""
    (message,) = [i.message for i in instructions if isinstance(i, FailRun)]
    return message
