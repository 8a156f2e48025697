"""The running fleet: its start and end, who is in it, and what one may ask of it.

One thread runs one asyncio loop, and everything of the fleet happens on it; the public methods hand
their work over and wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfyfleet.config import Remote, pack_dir
from comfyfleet.errors import FleetError, Problem
from comfyfleet.fleet.care import Care
from comfyfleet.fleet.cluster import Cluster
from comfyfleet.fleet.cluster_session import ClusterSession
from comfyfleet.fleet.conduct import Conductor, local_worker, new_run_id
from comfyfleet.fleet.insight import Snapshot
from comfyfleet.fleet.insight_memory import DeviceMemory, MemoryWatch
from comfyfleet.fleet.ledger import Ledger
from comfyfleet.fleet.loans import Lending, Loan
from comfyfleet.fleet.loop import Loop
from comfyfleet.fleet.registry import write_record
from comfyfleet.fleet.remote import RemoteSpec, remote_specs
from comfyfleet.fleet.run import Observer, OnEnd, Run
from comfyfleet.fleet.seat import Seat
from comfyfleet.fleet.session import Session
from comfyfleet.fleet.spec import Host, WorkerSpec, worker_ids, worker_specs
from comfyfleet.planner import Device
from comfyfleet.work import (
    Dispatch,
    Event,
    Failure,
    Halve,
    Policy,
    Prompt,
    Result,
    RunSubmitted,
    Unit,
    UnitsAdded,
    WorkerInfo,
    WorkerJoined,
    WorkerLost,
)
from comfyfleet.work import RunCancelled as RunCancelledEvent

if TYPE_CHECKING:
    from comfyfleet.fleet.actors import Actors
    from comfyfleet.fleet.cluster_worker import NodeSpec
    from comfyfleet.fleet.slots import Slots

logger = logging.getLogger(__name__)

#: How long ``close`` lets Ray shut down by itself before everything is killed. That takes part of a
#: second; on a busy machine more, and Ray ends this very process if its raylet is killed before.
_CLOSE_GRACE_S = 10.0
#: How often a cluster is asked for nodes that have joined it.
_NODES_INTERVAL_S = 15.0


class Fleet:
    """Workers on the given devices. Use as a context manager, or call ``start`` and ``close``.

    Units bring the files home that their output nodes saved.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        host: Host,
        policy: Policy | None = None,
        remotes: Sequence[Remote] = (),
        cluster: Cluster | None = None,
    ) -> None:
        """``remotes``: workers elsewhere; they join when they are there. ``cluster``: its free
        devices get workers too.
        """
        self._cluster = cluster
        self._slots: Slots | None = None
        self._devices = list(devices)
        self._remotes = list(remotes)
        self._host = host
        self._dispatch = Dispatch(policy)
        self._actors: Actors | None = None
        self._lending: Lending | None = None
        self._care: Care | None = None
        self._session: Session | None = None
        self._ready: Future[None] = Future()
        self._stop = asyncio.Event()
        self._loop = Loop(self._serve, self._on_fault)
        #: What happened and what is: see ``fleet.ledger``.
        names = zip(worker_ids(self._devices), self._devices, strict=True)
        known = {name: device.id for name, device in names}
        known |= {each.name: each.url for each in remotes if each.enabled}
        self.ledger = Ledger(self._dispatch, known)
        self._conductor = Conductor(self._dispatch, self.ledger, self._loop)
        #: For the master itself, if it shares its queue.
        conductor = self._conductor
        self.seat = Seat(self._dispatch, self._loop, conductor.handle, conductor.hand_in)
        self._memory = MemoryWatch(self._ask_memory)

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
        self._session = ClusterSession(self._cluster) if self._cluster else Session()
        self._loop.start()
        try:
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all workers and remove what they left. May be called twice, and after a failure."""
        if self._session is None:
            return
        if self._loop.alive:
            self._loop.post(self._stop.set)
            self._loop.join(_CLOSE_GRACE_S)
        self._session.close()

    @property
    def workers(self) -> list[WorkerInfo]:
        """The workers that are alive."""
        return list(self._actors.infos.values()) if self._actors else []

    @property
    def nodes(self) -> dict[str, str]:
        """The living workers on nodes of a cluster, each with its node's address."""
        return self._actors.nodes if self._actors else {}

    def ask(self, worker_id: str, method: str, *args: Any) -> Any:
        """Call a method of a worker on a node. Raises InputError, FleetError."""
        assert self._actors is not None
        return self._loop.wait_for(self._actors.ask(worker_id, method, *args))

    @property
    def started(self) -> bool:
        """True once ``start`` has come to its end, in whatever way."""
        return self._ready.done()

    @property
    def usable(self) -> bool:
        """True if units can be run, now or when a worker is back."""
        return self._loop.alive and self._care is not None and self._care.hopeful

    @property
    def has_idle(self) -> bool:
        """True if a worker has nothing to do."""
        return self._loop.wait_for(self._has_idle())

    @property
    def folder(self) -> Path:
        """The fleet's own folder, which nobody else may enter; gone after ``close``."""
        assert self._session is not None
        return self._session.folder

    @property
    def care(self) -> Care:
        """Pause, restart, interrupt, free memory: of one worker or of all."""
        if self._care is None:
            raise FleetError("the fleet is not running; start it first.")
        return self._care

    def check(self, prompt: Prompt) -> list[Problem]:
        """What a worker's ComfyUI finds wrong with a prompt, without running it."""
        return self._loop.wait_for(self._check(prompt))

    def lend(self, worker_ids: Iterable[str], prompt_of: Callable[[str], Prompt]) -> list[Loan]:
        """Start a prompt on each of these workers that is idle; units do not meet them."""
        return self._loop.wait_for(self._lend(list(worker_ids), prompt_of))

    def recall(self, loan: Loan) -> None:
        """Stop what a lent worker does; returns at once."""
        if self._lending is not None:
            self._loop.post(self._loop.spawn, self._lending.recall(loan))

    def submit(
        self,
        units: Sequence[Unit],
        observer: Observer | None = None,
        *,
        on_end: OnEnd | None = None,
        lane: str = "",
        priority: float = 0.0,
        more: bool = False,
        halve: Halve | None = None,
    ) -> Run:
        """Begin a run. ``units`` carry the run's id, see ``new_run_id``; see ``RunSubmitted``."""
        run_id = units[0].run_id if units else new_run_id()
        run = Run(run_id, len(units), self, more=more)
        if not self._loop.alive:
            raise FleetError("the fleet is not running; start it first.")
        if units or more:
            event = RunSubmitted(
                run_id=run_id,
                units=tuple(units),
                lane=lane,
                priority=priority,
                more=more,
                halve=halve,
            )
            self._loop.post(self._conductor.submit, run, event, observer, on_end)
        return run

    def on_worker_lost(self, listener: Callable[[str], None]) -> None:
        """Call this, on the fleet's loop, with the id of each worker whose process has ended."""
        self._conductor.on_worker_lost = listener

    def add(self, remote: Remote) -> None:
        """A worker elsewhere, from now on; one of its name gets the new address."""
        self._loop.post(self._add, remote)

    def snapshot(self) -> Snapshot:
        """Everything at this moment, with memory: it may have to wait a second for that."""
        found = replace(self.ledger.snapshot(), notes=tuple(self.notes))
        return self._memory.complete(found)

    def _ask_memory(self) -> DeviceMemory:
        return self._care.ask_memory() if self._care is not None and self._loop.alive else {}

    @property
    def notes(self) -> list[str]:
        """Sentences about what of the cluster is left out now, and why."""
        return self._slots.notes if self._slots else []

    @property
    def node_classes(self) -> frozenset[str]:
        """The node classes that every worker has."""
        return self._actors.node_classes if self._actors else frozenset()

    def has_run(self, run_id: str) -> bool:
        """Is it a run that has not ended?"""
        return run_id in self._conductor.runs

    def set_policy(self, policy: Policy) -> None:
        """Go by other numbers from now on."""
        self._loop.post(self._conductor.set_policy, policy)

    def post(self, event: Event) -> None:
        """Tell dispatch of something."""
        self._loop.post(self._conductor.handle, event)

    # What a Run asks; from any thread.

    def cancel(self, run_id: str, reason: str) -> None:
        self.post(RunCancelledEvent(run_id=run_id, reason=reason))

    def add_units(self, run_id: str, units: Sequence[Unit], more: bool) -> None:
        self.post(UnitsAdded(run_id=run_id, units=tuple(units), more=more))

    def join_local(self, run_id: str) -> None:
        self.post(WorkerJoined(worker_id=local_worker(run_id), only_run=run_id))

    def leave_local(self, run_id: str, reason: str) -> None:
        self.post(WorkerLost(worker_id=local_worker(run_id), reason=reason))

    def finish_local(self, unit: Unit, result: Result) -> None:
        self._loop.post(self._conductor.hand_in, local_worker(unit.run_id), unit, result)

    def fail_local(self, unit: Unit, failure: Failure) -> None:
        self._loop.post(self._conductor.fail, local_worker(unit.run_id), unit, failure)

    # The loop.

    def _on_fault(self, error: Exception) -> None:
        if self._ready.done():
            why = f"the fleet stopped: {type(error).__name__}: {error}"
            self._conductor.fail_all(FleetError(why))
        else:
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        session = self._session
        assert session is not None
        session.start()
        # Only now: it imports Ray, which reads the session's settings at import.
        from comfyfleet.fleet.actors import Actors

        try:
            specs = [*self._specs(session), *self._specs_in_cluster()]
            self._actors = Actors(specs, self._host.folders)
            self._conductor.actors = self._actors
            stopped = asyncio.ensure_future(self._stop.wait())
            started = asyncio.ensure_future(self._actors.start())
            await asyncio.wait({stopped, started}, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                await started
                await self._welcome(self._actors, session)
                await stopped
            started.cancel()
        finally:
            self._conductor.fail_all(FleetError("the fleet was closed"))
            session.stop()

    def _specs(self, session: Session) -> list[WorkerSpec | RemoteSpec]:
        names = worker_ids(self._devices)
        folders: dict[str, Path] = {name: session.worker_folder(name) for name in names}
        own = worker_specs(self._devices, self._host, folder_of=folders, pack=pack_dir())
        return [*own, *remote_specs(self._remotes, self._host, session.folder)]

    def _specs_in_cluster(self) -> list[NodeSpec]:
        """Workers on the cluster's nodes. Raises FleetError if there is nobody else either."""
        if self._cluster is None:
            return []
        from comfyfleet.fleet.slots import Slots

        self._slots = Slots(self._host)
        specs, notes = self._slots.look()
        for note in notes:
            logger.warning("%s", note)
        if not (specs or self._devices or self._remotes):
            why = " ".join(notes) or "No node offers one; `comfyfleet join` does."
            raise FleetError(f"the cluster at {self._cluster.address} has no free device. {why}")
        for spec in specs:
            self.ledger.expect(spec.id, spec.device.id)
        return specs

    async def _watch_cluster(self) -> None:
        """Take the devices of nodes that join later."""
        assert self._actors is not None and self._care is not None and self._slots is not None
        while True:
            await asyncio.sleep(_NODES_INTERVAL_S)
            try:
                specs, notes = await asyncio.to_thread(self._slots.look)
            except Exception:
                logger.warning("the cluster cannot be asked for new nodes", exc_info=True)
                continue
            for note in notes:
                logger.warning("%s", note)
            for spec in specs:
                self._actors.expect(spec)
                self.ledger.expect(spec.id, spec.device.id)
                self._care.seek(spec.id)

    async def _welcome(self, actors: Actors, session: Session) -> None:
        def record() -> None:
            infos = list(actors.infos.values())
            self.ledger.meet(infos)
            write_record(session.folder, infos, self._host.url)

        self._lending = Lending(actors, self._dispatch, self._conductor.handle)
        self._care = Care(actors, self._dispatch, self._loop, self._conductor.handle_lost, record)
        record()
        for worker_id in actors.infos:
            self._care.begin(worker_id)
            self._conductor.handle(WorkerJoined(worker_id=worker_id))
        await self._care.seek_all()
        if self._slots is not None:
            self._loop.spawn(self._watch_cluster())
        self._ready.set_result(None)

    def _add(self, remote: Remote) -> None:
        assert self._actors is not None and self._care is not None and self._session is not None
        known = remote.name in self._actors.ids
        for spec in remote_specs([remote], self._host, self._session.folder):
            self._actors.expect(spec)
            self.ledger.expect(spec.id, remote.url)
            if known:
                self._care.hurry(spec.id)
            else:
                self._care.seek(spec.id)

    async def _lend(self, worker_ids: list[str], prompt_of: Callable[[str], Prompt]) -> list[Loan]:
        assert self._lending is not None
        return await self._lending.lend(worker_ids, prompt_of)

    async def _has_idle(self) -> bool:
        workers = self._actors.infos if self._actors else ()
        return any(self._dispatch.state_of(worker_id) == "idle" for worker_id in workers)

    async def _check(self, prompt: Prompt) -> list[Problem]:
        assert self._actors is not None
        return await self._actors.check(prompt)
