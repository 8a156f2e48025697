"""A run as its owner sees it: wait for the results, take part in the work, or stop it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from comfyfleet.errors import RunCancelled, RunError
from comfyfleet.work import Failure, Result, Told, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One unit's result, and who made it in how many seconds."""

    unit: Unit
    worker_id: str
    seconds: float
    result: Result


Kind = Literal["started", "progress", "told", "failed", "delivered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened to a unit on a worker; an attempt that failed may be repeated."""

    kind: Kind
    unit: Unit
    worker_id: str
    fraction: float = 0.0
    told: Told | None = None
    failure: Failure | None = None
    delivery: Delivery | None = None


#: Both are called on the fleet's thread: they must return at once.
Observer = Callable[[RunEvent], None]
OnEnd = Callable[[RunError | None], None]


class Engine(Protocol):
    """What a run asks of the fleet; safe to call from any thread."""

    def cancel(self, run_id: str, reason: str) -> None: ...
    def add_units(self, run_id: str, units: Sequence[Unit], more: bool) -> None: ...
    def join_local(self, run_id: str) -> None: ...
    def leave_local(self, run_id: str, reason: str) -> None: ...
    def finish_local(self, unit: Unit, result: Result) -> None: ...
    def fail_local(self, unit: Unit, failure: Failure) -> None: ...


class Run:
    """All units of one request. Its methods may be called from any thread but the fleet's."""

    def __init__(self, run_id: str, total: int, engine: Engine, *, more: bool = False) -> None:
        self.id = run_id
        #: How many units it has, as far as they are known.
        self.total = total
        self.deliveries: dict[int, Delivery] = {}
        self._engine = engine
        self._changed = threading.Condition()
        self._offers: deque[Unit] = deque()
        self._error: RunError | None = None
        self._finished = total == 0 and not more

    @property
    def finished(self) -> bool:
        """True once all results are here or the run has failed."""
        return self._finished

    @property
    def cancelled(self) -> bool:
        """True once somebody has stopped it."""
        return isinstance(self._error, RunCancelled)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end. Raises RunFailed or RunCancelled; False if time ran out before."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished, timeout_s)
            if self._error is not None:
                raise self._error
            return self._finished

    def results(self) -> list[Delivery]:
        """All deliveries in unit order. Only after ``wait`` was true."""
        if len(self.deliveries) != self.total:
            raise RunCancelled(f"run {self.id}: {len(self.deliveries)} of {self.total} results.")
        return [self.deliveries[index] for index in sorted(self.deliveries)]

    def forget(self, index: int) -> None:
        """Drop a delivery that its observer has dealt with: a long run need not fit in memory."""
        with self._changed:
            del self.deliveries[index]

    def add(self, units: Sequence[Unit], *, more: bool) -> None:
        """Give an open run further units; without ``more`` they are its last."""
        self.total += len(units)
        self._engine.add_units(self.id, units, more)

    def cancel(self, reason: str) -> None:
        """Stop the run everywhere; its units are interrupted. Nothing happens if it has ended."""
        if not self._finished:
            self._engine.cancel(self.id, reason)

    def join_local(self) -> None:
        """Offer this very process as a worker of this run; see ``next_local``."""
        self._engine.join_local(self.id)

    def leave_local(self, reason: str) -> None:
        """This process takes no more units of the run."""
        self._engine.leave_local(self.id, reason)

    def next_local(self, timeout_s: float) -> Unit | None:
        """The next unit that this process shall run, waiting up to ``timeout_s`` for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._offers or self._finished, timeout_s)
            return self._offers.popleft() if self._offers else None

    def finish_local(self, unit: Unit, result: Result) -> None:
        """Hand in the result of a unit that ``next_local`` gave; the next may then be offered."""
        self._engine.finish_local(unit, result)

    def fail_local(self, unit: Unit, failure: Failure) -> None:
        """This process cannot compute a unit that ``next_local`` gave: others may."""
        self._engine.fail_local(unit, failure)

    # The fleet's side.

    def offer(self, unit: Unit) -> None:
        with self._changed:
            self._offers.append(unit)
            self._changed.notify_all()

    def withdraw(self, unit_id: str) -> bool:
        """Take an offer back; False if it has been accepted already."""
        with self._changed:
            before = len(self._offers)
            self._offers = deque(unit for unit in self._offers if unit.id != unit_id)
            return len(self._offers) < before

    def expect_more(self, num: int) -> None:
        """So many further units have taken the place of others."""
        self.total += num

    def deliver(self, delivery: Delivery) -> None:
        with self._changed:
            self.deliveries[delivery.unit.index] = delivery

    def finish(self, error: RunError | None = None) -> None:
        with self._changed:
            self._error = error
            self._finished = True
            self._changed.notify_all()
