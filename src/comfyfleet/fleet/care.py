"""Care of the workers: notice that one is gone, start it again, and do what the owner asks.

Public methods may be called from any thread and return at once, but for what is said otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from comfyfleet.errors import WorkerStartError
from comfyfleet.fleet.logs import rotate_open
from comfyfleet.fleet.loop import Loop
from comfyfleet.work import (
    Dispatch,
    Event,
    RunCancelled,
    WorkerHealed,
    WorkerInfo,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)

if TYPE_CHECKING:
    from comfyfleet.fleet.actors import Actors

logger = logging.getLogger(__name__)

#: Seconds before a lost worker is started again: the first time at once, as it is mostly an
#: accident; a worker that goes on dying gets ever longer pauses, and is given up in the end.
BACK_OFF_S = (0.0, 2.0, 10.0, 30.0, 60.0)
#: How often the logs of running workers are looked at.
_LOG_INTERVAL_S = 60.0
#: Runs wait for a worker elsewhere that was lost while it is asked so often; then they go on.
_REMOTE_TRIES = 3
#: A worker that lived for so long starts from the beginning of these.
_STEADY_S = 600.0
#: How often a worker that has something in hand is asked whether it is there. It answers from a
#: thread of its own; an idle one is not asked, as nobody waits for it.
_PULSE_S = 5.0
#: A process that was stopped (SIGSTOP) computes nothing; one that goes on soon is left alone.
_STOPPED_PATIENCE_S = 15.0
#: One that runs may hold Python's lock, in a single call that loads a large file. Meanwhile
#: dispatch starts what is late elsewhere.
_SILENT_PATIENCE_S = 300.0


class Care:
    """Watches the workers of one fleet."""

    def __init__(
        self,
        actors: Actors,
        dispatch: Dispatch,
        loop: Loop,
        handle: Callable[[Event], None],
        record: Callable[[], None],
    ) -> None:
        """``handle`` gets what happens to workers; ``record`` is called when others are there."""
        self._actors = actors
        self._dispatch = dispatch
        self._loop = loop
        self._handle = handle
        self._record = record
        #: Worker id -> losses in a row, and since when it lives.
        self._losses: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._given_up: dict[str, str] = {}
        #: Worker id -> why it was killed, until its death is noticed.
        self._killed: dict[str, str] = {}
        #: Worker id -> what ends its wait before the next start; set meanwhile, there is none.
        self._urgent: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        #: Workers that the owner restarts: what was before is forgiven.
        self._asked: set[str] = set()
        #: Workers elsewhere that are not there, and why.
        self._missing: dict[str, str] = {}
        loop.spawn(self._tend_logs())

    async def seek_all(self) -> None:
        """Look for all workers elsewhere; without others, wait until each has been asked once.

        Raises WorkerStartError if there is nobody at all.
        """
        remotes = self._actors.remote_ids
        asked = [self.seek(worker_id) for worker_id in remotes]
        if not self._actors.infos and remotes:
            await asyncio.gather(*(event.wait() for event in asked))
            if not self._actors.infos:
                missing = "\n".join(self._missing.values())
                raise WorkerStartError(f"no worker can be used:\n{missing}")

    @property
    def worker_ids(self) -> list[str]:
        """All workers that the fleet was made with."""
        return self._actors.ids

    @property
    def hopeful(self) -> bool:
        """True while a worker is there or will be."""
        return len(self._given_up) < len(self._actors.ids)

    def seek(self, worker_id: str) -> asyncio.Event:
        """Look for a worker elsewhere from now on; set once it has been asked."""
        asked = asyncio.Event()
        self._loop.spawn(self._seek(worker_id, asked))
        return asked

    def hurry(self, worker_id: str) -> None:
        """It should be there now: ask it at once, and not after a pause."""
        self._urgent[worker_id].set()

    # What the owner asks.

    def pause(self, worker_id: str, reason: str = "switched off by its owner") -> None:
        """Give it nothing new; what it has in hand is finished."""
        self._loop.post(self._handle, WorkerPaused(worker_id=worker_id, reason=reason))

    def resume(self, worker_id: str) -> None:
        """Let it work again, also if it was quarantined."""
        self._loop.post(self._handle, WorkerResumed(worker_id=worker_id))
        self._loop.post(self._handle, WorkerHealed(worker_id=worker_id))

    def restart(self, worker_id: str) -> None:
        """End its process and start it anew; what it has in hand is run elsewhere, or again.

        One that waits for its next start, or was given up, is started at once.
        """
        self._loop.post(self._restart, worker_id)

    def interrupt(self, worker_id: str) -> None:
        """Stop what it has in hand as a failure of this attempt's run: its run is cancelled."""
        self._loop.post(self._interrupt, worker_id)

    def free(self, request: dict[str, Any], worker_id: str | None = None) -> None:
        """Let one or all workers unload models or free memory, as ComfyUI's /free."""
        self._loop.post(self._loop.spawn, self._actors.free(request, worker_id))

    def ask_memory(self) -> dict[str, tuple[int, int]]:
        """Free and total bytes of the workers' devices, of those that answer within a second.

        Waits for them. Raises FleetError if the fleet has ended.
        """
        return self._loop.wait_for(self._memory())

    def log_elsewhere(self, worker_id: str, lines: int) -> list[str] | None:
        """The last lines of a log on a node of a cluster; None if it is not there to be read.

        Waits for them. Raises FleetError if the fleet has ended.
        """
        return self._loop.wait_for(self._actors.log(worker_id, lines))

    # On the loop.

    async def _memory(self) -> dict[str, tuple[int, int]]:
        names = list(self._actors.infos)
        answers = await asyncio.gather(*map(self._actors.memory, names))
        found = zip(names, answers, strict=True)
        return {name: answer for name, answer in found if answer is not None}

    async def _tend_logs(self) -> None:
        """Keep the logs of running workers from growing for ever."""
        while True:
            await asyncio.sleep(_LOG_INTERVAL_S)
            for info in [each for each in self._actors.infos.values() if not each.host]:
                try:
                    await asyncio.to_thread(rotate_open, Path(info.log_file))
                except OSError:
                    logger.warning("log %s cannot be rotated", info.log_file, exc_info=True)

    def begin(self, worker_id: str) -> None:
        """Watch a worker that has just come up."""
        self._since[worker_id] = self._loop.time()
        self._loop.spawn(self._watch(worker_id))
        self._loop.spawn(self._feel(self._actors.infos[worker_id]))

    async def _watch(self, worker_id: str) -> None:
        reason = await self._actors.lost(worker_id)
        reason = self._killed.pop(worker_id, reason)
        self._record()
        if self._loop.time() - self._since[worker_id] > _STEADY_S:
            self._losses[worker_id] = 0
        await self._revive(worker_id, reason)

    async def _feel(self, worker: WorkerInfo) -> None:
        """Kill the worker once it has something in hand and does not answer any more."""
        while self._actors.infos.get(worker.id) is worker:
            await asyncio.sleep(_PULSE_S)
            why = await self._silence_of(worker) if self._has_work(worker.id) else ""
            if why:
                self._killed[worker.id] = why
                self._actors.kill(worker)
                return

    def _has_work(self, worker_id: str) -> bool:
        known = worker_id in self._dispatch.workers
        return known and self._dispatch.state_of(worker_id) in ("busy", "lent", "stuck")

    async def _silence_of(self, worker: WorkerInfo) -> str:
        """Ask how the worker is: empty once it answers, else why it never will."""
        answer = asyncio.ensure_future(self._actors.state(worker.id))
        begun = self._loop.time()
        while not (await asyncio.wait({answer}, timeout=_PULSE_S))[0]:
            silent_s = self._loop.time() - begun
            stopped = _is_stopped(worker)
            if silent_s >= (_STOPPED_PATIENCE_S if stopped else _SILENT_PATIENCE_S):
                answer.cancel()
                state = "its process was stopped and" if stopped else "it"
                return f"{state} did not answer for {silent_s:.0f} s"
        await answer
        return ""

    async def _revive(self, worker_id: str, reason: str) -> None:
        """Start a lost worker again, after a pause each time, until it comes or is given up."""
        limit = _REMOTE_TRIES if self._actors.is_remote(worker_id) else len(BACK_OFF_S)
        while (num := self._losses.get(worker_id, 0)) < limit:
            self._losses[worker_id] = num + 1
            self._handle(WorkerLost(worker_id=worker_id, reason=reason, returns=True))
            await self._pause_before(worker_id, BACK_OFF_S[num])
            try:
                await self._actors.restart(worker_id)
            except WorkerStartError as error:
                reason = str(error)
                continue
            self._admit(worker_id)
            return
        self._handle(WorkerLost(worker_id=worker_id, reason=reason))
        if self._actors.is_remote(worker_id):
            await self._seek(worker_id, asyncio.Event())
        else:
            self._given_up[worker_id] = reason

    async def _seek(self, worker_id: str, asked: asyncio.Event) -> None:
        """Ask for a worker elsewhere until it is there: nobody waits for it, and it may come."""
        for num in itertools.count():
            try:
                await self._actors.restart(worker_id)
                break
            except WorkerStartError as error:
                reason = self._missing[worker_id] = str(error)
            asked.set()
            self._handle(WorkerLost(worker_id=worker_id, reason=reason, returns=True))
            await self._pause_before(worker_id, BACK_OFF_S[min(num + 1, len(BACK_OFF_S) - 1)])
        self._missing.pop(worker_id, None)
        self._losses[worker_id] = 0
        self._admit(worker_id)
        asked.set()

    def _admit(self, worker_id: str) -> None:
        self._urgent[worker_id].clear()
        self._record()
        self.begin(worker_id)
        self._handle(WorkerJoined(worker_id=worker_id))
        if worker_id in self._asked:
            self._asked.discard(worker_id)
            self._handle(WorkerHealed(worker_id=worker_id))

    async def _pause_before(self, worker_id: str, seconds: float) -> None:
        """Wait before a start; not longer than until the owner asks for it."""
        urgent = self._urgent[worker_id]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(urgent.wait(), seconds)
        urgent.clear()

    def _restart(self, worker_id: str) -> None:
        self._losses[worker_id] = 0
        self._asked.add(worker_id)
        info = self._actors.infos.get(worker_id)
        if info is not None:
            self._killed[worker_id] = "its owner restarted it"
            self._actors.kill(info)
        elif worker_id in self._given_up:
            self._loop.spawn(self._revive(worker_id, self._given_up.pop(worker_id)))
        else:
            self._urgent[worker_id].set()

    def _interrupt(self, worker_id: str) -> None:
        if worker_id in self._dispatch.workers:
            unit = self._dispatch.find_unit_on(worker_id)
            if unit is not None:
                reason = f"interrupted on worker {worker_id}"
                self._handle(RunCancelled(run_id=unit.run_id, reason=reason))


def _is_stopped(worker: WorkerInfo) -> bool:
    if worker.host:
        return False  # its process is not one of ours
    try:
        return psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False  # it has ended, and that is noticed elsewhere
