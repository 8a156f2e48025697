"""The workers as Ray sees them: start, call, and learn of their death. All on the fleet's loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from comfyfleet.client.greeting import clock_note
from comfyfleet.errors import (
    FleetError,
    InputError,
    Problem,
    Unfit,
    Unreachable,
    WorkerStartError,
)
from comfyfleet.fleet.cluster_worker import NodeSpec, NodeWorker, node_addresses
from comfyfleet.fleet.remote import RemoteSpec, RemoteWorker
from comfyfleet.fleet.spec import WorkerSpec
from comfyfleet.fleet.supplies import Supplies
from comfyfleet.fleet.worker import Worker, log_tail
from comfyfleet.work import Failure, Happening, Prompt, Unit, WorkerInfo

logger = logging.getLogger(__name__)

#: A worker that has not answered by then will not: measured starts take 5 to 12 seconds, packs
#: with models of their own can take a minute.
_START_TIMEOUT_S = 180.0

#: Who looks at the fleet waits for it; a worker that loads a model may be late.
_MEMORY_TIMEOUT_S = 1.0
#: A log of thousands of lines, over a slow link.
_LOG_TIMEOUT_S = 10.0

#: Each kind of call has threads of its own: ``run`` and ``wait`` are busy for as long as they last.
_ACTOR_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": 0,
    "max_concurrency": 1,
    "concurrency_groups": {"run": 1, "watch": 1, "control": 2, "pulse": 1},
}

#: What a worker is started with: on this machine, at an address, on a node of a cluster.
AnySpec: TypeAlias = WorkerSpec | RemoteSpec | NodeSpec

_GONE = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError)


class Actors:
    """One Ray actor for each spec, by worker id."""

    def __init__(self, specs: Sequence[AnySpec], folders: Mapping[str, Path] | None = None) -> None:
        """``folders``: the owner's, in which prompts name files."""
        self._specs = {spec.id: spec for spec in specs}
        self.infos: dict[str, WorkerInfo] = {}
        self._handles: dict[str, Any] = {}
        #: Worker id -> its node classes.
        self._classes: dict[str, frozenset[str]] = {}
        #: Run -> where each of its values lies, or will lie, in the object store.
        self._stored: dict[str, dict[str, asyncio.Future[Any]]] = {}
        self._supplies = Supplies(folders or {})
        #: Workers and units whose values are being stored; an interrupted one is taken out.
        self._storing: set[tuple[str, str]] = set()

    @property
    def ids(self) -> list[str]:
        """All workers, alive or not, in their order."""
        return list(self._specs)

    @property
    def node_classes(self) -> frozenset[str]:
        """What every worker of this machine has, and what one elsewhere has besides."""
        own = [known for each, known in self._classes.items() if not self.is_remote(each)]
        others = [known for each, known in self._classes.items() if self.is_remote(each)]
        return (frozenset.intersection(*own) if own else frozenset()).union(*others)

    def is_remote(self, worker_id: str) -> bool:
        """Is it on a machine that may be away now, and come?"""
        return not isinstance(self._specs[worker_id], WorkerSpec)

    def expect(self, spec: AnySpec) -> None:
        """A further worker, or another way to one that is known; ``restart`` starts it."""
        self._specs[spec.id] = spec

    @property
    def remote_ids(self) -> list[str]:
        """Those elsewhere, in their order."""
        return [name for name in self._specs if self.is_remote(name)]

    async def start(self) -> None:
        """Start all of this machine at once. Raises WorkerStartError for the first that fails."""
        own = [name for name in self._specs if not self.is_remote(name)]
        for started in asyncio.as_completed([self.restart(name) for name in own]):
            await started
        self.infos = {name: self.infos[name] for name in own}

    async def restart(self, worker_id: str) -> None:
        """Start one that is not here. Raises WorkerStartError if it does not come up."""
        spec = self._specs[worker_id]
        way = spec.endpoint.socket if isinstance(spec, RemoteSpec) else None
        if way is not None and not way.exists():
            raise WorkerStartError(f"worker {worker_id} has left; it dials in by itself.")
        self._handles[worker_id] = _create(self._specs[worker_id])
        info = await self._started(worker_id)
        try:
            self._classes[worker_id] = frozenset(await self._call(worker_id, "node_classes"))
            if isinstance(spec, NodeSpec):
                info = await self._with_clock(info)
        except _GONE as error:
            why = f"its process ended: {_first_line(error)}"
            raise WorkerStartError(_why_not_started(self._specs[worker_id], why)) from None
        self.infos[worker_id] = info

    async def _started(self, worker_id: str) -> WorkerInfo:
        try:
            answer = await asyncio.wait_for(self._call(worker_id, "info"), _START_TIMEOUT_S)
        except asyncio.TimeoutError:
            answer = Failure(message=f"no answer after {_START_TIMEOUT_S:.0f} s")
        except ray.exceptions.RayError as error:
            answer = Failure(message=f"its process ended: {error}")
        if isinstance(answer, WorkerInfo):
            return answer
        ray.kill(self._handles[worker_id])
        raise WorkerStartError(_why_not_started(self._specs[worker_id], answer.message))

    async def _with_clock(self, info: WorkerInfo) -> WorkerInfo:
        """With a note if the clock of its node is far off: it answers within a second."""
        off_by_s = await self._call(info.id, "clock") - time.time()
        return replace(info, note="; ".join(filter(None, (info.note, clock_note(off_by_s)))))

    async def check(self, prompt: Prompt) -> list[Problem]:
        """What is wrong with a prompt, unless a live worker finds nothing wrong with it."""
        found: list[list[Problem]] = []
        for worker_id in list(self.infos):
            try:
                found.append(await self._check(worker_id, prompt))
            except _GONE:
                continue
            if not found[-1]:
                return []
            if not self.is_remote(worker_id):
                break  # all of this machine say the same
        if not found:
            raise FleetError("no worker is alive to check the workflow.")
        return found[0]

    async def _check(self, worker_id: str, prompt: Prompt) -> list[Problem]:
        try:
            ready = await self._supplied(worker_id, prompt)
        except InputError as error:
            return [Problem(message=str(error))]
        problems: list[Problem] = await self._call(worker_id, "check", "control", ready)
        return problems

    async def run(
        self, worker_id: str, unit: Unit, *, free_first: bool = False
    ) -> AsyncIterator[Happening]:
        """An attempt: progress, then one Failure or Result; nothing more if the worker dies."""
        method = self._handles[worker_id].run.options(concurrency_group="run")
        try:
            self._storing.add((worker_id, unit.id))
            stored = await self._store(unit)
            prompt = await self._supplied(worker_id, unit.prompt, unit.id)
            if (worker_id, unit.id) not in self._storing:
                yield Failure(message="interrupted before it began")
                return
            self._storing.remove((worker_id, unit.id))
            bare = replace(unit, prompt=prompt, values={})
            async for item in method.remote(bare, stored, free_first=free_first):
                yield await item
        except InputError as error:
            yield Failure(message=str(error), kind="unfit" if isinstance(error, Unfit) else "error")
        except _GONE:
            return  # ``lost`` tells of it
        except ray.exceptions.RayError as error:
            yield Failure(message=f"the result did not arrive: {error}")
        finally:
            self._storing.discard((worker_id, unit.id))

    async def _supplied(self, worker_id: str, prompt: Prompt, unit_id: str = "") -> Prompt:
        """A prompt as it can run there: nodes of a cluster are asked, and sent its files.

        Raises Unfit with what is missing there.
        """
        if not isinstance(self._specs[worker_id], NodeSpec):
            return prompt
        key = (worker_id, unit_id)
        return await self._supplies.send(
            worker_id,
            prompt,
            lambda method, *args: self._call(worker_id, method, "control", *args),
            wanted=lambda: not unit_id or key in self._storing,
        )

    async def _store(self, unit: Unit) -> dict[str, Any]:
        """Where a unit's values lie: each is put into the object store once for all units."""
        stored = self._stored.setdefault(unit.run_id, {}) if unit.values else {}
        for digest, packed in unit.values.items():
            if digest not in stored:
                stored[digest] = asyncio.ensure_future(asyncio.to_thread(ray.put, packed))
        # Named before the first wait: another attempt may end meanwhile, and ``let_go``.
        places = {digest: stored[digest] for digest in unit.values}
        return {digest: await place for digest, place in places.items()}

    def forget(self, run_id: str) -> None:
        """Let go of the values of a run that has ended."""
        self._stored.pop(run_id, None)

    def let_go(self, unit: Unit) -> None:
        """Keep no longer what only this unit needed."""
        stored = self._stored.get(unit.run_id, {})
        for digest in unit.own:
            stored.pop(digest, None)

    async def interrupt(self, worker_id: str, unit_id: str) -> None:
        """Stop the unit if it still runs there."""
        if (worker_id, unit_id) in self._storing:
            self._storing.remove((worker_id, unit_id))
            return  # so it is not sent any more
        try:
            await self._call(worker_id, "interrupt", "control", unit_id)
        except _GONE:
            return  # what is dead runs nothing; ``lost`` tells of it
        except ray.exceptions.RayError:
            # Its ComfyUI did not answer in time. Dispatch calls it stuck if it goes on so.
            logger.warning("worker %s was not interrupted", worker_id, exc_info=True)

    async def free(self, request: dict[str, Any], only: str | None = None) -> None:
        """Pass a request for ComfyUI's /free on to all workers, or to one."""
        for worker_id in [name for name in self.infos if only in (None, name)]:
            try:
                await self._call(worker_id, "free", "control", request)
            except _GONE:
                continue  # the dead hold no memory
            except ray.exceptions.RayError:
                logger.warning("worker %s did not free its memory", worker_id, exc_info=True)

    async def state(self, worker_id: str) -> str:
        """What the worker says it does just now; empty when it is gone."""
        try:
            text: str = await self._call(worker_id, "state", "pulse")
        except _GONE:
            return ""
        return text

    async def memory(self, worker_id: str) -> tuple[int, int] | None:
        """Free and total bytes of the worker's device; None if it does not answer soon."""
        try:
            call = self._call(worker_id, "memory", "pulse")
            found: tuple[int, int] = await asyncio.wait_for(call, _MEMORY_TIMEOUT_S)
        except (asyncio.TimeoutError, ray.exceptions.RayError):
            return None
        return found

    async def log(self, worker_id: str, lines: int) -> list[str] | None:
        """The last lines of a log that lies on a node; None if it is here, or does not answer."""
        if not isinstance(self._specs.get(worker_id), NodeSpec) or worker_id not in self.infos:
            return None
        try:
            call = self._call(worker_id, "log", "control", lines)
            found: list[str] = await asyncio.wait_for(call, _LOG_TIMEOUT_S)
        except (asyncio.TimeoutError, ray.exceptions.RayError):
            return None
        return found

    @property
    def nodes(self) -> dict[str, str]:
        """The living workers on nodes of a cluster, each with its node's address."""
        return node_addresses(list(self._specs.values()), self.infos)

    async def ask(self, worker_id: str, method: str, *args: Any) -> Any:
        """Call a method of a worker on a node. Raises InputError with its Failure, Unreachable."""
        if worker_id not in self.nodes:
            raise Unreachable(worker_id, "it does not run now; see `comfyfleet top`")
        try:
            answer = await self._call(worker_id, method, "control", *args)
        except ray.exceptions.RayError as error:
            raise Unreachable(worker_id, _first_line(error).rstrip(".")) from None
        if isinstance(answer, Failure):
            raise InputError(f"{worker_id}: {answer.message}")
        return answer

    def kill(self, worker: WorkerInfo) -> None:
        """End a worker's process; nothing happens if it has ended already."""
        if worker.host:
            ray.kill(self._handles[worker.id])
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)

    async def lost(self, worker_id: str) -> str:
        """Wait until the worker is no more; why."""
        try:
            reason: str = await self._call(worker_id, "wait", "watch")
            ray.kill(self._handles[worker_id])
        except _GONE as error:
            reason = _first_line(error)
        del self.infos[worker_id]
        return reason

    async def _call(self, worker_id: str, method: str, group: str = "control", *args: Any) -> Any:
        remote = getattr(self._handles[worker_id], method)
        return await remote.options(concurrency_group=group).remote(*args)


def _create(spec: AnySpec) -> Any:
    """Begin to start a worker; those of a cluster's nodes where their device is."""
    if isinstance(spec, NodeSpec):
        return ray.remote(**{**_ACTOR_OPTIONS, **spec.demand})(NodeWorker).remote(spec)
    # In a cluster Ray would take any node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {**_ACTOR_OPTIONS, "scheduling_strategy": here}
    if isinstance(spec, RemoteSpec):
        return ray.remote(**options)(RemoteWorker).remote(spec)
    return ray.remote(**options)(Worker).remote(spec)


def _why_not_started(spec: AnySpec, why: str) -> str:
    if not isinstance(spec, WorkerSpec):
        return f"worker {spec.id} cannot be used: {why}"
    return (
        f"worker {spec.id} ({spec.device.id}) could not start: {why}\n"
        f"The end of its log:\n{log_tail(spec.log_file)}"
    )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
