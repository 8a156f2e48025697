"""The running fleet: Ray actors on one side, the dispatch state machine on the other.

One thread runs one asyncio loop, and everything here happens on it; the public methods hand their
work over and wait. An attempt is a task whose end is an event for ``Dispatch``; what ``Dispatch``
answers are instructions, carried out at once. Policy lives in ``work``, none of it here.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from comfyfleet.config import pack_dir
from comfyfleet.errors import FleetError, Problem, RunCancelled, RunError, RunFailed
from comfyfleet.fleet.loans import Lending, Loan
from comfyfleet.fleet.registry import write_record
from comfyfleet.fleet.run import Delivery, Observer, Run, RunEvent
from comfyfleet.fleet.session import Session
from comfyfleet.fleet.spec import Host, worker_ids, worker_specs
from comfyfleet.planner import Device
from comfyfleet.work import (
    CancelRun,
    Deliver,
    Discard,
    Dispatch,
    Event,
    FailRun,
    Failure,
    FinishRun,
    Instruction,
    Interrupt,
    Progress,
    Prompt,
    Result,
    RunSubmitted,
    Start,
    Tick,
    Unit,
    UnitDone,
    UnitFailed,
    UnitProgress,
    WorkerInfo,
    WorkerJoined,
    WorkerLost,
)
from comfyfleet.work import RunCancelled as RunCancelledEvent

if TYPE_CHECKING:
    from comfyfleet.fleet.actors import Actors

T = TypeVar("T")

#: How long ``close`` lets Ray shut down by itself before everything is killed.
_CLOSE_GRACE_S = 1.3


class Fleet:
    """Workers on the given devices. Use as a context manager, or call ``start`` and ``close``.

    ``private_output`` makes units bring the files home that their output nodes saved; without it
    workers save into the host's own output folder.
    """

    def __init__(self, devices: Sequence[Device], host: Host, *, private_output: bool) -> None:
        self._devices = list(devices)
        self._host = host
        self._private_output = private_output
        self._dispatch = Dispatch()
        self._runs: dict[str, tuple[Run, Observer | None]] = {}
        self._arrived: dict[tuple[str, str], Result] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._actors: Actors | None = None
        self._lending: Lending | None = None
        self._session: Session | None = None
        self._ready: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._main, daemon=True, name="comfyfleet")

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Public, from any thread.

    def start(self) -> None:
        """Start Ray and all workers; returns when they are ready.

        Raises FleetError, or WorkerStartError with the end of the worker's log; then nothing is
        left running.
        """
        self._session = Session()
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all workers and remove what they left. May be called twice, and after a failure."""
        if self._session is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_CLOSE_GRACE_S)
        self._session.close()

    @property
    def workers(self) -> list[WorkerInfo]:
        """The workers that are alive."""
        return list(self._actors.infos.values()) if self._actors else []

    def check(self, prompt: Prompt) -> list[Problem]:
        """What a worker's ComfyUI finds wrong with a prompt, without running it."""
        return self._wait_for(self._check(prompt))

    @property
    def has_idle(self) -> bool:
        """True if a worker has nothing to do."""
        return self._wait_for(self._has_idle())

    @property
    def folder(self) -> Path:
        """The fleet's own folder, which nobody else may enter; gone after ``close``."""
        assert self._session is not None
        return self._session.folder

    def lend(self, worker_ids: Iterable[str], prompt_of: Callable[[str], Prompt]) -> list[Loan]:
        """Start a prompt on each of these workers that is idle; units do not meet them."""
        return self._wait_for(self._lend(list(worker_ids), prompt_of))

    def recall(self, loan: Loan) -> None:
        """Stop what a lent worker does; returns at once."""
        if self._lending is not None:
            self._loop.call_soon_threadsafe(self._spawn, self._lending.recall(loan))

    def free(self, request: dict[str, Any]) -> None:
        """Let all workers unload models or free memory, as ComfyUI's /free; returns at once."""
        if self._actors is not None:
            self._loop.call_soon_threadsafe(self._spawn, self._actors.free(request))

    def submit(self, units: Sequence[Unit], observer: Observer | None = None) -> Run:
        """Begin a run. ``units`` carry the run's id, see ``new_run_id``."""
        return self._wait_for(self._submit(list(units), observer))

    # What a Run asks; from any thread.

    def cancel(self, run_id: str, reason: str) -> None:
        self._post(RunCancelledEvent(run_id=run_id, reason=reason))

    def join_local(self, run_id: str) -> None:
        self._post(WorkerJoined(worker_id=local_worker(run_id), only_run=run_id))

    def finish_local(self, unit: Unit, result: Result) -> None:
        worker_id = local_worker(unit.run_id)
        self._loop.call_soon_threadsafe(self._hand_in, worker_id, unit, result)

    # The thread.

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if self._ready.done():
                self._fail_all(FleetError(f"the fleet stopped: {type(error).__name__}: {error}"))
            else:
                self._ready.set_exception(error)
        finally:
            self._drain()

    def _drain(self) -> None:
        """End what still waits on the loop, so that nothing is destroyed while pending."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self) -> None:
        session = self._session
        assert session is not None
        session.start()
        # Only now: it imports Ray, which reads the session's settings at import.
        from comfyfleet.fleet.actors import Actors

        try:
            self._actors = Actors(self._specs(session))
            stopped = asyncio.ensure_future(self._stop.wait())
            started = asyncio.ensure_future(self._actors.start())
            await asyncio.wait({stopped, started}, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                await started
                write_record(session.folder, list(self._actors.infos.values()))
                self._welcome(self._actors)
                await stopped
            started.cancel()
        finally:
            self._fail_all(FleetError("the fleet was closed"))
            session.stop()

    def _specs(self, session: Session) -> list[Any]:
        folders: dict[str, Path] = {
            name: session.worker_folder(name) for name in worker_ids(self._devices)
        }
        return worker_specs(
            self._devices,
            self._host,
            folder_of=folders,
            pack=pack_dir(),
            private_output=self._private_output,
        )

    def _welcome(self, actors: Actors) -> None:
        self._lending = Lending(actors, self._dispatch, self._handle)
        for worker_id in actors.infos:
            self._spawn(self._watch(worker_id))
            self._handle(WorkerJoined(worker_id=worker_id))
        self._ready.set_result(None)

    async def _watch(self, worker_id: str) -> None:
        assert self._actors is not None
        reason = await self._actors.lost(worker_id)
        self._handle(WorkerLost(worker_id=worker_id, reason=reason))

    async def _lend(self, worker_ids: list[str], prompt_of: Callable[[str], Prompt]) -> list[Loan]:
        assert self._lending is not None
        return await self._lending.lend(worker_ids, prompt_of)

    async def _has_idle(self) -> bool:
        workers = self._actors.infos if self._actors else ()
        return any(self._dispatch.state_of(worker_id) == "idle" for worker_id in workers)

    async def _check(self, prompt: Prompt) -> list[Problem]:
        assert self._actors is not None
        return await self._actors.check(prompt)

    async def _submit(self, units: list[Unit], observer: Observer | None) -> Run:
        run_id = units[0].run_id if units else new_run_id()
        run = Run(run_id, len(units), self)
        if units:
            self._runs[run_id] = (run, observer)
            self._handle(RunSubmitted(run_id=run_id, units=tuple(units)))
        return run

    # Events in, instructions out.

    def _post(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._handle, event)

    def _handle(self, event: Event) -> None:
        for instruction in self._dispatch.handle(event, self._loop.time()):
            self._carry_out(instruction)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._dispatch.next_deadline()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._handle(Tick())

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start(worker_id=worker_id, unit=unit):
                self._begin(worker_id, unit)
            case Interrupt(worker_id=worker_id, unit_id=unit_id):
                self._interrupt(worker_id, unit_id)
            case Deliver(unit=unit, worker_id=worker_id, seconds=seconds):
                self._deliver(unit, worker_id, seconds)
            case Discard(unit_id=unit_id, worker_id=worker_id):
                self._arrived.pop((worker_id, unit_id), None)
            case FinishRun(run_id=run_id):
                self._end(run_id, None)
            case FailRun(run_id=run_id, message=message):
                self._end(run_id, RunFailed(message))
            case CancelRun(run_id=run_id, reason=reason):
                self._end(run_id, RunCancelled(reason))
            case _:
                raise TypeError(f"unknown instruction {instruction!r}")

    def _begin(self, worker_id: str, unit: Unit) -> None:
        run, _ = self._runs[unit.run_id]
        self._tell(RunEvent(kind="started", unit=unit, worker_id=worker_id))
        if worker_id == local_worker(unit.run_id):
            run.offer(unit)
        else:
            self._spawn(self._attempt(worker_id, unit))

    async def _attempt(self, worker_id: str, unit: Unit) -> None:
        assert self._actors is not None
        async for event in self._actors.run(worker_id, unit):
            match event:
                case Progress(fraction=fraction):
                    self._progress(worker_id, unit, fraction)
                case Failure():
                    self._handle(UnitFailed(worker_id=worker_id, unit_id=unit.id, failure=event))
                case Result():
                    self._hand_in(worker_id, unit, event)

    def _progress(self, worker_id: str, unit: Unit, fraction: float) -> None:
        self._handle(UnitProgress(worker_id=worker_id, unit_id=unit.id, fraction=fraction))
        self._tell(RunEvent(kind="progress", unit=unit, worker_id=worker_id, fraction=fraction))

    def _hand_in(self, worker_id: str, unit: Unit, result: Result) -> None:
        self._arrived[worker_id, unit.id] = result
        self._handle(UnitDone(worker_id=worker_id, unit_id=unit.id))

    def _interrupt(self, worker_id: str, unit_id: str) -> None:
        run_id = unit_id.rpartition(":")[0]
        if worker_id != local_worker(run_id):
            assert self._actors is not None
            self._spawn(self._actors.interrupt(worker_id, unit_id))
        elif run_id in self._runs and self._runs[run_id][0].withdraw(unit_id):
            failure = Failure(message="withdrawn before it began")
            event = UnitFailed(worker_id=worker_id, unit_id=unit_id, failure=failure)
            self._loop.call_soon(self._handle, event)

    def _deliver(self, unit: Unit, worker_id: str, seconds: float) -> None:
        run, _ = self._runs[unit.run_id]
        delivery = Delivery(
            unit=unit,
            worker_id=worker_id,
            seconds=seconds,
            result=self._arrived.pop((worker_id, unit.id)),
        )
        run.deliver(delivery)
        self._tell(RunEvent(kind="delivered", unit=unit, worker_id=worker_id, delivery=delivery))

    def _end(self, run_id: str, error: RunError | None) -> None:
        run, _ = self._runs.pop(run_id)
        if self._actors is not None:
            self._actors.forget(run_id)
        run.finish(error)

    def _fail_all(self, error: FleetError) -> None:
        for run_id in list(self._runs):
            self._end(run_id, RunFailed(str(error)))

    def _tell(self, event: RunEvent) -> None:
        entry = self._runs.get(event.unit.run_id)
        if entry is not None and entry[1] is not None:
            entry[1](event)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._attempts.add(task)
        task.add_done_callback(self._attempt_ended)

    def _attempt_ended(self, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours, not of a unit: nobody may wait for a run that can no longer end.
            self._fail_all(FleetError(f"internal error: {type(error).__name__}: {error}"))
            self._loop.call_exception_handler({"message": "fleet task failed", "exception": error})

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            work.close()
            raise FleetError("the fleet is not running; start it first.")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def local_worker(run_id: str) -> str:
    """The worker id of a master's own process while it takes part in one run."""
    return f"master:{run_id}"


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]
