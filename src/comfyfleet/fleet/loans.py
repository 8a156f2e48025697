"""Workers lent out of dispatch: each runs one prompt for as long as its borrower wants.

Everything here happens on the fleet's loop, but for what is said otherwise.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from comfyfleet.work import (
    Dispatch,
    Event,
    Failure,
    Happening,
    Prompt,
    Result,
    Unit,
    WorkerInfo,
    WorkerLent,
    WorkerReturned,
)

if TYPE_CHECKING:
    from comfyfleet.fleet.actors import Actors

#: How often a worker that is relied on is asked how it is, and how long it may take to answer.
_PULSE_S = 1.0
_PATIENCE_S = 4.0
#: How long the end of an earlier loan is waited for: a follower that was let go needs little.
_RETURN_S = 10.0


class Loan:
    """One worker, lent. May be read from any thread."""

    def __init__(self, worker: WorkerInfo, unit: Unit) -> None:
        self.worker = worker
        self.unit = unit
        #: Ends with why the worker stopped; None if it did what was asked.
        self.end: Future[Failure | None] = Future()
        #: Is somebody waiting for it from step to step?
        self.relied_on = False
        #: What it last said it was doing.
        self.state = ""
        #: Was it ended because it did not answer any more?
        self.silent = False

    @property
    def failure(self) -> Failure | None:
        """Why it is not there any more; None while it is, or if it ended well."""
        return self.end.result() if self.end.done() else None


class Lending:
    """Lends idle workers, watches them, and gives them back to dispatch."""

    def __init__(self, actors: Actors, dispatch: Dispatch, handle: Callable[[Event], None]) -> None:
        self._actors = actors
        self._dispatch = dispatch
        self._handle = handle
        self._loans: dict[str, tuple[Loan, asyncio.Task[None]]] = {}

    async def lend(
        self, worker_ids: Iterable[str], prompt_of: Callable[[str], Prompt]
    ) -> list[Loan]:
        """Start a prompt on each of these workers that is idle, or soon will be."""
        wanted = [worker_id for worker_id in worker_ids if worker_id in self._actors.infos]
        ending = [self._loans[name][1] for name in wanted if name in self._loans]
        if ending:
            await asyncio.wait(ending, timeout=_RETURN_S)
        living = [worker_id for worker_id in wanted if worker_id in self._actors.infos]
        idle = [name for name in living if self._dispatch.state_of(name) == "idle"]
        return [self._lend(name, prompt_of(name)) for name in idle]

    async def recall(self, loan: Loan) -> None:
        """Stop the prompt, wherever it is."""
        await self._actors.interrupt(loan.worker.id, loan.unit.id)

    def _lend(self, worker_id: str, prompt: Prompt) -> Loan:
        self._handle(WorkerLent(worker_id=worker_id))
        unit = Unit(run_id=f"loan-{uuid.uuid4().hex[:12]}", index=0, prompt=prompt)
        loan = Loan(self._actors.infos[worker_id], unit)
        task = asyncio.get_running_loop().create_task(self._run(loan))
        self._loans[worker_id] = (loan, task)
        return loan

    async def _run(self, loan: Loan) -> None:
        """The loan from beginning to end."""
        worker_id = loan.worker.id
        pulse = asyncio.get_running_loop().create_task(self._feel(loan))
        end: Happening | None = None
        try:
            async for event in self._actors.run(worker_id, loan.unit):
                end = event
        finally:
            pulse.cancel()
            del self._loans[worker_id]
            loan.end.set_result(_failure(loan, end))
            self._handle(WorkerReturned(worker_id=worker_id))

    async def _feel(self, loan: Loan) -> None:
        """Kill a worker that is relied on and does not answer: then all who wait for it know."""
        while True:
            await asyncio.sleep(_PULSE_S)
            try:
                loan.state = await asyncio.wait_for(self._actors.state(loan.worker.id), _PATIENCE_S)
            except asyncio.TimeoutError:
                if loan.relied_on:
                    loan.silent = True
                    self._actors.kill(loan.worker)
                    return


def _failure(loan: Loan, end: Happening | None) -> Failure | None:
    """Why a worker stopped, by the last that came from it."""
    if isinstance(end, Result):
        return None
    if isinstance(end, Failure):
        return end
    silence = f" as it had not answered for {_PATIENCE_S:.0f} s" if loan.silent else ""
    return Failure(message=f"its process ended{silence}")
