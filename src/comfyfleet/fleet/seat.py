"""The master as a worker for the prompts of its own queue. Safe to call from any thread.

What it has in hand is told to its run's observer, as of any worker; its own ComfyUI computes it.
"""

from __future__ import annotations

from collections.abc import Callable

from comfyfleet.fleet.loop import Loop
from comfyfleet.work import (
    Dispatch,
    Event,
    Failure,
    Result,
    Unit,
    UnitFailed,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)

#: Whole prompts of the master's queue, which the master may take too.
QUEUE = "queue"
#: The worker id of the master's own process.
MASTER = "master"
#: Why it takes nothing while it runs what is no unit, or is about to say that it could take one.
_AT_WORK = "at work"


class Seat:
    """Where the master sits among the workers of one fleet."""

    def __init__(
        self,
        dispatch: Dispatch,
        loop: Loop,
        handle: Callable[[Event], None],
        hand_in: Callable[[str, Unit, Result], None],
    ) -> None:
        """``handle`` and ``hand_in`` are called on the loop, with events and results."""
        self._dispatch = dispatch
        self._loop = loop
        self._handle = handle
        self._hand_in = hand_in

    def join(self) -> None:
        """The master may take prompts of its queue, each time after ``is_ready``.

        From now on they wait for it, whatever it is doing.
        """
        self._post(WorkerJoined(worker_id=MASTER, lane=QUEUE, trusted=True, pause=_AT_WORK))

    def leave(self) -> None:
        """The master takes no more."""
        self._post(WorkerLost(worker_id=MASTER, reason="it shares its queue no more"))

    def is_ready(self) -> None:
        """The master could take a prompt now; returns at once."""
        self._post(WorkerResumed(worker_id=MASTER))

    def retract(self) -> bool:
        """The master can take no prompt any more; False if it was given one before it said so.

        Raises FleetError if the fleet has ended.
        """
        return self._loop.wait_for(self._retract())

    def finish(self, unit: Unit) -> None:
        """The master's own ComfyUI has ended a prompt, in whatever way: it is nobody else's."""
        self._loop.post(self._hand_in, MASTER, unit, Result(values=None))

    def release(self, unit: Unit) -> None:
        """The master will not run a unit that it may have been given; nothing happens if not."""
        gone = Failure(message="deleted before it began")
        self._post(UnitFailed(worker_id=MASTER, unit_id=unit.id, failure=gone))

    def _post(self, event: Event) -> None:
        self._loop.post(self._handle, event)

    async def _retract(self) -> bool:
        self._handle(WorkerPaused(worker_id=MASTER, reason=_AT_WORK))
        known = MASTER in self._dispatch.workers
        return not known or self._dispatch.find_unit_on(MASTER) is None
